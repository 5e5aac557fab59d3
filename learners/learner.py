"""What learns: any scikit-learn estimator with ``partial_fit``, one mini-batch at a time, repeatable bit for bit.

A learner knows arrays only: no Kafka, no Redis, no Flink. What it has learned leaves it as bytes, which are stored
with the stream's position in one commit, and ``load_learner`` goes on from those bytes as if it had never stopped.
"""

import importlib
import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
from sklearn import config_context
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.linear_model._stochastic_gradient import fit_binary
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from learners.digit_learner import DigitLearner
from learners.digit_model import N_PIXELS
from learners.repeatable import dumps, one_thread

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
        *self._steps, self._last = _steps(estimator)

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

    _unused = np.random.RandomState(
        SEED
    )  # asked for, and without effect; to make one takes as long as to fit a class

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
    return SGDClassifier(
        alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=SEED
    )


def new_learner(
    name: str,
    classes: np.ndarray | None,
    n_features: int,
    low: float = 0,
    high: float = 16,
) -> Learner:
    """Return a learner that has learned nothing yet; raises ``LearnerError`` for a name that gives none.

    ``name``: ``default`` (8x8 digits), ``sgd``, or ``module:factory``, where ``factory()`` returns an estimator.
    A copy of it is tried on made-up samples in ``low..high``, so that the stream does not find out what it can't do.
    """
    try:
        learner = _untried(name, classes, n_features)
        with warnings.catch_warnings(action="ignore"):  # of few and odd samples
            _try(name, deepcopy(learner), classes, _made_up(n_features, low, high))
    except LearnerError:
        raise
    except Exception as error:
        raise LearnerError(_said(name, error)) from error
    return learner


def _untried(name: str, classes: np.ndarray | None, n_features: int) -> Learner:
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


def load_learner(
    name: str, classes: np.ndarray | None, n_features: int, model: bytes, state: bytes
) -> Learner:
    """Return the learner whose ``model_bytes`` and ``state_bytes`` these are; the bytes must be of known origin."""
    if name == "default":
        return DigitLearner.load(model, state)
    estimator = pickle.loads(model)  # noqa: S301  the store has checked it
    last = _steps(estimator)[-1]
    # One that was signed may be of other parameters, or a pipeline: what is fast would train it as if it were sgd().
    fast = (
        name == "sgd"
        and type(estimator) is SGDClassifier
        and estimator.get_params() == sgd().get_params()
    )
    kind = SgdLearner if fast else EstimatorLearner
    # A topic that begins with bad messages alone commits a model that has learned nothing.
    return kind(estimator, classes, learned=_is_fitted(last))


def _factory(name: str) -> Callable[[], Any]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise LearnerError(f"LEARNER is {name!r}; it must be default, sgd, or module:factory.")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise LearnerError(f"LEARNER is {name!r}, which can't be imported: {error}.") from error
    if not callable(factory):
        kind = type(factory).__name__
        raise LearnerError(f"LEARNER {name!r} is a {kind}; it must be a function that returns one.")
    return factory


def _check(name: str, estimator: Any) -> None:
    steps = _steps(estimator)
    for step in steps:
        if isinstance(step, type):
            raise LearnerError(
                f"LEARNER {name!r} gives the class {step.__name__}, not an estimator: let the "
                f"factory make one with {step.__name__}()."
            )
    last = steps[-1] if steps else estimator
    if not hasattr(last, "partial_fit"):
        raise LearnerError(
            f"LEARNER {name!r} gives a {type(last).__name__}, which can't learn one batch at a "
            "time: it has no partial_fit."
        )
    if not hasattr(estimator, "predict"):
        raise LearnerError(
            f"LEARNER {name!r} gives a {type(estimator).__name__} that ends in a "
            f"{type(last).__name__} and predicts nothing: it has no predict."
        )


def _steps(estimator: Any) -> list[Any]:
    """Return the steps of a pipeline, and of pipelines within it, without those that only pass samples on."""
    if isinstance(estimator, Pipeline):
        return [found for _, step in estimator.steps for found in _steps(step)]
    return [] if estimator is None or isinstance(estimator, str) else [estimator]


def _made_up(n_features: int, low: float, high: float) -> list[np.ndarray]:
    """Return batches from a single sample on, the first at one end of the range: a stream may begin so."""
    low, high = np.clip([low, high], -1e9, 1e9)
    draw = np.random.default_rng(SEED)
    batches = [low + (high - low) * draw.random((n, n_features)) for n in (20, 1, 3)]
    ends = [np.full((1, n_features), end) for end in (low, high)]
    return [ends[0], *(np.rint(batch).clip(low, high) for batch in batches), ends[1]]


def _try(
    name: str, learner: Learner, classes: np.ndarray | None, batches: list[np.ndarray]
) -> None:
    """Predict, learn, store and restart on each batch; raises where the stream could not go on."""
    labels = np.array([0.0, 1.0]) if classes is None else classes
    for i, X in enumerate(batches):
        y = labels[(i + np.arange(len(X))) % len(labels)]
        before = X.copy(), y.copy()
        learner.learn(X, y)
        for rows in batches:
            _check_predictions(name, learner.predict(rows.copy()), len(rows), classes)
        learner.predict(X)
        if not all(map(np.array_equal, (X, y), before)):
            raise LearnerError(
                f"LEARNER {name!r} changes the samples that it is given, which are needed as they "
                "are: let its steps work on copies (copy=True)."
            )
        model, state = learner.model_bytes(), learner.state_bytes()
        learner = load_learner(name, classes, X.shape[1], model, state)


def _check_predictions(name: str, predicted: Any, n: int, classes: np.ndarray | None) -> None:
    if np.shape(predicted) != (n,):
        raise LearnerError(
            f"LEARNER {name!r} must predict one label per sample; for {n} it predicts an array of "
            f"shape {np.shape(predicted)}."
        )
    if classes is None:
        return
    whole = isinstance(predicted, np.ndarray) and predicted.dtype.kind in "iu"
    if not (whole and np.isin(predicted, classes).all()):
        raise LearnerError(
            f"LEARNER {name!r} must predict the whole numbers {classes[0]} to {classes[-1]} as a "
            f"numpy array; it predicts {predicted[0]!r}."
        )


def _said(name: str, error: Exception) -> str:
    """Return in one sentence why a learner can't learn this stream."""
    if isinstance(error, NotFittedError):
        step = str(error).split("This ", 1)[-1].split(" instance", 1)[0]
        return (
            f"LEARNER {name!r} has the step {step}, which must be fitted first: let the factory fit "
            "it, or use one that needs no fitting."
        )
    text = " ".join(str(error).split())
    return f"LEARNER {name!r} can't learn this stream ({type(error).__name__}): {text[:300].rstrip('.')}."


def _is_fitted(step: Any) -> bool:
    try:
        check_is_fitted(step)
    except NotFittedError:
        return False
    return True
