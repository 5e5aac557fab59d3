"""A producer of numbered messages: ``python -m harness.numbered_producer FIRST RATE``.

A sample's ``ts`` holds its number. Every fiftieth message is bad, and its text holds the number.
"""

import sys
import time

from confluent_kafka import Producer
from sklearn.datasets import load_digits

from loop.messages import DIGITS
from settings import settings

BAD_EVERY = 50


def main(first: int, rate: float) -> None:
    """Send messages from number ``first`` on to the partitions in turn until killed.

    ``rate``: messages per second.
    """
    config = settings()
    X, labels = load_digits(return_X_y=True)
    options = {"enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 600_000}
    producer = Producer(config.confluent_client() | options)
    topics = producer.list_topics(config.input_topic, 60).topics
    partitions = len(topics[config.input_topic].partitions)
    begin, number = time.monotonic(), first
    while True:
        while number < first + (time.monotonic() - begin) * rate:
            row = number % len(X)
            good = DIGITS.sample(X[row], labels[row], ts=f"{number:019d}")
            value = good if number % BAD_EVERY else b"bad %d" % number
            producer.produce(config.input_topic, value, partition=number % partitions)
            number += 1
        producer.poll(0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
