"""The function that Flink SQL calls on each batch: it predicts, scores, learns and commits.

A Python ScalarFunction has no Flink state, so one commit in Redis holds the model and its position
in the stream. A message that Flink delivers again is predicted but not learned again
(loop/trainer.py).
"""

import gc
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pyflink.table import DataTypes
from pyflink.table.udf import FunctionContext, ScalarFunction, udf

from learners.repeatable import hold_one_thread
from loop.trainer import Learned, Trainer
from settings import Settings, of_a_job

WINDOW_SECONDS = 10


class OnlineLearner(ScalarFunction):
    """learn(payload, partition, offset) -> ROW(out BYTES, good BOOLEAN), one row per message.

    If ``good`` is true, ``out`` is the message with its prediction for the predict topic.
    Otherwise it is the message for the reject topic. Rows keep the order of the messages.
    """

    def __init__(self, settings: Settings, submission: str) -> None:
        # This object travels with the job, so it holds no secret. The worker reads those in open().
        self.settings, self.submission = settings.public(), submission
        self.trainer: Trainer
        self.metrics: Metrics

    def is_deterministic(self) -> bool:
        """Return False, so that Flink evaluates this exactly once per message."""
        return False

    def open(self, function_context: FunctionContext) -> None:
        """Connect, take the lease and load the model; raises ``StopJob`` if it can't continue."""
        self.trainer = Trainer(of_a_job(self.settings), self.submission)
        self.trainer.open()
        self.metrics = Metrics(function_context.get_metric_group(), self.trainer)
        learn_fast()
        end_bundles_at_once()

    def close(self) -> None:
        """Release the lease."""
        if hasattr(self, "trainer"):
            self.trainer.close()

    def eval(self, payload: pd.Series, partition: pd.Series, offset: pd.Series) -> pd.DataFrame:
        """Learn one Arrow batch, commit the model and return the outputs."""
        learned = self.trainer.learn(
            payload.tolist(), partition.to_numpy(np.int64), offset.to_numpy(np.int64)
        )
        self.metrics.count(learned)
        return pd.DataFrame({"out": pd.Series(learned.out, dtype=object), "good": learned.good})


def learn_fast() -> None:
    """Limit linear algebra to one thread, and run the garbage collector seldom."""
    hold_one_thread()
    # A batch creates and frees thousands of small objects without cycles. By default the collector
    # would run after every 700 of them, and it would also examine the objects of all libraries.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def end_bundles_at_once() -> None:
    """Disable the profiler of the Beam worker that runs this; Flink reads none of its figures.

    The profiler starts a thread for each bundle and waits at the end until that thread's sleep is
    over: 4 ms of 30.
    """
    # Imported here: it is loaded in the worker only.
    from apache_beam.runners.worker import statesampler

    def start(self: statesampler.StateSampler) -> None:
        statesampler.set_current_tracker(self)
        self.started = True

    def stop(self: statesampler.StateSampler) -> None:
        statesampler.set_current_tracker(None)
        self.finished = True

    for method in (start, stop):
        setattr(statesampler.StateSampler, method.__name__, method)


class Metrics:
    """The learner's metrics in Flink, group ``online_ml``.

    Flink's Python gauges are whole numbers, so shares are in 1/10,000.

    ``sample_count``: samples that this task learned.
    ``seen_before``: those of them that the model had learned before.
    ``prediction_acc``: prequential accuracy since the model began.
    ``prediction_acc_new``: the same for samples not seen before.
    ``metric_distribution_y``: labels.
    ``total_10_sec``, ``right_10_sec``: samples predicted, and predicted rightly, in the last 10 s.
    ``model_version``. ``saved_at``: seconds since 1970.
    ``rejected``, ``rejected_<reason>``: messages rejected, in all and for each reason.
    """

    def __init__(self, group: Any, trainer: Trainer) -> None:
        self.group = group.add_group("online_ml")
        self.trainer = trainer
        self.window: deque[tuple[float, int, int]] = deque()
        self.sample_count = self.group.counter("sample_count")
        self.rejected = self.group.counter("rejected")
        self.by_reason: dict[str, Any] = {}
        self.seen_before = self.group.counter("seen_before")
        self.labels = self.group.distribution("metric_distribution_y")
        gauges: dict[str, Callable[[], int]] = {
            "prediction_acc": lambda: round(10_000 * (trainer.meta.scores.accuracy or 0)),
            "prediction_acc_new": lambda: round(10_000 * (trainer.meta.scores.accuracy_new or 0)),
            "total_10_sec": lambda: self.last_seconds()[0],
            "right_10_sec": lambda: self.last_seconds()[1],
            "model_version": lambda: trainer.meta.version,
            "saved_at": lambda: int(trainer.meta.saved_at),
        }
        for name, value in gauges.items():
            self.group.gauge(name, value)

    def count(self, learned: Learned) -> None:
        """Count one batch."""
        self.sample_count.inc(len(learned.labels))
        self.window.append((time.monotonic(), len(learned.hits), int(learned.hits.sum())))
        update = self.labels.update
        for label in learned.labels.tolist():
            update(label)
        self.seen_before.inc(int((~learned.new).sum()))
        self.rejected.inc(len(learned.reasons))
        for code in learned.reasons:
            if code not in self.by_reason:
                self.by_reason[code] = self.group.counter(f"rejected_{code}")
            self.by_reason[code].inc()

    def last_seconds(self) -> tuple[int, int]:
        """Return how many samples of the last 10 s were predicted, and how many correctly."""
        while self.window and self.window[0][0] < time.monotonic() - WINDOW_SECONDS:
            self.window.popleft()
        total = sum(count for _, count, _ in self.window)
        right = sum(count for _, _, count in self.window)
        return total, right


def online_learner(settings: Settings, submission: str) -> Any:
    """Return the function as Flink SQL registers it: vectorised, not deterministic."""
    row = DataTypes.ROW(
        [DataTypes.FIELD("out", DataTypes.BYTES()), DataTypes.FIELD("good", DataTypes.BOOLEAN())]
    )
    return udf(
        OnlineLearner(settings, submission),
        result_type=row,
        func_type="pandas",
        deterministic=False,
    )
