"""What every learner keeps, whatever estimator it learns with."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from learners.learner import Learner, load_learner, new_learner
from tests.unit.learners import served

CLASSES = np.arange(10)
PRESETS = ["default", "sgd"]
LEARNERS = [
    *PRESETS,
    "sklearn.naive_bayes:MultinomialNB",
    "sklearn.linear_model:Perceptron",
    "tests.unit.learners:normalised",
    "tests.unit.learners:scaled",
    "tests.unit.learners:products",
    "tests.unit.learners:network",
    "tests.unit.learners:passing",
    "tests.unit.learners:nested",
    "tests.unit.learners:union",
    "tests.unit.learners:categories",
    "examples.river_digits:softmax",
]
every_learner = pytest.mark.parametrize("name", LEARNERS)
X, Y = (part[:300] for part in load_digits(return_X_y=True))


def batches(start: int = 0, stop: int = len(X)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return digits in batches of 1, 2, ... samples."""
    ends = [start, *(end for end in start + np.cumsum(np.arange(1, 40)) if end < stop), stop]
    return [(X[a:b], Y[a:b]) for a, b in pairwise(ends)]


def learned(name: str, stop: int = len(X)) -> Learner:
    learner = new_learner(name, CLASSES, 64)
    for x, y in batches(0, stop):
        learner.predict(x)
        learner.learn(x, y)
    return learner


def stored(learner: Learner) -> tuple[bytes, bytes]:
    return learner.model_bytes(), learner.state_bytes()


@every_learner
def test_before_the_first_sample_there_is_no_prediction(name):
    assert new_learner(name, CLASSES, 64).predict(X) is None


@every_learner
def test_it_learns(name):
    assert (learned(name).predict(X) == Y).mean() > 0.7


@every_learner
def test_predictions_are_labels(name):
    predicted = learned(name, 50).predict(X)
    assert predicted is not None
    assert predicted.shape == (len(X),)
    assert set(predicted) <= set(CLASSES)


@every_learner
def test_the_first_batch_may_hold_one_class_only(name):
    learner = new_learner(name, CLASSES, 64)
    learner.learn(X[:1], Y[:1])
    learner.learn(X[:50], Y[:50])
    predicted = learner.predict(X[:50])
    assert predicted is not None
    assert set(predicted) <= set(CLASSES)


@every_learner
def test_same_batches_give_same_bytes(name):
    assert stored(learned(name)) == stored(learned(name))


@every_learner
def test_an_empty_batch_changes_nothing(name):
    learner = learned(name, 50)
    before = stored(learner)
    learner.learn(X[:0], Y[:0])
    assert stored(learner) == before


@every_learner
def test_predicting_changes_nothing(name):
    one, other = learned(name, 50), learned(name, 50)
    one.predict(X[60:90])
    for learner in (one, other):
        learner.learn(X[50:60], Y[50:60])
    assert stored(one) == stored(other)


@every_learner
def test_what_is_served_predicts_what_the_learner_predicts(name):
    learner = learned(name)
    model = served(learner)
    assert (model.predict(X) == learner.predict(X)).all()
    np.testing.assert_array_equal(model.classes_, CLASSES)


@every_learner
def test_a_restarted_learner_goes_on_as_if_it_had_not_stopped(name):
    restarted, straight = learned(name, 100), learned(name, 100)
    for x, y in batches(100):
        restarted = load_learner(name, CLASSES, 64, *stored(restarted))
        for learner in (restarted, straight):
            learner.predict(x)
            learner.learn(x, y)
    one, other = served(restarted), served(straight)
    scores = "predict_proba" if hasattr(one, "predict_proba") else "decision_function"
    np.testing.assert_array_equal(getattr(one, scores)(X), getattr(other, scores)(X))
    assert restarted.state_bytes() == straight.state_bytes()


@pytest.mark.parametrize("name", PRESETS)
def test_a_restart_leaves_no_trace_in_the_bytes(name):
    restarted = load_learner(name, CLASSES, 64, *stored(learned(name, 100)))
    straight = learned(name, 100)
    for learner in (restarted, straight):
        for x, y in batches(100):
            learner.learn(x, y)
    assert stored(restarted) == stored(straight)


@every_learner
def test_where_a_batch_lies_in_memory_makes_no_difference(name):
    one, other = new_learner(name, CLASSES, 64), new_learner(name, CLASSES, 64)
    for i, (x, y) in enumerate(batches(0, 150)):
        one.learn(x, y)
        room = np.empty(x.size + 8)
        shifted = room[i % 8 : i % 8 + x.size].reshape(x.shape)
        shifted[:] = x
        other.learn(shifted, y)
    assert stored(one) == stored(other)


@every_learner
def test_the_number_of_threads_makes_no_difference(name):
    with threadpool_limits(1):
        one = learned(name, 150)
    with threadpool_limits(4):
        four = learned(name, 150)
    assert stored(one) == stored(four)
