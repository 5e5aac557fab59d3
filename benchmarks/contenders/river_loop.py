"""Contender: River's one-vs-rest logistic regression in a confluent-kafka loop.

It is River's fastest learner of many classes, on batches of 1,000. At least once.
"""

import os
import pickle

import orjson
import pandas as pd
import redis
from confluent_kafka import Consumer, Producer
from river.linear_model import LogisticRegression
from river.multiclass import OneVsRestClassifier
from shared import BATCH, BROKER, GROUP, INPUT, MODEL_KEY, OUTPUT

consumer = Consumer(
    {
        "bootstrap.servers": BROKER,
        "group.id": GROUP,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
producer = Producer({"bootstrap.servers": BROKER, "linger.ms": 5})
store = redis.Redis(port=int(os.environ["REDIS_PORT"]), password="redis_password")
consumer.subscribe([INPUT])
model = OneVsRestClassifier(LogisticRegression())
while True:
    rows = [orjson.loads(message.value()) for message in consumer.consume(BATCH, timeout=1)]
    if not rows:
        continue
    X, y = pd.DataFrame([row["x"] for row in rows]), pd.Series([row["actual_y"] for row in rows])
    guesses = model.predict_many(X).tolist() if model.classifiers else [None] * len(rows)
    model.learn_many(X, y)
    store.set(MODEL_KEY, pickle.dumps(model))
    for row, guess in zip(rows, guesses, strict=True):
        producer.produce(OUTPUT, orjson.dumps(row | {"predict_y": guess}))
    producer.flush()
    consumer.commit()
