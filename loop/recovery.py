"""The check that a stored model fits the topic, and the messages that must be learned again.

A task starts only on the topic that its model learned from, at the offsets that the model has
reached. After the store was put back to an older model, the messages between are read from Kafka
and learned first.
"""

import logging
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from learners.learner import Learner, load_learner, new_learner
from loop.batch import Batch
from loop.messages import Format
from loop.model_store import IncompleteError, Meta, ModelStore, Stored, new_model_id
from loop.seen import Seen
from loop.topic_log import TopicLog
from loop.transactions import topic_with_outputs
from settings import Settings

ACCEPT = (
    "To continue with this model from what the topic holds now, run python admin.py model accept."
)

log = logging.getLogger(__name__)


class StopJob(RuntimeError):
    """Only a person can decide how the job continues; a restart would fail the same way.

    The text says why, and what to do.
    """


@dataclass
class Held:
    """The model that a task holds.

    ``stored``: what the task read or committed last, None if the store was empty.
    ``forks``: whether the next commit starts a new model_id, because the store was put back.
    """

    learner: Learner
    seen: Seen
    meta: Meta
    stored: Stored | None
    forks: bool = False


class Recovery:
    """Keeps one task's model and its topic together.

    ``learn_again`` learns a batch with the model that the task holds, and commits it.
    """

    def __init__(
        self,
        settings: Settings,
        message_format: Format,
        store: ModelStore,
        topic_log: TopicLog,
        learn_again: Callable[[Held, Batch], object],
    ) -> None:
        self.settings = settings
        self.format = message_format
        self.store = store
        self.log = topic_log
        self.learn_again = learn_again
        self.last: dict[int, int] = {}  # offset of this task's last message per partition
        # Per partition the offset after the last message that Flink delivered to this task or,
        # before it, to its consumer group.
        self.delivered: dict[int, int] = {}
        # Whether admin.py set the model's offsets, and the model has not learned since.
        self.accepted = False

    # -- the model ---------------------------------------------------------------------------------

    def load(self, before: Held | None) -> Held:
        """Return what the store holds now, or a new model if one is allowed.

        A cleared mark allows a new model, and so does a group that has never committed.
        ``before``: what this task held until now. Raises ``StopJob`` or ``StoreError``.
        """
        stored = self.store.read(with_state=True)
        names = self.settings.learner, self.format.classes, self.format.n_features
        if stored is not None and not stored.cleared:
            if stored.meta.learner != self.settings.learner:
                raise StopJob(
                    f"The stored model was made with LEARNER={stored.meta.learner}, this job has "
                    f"LEARNER={self.settings.learner}: set it back, or start over with "
                    f"python redis_clear.py {self.settings.model_key}."
                )
            stored.estimator()  # raises a clear error if these versions can't read it
            seen, learner_state = Seen.split(stored.state)
            learner = load_learner(*names, stored.model, learner_state)
            return Held(learner, seen, stored.meta, stored, forks=_went_back(before, stored))
        if stored is None:
            self._refuse_emptied_store(before)
        learner = new_learner(*names, self.format.low, self.format.high)
        meta = self._new_meta(stored, before.meta.model_id if before else "")
        return Held(learner, Seen(), meta, stored, before.forks if before else False)

    def _refuse_emptied_store(self, before: Held | None) -> None:
        committed = self.log.committed()
        if committed or (before is not None and before.stored is not None):
            known = (
                f"consumer group {self.settings.kafka_group} has learned from topic "
                f"{self.settings.input_topic} before (next offsets {committed})"
            )
        elif topic := topic_with_outputs(self.settings):
            # Kafka deletes a group that was unused for a week.
            known = f"topic {topic} holds its outputs"
        else:
            return
        raise IncompleteError(
            f"Redis holds no model, but {known}: put the model back from a backup, or start "
            f"over on purpose with python redis_clear.py {self.settings.model_key}."
        )

    def _new_meta(self, mark: Stored | None, held_id: str) -> Meta:
        """Return the meta of a new model.

        It starts at the offsets of the mark or of the group. Without either it starts where the log
        begins.
        """
        topic_id = self.log.topic_id()
        old = mark.meta if mark else Meta()
        committed = self.log.committed()
        starts = {p: committed.get(p, first) for p, (first, _) in self.log.bounds().items()}
        if old.topic_id == topic_id:
            # If the group is ahead of the mark, because the store was put back, those messages
            # belong to the old model.
            starts |= {p: max(start, committed.get(p, 0)) for p, start in old.starts.items()}
        return Meta(
            model_id=new_model_id(max(old.model_id, held_id)),
            parent=f"{old.model_id}:{old.version}" if old.model_id else "",
            learner=self.settings.learner,
            topic_id=topic_id,
            starts=starts,
            progress=dict(starts),
        )

    def start_here(self, held: Held, batch: Batch) -> None:
        """Let a new model start at this batch if the model was cleared while the task ran.

        Earlier batches belong to the old model.
        """
        if held.stored is None or not held.stored.cleared:
            return
        firsts = {partition: int(own[0]) for partition, own in batch.by_partition.items()}
        starts = held.meta.starts | self.delivered | firsts
        held.meta = replace(held.meta, starts=starts, progress=dict(starts))

    # -- the topic ---------------------------------------------------------------------------------

    def check_topic(self, held: Held) -> None:
        """Check that the topic fits the model, and note what the group got before this task.

        The topic fits if the model has learned from it and it still holds the message that was
        learned last. Raises ``StopJob`` if it does not fit.
        """
        topic, topic_id, bounds = self.settings.input_topic, self.log.topic_id(), self.log.bounds()
        meta = held.meta
        if meta.topic_id and topic_id != meta.topic_id:
            raise StopJob(
                f"Topic {topic} was deleted and recreated since the model learned from it. {ACCEPT}"
            )
        for partition in meta.progress:
            self._check_partition(meta, partition, *bounds.get(partition, (0, 0)))
        model_exists = held.stored is not None and not held.stored.cleared
        self.accepted = model_exists and not meta.checksums
        self.delivered = dict(meta.progress)
        if model_exists and not self.accepted:
            for partition, at in self.log.committed().items():
                if partition in bounds:
                    got = min(at, bounds[partition][1])
                    self.delivered[partition] = max(got, meta.progress.get(partition, 0))

    def _check_partition(self, meta: Meta, partition: int, first: int, end: int) -> None:
        place = self._place(partition)
        following = meta.progress[partition]
        if end < following:
            raise StopJob(
                f"{place} ends at offset {end}, but the model has learned up to {following}: the "
                f"log has lost its end. {ACCEPT}"
            )
        if first > following:
            raise StopJob(self._expired(partition, following, first))
        offset, checksum = meta.checksums.get(partition, (-1, 0))
        if offset < first:
            return
        for _, payload in self.log.read(partition, offset, offset + 1):
            if zlib.crc32(payload or b"") != checksum:
                raise StopJob(
                    f"{place} holds another message at offset {offset} than the one that the model "
                    f"learned. {ACCEPT}"
                )

    def _expired(self, partition: int, expected: int, first: int) -> str:
        return (
            f"{self._place(partition)} begins at offset {first}, but the next sample to learn is "
            f"{expected}: retention has deleted {first - expected} messages unread. "
            "To continue without them, run python admin.py model accept."
        )

    def _place(self, partition: int) -> str:
        return f"Topic {self.settings.input_topic} partition {partition}"

    # -- the batches -------------------------------------------------------------------------------

    def refuse_steps_back(self, batch: Batch) -> None:
        """Raise ``StopJob`` unless offsets grow, within the batch and from the batch before."""
        for partition, own in batch.by_partition.items():
            last = self.last.get(partition, -1)
            if own[0] <= last or (np.diff(own) <= 0).any():
                raise StopJob(
                    f"{self._place(partition)} went back to offset {own.min()} after "
                    f"{max(last, int(own.max()))}: was the topic deleted and recreated? "
                    "Submit the job again; it checks the topic and says what to do."
                )

    def note_delivery(self, batch: Batch) -> None:
        """Note the last offset of each partition of a batch that was committed."""
        for partition, own in batch.by_partition.items():
            self.last[partition] = int(own[-1])
            self.delivered[partition] = max(int(own[-1]) + 1, self.delivered.get(partition, 0))

    def catch_up(self, held: Held) -> None:
        """Learn again what Flink delivered before the store was put back, in every partition."""
        for partition, delivered in self.delivered.items():
            progress = held.meta.progress.get(partition, 0)
            if progress < delivered:
                self._fill(held, partition, progress, delivered)
                # Markers or compacted offsets may end the gap; Kafka is not asked for them again.
                self.delivered[partition] = held.meta.progress.get(partition, 0)

    def fill_gaps(self, held: Held, batch: Batch) -> dict[int, int]:
        """Learn the messages between the model's progress and the beginning of the batch.

        Return {partition: the first offset that is missing inside the batch}.

        Flink reads the log in its order. So an offset that is missing between two messages of one
        task was a transaction marker, aborted or compacted. The exception is a log that now begins
        after that offset: retention has deleted it.
        """
        missing = {}
        for partition, offsets in batch.by_partition.items():
            expected = held.meta.progress.get(partition, 0)
            own = offsets[offsets >= expected]
            if not len(own):
                continue
            if own[0] > expected and self.last.get(partition, -2) + 1 != expected:
                self._fill(held, partition, expected, int(own[0]))
                expected = int(own[0])
            if own[-1] - expected >= len(own):
                without_a_gap = expected + np.arange(len(own))
                missing[partition] = expected + int(np.argmax(own != without_a_gap))
        return missing

    def ask_for_beginnings(self, missing: dict[int, int]) -> Callable[[], None]:
        """Ask Kafka where the log begins now, and return a function that checks the answer.

        That function raises ``StopJob`` if the log begins after a missing offset. A batch needs
        this one question at most. Kafka answers while the batch is being learned.
        """
        if not missing:
            return lambda: None
        answer = self.log.ask_for_beginnings(missing)

        def check() -> None:
            for partition, first in answer().items():
                if first > missing[partition]:
                    raise StopJob(self._expired(partition, missing[partition], first))

        return check

    def _fill(self, held: Held, partition: int, start: int, end: int) -> None:
        """Learn the records from ``start`` to before ``end``.

        Raises ``StopJob`` if retention has deleted them, or if they would get no prediction.
        """
        first = self.log.beginnings([partition])[partition]
        if first > start:
            raise StopJob(self._expired(partition, start, first))
        known = False  # whether this gap has its new model_id already
        with closing(self.log.pieces(partition, start, end)) as pieces:
            for records in pieces:
                if self.accepted and partition not in self.last:
                    raise StopJob(
                        f"Flink begins at offset {end} of topic {self.settings.input_topic} "
                        f"partition {partition}, but the model is set to continue from "
                        f"{start}: the messages between would be learned without a prediction. "
                        "Submit the job again without -s."
                    )
                batch = Batch.of_partition(partition, records)
                why = "learning offsets %d to %d of partition %d again: the store was put back"
                log.warning(why, batch.offsets[0], batch.offsets[-1], partition)
                held.forks |= not known
                known = True
                self.learn_again(held, batch)


def _went_back(before: Held | None, stored: Stored) -> bool:
    """Return whether the store was put back: its model is not newer than the one held before."""
    if before is None or before.stored is None:
        return False
    return stored.meta.order <= before.meta.order
