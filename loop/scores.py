"""Prequential scores: each sample is predicted, counted here, and only then learned.

Source: Gama, Sebastião, Rodrigues, "On evaluating stream learning algorithms", Machine Learning 90
(2013).
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import orjson

RECENT = 100
RATE_SECONDS = 10  # that samples/s are averaged over


@dataclass
class Scores:
    """How the predictions of one model compare with the labels that came with them.

    ``predicted``, ``right``: counts. ``recent``: the last 100 outcomes, oldest first, "1" right and
    "0" wrong. ``confusion``: counts by (label, prediction). ``by_source``: {source: [predicted,
    right]} of samples that name one. ``new_predicted``, ``new_right``: counts of the samples that
    the model had not learned before.
    """

    predicted: int = 0
    right: int = 0
    recent: str = ""
    confusion: list[list[int]] = field(default_factory=list)
    by_source: dict[str, list[int]] = field(default_factory=dict)
    new_predicted: int = 0
    new_right: int = 0

    @property
    def accuracy(self) -> float | None:
        """Return right / predicted since the model began, None before the first prediction."""
        return self.right / self.predicted if self.predicted else None

    @property
    def accuracy_100(self) -> float | None:
        """Return the share that was right among the last 100 predictions, None before the first."""
        return self.recent.count("1") / len(self.recent) if self.recent else None

    @property
    def accuracy_new(self) -> float | None:
        """Return the share right of the samples never learned before, None before the first."""
        return self.new_right / self.new_predicted if self.new_predicted else None

    def add(
        self,
        labels: np.ndarray,
        predictions: np.ndarray,
        sources: list[str | None],
        new: np.ndarray,
        classes: np.ndarray,
    ) -> None:
        """Count a batch of n samples.

        ``labels``, ``predictions``: int64 (n,), both of ``classes``. ``sources``: n entries.
        ``new``: bool (n,), whether the model had not learned the sample before.
        """
        hits = labels == predictions
        self.predicted += len(labels)
        self.right += int(hits.sum())
        self.new_predicted += int(new.sum())
        self.new_right += int(hits[new].sum())
        outcomes = "".join("1" if hit else "0" for hit in hits[-RECENT:])
        self.recent = (self.recent + outcomes)[-RECENT:]
        places = np.searchsorted(classes, labels), np.searchsorted(classes, predictions)
        self._count_confusion(places, len(classes))
        for source, hit in zip(sources, hits.tolist(), strict=True):
            if source is not None:
                self._count_source(source, hit)

    def _count_confusion(self, places: tuple[np.ndarray, np.ndarray], n_classes: int) -> None:
        empty = np.zeros((n_classes, n_classes))
        confusion = np.array(self.confusion or empty, dtype=np.int64)
        np.add.at(confusion, places, 1)
        self.confusion = confusion.tolist()

    def _count_source(self, source: str, hit: bool) -> None:
        # A client names its source: few names are counted apart, so that the commit stays small.
        if source not in self.by_source and (len(self.by_source) >= 10 or len(source) > 40):
            source = "other"
        counts = self.by_source.setdefault(source, [0, 0])
        counts[0] += 1
        counts[1] += hit

    def dumps(self) -> bytes:
        """Return the scores as JSON."""
        return orjson.dumps(self)

    @classmethod
    def loads(cls, text: bytes) -> "Scores":
        """Return the scores that ``dumps`` wrote."""
        return cls(**orjson.loads(text))


class SamplesPerSecond:
    """Samples that one model learned per second, averaged over the last ten seconds."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()
        self._model_id = ""

    def add(self, now: float, model_id: str, samples: int) -> None:
        """Add a reading; ``now`` in seconds. Another model's earlier readings are dropped."""
        if model_id != self._model_id:
            self._readings.clear()
            self._model_id = model_id
        self._readings.append((now, samples))
        while self._readings[0][0] < now - RATE_SECONDS:
            self._readings.popleft()

    def value(self) -> float:
        """Return the samples per second, 0.0 before the second reading."""
        readings = list(self._readings)
        if len(readings) < 2 or readings[-1][0] <= readings[0][0]:
            return 0.0
        (first, samples_then), (last, samples_now) = readings[0], readings[-1]
        return max(0.0, (samples_now - samples_then) / (last - first))
