"""The page's two ends of the loop: a person's label goes into Kafka, the newest predictions come out.

Both connect in the background and on their own: a page without Kafka stays up.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from loop.messages import DIGITS
from settings import Settings

ACKNOWLEDGED_WITHIN = (
    2.0  # seconds; a message that Kafka did not take by then is given up, not sent later
)
SHOWN = 24  # newest samples on the page
LOOK_EVERY = 0.5  # seconds
SAID_FOR = 10.0  # seconds that a record which can't be shown is told of
WAITING = (
    12  # labels at once that may wait for Kafka, so that others than teachers find a free thread
)

faults = logging.getLogger("page")
log = logging.getLogger(__name__)
log.propagate = False  # librdkafka's own lines; the page says in words what is wrong
log.addHandler(logging.NullHandler())


class NotTaughtError(RuntimeError):
    """Kafka did not acknowledge a label in time; the text says so to the person who gave it."""


class ForeignRecordError(ValueError):
    """A record of the predict topic that is no prediction of a drawing; the text says why."""


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


class NewestSamples:
    """Keeps the newest predictions of the job: looks at the tail of the topic, without a consumer group.

    ``error`` is None or a sentence on why Kafka can't be read; ``foreign`` the same for records that can't be shown.
    Each sample is a dict with a growing ``n``. ``on_cluster`` is called with the id of Kafka's cluster at each look.
    """

    def __init__(self, settings: Settings, on_cluster: Callable[[str], None]) -> None:
        self.settings = settings
        self.on_cluster = on_cluster
        self.error: str | None = "Kafka was not asked yet."
        self.samples: deque[dict] = deque(maxlen=SHOWN)
        self._foreign: tuple[float, str] | None = None  # when, and the sentence
        self._count = 0
        self._next: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="newest-samples", daemon=True)

    @property
    def foreign(self) -> str | None:
        """Return a sentence on a record that could not be shown a moment ago."""
        recent = self._foreign and time.monotonic() - self._foreign[0] < SAID_FOR
        return self._foreign[1] if self._foreign and recent else None

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
        while not self._stop.wait(LOOK_EVERY):
            try:
                self._follow_one()
            except KafkaException:
                self.error = f"Kafka at {self.settings.kafka_bootstrap_servers} can't be asked with these settings."
            except Exception as error:  # noqa: BLE001 - whatever a record holds, this thread goes on
                sentence = f"The newest samples can't be read ({type(error).__name__}: {error})."
                if self.error != sentence:
                    faults.exception("the newest samples could not be read; reading goes on")
                self.error = sentence

    def _follow_one(self) -> None:
        """Look with one consumer until the end."""
        consumer = Consumer(
            self.settings.confluent_client()
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
                    self.error = (
                        f"Kafka at {self.settings.kafka_bootstrap_servers} does not answer."
                    )
        finally:
            consumer.close()

    def _look(self, consumer: Consumer) -> None:
        topic = self.settings.predict_topic
        cluster = consumer.list_topics(topic, timeout=2)
        if cluster.cluster_id:
            self.on_cluster(cluster.cluster_id)
        found = cluster.topics[topic]
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
        messages = [
            m
            for m in consumer.consume(2 * SHOWN * len(starts), timeout=LOOK_EVERY)
            if m.error() is None
        ]
        consumer.unassign()
        for message in sorted(messages, key=lambda m: m.timestamp()[1]):
            self._keep(message)

    def _keep(self, message: Message) -> None:
        partition, offset = cast(int, message.partition()), cast(int, message.offset())
        self._next[partition] = offset + 1
        try:
            kept = shown(message.value())
        except ForeignRecordError as error:
            where = f"Topic {self.settings.predict_topic} partition {partition} offset {offset}"
            self._foreign = time.monotonic(), f"{where} can't be shown: {error}"
            return
        self._count += 1
        self.samples.append({"n": self._count, **kept})


def shown(record: bytes | None) -> dict:
    """Return what the page shows of a prediction; raises ``ForeignRecordError`` for any other record."""
    try:
        sample = orjson.loads(record or b"")
    except orjson.JSONDecodeError:
        raise ForeignRecordError("it is not JSON.") from None
    if not isinstance(sample, dict):
        raise ForeignRecordError("it is no JSON object.")
    x, y, predicted = sample.get("x"), sample.get("actual_y"), sample.get("predict_y")
    if not (
        isinstance(x, list)
        and len(x) == DIGITS.n_features
        and all(_whole(v, DIGITS.high) for v in x)
    ):
        raise ForeignRecordError("it is no drawing of 64 pixels from 0 to 16.")
    if not (_whole(y, 9) and (predicted is None or _whole(predicted, 9))):
        raise ForeignRecordError("its label or its prediction is no digit.")
    source = "page" if sample.get("source") == "page" else None
    return {"x": x, "y": y, "predicted": predicted, "source": source}


def _whole(value: object, high: float) -> bool:
    return type(value) is int and 0 <= value <= high
