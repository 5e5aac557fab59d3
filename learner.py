"""What learns: any scikit-learn estimator with ``partial_fit``, one mini-batch at a time, repeatable bit for bit.

A learner knows arrays only: no Kafka, no Redis, no Flink. What it has learned leaves it as bytes, which are stored
with the stream's position in one commit, and ``load_learner`` goes on from those bytes as if it had never stopped.
"""

import importlib
import pickle
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from sklearn import config_context
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.linear_model._stochastic_gradient import fit_binary
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from digit_learner import DigitLearner
from digit_model import N_PIXELS
from repeatable import dumps, one_thread

SEED = 0  # of whatever draws at random: the same stream gives the same model


class LearnerError(ValueError):
    """A learner that can't be, in a sentence that says what to change."""


class Learner(Protocol):
    """What the job needs of a learner: same batches in the same order, same bytes."""

    def predict(self, X: np.ndarray) -> np.ndarray | None:
        """Return one prediction per row of X, float64 (n, n_features); None before the first sample was learned."""

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        """Learn one mini-batch, in stream order; an empty one changes nothing."""

    def model_bytes(self) -> bytes:
        """Return the pickled serving estimator: ``predict`` on raw X, and what else the estimator offers."""

    def state_bytes(self) -> bytes:
        """Return what only training needs, ``b""`` where that is nothing."""


class EstimatorLearner:
    """Learns with a scikit-learn estimator or pipeline, which is also what serves.

    ``classes`` are all labels that will ever come, None for regression.
    """

    def __init__(self, estimator: Any, classes: np.ndarray | None, learned: bool = False):
        self._estimator, self._learned = estimator, learned
        self._classes = {} if classes is None else {"classes": classes}
        self._steps = [step for _, step in estimator.steps[:-1]] if isinstance(estimator, Pipeline) else []
        self._last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator

    def predict(self, X: np.ndarray) -> np.ndarray | None:
        """Return one prediction per row of X; None before the first sample was learned."""
        if not self._learned:
            return None
        with config_context(assume_finite=True):
            return self._estimator.predict(X)

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        """Learn one mini-batch, in stream order; an empty one changes nothing."""
        if len(y) == 0:
            return
        with config_context(assume_finite=True), one_thread():
            for step in self._steps:
                if hasattr(step, "partial_fit"):
                    step.partial_fit(X, y)
                X = step.transform(X)
            self._last.partial_fit(X, y, **({} if self._learned else self._classes))
        self._learned = True

    def model_bytes(self) -> bytes:
        """Return the pickled estimator."""
        return dumps(self._estimator)

    def state_bytes(self) -> bytes:
        """Return ``b""``: all of it is in the estimator."""
        return b""


class SgdLearner(EstimatorLearner):
    """Learns with ``sgd()``, to the last bit as ``partial_fit`` would, in a fifth of its time for small batches.

    For each class scikit-learn's one-against-all goes through joblib, warning filters and seeded generators: 5 ms a batch
    for ten classes, whatever its size. What is left here is the fit of each class, which without shuffling draws nothing.
    """

    _unused = np.random.RandomState(SEED)  # asked for, and without effect; to make one takes as long as to fit a class

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        """Learn one mini-batch, in stream order; an empty one changes nothing."""
        estimator = self._last
        if len(y) == 0 or not self._learned or len(estimator.classes_) == 2:
            super().learn(X, y)
            return
        alpha, rate, weights = estimator.alpha, estimator.learning_rate, np.ones(len(y))
        for i in range(len(estimator.classes_)):  # changes coef_[i] where it stands
            _, estimator.intercept_[i], _ = fit_binary(
                estimator, i, X, y, alpha, rate, 1, 1.0, 1.0, weights, random_state=self._unused
            )
        estimator.t_ += len(y)


def sgd() -> SGDClassifier:
    """Return the original's linear model; not shuffled, so that a batch learned again gives the same weights."""
    return SGDClassifier(alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=SEED)


def new_learner(name: str, classes: np.ndarray | None, n_features: int) -> Learner:
    """Return a learner that has learned nothing yet; raises ``LearnerError`` for a name that gives none.

    ``name``: ``default`` (8x8 digits), ``sgd``, or ``module:factory``, where ``factory()`` returns an estimator.
    """
    if name == "default":
        if classes is None or n_features != N_PIXELS:
            raise LearnerError(
                f"The default learner reads digits of {N_PIXELS} pixels, which this stream's samples are not: set "
                "LEARNER to sgd, or to module:factory of your own."
            )
        return DigitLearner(classes)
    if name == "sgd":
        return SgdLearner(sgd(), classes)
    estimator = _factory(name)()
    _check(name, estimator)
    for parameter, value in estimator.get_params().items():
        if value is None and parameter.split("__")[-1] == "random_state":
            estimator.set_params(**{parameter: SEED})
    return EstimatorLearner(estimator, classes)


def load_learner(name: str, classes: np.ndarray | None, n_features: int, model: bytes, state: bytes) -> Learner:
    """Return the learner whose ``model_bytes`` and ``state_bytes`` these are; the bytes must be of known origin."""
    if name == "default":
        return DigitLearner.load(model, state)
    estimator = pickle.loads(model)  # noqa: S301  the store has checked it
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    # One that was signed may be of other parameters, or a pipeline: what is fast would train it as if it were sgd().
    fast = name == "sgd" and type(estimator) is SGDClassifier and estimator.get_params() == sgd().get_params()
    kind = SgdLearner if fast else EstimatorLearner
    # A topic that begins with bad messages alone commits a model that has learned nothing.
    return kind(estimator, classes, learned=_is_fitted(last))


def _factory(name: str) -> Callable[[], Any]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise LearnerError(f"LEARNER is {name!r}; it must be default, sgd, or module:factory.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LearnerError(f"LEARNER is {name!r}, which can't be imported: {error}.") from error


def _check(name: str, estimator: Any) -> None:
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    if not hasattr(steps[-1], "partial_fit"):
        raise LearnerError(
            f"LEARNER {name!r} gives a {type(steps[-1]).__name__}, which can't learn one batch at a "
            "time: it has no partial_fit."
        )
    for step in steps[:-1]:
        if not (hasattr(step, "partial_fit") or not get_tags(step).requires_fit or _is_fitted(step)):
            raise LearnerError(
                f"LEARNER {name!r} has the step {type(step).__name__}, which must be fitted first: let "
                "the factory fit it, or use one that needs no fitting."
            )


def _is_fitted(step: Any) -> bool:
    try:
        check_is_fitted(step)
    except NotFittedError:
        return False
    return True
