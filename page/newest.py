"""The newest predictions, read from the tail of the predict topic for the page.

Connects in the background: a page without Kafka stays up.
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
LOOK_EVERY = 0.5  # seconds
SAID_FOR = 10.0  # seconds for which the page reports a record that can't be shown

faults = logging.getLogger("page")
log = logging.getLogger(__name__)
log.propagate = False  # librdkafka's own lines; the page says in words what is wrong
log.addHandler(logging.NullHandler())


class ForeignRecordError(ValueError):
    """A record of the predict topic that is no prediction of a drawing; the text says why."""


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
