"""Send numbered messages to the input topic until killed: ``python -m harness.numbered_producer FIRST RATE``.

The number stands in a sample's ``ts``; every fiftieth message is bad, and its number stands in its text.
"""

import sys
import time

from confluent_kafka import Producer
from sklearn.datasets import load_digits

from loop.messages import DIGITS
from settings import settings

BAD_EVERY = 50


def main(first: int, rate: float) -> None:
    """Send message ``first``, ``first + 1``, … to the topic's partitions in turn, ``rate`` a second."""
    config = settings()
    X, labels = load_digits(return_X_y=True)
    options = {"enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 600_000}
    producer = Producer(config.confluent_client() | options)
    partitions = len(
        producer.list_topics(config.input_topic, 60).topics[config.input_topic].partitions
    )
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
