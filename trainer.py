"""Learns a stream exactly once: predict, score, learn, and commit the model together with the stream's position.

Knows the learner, the model store and the input topic's log, and nothing of Flink: udf_model.py calls it per batch.
"""

import logging
import zlib
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import redis

from learner import Learner, load_learner, new_learner
from lease import LEASE_MS, Lease
from messages import Parsed, load_format, predictions, reject
from model_store import ConflictError, IncompleteError, LeaseError, Meta, ModelStore, Stored, StoreError, new_model_id
from settings import Settings
from source_log import SourceLog

log = logging.getLogger(__name__)


class StopJob(RuntimeError):
    """The job must not go on by itself; the text says in a sentence why and what to do. A restart ends the same way."""


@dataclass
class Learned:
    """What became of a batch: ``out`` holds, per message, what goes to the predict or (where not ``good``) reject topic.

    ``fresh``: bool per message, whether it was learned or rejected just now rather than earlier. ``hits``: bool per fresh
    good message, right or wrong, empty before there was a model. ``labels``: int64 of the fresh good messages.
    ``reasons``: codes of the fresh bad ones.
    """

    out: list[bytes]
    good: np.ndarray
    fresh: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    reasons: list[str]


class Trainer:
    """One task that learns; ``submission`` names the job that it belongs to, the same across restarts."""

    def __init__(self, settings: Settings, submission: str) -> None:
        self.settings = settings
        self.format = load_format(settings.message_format)
        self.store = ModelStore(settings)
        self.log = SourceLog(settings)
        self.lease = Lease(self.store, submission)
        self.meta = Meta()
        self.learner: Learner
        self.stored: Stored | None = None
        self.fork = False  # whether the next commit starts a new model_id, as the store had gone back
        self.cluster_id = ""
        self.last: dict[int, int] = {}  # offset of this task's last message per partition

    def open(self) -> None:
        """Take the lease, load the model and check that stream and model fit; raises ``StopJob`` where they do not."""
        try:
            self.store.patiently(self.lease.take)  # while Redis is away, a restart now and then is enough
            self.lease.keep()
            self._load()
            self._check_topic()
            self.cluster_id = self.log.cluster_id()
        except (StoreError, ValueError) as error:
            raise StopJob(str(error)) from error
        except redis.AuthenticationError as error:
            raise StopJob(f"Redis at {self.settings.redis_host}:{self.settings.redis_port} refuses the password: set "
                          "REDIS_PASSWORD where Flink's workers run.") from error  # fmt: skip

    def close(self) -> None:
        """Give the lease back and close the connections."""
        self.lease.give_back()
        self.log.close()
        self.store.redis.close()

    # -- the store and the stream at the beginning -----------------------------------------------------------------------

    def _load(self) -> None:
        """Take over what the store holds; a new model is allowed by a cleared mark or where this group never committed."""
        stored = self.store.read(with_state=True)
        names = self.settings.learner, self.format.classes, self.format.n_features
        if stored is not None and not stored.cleared:
            if stored.meta.learner != self.settings.learner:
                raise StopJob(f"The stored model was made with LEARNER={stored.meta.learner}, this job has LEARNER="
                              f"{self.settings.learner}: set it back, or run python redis_clear.py "
                              f"{self.settings.model_key}.")  # fmt: skip
            stored.estimator()  # says in a sentence what is wrong with it
            self.learner = load_learner(*names, stored.model, stored.state)
            # A model that is not newer than what this task has seen before: the store was put back.
            self.fork = self.stored is not None and stored.meta.order <= self.meta.order
            self.meta = deepcopy(stored.meta)
        else:
            if stored is None:
                self._refuse_emptied_store()
            self.learner = new_learner(*names)
            self.meta = self._new_meta(stored)
        self.stored = stored

    def _refuse_emptied_store(self) -> None:
        committed = self.log.committed()
        if committed or self.stored is not None:
            raise IncompleteError(
                f"Redis holds no model, but consumer group {self.settings.kafka_group} has learned from topic "
                f"{self.settings.input_topic} before (next offsets {committed}): put the model back from a backup, or start "
                f"over on purpose with python redis_clear.py {self.settings.model_key}."
            )

    def _new_meta(self, mark: Stored | None) -> Meta:
        """Return the meta of a new model, starting where the mark says, else where the group is, else where the log begins."""
        meta = Meta(learner=self.settings.learner, topic_id=self.log.topic_id())
        old = mark.meta if mark else Meta()
        meta.model_id = new_model_id(max(old.model_id, self.meta.model_id))
        meta.parent = f"{old.model_id}:{old.version}" if old.model_id else ""
        committed = self.log.committed()
        meta.starts = {p: committed.get(p, first) for p, (first, _) in self.log.bounds().items()}
        if old.topic_id == meta.topic_id:
            meta.starts |= old.starts
        meta.progress = dict(meta.starts)
        return meta

    def _check_topic(self) -> None:
        """Raise ``StopJob`` unless the topic is the one that the model has learned from, with all that it learned."""
        topic, topic_id, bounds = self.settings.input_topic, self.log.topic_id(), self.log.bounds()
        accept = "To go on with this model from what the topic holds now, run python model_admin.py accept."
        if self.meta.topic_id and topic_id != self.meta.topic_id:
            raise StopJob(f"Topic {topic} was deleted and made again since the model learned from it. {accept}")
        for partition, following in self.meta.progress.items():
            first, end = bounds.get(partition, (0, 0))
            if end < following:
                raise StopJob(f"Topic {topic} partition {partition} ends at offset {end}, but the model has learned up to "
                              f"{following}: the log has lost its end. {accept}")  # fmt: skip
            if first > following:
                raise StopJob(self._expired(partition, following, first))
            offset, checksum = self.meta.checksums.get(partition, (-1, 0))
            if offset < first:
                continue
            for _, payload in self.log.read(partition, offset, offset + 1):
                if zlib.crc32(payload or b"") != checksum:
                    raise StopJob(f"Topic {topic} partition {partition} holds another message at offset {offset} than the "
                                  f"one that the model learned. {accept}")  # fmt: skip
        behind = {p: at for p, at in self.log.committed().items() if at > self.meta.progress.get(p, 0)}
        if behind and self.stored is not None and not self.stored.cleared:
            log.warning("the stored model is behind the consumer group at %s: the store had gone back", behind)
            self.fork = True

    def _expired(self, partition: int, expected: int, first: int) -> str:
        return (f"Topic {self.settings.input_topic} partition {partition} begins at offset {first}, but the next sample to "
                f"learn is {expected}: retention has deleted {first - expected} messages unread. To go on without them, run "
                "python model_admin.py accept.")  # fmt: skip

    # -- one batch ------------------------------------------------------------------------------------------------------

    def learn(self, payloads: list[bytes | None], partitions: np.ndarray, offsets: np.ndarray) -> Learned:
        """Learn a batch in its order and return what to send out; when it returns, the batch is committed.

        ``partitions`` and ``offsets``: int64 (n,). Raises ``StopJob``, or ``AwayError`` where Redis takes no commit.
        """
        self._refuse_steps_back(partitions, offsets)
        parsed = self.format.parse(payloads)
        while True:
            try:
                self._fill_gaps(partitions, offsets)
                learned = self._step(payloads, parsed, partitions, offsets)
                break
            except ConflictError as conflict:
                log.warning("%s The batch is done again on what is there.", conflict)
                try:
                    self._load()
                except StoreError as error:
                    raise StopJob(str(error)) from error
                self._start_here(partitions, offsets)
            except LeaseError as error:
                raise StopJob(str(error)) from error
        for partition in np.unique(partitions):
            self.last[int(partition)] = int(offsets[partitions == partition][-1])
        return learned

    def _refuse_steps_back(self, partitions: np.ndarray, offsets: np.ndarray) -> None:
        for partition in np.unique(partitions):
            own = offsets[partitions == partition]
            last = self.last.get(int(partition), -1)
            if own[0] <= last or (np.diff(own) <= 0).any():
                raise StopJob(f"Topic {self.settings.input_topic} partition {partition} went back to offset {own.min()} after "
                              f"{max(last, int(own.max()))}: was it deleted and made again? Submit the job again; it checks "
                              "and says what to do.")  # fmt: skip

    def _start_here(self, partitions: np.ndarray, offsets: np.ndarray) -> None:
        """Let a new model that met its mark in a running task start at this batch: earlier ones were another model's."""
        if self.stored is None or not self.stored.cleared:
            return
        self.meta.starts |= {p: last + 1 for p, last in self.last.items()}
        for partition in np.unique(partitions):
            self.meta.starts[int(partition)] = int(offsets[partitions == partition][0])
        self.meta.progress = dict(self.meta.starts)

    def _fill_gaps(self, partitions: np.ndarray, offsets: np.ndarray) -> None:
        """Learn, before the batch, what Kafka holds between the model's progress and the batch's offsets."""
        for partition in np.unique(partitions):
            own = offsets[partitions == partition]
            expected = self.meta.progress.get(int(partition), 0)
            before = np.concatenate([[expected - 1], own[own >= expected]])
            # Offsets missing in the middle of a batch are asked for together: transaction markers leave many.
            if len(before) > 1 and (np.diff(before) > 1).any():
                self._fill(int(partition), expected, set(own.tolist()), int(before[-1]))

    def _fill(self, partition: int, expected: int, known: set[int], last: int) -> None:
        first = self.log.bounds()[partition][0]
        if first > expected and sum(expected <= o < first for o in known) < min(first, last) - expected:
            raise StopJob(self._expired(partition, expected, first))
        start = expected
        while start < last:
            records = self.log.read(partition, start, last)
            missing = [r for r in records if r[0] not in known]
            if missing and any(o < missing[-1][0] for o in known if o >= expected):
                raise StopJob(f"Flink left out offset {missing[-1][0]} of topic {self.settings.input_topic} partition "
                              f"{partition} between messages that it delivered. Submit the job again.")  # fmt: skip
            if missing:
                log.warning("learning offsets %d to %d of partition %d again: the store had gone back", missing[0][0],
                            missing[-1][0], partition)  # fmt: skip
                self.fork = True
                payloads = [payload for _, payload in missing]
                at = np.array([offset for offset, _ in missing])
                self._step(payloads, self.format.parse(payloads), np.full(len(at), partition), at)
            if not records:
                break
            start = records[-1][0] + 1

    def _step(
        self, payloads: list[bytes | None], parsed: Parsed, partitions: np.ndarray, offsets: np.ndarray
    ) -> Learned:
        """Predict, score, learn and commit; raises ``ConflictError`` where the store is not what this task read last."""
        meta = deepcopy(self.meta)
        found, places = np.unique(partitions, return_inverse=True)
        fresh = offsets >= np.array([meta.progress.get(p, 0) for p in found.tolist()])[places]
        predicted = self.learner.predict(parsed.X) if len(parsed.X) else None
        version = meta.version if predicted is not None else None
        out = _outgoing(payloads, parsed, predicted, version, partitions, offsets, fresh)
        learn_now = fresh[parsed.good]
        all_new = bool(learn_now.all())  # nearly always: no copy is made
        X, y = (parsed.X, parsed.y) if all_new else (parsed.X[learn_now], parsed.y[learn_now])
        reasons = [error.code for i, error in parsed.reasons.items() if fresh[i]]
        hits = np.empty(0, bool) if predicted is None else predicted[learn_now] == y
        learned = Learned(out, parsed.good, fresh, hits, y, reasons)
        if not fresh.any():
            return learned
        if predicted is not None:
            sources = parsed.sources if all_new else [parsed.sources[i] for i in np.flatnonzero(learn_now)]
            meta.scores.add(y, predicted[learn_now], sources, self.format.classes)
        if len(y):
            self.learner.learn(X, y)
        _advance(meta, payloads, partitions, offsets, fresh, len(y), reasons)
        if self.fork:
            meta.parent, meta.model_id = f"{meta.model_id}:{meta.version}", new_model_id(meta.model_id)
        meta.version += 1
        meta.cluster_id = self.cluster_id
        meta.cleared_at = 0.0
        self._commit(meta, len(y) > 0)
        return learned

    def _commit(self, meta: Meta, changed: bool) -> None:
        before = self.stored
        if changed or before is None or before.cleared:
            model, state = self.learner.model_bytes(), self.learner.state_bytes()
        else:
            model, state = before.model, before.state
        self.stored = self.store.commit(before, meta, model, state, self.lease.submission, LEASE_MS)
        self.meta, self.fork = meta, False


