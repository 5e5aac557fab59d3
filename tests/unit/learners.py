"""Learners that tests bring along, as a user would: functions without arguments that return an estimator."""

import pickle
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, PolynomialFeatures, StandardScaler

from learner import Learner


def normalised() -> Pipeline:
    """A step that needs no fitting."""
    return make_pipeline(Normalizer(), SGDClassifier(loss="log_loss", shuffle=False))


def scaled() -> Pipeline:
    """A step that learns along."""
    return make_pipeline(StandardScaler(), SGDClassifier(average=True, shuffle=False))


def products() -> Pipeline:
    """A step that the factory has fitted."""
    return make_pipeline(PolynomialFeatures(2).fit(np.zeros((1, 64))), SGDClassifier(alpha=1.0, shuffle=False))


def network() -> MLPClassifier:
    """An estimator that draws at random and keeps an optimiser's state."""
    return MLPClassifier((64,), learning_rate_init=0.01)


def unfitted() -> Pipeline:
    """A step that nobody fits."""
    return make_pipeline(PolynomialFeatures(2), SGDClassifier())


def batch_only() -> LogisticRegression:
    """An estimator without partial_fit."""
    return LogisticRegression()


def served(learner: Learner) -> Any:
    """What anyone reads out of the store."""
    return pickle.loads(learner.model_bytes())
