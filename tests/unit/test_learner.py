"""The learners that the project brings, and what it says of those that can't be."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from learners.digit_learner import MEMORY, DigitLearner, distorted
from learners.digit_model import DigitClassifier
from learners.learner import LearnerError, load_learner, new_learner
from learners.repeatable import dumps
from loop.model_store import STATE_PAGE, Meta, ModelFormatError, unpickle
from settings import HERE
from tests.unit.learners import REFUSED, served

CLASSES = np.arange(10)
X, Y = load_digits(return_X_y=True)


def digit_learner() -> DigitLearner:
    learner = new_learner("default", CLASSES, 64)
    assert isinstance(learner, DigitLearner)
    return learner


def changed_pages(before: bytes, after: bytes) -> int:
    assert len(before) == len(after)
    return sum(
        before[i : i + STATE_PAGE] != after[i : i + STATE_PAGE]
        for i in range(0, len(after), STATE_PAGE)
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adaboost", "must be default, sgd, or module:factory"),
        ("no_such_module:learner", "can't be imported"),
        ("tests.unit.learners:missing", "can't be imported"),
        (":learner", "can't be imported"),
        (
            "tests.unit.learners:batch_only",
            "LogisticRegression, which can't learn one batch at a time",
        ),
        ("tests.unit.learners:refused_a_class", "gives the class SGDClassifier, not an estimator"),
        ("tests.unit.learners:refused_a_class_as_a_step", "gives the class StandardScaler"),
        ("tests.unit.learners:refused_in_place", "changes the samples"),
        ("tests.unit.learners:refused_column", "one label per sample"),
        ("tests.unit.learners:refused_transformer", "it has no predict"),
        ("tests.unit.learners:unfitted", "the step PolynomialFeatures, which must be fitted first"),
    ],
)
def test_a_learner_that_cannot_be_is_refused_in_a_sentence(name, said):
    with pytest.raises(LearnerError, match=said):
        new_learner(name, CLASSES, 64)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_first_batches_would_refuse_is_refused_at_once(kind):
    name = f"tests.unit.learners:refused_{kind}"
    with pytest.raises(LearnerError) as refused:
        new_learner(name, CLASSES, 64)
    said = str(refused.value)
    assert name in said
    assert said.endswith(".")
    assert "\n" not in said


@pytest.mark.parametrize(
    "name", ["tests.unit.learners:instance", "tests.unit:missing", "tests.unit.broken:x"]
)
def test_a_name_that_gives_no_factory_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "broken_learner.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    for wrong in (name, "broken_learner:learner"):
        with pytest.raises(LearnerError, match="LEARNER"):
            new_learner(wrong, CLASSES, 64)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        (
            "LEARNER",
            "tests.unit.learners:refused_balanced",
            "class_weight 'balanced' is not supported",
        ),
        ("MESSAGE_FORMAT", "loop.messages:orjson", "it must be a messages.Format"),
    ],
)
def test_the_job_says_in_a_sentence_why_it_is_not_submitted(setting, value, said):
    submitted = subprocess.run(
        [sys.executable, "online_learning.py"],
        cwd=HERE,
        env=os.environ | {setting: value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert submitted.returncode == 1
    assert submitted.stderr.startswith(f"online_learning.py: {setting} {value!r}")
    assert said in submitted.stderr
    assert submitted.stderr.count("\n") == 1


def test_the_trial_leaves_no_trace_in_the_learner():
    learner = new_learner("sklearn.naive_bayes:GaussianNB", CLASSES, 64)
    assert learner.predict(X) is None
    learner.learn(X[:50], Y[:50])
    oracle = GaussianNB().partial_fit(X[:50], Y[:50], classes=CLASSES)
    assert learner.model_bytes() == dumps(oracle)


def test_the_trial_takes_numbers_from_the_streams_own_range():
    name = "sklearn.naive_bayes:MultinomialNB"
    new_learner(name, CLASSES, 64, 0, 1)
    with pytest.raises(LearnerError, match="Negative values"):
        new_learner(name, CLASSES, 64, -1, 1)


@pytest.mark.parametrize("n_classes", [254, 255, 256, 300, 1000])
def test_the_default_rehearses_any_number_of_classes(n_classes):
    known = np.arange(n_classes)
    learner = new_learner("default", known, 64)
    y = known[-100:]
    learner.learn(X[:100], y)
    assert sorted(learner.memory[:100, -1].tolist()) == sorted(y + 1)
    restarted = load_learner("default", known, 64, learner.model_bytes(), learner.state_bytes())
    for one in (learner, restarted):
        for _ in range(10):
            one.learn(X[:100], y)
    assert (learner.predict(X[:100]) == y).mean() > 0.95
    assert restarted.state_bytes() == learner.state_bytes()


def test_the_default_refuses_a_stream_that_is_no_digits():
    with pytest.raises(LearnerError, match="set LEARNER to sgd"):
        new_learner("default", np.arange(2), 30)


@pytest.mark.parametrize("classes", [10, 3, 2])
def test_sgd_is_to_the_last_bit_what_partial_fit_makes_of_it(classes):
    labels, known = Y % classes, np.arange(classes)
    learner = new_learner("sgd", known, 64)
    oracle = SGDClassifier(alpha=0.01, penalty="l1", loss="log_loss", shuffle=False, random_state=0)
    sizes = [50, 1, 3, 200, 17, 400]
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        rows = slice(start, start + size)
        learner.learn(X[rows], labels[rows])
        oracle.partial_fit(X[rows], labels[rows], classes=known)
        assert learner.model_bytes() == dumps(oracle)
        learner = load_learner("sgd", known, 64, learner.model_bytes(), b"")


def test_a_pipeline_learns_its_steps_along():
    learner = new_learner("tests.unit.learners:scaled", CLASSES, 64)
    for start in range(0, 500, 50):
        learner.learn(X[start : start + 50], Y[start : start + 50])
    np.testing.assert_allclose(served(learner)[0].mean_, StandardScaler().fit(X[:500]).mean_)


def test_regression_needs_no_classes():
    learner = new_learner("sklearn.linear_model:SGDRegressor", None, 64)
    learner.learn(X[:300] / 16, Y[:300] / 10)
    restarted = load_learner(
        "sklearn.linear_model:SGDRegressor", None, 64, learner.model_bytes(), b""
    )
    predicted = learner.predict(X[:5])
    assert predicted is not None
    assert predicted.tolist() == np.asarray(served(restarted).predict(X[:5])).tolist()


def test_the_default_is_right_93_times_in_100_over_its_first_600_digits():
    learner, right = digit_learner(), 0
    order = np.random.default_rng(0).permutation(len(X))[:600]
    for batch in np.array_split(order, 150):
        predicted = learner.predict(X[batch])
        right += 0 if predicted is None else int((predicted == Y[batch]).sum())
        learner.learn(X[batch], Y[batch])
    assert right / len(order) >= 0.93


def test_the_default_serves_a_small_model_with_probabilities():
    learner = digit_learner()
    learner.learn(X[:100], Y[:100])
    model = served(learner)
    assert len(learner.model_bytes()) < 25_000
    np.testing.assert_allclose(model.predict_proba(X[:7]).sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="64 pixels"):
        model.predict(X[:, :63])


@pytest.mark.parametrize(("batch", "pages"), [(1, 64), (10, 64), (500, 80)])
def test_a_batch_changes_few_pages_of_the_defaults_state(batch, pages):
    learner = digit_learner()
    learner.learn(X[:900], Y[:900])
    before = learner.state_bytes()
    learner.learn(X[900 : 900 + batch], Y[900 : 900 + batch])
    assert 0 < changed_pages(before, learner.state_bytes()) <= pages


def test_a_large_batch_rehearses_less_for_each_sample(monkeypatch):
    rows = []

    class Counted(DigitLearner):
        def _step(self, F, labels):
            rows.append(len(labels))
            super()._step(F, labels)

    learner = Counted(CLASSES)
    learner.learn(X[:500], Y[:500])
    per_sample = []
    for batch in (1, 10, 100, 1000):
        rows.clear()
        learner.learn(X[500 : 500 + batch], Y[500 : 500 + batch])
        per_sample.append(sum(rows) / batch - 1)
    assert per_sample == pytest.approx([20, 20, 2, 0.2])


def test_memory_holds_each_sample_once_and_the_newest_of_them():
    learner = digit_learner()
    for _ in range(2):
        for start in range(0, len(X), 100):
            learner.learn(X[start : start + 100], Y[start : start + 100])
    assert learner.slot == len(np.unique(np.column_stack([X, Y]), axis=0))
    taught = np.random.default_rng(0).integers(0, 17, (2 * MEMORY, 64)).astype(float)
    for start in range(0, len(taught), 128):
        learner.learn(taught[start : start + 128], np.zeros(128, int))
    assert {row.tobytes() for row in learner.memory[:, :-1]} == {
        row.tobytes() for row in taught[-MEMORY:].astype(np.uint8)
    }


def test_a_state_of_another_size_is_refused():
    learner = digit_learner()
    learner.learn(X[:10], Y[:10])
    with pytest.raises(ValueError, match="The state has 5 bytes"):
        load_learner("default", CLASSES, 64, learner.model_bytes(), b"12345")


def test_distorted_digits_stay_digits():
    copies = distorted(X[:500].astype(np.float32), np.random.default_rng(0))
    assert copies.min() >= 0
    assert copies.max() <= 16
    moved = np.abs(copies - X[:500]).mean(axis=1)
    assert np.median(moved) > 0.5
    assert np.abs(copies.sum() / X[:500].sum() - 1) < 0.1


def test_a_stored_default_learner_of_another_version_is_refused_in_a_sentence():
    """The job and the page both unpickle through ``unpickle``, which says what to do."""
    for other in (DigitClassifier(CLASSES, np.zeros((401, 10), np.float32)), without_weights()):
        with pytest.raises(
            ModelFormatError, match=r"another version of this project.*start over with"
        ):
            unpickle(pickle.dumps(other), Meta())


def without_weights() -> DigitClassifier:
    found = DigitClassifier(CLASSES, np.zeros((513, 10), np.float32))
    del found.weights
    found.theta = 1
    return found
