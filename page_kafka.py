"""The page's two ends of the loop: a person's label goes into Kafka, the newest predictions come out.

Both connect in the background and on their own: a page without Kafka stays up.
"""

import logging
import threading
from collections import deque
from typing import cast

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from data_producer import client_config
from messages import DIGITS
from settings import Settings

ACKNOWLEDGED_WITHIN = 2.0  # seconds; a message that Kafka did not take by then is given up, not sent later
SHOWN = 24  # newest samples on the page
LOOK_EVERY = 0.5  # seconds

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
        self._producer: Producer | None = None

    def teach(self, x: list[int], label: int) -> tuple[int, int]:
        """Send 64 numbers and their label; returns partition and offset, or raises ``NotTaughtError``."""
        done = threading.Event()
        answer: list[tuple[KafkaError | None, Message]] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            answer.append((error, message))
            done.set()

        producer = self._connected()
        try:
            producer.produce(self.settings.input_topic, DIGITS.sample(x, label, "page"), on_delivery=delivered)
        except (BufferError, KafkaException) as error:
            raise NotTaughtError(self._sentence()) from error
        producer.poll(0)
        if not done.wait(ACKNOWLEDGED_WITHIN + 1) or answer[0][0] is not None:
            raise NotTaughtError(self._sentence())
        message = answer[0][1]
        return cast(int, message.partition()), cast(int, message.offset())

    def _sentence(self) -> str:
        where = self.settings.kafka_bootstrap_servers
        return f"Not taught: Kafka at {where} did not take the label within {ACKNOWLEDGED_WITHIN:.0f} s. Try again."

    def _connected(self) -> Producer:
        with self._lock:
            if self._producer is None:
                milliseconds = int(ACKNOWLEDGED_WITHIN * 1000)
                self._producer = Producer(
                    client_config(self.settings)
                    | {"acks": "all", "enable.idempotence": True, "linger.ms": 0, "message.timeout.ms": milliseconds},
                    logger=log,
                )
                threading.Thread(target=self._poll, args=(self._producer,), name="teacher", daemon=True).start()
            return self._producer

    @staticmethod
    def _poll(producer: Producer) -> None:
        while True:
            producer.poll(1)  # hands answers to those who wait for them


class NewestSamples:
    """Keeps the newest predictions of the job: looks at the tail of the topic, without a consumer group.

    ``error`` is None or a sentence on why Kafka can't be read. Each sample is a dict with a growing ``n``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.error: str | None = "Kafka was not asked yet."
        self.samples: deque[dict] = deque(maxlen=SHOWN)
        self._count = 0
        self._next: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="newest-samples", daemon=True)

    def start(self) -> None:
        """Start looking in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; returns when the thread has ended."""
        self._stop.set()
        self._thread.join(timeout=5)

    def after(self, n: int) -> list[dict]:
        """Return the samples kept that came after number ``n``, oldest first."""
        return [sample for sample in list(self.samples) if sample["n"] > n]

    def _follow(self) -> None:
        consumer = Consumer(
            client_config(self.settings)
            | {"group.id": "page", "enable.auto.commit": False, "isolation.level": "read_committed"}
            | {"fetch.message.max.bytes": 65_536, "queued.max.messages.kbytes": 256},
            logger=log,
        )
        try:
            while not self._stop.wait(LOOK_EVERY):
                try:
                    self._look(consumer)
                    self.error = None
                except KafkaException:
                    self.error = f"Kafka at {self.settings.kafka_bootstrap_servers} does not answer."
        finally:
            consumer.close()

    def _look(self, consumer: Consumer) -> None:
        topic = self.settings.predict_topic
        found = consumer.list_topics(topic, timeout=2).topics[topic]
        starts = []
        for partition in found.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=2)
            # A topic that was made again begins at 0; on a busy one only the tail is of interest.
            start = max(low, min(self._next.get(partition, 0), high), high - SHOWN)
            if start < high:
                starts.append(TopicPartition(topic, partition, start))
        if not starts:
            return
        consumer.assign(starts)
        messages = [m for m in consumer.consume(2 * SHOWN * len(starts), timeout=LOOK_EVERY) if m.error() is None]
        consumer.unassign()
        for message in sorted(messages, key=lambda m: m.timestamp()[1]):
            self._keep(message)

    def _keep(self, message: Message) -> None:
        self._next[cast(int, message.partition())] = cast(int, message.offset()) + 1
        sample = orjson.loads(cast(bytes, message.value()))
        self._count += 1
        kept = {"x": sample["x"], "y": sample["actual_y"], "predicted": sample.get("predict_y")}
        self.samples.append({"n": self._count, **kept, "source": sample.get("source")})
