"""What the page shows live: the model's state, its history, the newest samples, by server-sent events.

A client gets what is newest when it can take it; what came in between is left out, so no queue grows for a slow one.
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
MIN_PAUSE = 0.05  # seconds between two events of one kind to one client
HEARTBEAT = 10.0  # seconds
EXAMPLES = 6  # samples that the weight pictures are measured at, each time others
MEMORY = 0.9  # of the earlier measurements in them

log = logging.getLogger("page")


class TooManyClientsError(RuntimeError):
    """All places for live clients are taken."""


class Live:
    """Follows the model and serves any number of events to a bounded number of clients."""

    def __init__(self, settings: Settings, watcher: ModelWatcher, samples: NewestSamples) -> None:
        self.settings, self.watcher, self.samples = settings, watcher, samples
        self.history = History(settings)
        self.points = 0  # ever added, so that a client knows which it lacks
        self._rate = SamplesPerSecond()
        self._last: tuple = ()  # order of the model that the newest point is of
        self._changed, self._changes = threading.Condition(), 0
        self._weights: tuple[str, np.ndarray] | None = None  # of which model
        self._clients = 0
        self.error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        watcher.on_change(self._wake)

    def start(self) -> None:
        """Start keeping history in the background."""
        self._thread.start()

    def end(self) -> None:
        """Have the thread and every client's stream end, without waiting for it."""
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
                    log.exception(
                        "what is shown live could not be brought up to date; the next second tries again"
                    )
                self.error = f"The live figures can't be brought up to date ({type(error).__name__}: {error})."
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
        """Bring the weight pictures up to date, while somebody watches."""
        samples = list(self.samples.samples)[-EXAMPLES:]
        if not self._clients or not samples:
            return
        new = weight_pictures(
            stored.estimator(), np.array([sample["x"] for sample in samples], dtype=np.float64)
        )
        if new is None:
            self._weights = None
        elif self._weights is None or self._weights[0] != stored.meta.model_id:
            self._weights = stored.meta.model_id, new
        else:
            self._weights = stored.meta.model_id, MEMORY * self._weights[1] + (1 - MEMORY) * new

    def parts(self) -> dict[str, str]:
        """Return each part that the page needs and "up", or a sentence on what is wrong with it.

        What else is wrong at the moment stands beside them.
        """
        stored = self.watcher.current
        model = f"version {stored.meta.version}" if stored else "There is no model yet."
        found = {
            "redis": self.watcher.error or "up",
            "kafka": self.samples.error or "up",
            "model": model,
        }
        troubles = {
            "samples": self.samples.foreign,
            "history": self.history.error,
            "live": self.error,
        }
        return found | {part: trouble for part, trouble in troubles.items() if trouble}

    def enter(self) -> None:
        """Take a place among the clients, which must ``leave``; raises ``TooManyClientsError``."""
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
        """Yield server-sent events until the page ends or the client is ``gone``, which is asked every second."""
        client = _Client()
        yield b"retry: 1000\n\n"
        while not (self._stop.is_set() or gone()):
            changes = self._changes
            yield from client.frame(self)
            time.sleep(MIN_PAUSE)
            with self._changed:
                self._changed.wait_for(lambda: self._changes != changes, timeout=1)  # noqa: B023 - used at once

    def model_state(self) -> dict:
        """Return what is said of the model at each of its changes."""
        stored = self.watcher.current
        return (
            model_state(stored) | {"rate": round(self.rate(), 1)} if stored else {"version": None}
        )

    def scores(self) -> dict:
        """Return what was counted by digit and for people's drawings."""
        stored = self.watcher.current
        if stored is None:
            return {}
        counted = stored.meta.scores
        return {"confusion": counted.confusion, "people": counted.by_source.get("page", [0, 0])}

    def weights(self) -> list[list[int]]:
        """Return the ten weight pictures, each 64 numbers in -100..100 of its own strongest; empty where none."""
        if self._weights is None:
            return []
        pictures = self._weights[1]
        strongest = np.maximum(np.abs(pictures).max(axis=1, keepdims=True), 1e-12)
        return np.rint(100 * pictures / strongest).astype(int).tolist()


class _Client:
    """What one client was sent, and so what it lacks."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}
        self.sample = 0
        self.points, self.whole = -1, False
        self.slow = self.beat = 0.0

    def frame(self, live: Live) -> Iterator[bytes]:
        """Yield one piece with all that is new, or nothing."""
        events = [*self._changed(live), *self._added(live)]
        now = time.monotonic()
        if not events and now - self.beat < HEARTBEAT:
            return
        self.beat = now
        yield (
            b"".join(b"event: %b\ndata: %b\n\n" % event for event in events)
            or b"event: beat\ndata: {}\n\n"
        )

    def _changed(self, live: Live) -> Iterator[tuple[bytes, bytes]]:
        due: dict[str, Callable[[], object]] = {"model": live.model_state}
        if time.monotonic() - self.slow >= 1:
            self.slow = time.monotonic()
            due |= {"parts": live.parts, "scores": live.scores, "weights": live.weights}
        for kind, make in due.items():
            data = orjson.dumps(make())
            if self.sent.get(kind) != data:
                self.sent[kind] = data
                yield kind.encode(), data

    def _added(self, live: Live) -> Iterator[tuple[bytes, bytes]]:
        newest = live.samples.after(self.sample)
        if newest:
            self.sample = newest[-1]["n"]
            yield b"samples", orjson.dumps(newest)
        added = live.points
        if self.whole != live.history.loaded or self.points < 0:
            self.whole = live.history.loaded
            yield b"whole_history", orjson.dumps(live.history.points)
        elif added > self.points:
            yield b"history", orjson.dumps(live.history.points[self.points - added :])
        self.points = added


def model_state(stored: Stored) -> dict:
    """Return what the API tells of a model."""
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
    """Return how much more ink in each cell speaks for each digit, float64 (10, 64); None where a model doesn't tell.

    The slope of the digits' scores at the ``examples``, float64 (n, 64), averaged: a linear model's weights themselves,
    and for other models what comes nearest to them.
    """
    score = getattr(estimator, "decision_function", None)
    if score is None and hasattr(estimator, "predict_proba"):
        score = lambda X: np.log(estimator.predict_proba(X) + 1e-4)  # noqa: E731
    ten = np.shape(getattr(estimator, "classes_", ())) == (10,)
    if score is None or not ten or getattr(estimator, "n_features_in_", 64) != 64:
        return None
    more = (examples[:, None] + np.eye(64)).reshape(-1, 64)
    less = (examples[:, None] - np.eye(64)).reshape(-1, 64)
    slopes = (score(more) - score(less)).reshape(len(examples), 64, 10).mean(axis=0).T
    return slopes - slopes.mean(axis=0)  # what speaks for all digits alike speaks for none
