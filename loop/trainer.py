"""Learns a stream exactly once: predict, score, learn, and commit the model together with the stream's position.

Knows the learner, the model store and the input topic's log, and nothing of Flink: udf_model.py calls it per batch.
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import redis

from learners.learner import Learner, load_learner, new_learner
from loop.lease import LEASE_MS, Lease
from loop.messages import UNFORESEEN, Parsed, load_format, predictions, reject
from loop.model_store import (
    ConflictError,
    IncompleteError,
    LeaseError,
    Meta,
    ModelStore,
    Stored,
    StoreError,
    new_model_id,
)
from loop.topic_log import TopicLog
from loop.transactions import topic_with_outputs
from settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")


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
        self.log = TopicLog(settings)
        self.lease = Lease(self.store, submission)
        self.meta = Meta()
        self.learner: Learner
        self.stored: Stored | None = None
        self.fork = (
            False  # whether the next commit starts a new model_id, as the store had gone back
        )
        self.cluster_id = ""
        self.last: dict[int, int] = {}  # offset of this task's last message per partition
        # Per partition the offset after the last that this task, or its group before it, was given.
        self.delivered: dict[int, int] = {}
        self.accepted = (
            False  # whether a person gave the model its place and it has learned nothing since
        )

    def open(self) -> None:
        """Take the lease, load the model and check that stream and model fit; raises ``StopJob`` where they do not.

        Where it fails, the lease is given back: Flink does not close what was not opened.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self.store.patiently(
                self.lease.take
            )  # while Redis is away, a restart now and then is enough
            self.lease.keep()
            self._load()
            self._check_topic()
            self.cluster_id = self.log.cluster_id()
            self._on_what_is_there(self._catch_up)
        except (StoreError, ValueError) as error:
            raise StopJob(str(error)) from error
        except redis.AuthenticationError as error:
            raise StopJob(
                f"Redis at {self.settings.redis_host}:{self.settings.redis_port} refuses the password: set "
                "REDIS_PASSWORD where Flink's workers run."
            ) from error

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
                raise StopJob(
                    f"The stored model was made with LEARNER={stored.meta.learner}, this job has LEARNER="
                    f"{self.settings.learner}: set it back, or run python redis_clear.py "
                    f"{self.settings.model_key}."
                )
            stored.estimator()  # says in a sentence what is wrong with it
            self.learner = load_learner(*names, stored.model, stored.state)
            # A model that is not newer than what this task has seen before: the store was put back.
            self.fork = self.stored is not None and stored.meta.order <= self.meta.order
            self.meta = deepcopy(stored.meta)
        else:
            if stored is None:
                self._refuse_emptied_store()
            self.learner = new_learner(*names, self.format.low, self.format.high)
            self.meta = self._new_meta(stored)
        self.stored = stored

    def _refuse_emptied_store(self) -> None:
        committed = self.log.committed()
        if committed or self.stored is not None:
            known = (
                f"consumer group {self.settings.kafka_group} has learned from topic "
                f"{self.settings.input_topic} before (next offsets {committed})"
            )
        elif topic := topic_with_outputs(
            self.settings
        ):  # Kafka forgets a group that was away for a week
            known = f"topic {topic} holds its outputs"
        else:
            return
        raise IncompleteError(
            f"Redis holds no model, but {known}: put the model back from a backup, or start "
            f"over on purpose with python redis_clear.py {self.settings.model_key}."
        )

    def _new_meta(self, mark: Stored | None) -> Meta:
        """Return the meta of a new model, starting where the mark or the group is, else where the log begins."""
        meta = Meta(learner=self.settings.learner, topic_id=self.log.topic_id())
        old = mark.meta if mark else Meta()
        meta.model_id = new_model_id(max(old.model_id, self.meta.model_id))
        meta.parent = f"{old.model_id}:{old.version}" if old.model_id else ""
        committed = self.log.committed()
        meta.starts = {p: committed.get(p, first) for p, (first, _) in self.log.bounds().items()}
        if old.topic_id == meta.topic_id:
            # What the group has got beyond a mark (the store had gone back before) was the old model's.
            meta.starts |= {p: max(start, committed.get(p, 0)) for p, start in old.starts.items()}
        meta.progress = dict(meta.starts)
        return meta

    def _check_topic(self) -> None:
        """Raise ``StopJob`` unless the topic is the one that the model has learned from, with all that it learned.

        Notes what the group has got before this task.
        """
        topic, topic_id, bounds = self.settings.input_topic, self.log.topic_id(), self.log.bounds()
        accept = "To go on with this model from what the topic holds now, run python admin.py model accept."
        if self.meta.topic_id and topic_id != self.meta.topic_id:
            raise StopJob(
                f"Topic {topic} was deleted and made again since the model learned from it. {accept}"
            )
        for partition, following in self.meta.progress.items():
            first, end = bounds.get(partition, (0, 0))
            if end < following:
                raise StopJob(
                    f"Topic {topic} partition {partition} ends at offset {end}, but the model has learned up to "
                    f"{following}: the log has lost its end. {accept}"
                )
            if first > following:
                raise StopJob(self._expired(partition, following, first))
            offset, checksum = self.meta.checksums.get(partition, (-1, 0))
            if offset < first:
                continue
            for _, payload in self.log.read(partition, offset, offset + 1):
                if zlib.crc32(payload or b"") != checksum:
                    raise StopJob(
                        f"Topic {topic} partition {partition} holds another message at offset {offset} than the "
                        f"one that the model learned. {accept}"
                    )
        self.accepted = bool(self.stored and not self.stored.cleared and not self.meta.checksums)
        self.delivered = dict(self.meta.progress)
        if self.stored and not self.stored.cleared and not self.accepted:
            got = {
                p: min(at, bounds[p][1]) for p, at in self.log.committed().items() if p in bounds
            }
            self.delivered |= {p: max(at, self.meta.progress.get(p, 0)) for p, at in got.items()}

    def _expired(self, partition: int, expected: int, first: int) -> str:
        return (
            f"Topic {self.settings.input_topic} partition {partition} begins at offset {first}, but the next sample to "
            f"learn is {expected}: retention has deleted {first - expected} messages unread. To go on without them, run "
            "python admin.py model accept."
        )

    # -- one batch ------------------------------------------------------------------------------------------------------

    def learn(
        self, payloads: list[bytes | None], partitions: np.ndarray, offsets: np.ndarray
    ) -> Learned:
        """Learn a batch in its order and return what to send out; when it returns, the batch is committed.

        ``partitions`` and ``offsets``: int64 (n,). Raises ``StopJob``, or ``AwayError`` where Redis takes no commit.
        """
        self._refuse_steps_back(partitions, offsets)
        parsed: Parsed | None = None

        def learn() -> Learned:
            nonlocal parsed
            self._catch_up()
            check = self._ask_for_beginnings(self._fill_gaps(partitions, offsets))
            parsed = parsed or self.format.parse(payloads)
            return self._step(payloads, parsed, partitions, offsets, check)

        learned = self._on_what_is_there(learn, lambda: self._start_here(partitions, offsets))
        for partition in np.unique(partitions).tolist():
            self.last[partition] = int(offsets[partitions == partition][-1])
            self.delivered[partition] = max(
                self.last[partition] + 1, self.delivered.get(partition, 0)
            )
        return learned

    def _on_what_is_there(
        self, work: Callable[[], T], after: Callable[[], None] = lambda: None
    ) -> T:
        """Return what the work returns.

        Where the store is another by then, load it, call ``after`` and do the work again.
        """
        while True:
            try:
                return work()
            except ConflictError as conflict:
                log.warning("%s The work is done again on what is there.", conflict)
            except LeaseError as error:
                raise StopJob(str(error)) from error
            try:
                self._load()
            except StoreError as error:
                raise StopJob(str(error)) from error
            after()

    def _refuse_steps_back(self, partitions: np.ndarray, offsets: np.ndarray) -> None:
        for partition in np.unique(partitions):
            own = offsets[partitions == partition]
            last = self.last.get(int(partition), -1)
            if own[0] <= last or (np.diff(own) <= 0).any():
                raise StopJob(
                    f"Topic {self.settings.input_topic} partition {partition} went back to offset {own.min()} after "
                    f"{max(last, int(own.max()))}: was it deleted and made again? Submit the job again; it checks "
                    "and says what to do."
                )

    def _start_here(self, partitions: np.ndarray, offsets: np.ndarray) -> None:
        """Let a new model that met its mark in a running task start at this batch: earlier ones were another model's."""
        if self.stored is None or not self.stored.cleared:
            return
        self.meta.starts |= self.delivered
        for partition in np.unique(partitions):
            self.meta.starts[int(partition)] = int(offsets[partitions == partition][0])
        self.meta.progress = dict(self.meta.starts)

    def _catch_up(self) -> None:
        """Learn again, in every partition, what this task or its group had got before the store went back."""
        for partition, delivered in self.delivered.items():
            progress = self.meta.progress.get(partition, 0)
            if progress < delivered:
                self._fill(partition, progress, delivered)
                # At the end may be transaction markers or compacted offsets: not to be asked for again.
                self.delivered[partition] = self.meta.progress.get(partition, 0)

    def _fill_gaps(self, partitions: np.ndarray, offsets: np.ndarray) -> dict[int, int]:
        """Learn, before the batch, what Kafka holds between the model's progress and this task's first message.

        Return the first offset that is missing besides, {partition: offset}.

        Flink reads the log in its order. So an offset that is missing between two messages of one task
        holds no committed record (a transaction marker, aborted, compacted), unless the log now begins
        after it.
        """
        missing = {}
        for partition in np.unique(partitions).tolist():
            own = offsets[partitions == partition]
            expected = self.meta.progress.get(partition, 0)
            own = own[own >= expected]
            if not len(own):
                continue
            if own[0] > expected and self.last.get(partition, -2) + 1 != expected:
                self._fill(partition, expected, int(own[0]))
                expected = int(own[0])
            if own[-1] - expected >= len(own):
                missing[partition] = expected + int(
                    np.argmax(own != expected + np.arange(len(own)))
                )
        return missing

    def _ask_for_beginnings(self, missing: dict[int, int]) -> Callable[[], None]:
        """Ask where the log begins now; return what waits for the answer and raises ``StopJob`` where that is too late.

        The only question about a batch, whatever it lacks; Kafka answers while the batch is worked on.
        """
        if not missing:
            return lambda: None
        answer = self.log.ask_for_beginnings(missing)

        def check() -> None:
            for partition, first in answer().items():
                if first > missing[partition]:
                    raise StopJob(self._expired(partition, missing[partition], first))

        return check

    def _fill(self, partition: int, start: int, end: int) -> None:
        """Learn the records from ``start`` to before ``end``.

        Raises ``StopJob`` where retention has deleted them, or where they have no output.
        """
        first = self.log.beginnings([partition])[partition]
        if first > start:
            raise StopJob(self._expired(partition, start, first))
        known = False  # whether this gap has its new model_id
        with closing(self.log.pieces(partition, start, end)) as pieces:
            for records in pieces:
                if self.accepted and partition not in self.last:
                    raise StopJob(
                        f"Flink begins at offset {end} of topic {self.settings.input_topic} partition "
                        f"{partition}, but the model was told to go on from {start}: the messages between would "
                        "be learned without a prediction. Submit the job again without -s."
                    )
                at = np.array([offset for offset, _ in records])
                why = "learning offsets %d to %d of partition %d again: the store had gone back"
                log.warning(why, at[0], at[-1], partition)
                self.fork |= not known
                known = True
                payloads = [payload for _, payload in records]
                self._step(payloads, self.format.parse(payloads), np.full(len(at), partition), at)

    def _step(
        self,
        payloads: list[bytes | None],
        parsed: Parsed,
        partitions: np.ndarray,
        offsets: np.ndarray,
        check: Callable[[], None] = lambda: None,
    ) -> Learned:
        """Predict, score, learn, ``check`` and commit.

        Raises ``ConflictError`` where the store is not what this task read last.
        """
        _log_unforeseen(parsed, partitions, offsets)
        meta = deepcopy(self.meta)
        found, places = np.unique(partitions, return_inverse=True)
        fresh = offsets >= np.array([meta.progress.get(p, 0) for p in found.tolist()])[places]
        with self._naming(partitions, offsets):
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
            sources = (
                parsed.sources
                if all_new
                else [parsed.sources[i] for i in np.flatnonzero(learn_now)]
            )
            meta.scores.add(y, predicted[learn_now], sources, self.format.classes)
        if len(y):
            with self._naming(partitions, offsets):
                self.learner.learn(X, y)
        _advance(meta, payloads, partitions, offsets, fresh, len(y), reasons)
        if self.fork:
            meta.parent, meta.model_id = (
                f"{meta.model_id}:{meta.version}",
                new_model_id(meta.model_id),
            )
        meta.version += 1
        meta.cluster_id = self.cluster_id
        meta.cleared_at = 0.0
        check()
        self._commit(meta, len(y) > 0)
        return learned

    @contextmanager
    def _naming(self, partitions: np.ndarray, offsets: np.ndarray) -> Iterator[None]:
        """Raise ``StopJob`` where the learner fails: it would fail on these samples again, whatever restarts."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # an estimator may raise anything
            batch = f"partition {partitions[0]} offset {offsets[0]} to partition {partitions[-1]} offset {offsets[-1]}"
            raise StopJob(
                f"LEARNER {self.settings.learner} fails on the samples of topic {self.settings.input_topic} "
                f"{batch} ({type(error).__name__}: {error}): set another LEARNER after python redis_clear.py "
                f"{self.settings.model_key}."
            ) from error

    def _commit(self, meta: Meta, changed: bool) -> None:
        before = self.stored
        if changed or before is None or before.cleared:
            model, state = self.learner.model_bytes(), self.learner.state_bytes()
        else:
            model, state = before.model, before.state
        self.stored = self.store.commit(before, meta, model, state, self.lease.submission, LEASE_MS)
        self.meta, self.fork = meta, False


def _outgoing(
    payloads: list[bytes | None],
    parsed: Parsed,
    predicted: np.ndarray | None,
    version: int | None,
    partitions: np.ndarray,
    offsets: np.ndarray,
    fresh: np.ndarray,
) -> list[bytes]:
    """Return, per message, the JSON for the predict topic, or for the reject topic where it is bad."""
    good = parsed.good
    guesses = [None] * len(parsed.y) if predicted is None else predicted.tolist()
    places = (values[good].tolist() for values in (partitions, offsets, ~fresh))
    out = predictions(parsed.documents, guesses, version, *places)
    # In the order of their places, so that those before stand where they belong already.
    for i, error in sorted(parsed.reasons.items()):
        out.insert(i, reject(payloads[i], str(error), int(partitions[i]), int(offsets[i])))
    return out


def _log_unforeseen(parsed: Parsed, partitions: np.ndarray, offsets: np.ndarray) -> None:
    """Log where the parser itself failed, with one stack trace for each reason of a batch."""
    failed = {str(e): (i, e) for i, e in parsed.reasons.items() if e.code == UNFORESEEN}
    for i, error in failed.values():
        place = f"partition {partitions[i]} offset {offsets[i]}"
        log.error("the message at %s is rejected: %s", place, error, exc_info=error.__cause__)


def _advance(
    meta: Meta,
    payloads: list[bytes | None],
    partitions: np.ndarray,
    offsets: np.ndarray,
    fresh: np.ndarray,
    samples: int,
    reasons: list[str],
) -> None:
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
