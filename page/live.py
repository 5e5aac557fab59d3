"""The live figures of the page, sent to its clients as server-sent events.

A client gets what is newest when it can take it. What came in between is skipped, so no queue grows
for a slow client. Each event is made once for all clients.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from loop.model_store import Stored
from loop.scores import SamplesPerSecond
from page.history import History, point
from page.newest import NewestSamples
from page.watcher import ModelWatcher
from settings import Settings

MAX_CLIENTS = 12
PAUSE = 0.1  # seconds between two wake-ups of a client
SLOWLY = 1.0  # seconds between two events of a kind that need not be newer
HEARTBEAT = 10.0  # seconds
EXAMPLES = 6  # samples that the weight pictures are measured at, each time others
MEMORY = 0.9  # weight of the earlier measurements in the weight pictures

log = logging.getLogger("page")


class TooManyClientsError(RuntimeError):
    """All places for live clients are taken."""


class Live:
    """Follows the model and serves events to a bounded number of clients."""

    def __init__(self, settings: Settings, watcher: ModelWatcher, samples: NewestSamples) -> None:
        self.settings = settings
        self.watcher = watcher
        self.samples = samples
        self.history = History(settings)
        self.points = 0  # ever added, so that a client knows which it lacks
        self.error: str | None = None
        self._rate = SamplesPerSecond()
        self._last: tuple = ()  # order of the model that the newest point is of
        self._changed = threading.Condition()
        self._changes = 0
        self._weights: tuple[str, np.ndarray] | None = None  # of which model
        self._clients = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._fast = {"model": _Shared(self.model_state, 0)}
        self._slow = {
            "parts": _Shared(self.parts, SLOWLY / 2),
            "scores": _Shared(self.scores, SLOWLY / 2),
            "weights": _Shared(self.weights, SLOWLY / 2),
        }
        watcher.on_change(self._wake)

    def start(self) -> None:
        """Start keeping history in the background."""
        self._thread.start()

    def end(self) -> None:
        """Tell the thread and every client's stream to end, without waiting for them."""
        self._stop.set()

    def stop(self) -> None:
        """End the thread and every client's stream."""
        self.end()
        self._thread.join(timeout=5)

    def rate(self) -> float:
        """Return the samples learned per second over the last ten."""
        return self._rate.value()

    def _wake(self, stored: Stored) -> None:
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._stop.wait(1):
            try:
                self._tick()
                self.error = None
            except Exception as error:
                if self.error is None:
                    log.exception("the live figures could not be updated; retrying every second")
                cause = f"{type(error).__name__}: {error}"
                self.error = f"The live figures can't be updated ({cause})."
            self._notify()

    def _tick(self) -> None:
        self.history.sync()
        stored = self.watcher.current
        if stored is None:
            return
        meta, now = stored.meta, time.time()
        self._rate.add(now, meta.model_id, meta.samples)
        if meta.order != self._last:
            self._last = meta.order
            self.history.add(point(stored, now, self.rate()))
            self.points += 1
            self._measure(stored)

    def _measure(self, stored: Stored) -> None:
        """Update the weight pictures while somebody watches."""
        samples = list(self.samples.samples)[-EXAMPLES:]
        if not self._clients or not samples:
            return
        examples = np.array([sample["x"] for sample in samples], dtype=np.float64)
        new = weight_pictures(stored.estimator(), examples)
        model_id = stored.meta.model_id
        if new is None:
            self._weights = None
        elif self._weights is None or self._weights[0] != model_id:
            self._weights = model_id, new
        else:
            self._weights = model_id, MEMORY * self._weights[1] + (1 - MEMORY) * new

    def parts(self) -> dict[str, str]:
        """Return each component that the page needs with "up" or a sentence on its problem.

        Other current problems follow, each under another name.
        """
        stored = self.watcher.current
        model = f"version {stored.meta.version}" if stored else "There is no model yet."
        found = {
            "redis": self.watcher.error or "up",
            "kafka": self.samples.error or "up",
            "model": model,
        }
        problems = {
            "samples": self.samples.foreign,
            "history": self.history.error,
            "live": self.error,
        }
        return found | {name: problem for name, problem in problems.items() if problem}

    def enter(self) -> None:
        """Take a place among the clients, to be given back by ``leave``.

        Raises ``TooManyClientsError``.
        """
        with self._changed:
            if self._clients >= MAX_CLIENTS:
                raise TooManyClientsError(
                    f"{MAX_CLIENTS} pages are already watching; close one and reload."
                )
            self._clients += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._clients -= 1

    def events(self, gone: Callable[[], bool] = lambda: False) -> Iterator[bytes]:
        """Yield server-sent events until the page ends or the client has disconnected.

        ``gone`` says whether it has; it is asked at least once a second.
        """
        client = _Client()
        yield b"retry: 1000\n\n"
        while not (self._stop.is_set() or gone()):
            changes = self._changes
            yield from client.frame(self)
            time.sleep(PAUSE)
            self._wait_for_change(changes)

    def _wait_for_change(self, changes: int) -> None:
        """Return at once if something has changed since ``changes``, and within a second if not."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != changes, timeout=1)

    def events_due(self, slow: bool) -> Iterator[tuple[str, bytes]]:
        """Yield the name and data of each event of which there is one state, not a sequence."""
        for kind, shared in (self._fast | self._slow if slow else self._fast).items():
            yield kind, shared.at(self._changes)

    def model_state(self) -> dict:
        """Return the model's state with its samples per second."""
        stored = self.watcher.current
        if stored is None:
            return {"version": None}
        return model_state(stored) | {"rate": round(self.rate(), 1)}

    def scores(self) -> dict:
        """Return the confusion matrix, and the predicted and right drawings of people."""
        stored = self.watcher.current
        if stored is None:
            return {}
        counted = stored.meta.scores
        return {"confusion": counted.confusion, "people": counted.by_source.get("page", [0, 0])}

    def weights(self) -> list[list[int]]:
        """Return the ten weight pictures, or an empty list where a model has none.

        Each is 64 numbers in -100..100, in percent of its own strongest.
        """
        if self._weights is None:
            return []
        pictures = self._weights[1]
        strongest = np.maximum(np.abs(pictures).max(axis=1, keepdims=True), 1e-12)
        return np.rint(100 * pictures / strongest).astype(int).tolist()


