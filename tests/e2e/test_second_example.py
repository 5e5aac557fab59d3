"""Another data set goes through the same job: it changes the message and the factory, nothing else."""

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.pipeline import Pipeline

from harness.stack import Stack, until
from loop.model_store import ModelStore
from settings import HERE

EXAMPLE = {
    "PYTHONPATH": str(HERE / "examples"),
    "MESSAGE_FORMAT": "breast_cancer:CANCER",
    "LEARNER": "breast_cancer:learner",
}


def test_the_same_job_learns_another_stream_with_another_message_and_another_learner(
    stack: Stack,
) -> None:
    job = stack.submit_job(**EXAMPLE)
    example = [sys.executable, "examples/breast_cancer.py"]
    subprocess.run(
        example, cwd=HERE, env=stack.env | {"PYTHONPATH": str(HERE)}, check=True, timeout=120
    )
    store = ModelStore(stack.settings)

    def all_learned():
        stored = store.read()
        return stored if stored is not None and stored.meta.samples == 569 else None

    stored = until(all_learned, 90, "569 samples learned")
    assert stored.meta.rejected == 0
    X, y = load_breast_cancer(return_X_y=True)
    estimator = stored.estimator()
    assert isinstance(
        estimator, Pipeline
    )  # of scikit-learn alone: who reads it needs nothing of this project
    assert np.mean(estimator.predict(X) == y) > 0.95
    stack.cancel_job(job)
