import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix

from loop.scores import Scores

CLASSES = np.arange(10)


def test_before_the_first_prediction_there_is_no_accuracy():
    assert Scores().accuracy is None
    assert Scores().accuracy_100 is None


def test_batches_count_as_scikit_learn_counts_the_whole():
    rng = np.random.default_rng(7)
    labels, predictions = rng.integers(0, 10, 1000), rng.integers(0, 10, 1000)
    scores, start = Scores(), 0
    for size in (1, 7, 250, 0, 742):
        part = slice(start, start + size)
        scores.add(labels[part], predictions[part], [None] * size, np.ones(size, bool), CLASSES)
        start += size
    assert scores.predicted == 1000
    assert scores.accuracy == accuracy_score(labels, predictions)
    assert scores.accuracy_100 == accuracy_score(labels[-100:], predictions[-100:])
    assert scores.confusion == confusion_matrix(labels, predictions).tolist()
    assert Scores.loads(scores.dumps()) == scores


def test_what_people_taught_is_counted_apart():
    scores = Scores()
    scores.add(
        np.array([1, 2, 3]), np.array([1, 2, 4]), ["page", None, "page"], np.ones(3, bool), CLASSES
    )
    assert scores.by_source == {"page": [2, 1]}


def test_a_client_that_names_many_sources_does_not_grow_the_commit():
    scores = Scores()
    for i in range(100):
        scores.add(
            np.array([1]),
            np.array([1]),
            [f"source {i}" if i % 2 else "x" * 1000],
            np.ones(1, bool),
            CLASSES,
        )
    assert sum(n for n, _ in scores.by_source.values()) == 100
    assert len(scores.by_source) <= 11


def test_samples_learned_before_are_counted_apart():
    scores = Scores()
    assert scores.accuracy_new is None
    labels, predictions = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    scores.add(labels, predictions, [None] * 4, np.array([True, False, False, True]), CLASSES)
    assert (scores.predicted, scores.new_predicted, scores.new_right) == (4, 2, 1)
    assert (scores.accuracy, scores.accuracy_new) == (0.75, 0.5)
    assert Scores.loads(scores.dumps()) == scores
