"""A person's label, sent into Kafka as one more sample.

Connects in the background: a page without Kafka stays up.
"""

import logging
import threading
from typing import cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from loop.messages import DIGITS
from settings import Settings

# Seconds; a label that Kafka has not acknowledged by then is dropped, not sent later.
ACKNOWLEDGED_WITHIN = 2.0
WAITING = 12  # labels that may wait for Kafka at once, so that other requests find a free thread

log = logging.getLogger(__name__)
log.propagate = False  # librdkafka's own lines; the page says in words what is wrong
log.addHandler(logging.NullHandler())


class NotTaughtError(RuntimeError):
    """Kafka did not acknowledge a label in time; the text says so to the person who gave it."""


class Teacher:
    """Sends a person's label as one more sample, acknowledged by every in-sync replica."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING)
        self._producer: Producer | None = None

    def teach(self, x: list[int], label: int) -> tuple[int, int]:
        """Send 64 numbers and their label; returns partition and offset, or raises ``NotTaughtError``."""
        if not self._places.acquire(timeout=0.2):
            raise NotTaughtError("Not taught: too many labels wait for Kafka already. Try again.")
        try:
            return self._send(x, label)
        finally:
            self._places.release()

    def _send(self, x: list[int], label: int) -> tuple[int, int]:
        done = threading.Event()
        answer: list[tuple[KafkaError | None, Message]] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            answer.append((error, message))
            done.set()

        producer = self._connected()
        try:
            producer.produce(
                self.settings.input_topic, DIGITS.sample(x, label, "page"), on_delivery=delivered
            )
        except BufferError as error:
            raise NotTaughtError(self._sentence()) from error
        except KafkaException as error:
            self._give_up(producer, error.args[0])
            raise NotTaughtError(self._sentence()) from error
        producer.poll(0)
        if not done.wait(ACKNOWLEDGED_WITHIN + 1):
            raise NotTaughtError(self._sentence())
        if answer[0][0] is not None:
            self._give_up(producer, answer[0][0])
            raise NotTaughtError(self._sentence())
        message = answer[0][1]
        return cast(int, message.partition()), cast(int, message.offset())

    def _sentence(self) -> str:
        where = self.settings.kafka_bootstrap_servers
        return f"Not taught: Kafka at {where} did not take the label within {ACKNOWLEDGED_WITHIN:.0f} s. Try again."

    def _give_up(self, producer: Producer, error: KafkaError) -> None:
        """Let the next label connect again after an error that an idempotent producer never recovers from."""
        with self._lock:
            if error.fatal() and producer is self._producer:
                self._producer = None

    def _connected(self) -> Producer:
        with self._lock:
            if self._producer is None:
                milliseconds = int(ACKNOWLEDGED_WITHIN * 1000)
                self._producer = Producer(
                    self.settings.confluent_client()
                    | {
                        "acks": "all",
                        "enable.idempotence": True,
                        "linger.ms": 0,
                        "message.timeout.ms": milliseconds,
                    },
                    logger=log,
                )
                threading.Thread(
                    target=self._poll, args=(self._producer,), name="teacher", daemon=True
                ).start()
            return self._producer

    def _poll(self, producer: Producer) -> None:
        while producer is self._producer or len(producer):
            try:
                producer.poll(1)  # hands answers to those who wait for them
            except KafkaException as error:
                self._give_up(producer, error.args[0])
