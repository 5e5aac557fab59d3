"""River's models as learners, through River's own scikit-learn wrapper: LEARNER=examples.river_digits:softmax."""

from river.base import Classifier
from river.compat import River2SKLClassifier, river_to_sklearn
from river.linear_model import LogisticRegression, SoftmaxRegression
from river.multiclass import OneVsRestClassifier
from river.neighbors import KNNClassifier
from river.tree import HoeffdingTreeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# River 0.23 is the newest that takes numpy 2.1; it names an argument that scikit-learn 1.8 renamed.
_checks = river_to_sklearn.SKLEARN_INPUT_X_PARAMS
_checks["ensure_all_finite"] = _checks.pop("force_all_finite", True)


class RiverClassifier(River2SKLClassifier):
    """River's wrapper; a class of this module, so that unpickling it imports the line above."""

    river_estimator: Classifier


def logistic() -> Pipeline:
    """Return one logistic regression per digit, on pixels brought to one scale."""
    return make_pipeline(
        StandardScaler(), RiverClassifier(OneVsRestClassifier(LogisticRegression()))
    )


def softmax() -> Pipeline:
    """Return a softmax regression on pixels brought to one scale."""
    return make_pipeline(StandardScaler(), RiverClassifier(SoftmaxRegression()))


def tree() -> RiverClassifier:
    """Return a Hoeffding tree."""
    return RiverClassifier(HoeffdingTreeClassifier())


def neighbours() -> RiverClassifier:
    """Return the 5 nearest neighbours among the last 1,000 samples."""
    return RiverClassifier(KNNClassifier(n_neighbors=5))