class _Shared:
    """The data of one event, made once for all clients.

    It is made again after a change, but not within ``seconds``.
    """

    def __init__(self, make: Callable[[], object], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = threading.Lock()
        self._changes = -1
        self._made_at = 0.0
        self._data = b""

    def at(self, changes: int) -> bytes:
        """Return the data as JSON, no older than the change with this number."""
        with self._lock:
            now = time.monotonic()
            if self._changes != changes and now - self._made_at >= self._seconds:
                self._data = orjson.dumps(self._make())
                self._changes = changes
                self._made_at = now
            return self._data


class _Client:
    """What one client was sent, and so what it lacks."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}
        self.sample = 0  # number of the newest sample
        self.points = -1  # of history, counted like ``Live.points``
        self.has_earlier = False  # whether it has the points of an earlier page, too
        self.slow_at = 0.0
        self.beat_at = 0.0

    def frame(self, live: Live) -> Iterator[bytes]:
        """Yield one piece with all that is new, or nothing."""
        events = [*self._changed(live), *self._added(live)]
        now = time.monotonic()
        if not events and now - self.beat_at < HEARTBEAT:
            return
        self.beat_at = now
        if events:
            yield b"".join(b"event: %b\ndata: %b\n\n" % event for event in events)
        else:
            yield b"event: beat\ndata: {}\n\n"

    def _changed(self, live: Live) -> Iterator[tuple[bytes, bytes]]:
        now = time.monotonic()
        slow = now - self.slow_at >= SLOWLY
        if slow:
            self.slow_at = now
        for kind, data in live.events_due(slow):
            if self.sent.get(kind) != data:
                self.sent[kind] = data
                yield kind.encode(), data

    def _added(self, live: Live) -> Iterator[tuple[bytes, bytes]]:
        newest = live.samples.after(self.sample)
        if newest:
            self.sample = newest[-1]["n"]
            yield b"samples", orjson.dumps(newest)
        added = live.points
        if self.has_earlier != live.history.loaded or self.points < 0:
            self.has_earlier = live.history.loaded
            yield b"whole_history", orjson.dumps(live.history.points)
        elif added > self.points:
            yield b"history", orjson.dumps(live.history.points[self.points - added :])
        self.points = added


def model_state(stored: Stored) -> dict:
    """Return what the API says about a model."""
    meta = stored.meta
    return {
        "model_id": meta.model_id,
        "version": meta.version,
        "samples": meta.samples,
        "rejected": meta.rejected,
        "progress": {str(partition): offset for partition, offset in meta.progress.items()},
        "accuracy": meta.scores.accuracy,
        "accuracy_100": meta.scores.accuracy_100,
        "accuracy_new": meta.scores.accuracy_new,
        "seen_before": meta.scores.predicted - meta.scores.new_predicted,
        "saved_at": meta.saved_at,
    }


def weight_pictures(estimator: Any, examples: np.ndarray) -> np.ndarray | None:
    """Return how much more ink in each pixel is evidence for each digit, float64 (10, 64).

    This is the slope of the digits' scores, averaged over the ``examples``, float64 (n, 64). For a
    linear model it is the weights themselves. None for a model without scores of ten digits.
    """
    score = getattr(estimator, "decision_function", None)
    if score is None and hasattr(estimator, "predict_proba"):
        score = lambda X: np.log(estimator.predict_proba(X) + 1e-4)  # noqa: E731
    has_ten = np.shape(getattr(estimator, "classes_", ())) == (10,)
    if score is None or not has_ten or getattr(estimator, "n_features_in_", 64) != 64:
        return None
    more = (examples[:, None] + np.eye(64)).reshape(-1, 64)
    less = (examples[:, None] - np.eye(64)).reshape(-1, 64)
    slopes = (score(more) - score(less)).reshape(len(examples), 64, 10).mean(axis=0).T
    return slopes - slopes.mean(axis=0)  # evidence for all digits alike is evidence for none
