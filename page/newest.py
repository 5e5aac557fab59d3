"""The newest predictions, read from the tail of the predict topic for the page.

The connection is made in the background: a page without Kafka stays up.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import orjson
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from loop.messages import DIGITS
from settings import Settings

SHOWN = 24  # newest samples on the page
POLL_EVERY = 0.5  # seconds
SAID_FOR = 10.0  # seconds for which the page reports a record that can't be shown

faults = logging.getLogger("page")
log = logging.getLogger(__name__)
log.propagate = False  # librdkafka's own lines; the page reports the problem in a sentence
log.addHandler(logging.NullHandler())


class ForeignRecordError(ValueError):
    """A record of the predict topic that is not a prediction of a drawing; the text says why."""


class NewestSamples:
    """Keeps the newest predictions of the job: polls the tail of the topic, without a group.

    ``error`` is None or a sentence on why Kafka can't be read; ``foreign`` is the same for records
    that can't be shown. Each sample is a dict with a growing ``n``. ``on_cluster`` is called at each
    poll with the id of Kafka's cluster.
    """

    def __init__(self, settings: Settings, on_cluster: Callable[[str], None]) -> None:
        self.settings = settings
        self.on_cluster = on_cluster
        self.error: str | None = "Kafka has not been asked yet."
        self.samples: deque[dict] = deque(maxlen=SHOWN)
        self._foreign: tuple[float, str] | None = None  # when, and the sentence
        self._count = 0
        self._next: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="newest-samples", daemon=True)

    @property
    def foreign(self) -> str | None:
        """Return a sentence on a record that could not be shown in the last seconds."""
        if self._foreign is None:
            return None
        since, sentence = self._foreign
        return sentence if time.monotonic() - since < SAID_FOR else None

    def start(self) -> None:
        """Start polling in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling; returns when the thread has ended."""
        self._stop.set()
        self._thread.join(timeout=5)

    def after(self, n: int) -> list[dict]:
        """Return the samples kept that came after number ``n``, oldest first."""
        return [sample for sample in list(self.samples) if sample["n"] > n]

    def _follow(self) -> None:
        while not self._stop.wait(POLL_EVERY):
            try:
                self._follow_one()
            except KafkaException:
                where = self.settings.kafka_bootstrap_servers
                self.error = f"Kafka at {where} can't be asked with these settings."
            except Exception as error:  # noqa: BLE001 - no record may end this thread
                sentence = f"The newest samples can't be read ({type(error).__name__}: {error})."
                if self.error != sentence:
                    faults.exception("the newest samples could not be read; retrying")
                self.error = sentence

    def _follow_one(self) -> None:
        """Poll with one consumer until the end."""
        options = {
            "group.id": "page",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.message.max.bytes": 65_536,
            "queued.max.messages.kbytes": 256,
        }
        consumer = Consumer(self.settings.confluent_client() | options, logger=log)
        where = self.settings.kafka_bootstrap_servers
        try:
            while not self._stop.wait(POLL_EVERY):
                try:
                    self._poll(consumer)
                    self.error = None
                except KafkaException:
                    self.error = f"Kafka at {where} does not answer."
        finally:
            consumer.close()

    def _poll(self, consumer: Consumer) -> None:
        topic = self.settings.predict_topic
        cluster = consumer.list_topics(topic, timeout=2)
        if cluster.cluster_id:
            self.on_cluster(cluster.cluster_id)
        starts = []
        for partition in cluster.topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=2)
            # A recreated topic begins at 0. Of a busy one, only the tail is shown.
            start = max(low, min(self._next.get(partition, 0), high), high - SHOWN)
            if start < high:
                starts.append(TopicPartition(topic, partition, start))
        if not starts:
            return
        consumer.assign(starts)
        found = consumer.consume(2 * SHOWN * len(starts), timeout=POLL_EVERY)
        consumer.unassign()
        messages = [message for message in found if message.error() is None]
        for message in sorted(messages, key=lambda message: message.timestamp()[1]):
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
        raise ForeignRecordError("it is not a JSON object.")
    x, y, predicted = sample.get("x"), sample.get("actual_y"), sample.get("predict_y")
    if not _is_drawing(x):
        raise ForeignRecordError("it is not a drawing of 64 pixels from 0 to 16.")
    if not _is_whole(y, 9) or not (predicted is None or _is_whole(predicted, 9)):
        raise ForeignRecordError("its label or its prediction is not a digit.")
    source = "page" if sample.get("source") == "page" else None
    return {"x": x, "y": y, "predicted": predicted, "source": source}


def _is_drawing(x: object) -> bool:
    if not isinstance(x, list) or len(x) != DIGITS.n_features:
        return False
    return all(_is_whole(value, DIGITS.high) for value in x)


def _is_whole(value: object, high: float) -> bool:
    return type(value) is int and 0 <= value <= high
