"""Kafka's sender and reader for commands.

Delivery: every message is acknowledged by all in-sync replicas and stands in its partition once and in
the order of sending, through retries and restarts of the broker (idempotent producer). A message
without an answer when the process ends may or may not have arrived.
"""

import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from threading import Event
from types import FrameType
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from loop.messages import MAX_MESSAGE_BYTES
from settings import Settings, UserError

PATIENCE = 10.0  # seconds that Kafka has to answer, at the start and at the end
BATCH_BYTES = (
    262_144  # a batch of many small messages stays well below the topic's limit for one message
)
MAX_WAITING = 50_000  # messages without an answer; the client's queue holds twice as many

log = logging.getLogger(__name__)
log.addHandler(
    logging.NullHandler()
)  # librdkafka's own messages: not on the terminal, there for who asks logging


class ClientError(UserError):
    """Kafka, its login, the topic or a file stops the command."""


class Link:
    """What Kafka's client last complained of, and the sentences made of it."""

    def __init__(self, s: Settings) -> None:
        self.address = s.kafka_bootstrap_servers
        self.trouble = ""
        self.refused = False
        self.config: dict[str, Any] = s.confluent_client() | {
            "error_cb": self._on_error,
            "logger": log,
        }

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            return  # always comes with the error that says why
        self.refused = error.code() == KafkaError._AUTHENTICATION
        # "ssl://host:9092/bootstrap: Connect failed: refused (after 1ms in state CONNECT)": the middle is the reason.
        self.trouble = re.sub(r"^\S*/\S+: | \(after \d+ms in state .*\)", "", error.str())

    def open(self, client_type: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> Any:
        """Return a client; raises ``ClientError`` for a setting that the client can't use."""
        try:
            return client_type(self.config | config)
        except KafkaException as error:
            raise ClientError(
                f"The settings for Kafka don't work: {error.args[0].str()}."
            ) from error

    def partitions(self, client: Producer | Consumer, topic: str) -> list[int]:
        """Return the topic's partitions; raises ``ClientError`` where Kafka, its login or the topic is missing."""
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(KafkaException),
                stop=stop_after_delay(PATIENCE),
                wait=wait_fixed(0.2),
                reraise=True,
            ):
                with attempt:
                    topics = self._topics(client)
        except KafkaException as error:
            raise self.error(error.args[0]) from error
        if topic not in topics:
            raise ClientError(f"The topic {topic} does not exist on Kafka at {self.address}.")
        return sorted(topics[topic].partitions)

    def _topics(self, client: Producer | Consumer) -> dict[str, Any]:
        try:
            # All topics, not one by its name: a broker may make a topic that is asked for by name.
            return client.list_topics(timeout=2).topics
        except KafkaException as error:
            client.poll(0)  # hands over the reason
            if self.refused:
                raise self.error(error.args[0]) from error
            raise

    def error(self, error: KafkaError) -> ClientError:
        """Return a Kafka error as a sentence that says where and what to look at."""
        reason = (
            self.trouble or "it closes the connection, is KAFKA_SECURITY_PROTOCOL right?"
        ).rstrip(".")
        if self.refused:
            return ClientError(
                f"Kafka at {self.address} refused the login: {reason}. "
                "See KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM."
            )
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ClientError(
                f"The message is too large: Kafka at {self.address} and this producer "
                f"take at most {MAX_MESSAGE_BYTES:,} bytes."
            )
        if error.code() in (
            KafkaError._TRANSPORT,
            KafkaError._TIMED_OUT,
            KafkaError._MSG_TIMED_OUT,
        ):
            return ClientError(f"Kafka at {self.address} does not answer: {reason}")
        return ClientError(f"Kafka at {self.address}: {error.str().rstrip('.')}.")