def _outgoing(payloads: list[bytes | None], parsed: Parsed, predicted: np.ndarray | None, version: int | None,
              partitions: np.ndarray, offsets: np.ndarray, fresh: np.ndarray) -> list[bytes]:  # fmt: skip
    """Return, per message, the JSON for the predict topic, or for the reject topic where it is bad."""
    good = parsed.good
    guesses = [None] * len(parsed.y) if predicted is None else predicted.tolist()
    places = (values[good].tolist() for values in (partitions, offsets, ~fresh))
    out = predictions(parsed.documents, guesses, version, *places)
    # In the order of their places, so that those before stand where they belong already.
    for i, error in sorted(parsed.reasons.items()):
        out.insert(i, reject(payloads[i], str(error), int(partitions[i]), int(offsets[i])))
    return out


def _advance(meta: Meta, payloads: list[bytes | None], partitions: np.ndarray, offsets: np.ndarray, fresh: np.ndarray,
             samples: int, reasons: list[str]) -> None:  # fmt: skip
    """Move counts and progress over the fresh messages of a batch."""
    meta.samples += samples
    meta.rejected += len(reasons)
    for code in reasons:
        meta.rejected_by_reason[code] = meta.rejected_by_reason.get(code, 0) + 1
    for partition in np.unique(partitions[fresh]).tolist():
        last = np.flatnonzero(fresh & (partitions == partition))[-1]
        meta.progress[partition] = int(offsets[last]) + 1
        meta.starts.setdefault(partition, 0)
        meta.checksums[partition] = [int(offsets[last]), zlib.crc32(payloads[last] or b"")]
