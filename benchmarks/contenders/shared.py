"""Shared parts of the contenders: addresses, estimator, and the work on a batch of messages."""

import os
import pickle

import numpy as np
import orjson
import redis
from sklearn.linear_model import SGDClassifier

BROKER = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
GROUP = os.environ["KAFKA_GROUP"]
INPUT = os.environ["INPUT_TOPIC"]
OUTPUT = os.environ["PREDICT_TOPIC"]
MODEL_KEY = os.environ["MODEL_KEY"]
BATCH = 1000
CLASSES = np.arange(10)


class Model:
    """The estimator of the job's LEARNER=sgd, stored in Redis after each batch."""

    def __init__(self) -> None:
        self.estimator = SGDClassifier(
            alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=0
        )
        self.redis = redis.Redis(port=int(os.environ["REDIS_PORT"]), password="redis_password")

    def learn(self, messages: list[bytes]) -> list[bytes]:
        """Predict, learn and store one batch; return each message with its prediction."""
        rows = [orjson.loads(message) for message in messages]
        X = np.array([row["x"] for row in rows], dtype=np.float64)
        y = np.array([row["actual_y"] for row in rows])
        fitted = hasattr(self.estimator, "coef_")
        guesses = self.estimator.predict(X).tolist() if fitted else [None] * len(rows)
        self.estimator.partial_fit(X, y, classes=CLASSES)
        self.redis.set(MODEL_KEY, pickle.dumps(self.estimator))
        return [
            orjson.dumps(row | {"predict_y": guess})
            for row, guess in zip(rows, guesses, strict=True)
        ]
