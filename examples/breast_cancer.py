"""Another stream, whole: 30 measurements of a tumour in, malignant (0) or benign (1) out.

    export PYTHONPATH=examples MESSAGE_FORMAT=breast_cancer:CANCER LEARNER=breast_cancer:learner
    make run                                    # the same job, topics and store
    PYTHONPATH=. .local/venv/bin/python examples/breast_cancer.py  # sends the data set once

Only the message and the factory differ from the digits.
"""

from collections.abc import Iterator

from kafka import KafkaProducer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import shuffle

from loop.messages import Format
from settings import settings

CANCER = Format(n_features=30, low=0, high=10_000, n_classes=2, whole=False)


def learner() -> Pipeline:
    """Return a linear model on measurements that are brought to one scale, which is learned along."""
    return make_pipeline(
        StandardScaler(), SGDClassifier(loss="log_loss", alpha=0.001, average=True, shuffle=False)
    )


def samples() -> Iterator[bytes]:
    """Yield the data set's 569 samples as messages, shuffled, the same each time."""
    for x, y in zip(*shuffle(*load_breast_cancer(return_X_y=True), random_state=0), strict=True):
        yield CANCER.sample(x.tolist(), int(y))


def main() -> None:
    """Send the data set to the job's topic, once."""
    with KafkaProducer(**settings().kafka_client()) as producer:
        for sample in samples():
            producer.send(settings().input_topic, sample)


if __name__ == "__main__":
    main()
