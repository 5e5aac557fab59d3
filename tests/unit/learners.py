"""Learners that tests bring along, as a user would: functions without arguments that return an estimator."""

import pickle
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import IncrementalPCA
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.multiclass import OneVsOneClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import CategoricalNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    Normalizer,
    PolynomialFeatures,
    StandardScaler,
)

from learners.learner import Learner


def normalised() -> Pipeline:
    """A step that needs no fitting."""
    return make_pipeline(Normalizer(), SGDClassifier(loss="log_loss", shuffle=False))


def scaled() -> Pipeline:
    """A step that learns along."""
    return make_pipeline(StandardScaler(), SGDClassifier(average=True, shuffle=False))


def products() -> Pipeline:
    """A step that the factory has fitted."""
    return make_pipeline(
        PolynomialFeatures(2).fit(np.zeros((1, 64))), SGDClassifier(alpha=1.0, shuffle=False)
    )


def network() -> MLPClassifier:
    """An estimator that draws at random and keeps an optimiser's state."""
    return MLPClassifier((64,), learning_rate_init=0.01)


def unfitted() -> Pipeline:
    """A step that nobody fits."""
    return make_pipeline(PolynomialFeatures(2), SGDClassifier())


def batch_only() -> LogisticRegression:
    """An estimator without partial_fit."""
    return LogisticRegression()


def passing() -> Pipeline:
    """Steps that only pass samples on."""
    return make_pipeline("passthrough", None, StandardScaler(), "passthrough", SGDClassifier())


def nested() -> Pipeline:
    """Pipelines within a pipeline, each with a step that learns along."""
    inner = make_pipeline("passthrough", make_pipeline(StandardScaler()))
    return make_pipeline(inner, Normalizer(), make_pipeline(StandardScaler(), SGDClassifier()))


def union() -> Pipeline:
    """Features side by side, none of which needs fitting."""
    union = make_union(Normalizer(), FunctionTransformer(np.sqrt)).fit(np.zeros((1, 64)))
    return make_pipeline(union, SGDClassifier())


def categories() -> CategoricalNB:
    """An estimator that has to know all values of a pixel."""
    return CategoricalNB(min_categories=17)


instance = SGDClassifier()


class Odd(ClassifierMixin, BaseEstimator):
    """Learns nothing and predicts what it was made with."""

    def __init__(self, made):
        self.made = made

    def fit(self, X, y):
        return self.partial_fit(X, y)

    def partial_fit(self, X, y, classes=None):
        self.fitted_ = True
        return self

    def predict(self, X):
        return self.made(X)


def column(X: np.ndarray) -> np.ndarray:
    return np.ones((len(X), 1), int)


def nothing(X: np.ndarray) -> None:
    return None


def texts(X: np.ndarray) -> np.ndarray:
    return np.full(len(X), "1")


def nan(X: np.ndarray) -> np.ndarray:
    return np.full(len(X), np.nan)


def beyond(X: np.ndarray) -> np.ndarray:
    return np.full(len(X), 10)


def too_few(X: np.ndarray) -> np.ndarray:
    return np.ones(1, int)


def zeroed(X: np.ndarray) -> np.ndarray:
    X[:] = 0
    return np.ones(len(X), int)


REFUSED = {
    "balanced": lambda: SGDClassifier(class_weight="balanced"),
    "early": lambda: SGDClassifier(early_stopping=True),
    "early_network": lambda: MLPClassifier(early_stopping=True),
    "second_order": lambda: MLPClassifier(solver="lbfgs"),
    "clusters": lambda: MiniBatchKMeans(10),
    "regression": SGDRegressor,
    "many_outputs": lambda: MultiOutputClassifier(SGDClassifier()),
    "one_vs_one": lambda: OneVsOneClassifier(SGDClassifier()),
    "large_pca": lambda: make_pipeline(IncrementalPCA(32), SGDClassifier()),
    "unseen_categories": CategoricalNB,
    "negative": lambda: make_pipeline(StandardScaler(), MultinomialNB()),
    "wrong_parameter": lambda: SGDClassifier(loss="hing"),
    "other_classes": lambda: GaussianNB().partial_fit(np.zeros((1, 64)), [0], classes=[0, 1]),
    "other_features": lambda: GaussianNB().partial_fit(np.zeros((1, 3)), [0], classes=range(10)),
    "a_class": lambda: SGDClassifier,
    "a_class_as_a_step": lambda: make_pipeline(StandardScaler, SGDClassifier()),
    "none": lambda: None,
    "a_text": lambda: "SGDClassifier()",
    "empty": lambda: Pipeline([]),
    "needs_arguments": lambda missing: SGDClassifier(),
    "raises": lambda: 1 / 0,
    "no_estimator": lambda: make_pipeline(StandardScaler(), "passthrough"),
    "transformer": lambda: make_pipeline(Normalizer(), StandardScaler()),
    "after_the_last": lambda: make_pipeline(SGDClassifier(), "passthrough"),
    "unfitted_union": lambda: make_pipeline(make_union(StandardScaler()), SGDClassifier()),
    "unfitted_columns": lambda: make_pipeline(
        make_column_transformer((StandardScaler(), [0, 1])), SGDClassifier()
    ),
    "unpickled": lambda: make_pipeline(FunctionTransformer(lambda X: X / 16), SGDClassifier()),
    "in_place": lambda: make_pipeline(StandardScaler(copy=False), SGDClassifier()),
    "in_place_norm": lambda: make_pipeline(Normalizer(copy=False), SGDClassifier()),
    **{made.__name__: lambda made=made: Odd(made) for made in (column, nothing, texts, nan)},
    **{made.__name__: lambda made=made: Odd(made) for made in (beyond, too_few, zeroed)},
}


def __getattr__(name: str) -> Any:
    """Return a factory of a learner that is refused by its name: ``refused_balanced`` and so on."""
    try:
        return REFUSED[name.removeprefix("refused_")]
    except KeyError:
        raise AttributeError(f"module has no attribute {name!r}") from None


def served(learner: Learner) -> Any:
    """What anyone reads out of the store."""
    return pickle.loads(learner.model_bytes())
