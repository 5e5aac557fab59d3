"""A person's label, sent to Kafka as one more sample.

The connection is made in the background: a page without Kafka stays up.
"""

import logging
import threading
from queue import Empty, Queue
from typing import cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from loop.messages import DIGITS
from settings import Settings

# Seconds; a label that Kafka has not acknowledged by then is dropped, not sent later.
ACKNOWLEDGED_WITHIN = 2.0
WAITING = 12  # labels that may wait for Kafka at once, so that other requests find a free thread

log = logging.getLogger(__name__)
log.propagate = False  # librdkafka's own lines; the page reports the problem in a sentence
log.addHandler(logging.NullHandler())


class NotTaughtError(RuntimeError):
    """Kafka did not acknowledge a label in time; the text is for the person who gave it."""


class Teacher:
    """Sends a person's label as one more sample, acknowledged by every in-sync replica."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING)
        self._producer: Producer | None = None

    def teach(self, x: list[int], label: int) -> tuple[int, int]:
        """Send 64 pixels and their label; returns partition and offset.

        Raises ``NotTaughtError``.
        """
        if not self._places.acquire(timeout=0.2):
            raise NotTaughtError("Not taught: too many labels are waiting for Kafka. Try again.")
        try:
            return self._send(x, label)
        finally:
            self._places.release()

    def _send(self, x: list[int], label: int) -> tuple[int, int]:
        answer: Queue[tuple[KafkaError | None, Message]] = Queue()
        producer = self._connected()
        try:
            producer.produce(
                self.settings.input_topic,
                DIGITS.sample(x, label, "page"),
                on_delivery=lambda error, message: answer.put((error, message)),
            )
        except BufferError as error:
            raise NotTaughtError(self._sentence()) from error
        except KafkaException as error:
            self._give_up(producer, error.args[0])
            raise NotTaughtError(self._sentence()) from error
        producer.poll(0)
        try:
            failure, message = answer.get(timeout=ACKNOWLEDGED_WITHIN + 1)
        except Empty:
            raise NotTaughtError(self._sentence()) from None
        if failure is not None:
            self._give_up(producer, failure)
            raise NotTaughtError(self._sentence())
        return cast(int, message.partition()), cast(int, message.offset())

    def _sentence(self) -> str:
        where = self.settings.kafka_bootstrap_servers
        return (
            f"Not taught: Kafka at {where} did not take the label "
            f"within {ACKNOWLEDGED_WITHIN:.0f} s. Try again."
        )

    def _give_up(self, producer: Producer, error: KafkaError) -> None:
        """Let the next label connect again after an error that the producer can't recover from."""
        with self._lock:
            if error.fatal() and producer is self._producer:
                self._producer = None

    def _connected(self) -> Producer:
        with self._lock:
            if self._producer is None:
                options = {
                    "acks": "all",
                    "enable.idempotence": True,
                    "linger.ms": 0,
                    "message.timeout.ms": int(ACKNOWLEDGED_WITHIN * 1000),
                }
                producer = Producer(self.settings.confluent_client() | options, logger=log)
                self._producer = producer
                threading.Thread(
                    target=self._poll, args=(producer,), name="teacher", daemon=True
                ).start()
            return self._producer

    def _poll(self, producer: Producer) -> None:
        while producer is self._producer or len(producer):
            try:
                producer.poll(1)  # this calls on_delivery
            except KafkaException as error:
                self._give_up(producer, error.args[0])