class Sender:
    """Sends to one topic and counts what Kafka acknowledged; raises ``ClientError`` where it can't."""

    def __init__(self, s: Settings, topic: str) -> None:
        self.topic = topic
        self.acknowledged = 0
        self.link = Link(s)
        self._failure: KafkaError | None = None
        self._producer: Producer = self.link.open(
            Producer,
            {
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "batch.size": BATCH_BYTES,
                "message.max.bytes": MAX_MESSAGE_BYTES,
            },
        )
        self.link.partitions(self._producer, topic)

    @property
    def waiting(self) -> int:
        """Return how many messages have no answer yet."""
        return len(self._producer)

    def send(self, value: bytes, acknowledged: Callable[[Message], None] | None = None) -> None:
        """Hand one message to the client's queue; ``acknowledged`` is called with it once Kafka has it."""

        def answer(error: KafkaError | None, message: Message) -> None:
            self._answer(error, message)
            if error is None and acknowledged is not None:
                acknowledged(message)

        try:
            self._producer.produce(
                self.topic, value, on_delivery=answer if acknowledged else self._answer
            )
        except KafkaException as error:
            raise self.link.error(error.args[0]) from error

    def _answer(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
            self.link.trouble = ""
        elif self._failure is None:
            self._failure = error

    def collect(self) -> None:
        """Take in the answers that have come; raises ``ClientError`` where Kafka refused a message for good."""
        self._producer.poll(0)
        if self._failure is not None:
            raise self.link.error(self._failure)

    def finish(self) -> None:
        """Wait until every message is answered, at most ``PATIENCE`` seconds."""
        self._producer.flush(PATIENCE)
        self.collect()

    def outcome(self) -> str:
        """Return in a sentence what was acknowledged and what has no answer."""
        many = "" if self.acknowledged == 1 else "s"
        text = f"{self.acknowledged:,} sample{many} acknowledged, topic {self.topic}, Kafka at {self.link.address}."
        return (
            f"{text} {self.waiting:,} more were sent without an answer." if self.waiting else text
        )


class Reader:
    """Reads a topic as far as its transactions are committed; it belongs to no group and commits nothing."""

    def __init__(self, s: Settings, topic: str) -> None:
        self.topic = topic
        self.link = Link(s)
        self._consumer: Consumer = self.link.open(
            Consumer,
            {
                "group.id": "commands",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            },
        )
        self._partitions = self.link.partitions(self._consumer, topic)

    def everything(self, stop: Event) -> Iterator[Message]:
        """Yield what is in the topic now, each partition in its order."""
        yield from self._until_the_end({p: OFFSET_BEGINNING for p in self._partitions}, stop)

    def last(self, number: int, stop: Event) -> list[Message]:
        """Return the last ``number`` messages by their time, from all partitions together."""
        span = number
        while True:
            bounds = {p: self._bounds(p) for p in self._partitions}
            starts = {p: max(low, high - span) for p, (low, high) in bounds.items()}
            found = list(self._until_the_end(starts, stop))
            # Offsets also count transaction markers and aborted messages: look further back until there are enough.
            if (
                len(found) >= number
                or all(starts[p] == low for p, (low, _) in bounds.items())
                or stop.is_set()
            ):
                return sorted(found, key=lambda message: message.timestamp()[1])[-number:]
            span *= 4

    def new(self, stop: Event) -> Iterator[Message]:
        """Yield what comes after the messages read so far, until ``stop``."""
        while not stop.is_set():
            message = self._poll(0.2)
            if message is not None and message.error() is None:
                yield message

    def _bounds(self, partition: int) -> tuple[int, int]:
        try:
            return self._consumer.get_watermark_offsets(
                TopicPartition(self.topic, partition), timeout=PATIENCE
            )
        except KafkaException as error:
            raise self.link.error(error.args[0]) from error

    def _until_the_end(self, starts: dict[int, int], stop: Event) -> Iterator[Message]:
        ends = {p: self._bounds(p)[1] for p in starts}
        self._consumer.assign([TopicPartition(self.topic, p, start) for p, start in starts.items()])
        heard = time.monotonic()
        while ends and not stop.is_set():
            message = self._poll(0.2)
            if message is None:
                if time.monotonic() - heard > PATIENCE:
                    raise self.link.error(KafkaError(KafkaError._TIMED_OUT))
                continue
            heard = time.monotonic()
            partition, offset, at_the_end = (
                message.partition() or 0,
                message.offset() or 0,
                message.error() is not None,
            )
            if not at_the_end:
                yield message
            # Where the messages stop being committed, or the end as it was at the start: a busy topic has no other.
            if at_the_end or offset + 1 >= ends.get(partition, 0):
                ends.pop(partition, None)

    def _poll(self, seconds: float) -> Message | None:
        """Return a message, a mark that a partition's end is reached (its ``error()`` is set), or None."""
        message = self._consumer.poll(seconds)
        error = message.error() if message is not None else None
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise self.link.error(error)
        return message


def stop_on_signals() -> Event:
    """Return an event that SIGINT and SIGTERM set; the second one ends the process at once."""
    stop = Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop
