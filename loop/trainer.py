"""Learns a stream exactly once: predict, score, learn, and commit model and position together.

Knows the learner, the model store and the topic's log, and nothing of Flink: udf_model.py calls it
for each batch.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import redis

from loop.batch import Batch
from loop.lease import LEASE_MS, Lease
from loop.messages import UNFORESEEN, Parsed, load_format, predictions, reject
from loop.model_store import (
    ConflictError,
    LeaseError,
    Meta,
    ModelStore,
    StoreError,
    new_model_id,
)
from loop.recovery import Held, Recovery, StopJob
from loop.scores import Scores
from loop.seen import Seen
from loop.topic_log import TopicLog
from settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Learned:
    """What became of a batch.

    ``out``: per message, what goes to the predict topic, or to the reject topic where not ``good``.
    ``fresh``: bool per message, whether it was learned or rejected just now rather than earlier.
    ``hits``: bool per fresh good message, right or wrong; empty before there was a model.
    ``labels``: int64 of the fresh good messages. ``new``: bool per fresh good message, whether the
    model had not learned that sample before. ``reasons``: codes of the fresh bad ones.
    """

    out: list[bytes]
    good: np.ndarray
    fresh: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    new: np.ndarray
    reasons: list[str]


@dataclass(frozen=True)
class Samples:
    """The good messages of a batch that are not learned yet, with what the model said about them.

    ``X``: (samples, features). ``y``: int64 (samples,). ``predicted``: int64 (samples,), None
    before there was a model. ``sources``: who sent each, None where that is not known. ``new``: bool
    (samples,), whether the model had not learned the same features before.
    """

    X: np.ndarray
    y: np.ndarray
    predicted: np.ndarray | None
    sources: list[str | None]
    new: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """Return which predictions were right, bool (samples,); empty before there was a model."""
        return np.empty(0, bool) if self.predicted is None else self.predicted == self.y


class Trainer:
    """One task that learns; ``submission`` names its job, the same across restarts."""

    def __init__(self, settings: Settings, submission: str) -> None:
        self.settings = settings
        self.format = load_format(settings.message_format)
        self.store = ModelStore(settings)
        self.log = TopicLog(settings)
        self.lease = Lease(self.store, submission)
        self.recovery = Recovery(settings, self.format, self.store, self.log, self._learn_again)
        self.held: Held
        self.cluster_id = ""

    @property
    def meta(self) -> Meta:
        """Return the meta of the last commit."""
        return self.held.meta

    def open(self) -> None:
        """Take the lease, load the model, and check that it fits the stream.

        Raises ``StopJob`` where it does not. Where this fails, the lease is given back, because
        Flink does not close what was not opened.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            # While Redis is away, the task waits here instead of restarting all the time.
            self.store.patiently(self.lease.take)
            self.lease.keep()
            self.held = self.recovery.load(None)
            self.recovery.check_topic(self.held)
            self.cluster_id = self.log.cluster_id()
            self._on_what_is_there(lambda: self.recovery.catch_up(self.held))
        except (StoreError, ValueError) as error:
            raise StopJob(str(error)) from error
        except redis.AuthenticationError as error:
            raise StopJob(
                f"Redis at {self.settings.redis_host}:{self.settings.redis_port} refuses the "
                "password: set REDIS_PASSWORD where Flink's workers run."
            ) from error

    def close(self) -> None:
        """Give the lease back and close the connections."""
        self.lease.give_back()
        self.log.close()
        self.store.redis.close()

    def learn(
        self, payloads: list[bytes | None], partitions: np.ndarray, offsets: np.ndarray
    ) -> Learned:
        """Learn a batch in its order and return what to send out; on return it is committed.

        ``partitions``, ``offsets``: int64 (messages,). Raises ``StopJob``, or ``AwayError`` where
        Redis takes no commit.
        """
        batch = Batch(payloads, partitions, offsets)
        self.recovery.refuse_steps_back(batch)
        parsed: Parsed | None = None

        def learn() -> Learned:
            nonlocal parsed
            held = self.held
            self.recovery.catch_up(held)
            missing = self.recovery.fill_gaps(held, batch)
            check = self.recovery.ask_for_beginnings(missing)
            parsed = parsed or self.format.parse(batch.payloads)
            return self._step(held, batch, parsed, check)

        def start_here() -> None:
            self.recovery.start_here(self.held, batch)

        learned = self._on_what_is_there(learn, start_here)
        self.recovery.note_delivery(batch)
        return learned

    def _on_what_is_there(
        self, work: Callable[[], T], after: Callable[[], None] = lambda: None
    ) -> T:
        """Return what the work returns.

        Where another has changed the store by then, load it, call ``after``, and do the work again.
        """
        while True:
            try:
                return work()
            except ConflictError as conflict:
                log.warning("%s The batch is learned again on what is there.", conflict)
            except LeaseError as error:
                raise StopJob(str(error)) from error
            try:
                self.held = self.recovery.load(self.held)
            except StoreError as error:
                raise StopJob(str(error)) from error
            after()

    def _learn_again(self, held: Held, batch: Batch) -> None:
        self._step(held, batch, self.format.parse(batch.payloads))

    def _step(
        self,
        held: Held,
        batch: Batch,
        parsed: Parsed,
        check: Callable[[], None] = lambda: None,
    ) -> Learned:
        """Predict, score, learn, ``check`` and commit.

        Every sample is predicted before any of the batch is learned, so that its score is honest.
        ``held`` moves on only with the commit; on ``ConflictError`` it must be loaded again.
        """
        _log_unforeseen(parsed, batch)
        fresh = batch.fresh(held.meta.progress)
        with self._naming(batch):
            predicted = held.learner.predict(parsed.X) if len(parsed.X) else None
        samples = _fresh_samples(parsed, predicted, fresh, held.seen)
        reasons = [error.code for i, error in parsed.reasons.items() if fresh[i]]
        out = _outgoing(batch, parsed, predicted, held.meta.version, fresh)
        learned = Learned(out, parsed.good, fresh, samples.hits, samples.y, samples.new, reasons)
        if not fresh.any():
            return learned
        meta = self._advanced(held, batch, fresh, samples, reasons)
        if len(samples.y):
            with self._naming(batch):
                held.learner.learn(samples.X, samples.y)
        check()
        self._commit(held, meta, changed=len(samples.y) > 0)
        return learned

    def _advanced(
        self, held: Held, batch: Batch, fresh: np.ndarray, samples: Samples, reasons: list[str]
    ) -> Meta:
        """Return the meta with its counts, scores and progress moved over the fresh messages."""
        meta = held.meta
        newest = batch.newest(fresh)
        ends = {p: int(batch.offsets[i]) for p, i in newest.items()}
        checksums = {p: [ends[p], zlib.crc32(batch.payloads[i] or b"")] for p, i in newest.items()}
        return replace(
            meta,
            model_id=new_model_id(meta.model_id) if held.forks else meta.model_id,
            parent=f"{meta.model_id}:{meta.version}" if held.forks else meta.parent,
            version=meta.version + 1,
            samples=meta.samples + len(samples.y),
            rejected=meta.rejected + len(reasons),
            rejected_by_reason=dict(Counter(meta.rejected_by_reason) + Counter(reasons)),
            scores=self._scored(meta.scores, samples),
            progress=meta.progress | {p: end + 1 for p, end in ends.items()},
            starts=dict.fromkeys(ends, 0) | meta.starts,
            checksums=meta.checksums | checksums,
            cluster_id=self.cluster_id,
            cleared_at=0.0,
        )

    def _scored(self, scores: Scores, samples: Samples) -> Scores:
        """Return the scores with these samples counted, unless they were not predicted."""
        if samples.predicted is None:
            return scores
        scores = deepcopy(scores)
        scores.add(samples.y, samples.predicted, samples.sources, samples.new, self.format.classes)
        return scores

    @contextmanager
    def _naming(self, batch: Batch) -> Iterator[None]:
        """Raise ``StopJob`` where the learner fails: it would fail on these samples again."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # an estimator may raise anything
            raise StopJob(
                f"LEARNER {self.settings.learner} fails on the samples of topic "
                f"{self.settings.input_topic} {batch.place(0)} to {batch.place(-1)} "
                f"({type(error).__name__}: {error}): set another LEARNER after "
                f"python redis_clear.py {self.settings.model_key}."
            ) from error

    def _commit(self, held: Held, meta: Meta, changed: bool) -> None:
        before = held.stored
        if changed or before is None or before.cleared:
            model = held.learner.model_bytes()
            state = held.seen.dumps() + held.learner.state_bytes()
        else:
            model, state = before.model, before.state
        held.stored = self.store.commit(before, meta, model, state, self.lease.submission, LEASE_MS)
        held.meta = held.stored.meta
        held.forks = False


def _fresh_samples(
    parsed: Parsed, predicted: np.ndarray | None, fresh: np.ndarray, seen: Seen
) -> Samples:
    """Return the samples to learn, and remember them as seen: each is hashed only once."""
    which = fresh[parsed.good]
    if which.all():  # nearly always: no copy is made
        return Samples(parsed.X, parsed.y, predicted, parsed.sources, seen.add(parsed.X))
    X = parsed.X[which]
    return Samples(
        X,
        parsed.y[which],
        None if predicted is None else predicted[which],
        [parsed.sources[i] for i in np.flatnonzero(which)],
        seen.add(X),
    )


def _outgoing(
    batch: Batch,
    parsed: Parsed,
    predicted: np.ndarray | None,
    version: int,
    fresh: np.ndarray,
) -> list[bytes]:
    """Return each message's JSON for the predict topic, or for the reject topic where it is bad."""
    good = parsed.good
    guesses = [None] * len(parsed.y) if predicted is None else predicted.tolist()
    places = (values[good].tolist() for values in (batch.partitions, batch.offsets, ~fresh))
    out = predictions(parsed.documents, guesses, None if predicted is None else version, *places)
    # Each is inserted where it stood; those before it have their places already.
    for i, error in sorted(parsed.reasons.items()):
        place = int(batch.partitions[i]), int(batch.offsets[i])
        out.insert(i, reject(batch.payloads[i], str(error), *place))
    return out


def _log_unforeseen(parsed: Parsed, batch: Batch) -> None:
    """Log where the parser itself failed, with one stack trace for each reason of a batch."""
    failed = {str(e): (i, e) for i, e in parsed.reasons.items() if e.code == UNFORESEEN}
    for i, error in failed.values():
        log.error(
            "the message at %s is rejected: %s", batch.place(i), error, exc_info=error.__cause__
        )
