"""Kafka's sender and reader for commands.

Delivery: all in-sync replicas acknowledge each message. It is in its partition once and in the
order of sending, also after retries and restarts of the broker (idempotent producer). A message
that Kafka has not answered when the process ends may or may not have arrived.
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
# A batch of many small messages stays well below the topic's limit for one message.
BATCH_BYTES = 262_144
MAX_WAITING = 50_000  # messages without an answer; the client's queue holds twice as many

log = logging.getLogger(__name__)
# librdkafka logs here. Its lines stay off the terminal unless the program sets up logging.
log.addHandler(logging.NullHandler())


class ClientError(UserError):
    """The command can't run, because of Kafka, its login, the topic or a file."""


class Link:
    """The link of a client to Kafka: its settings, its last trouble, and errors as sentences."""

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
        # The reason is the middle of
        # "ssl://host:9092/bootstrap: Connect failed: refused (after 1ms in state CONNECT)".
        self.trouble = re.sub(r"^\S*/\S+: | \(after \d+ms in state .*\)", "", error.str())

    def open(self, client_type: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> Any:
        """Return a new client; raises ``ClientError`` for a setting that the client can't use."""
        try:
            return client_type(self.config | config)
        except KafkaException as error:
            reason = error.args[0].str()
            raise ClientError(f"The settings for Kafka don't work: {reason}.") from error

    def partitions(self, client: Producer | Consumer, topic: str) -> list[int]:
        """Return the topic's partitions.

        Raises ``ClientError`` if Kafka does not answer, refuses the login or has no such topic.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(KafkaException),
            stop=stop_after_delay(PATIENCE),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        try:
            topics = retrying(self._topics, client)
        except KafkaException as error:
            raise self.error(error.args[0]) from error
        if topic not in topics:
            raise ClientError(f"The topic {topic} does not exist on Kafka at {self.address}.")
        return sorted(topics[topic].partitions)

    def _topics(self, client: Producer | Consumer) -> dict[str, Any]:
        try:
            # All topics, because a broker may create a topic that a client asks for by name.
            return client.list_topics(timeout=2).topics
        except KafkaException as error:
            client.poll(0)  # calls _on_error with the reason
            if self.refused:
                raise self.error(error.args[0]) from error
            raise

    def error(self, error: KafkaError) -> ClientError:
        """Return a Kafka error as a sentence that says where it happened and what to check."""
        closed = "it closes the connection. Is KAFKA_SECURITY_PROTOCOL right?"
        reason = (self.trouble or closed).rstrip(".")
        if self.refused:
            return ClientError(
                f"Kafka at {self.address} refused the login: {reason}. "
                "Check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM."
            )
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ClientError(
                f"The message is too large: Kafka at {self.address} and this producer "
                f"take at most {MAX_MESSAGE_BYTES:,} bytes."
            )
        silence = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT)
        if error.code() in silence:
            return ClientError(f"Kafka at {self.address} does not answer: {reason}")
        return ClientError(f"Kafka at {self.address}: {error.str().rstrip('.')}.")


class Sender:
    """Sends to one topic and counts what Kafka acknowledged; raises ``ClientError`` on failure."""

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
        """Hand one message to the client's queue.

        ``acknowledged`` is called with the message after Kafka has acknowledged it.
        """

        def answer(error: KafkaError | None, message: Message) -> None:
            self._answer(error, message)
            if error is None and acknowledged is not None:
                acknowledged(message)

        on_delivery = answer if acknowledged else self._answer
        try:
            self._producer.produce(self.topic, value, on_delivery=on_delivery)
        except KafkaException as error:
            raise self.link.error(error.args[0]) from error

    def _answer(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
            self.link.trouble = ""
        elif self._failure is None:
            self._failure = error

    def collect(self) -> None:
        """Process the answers that have arrived.

        Raises ``ClientError`` if Kafka finally refused a message.
        """
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
        text = (
            f"{self.acknowledged:,} sample{many} acknowledged, topic {self.topic}, "
            f"Kafka at {self.link.address}."
        )
        if self.waiting:
            text += f" {self.waiting:,} more were sent, but Kafka has not acknowledged them."
        return text


class Reader:
    """Reads the committed messages of a topic; joins no group and commits no offsets."""

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
        starts = dict.fromkeys(self._partitions, OFFSET_BEGINNING)
        yield from self._until_the_end(starts, stop)

    def last(self, number: int, stop: Event) -> list[Message]:
        """Return the last ``number`` messages by their time, from all partitions together."""
        span = number
        while True:
            bounds = {p: self._bounds(p) for p in self._partitions}
            starts = {p: max(low, high - span) for p, (low, high) in bounds.items()}
            found = list(self._until_the_end(starts, stop))
            whole = all(starts[p] == low for p, (low, _) in bounds.items())
            if len(found) >= number or whole or stop.is_set():
                found.sort(key=lambda message: message.timestamp()[1])
                return found[-number:]
            # Transaction markers and aborted messages have offsets, too, so read a longer span.
            span *= 4

    def new(self, stop: Event) -> Iterator[Message]:
        """Yield the messages after those read so far, until ``stop`` is set."""
        while not stop.is_set():
            message = self._poll(0.2)
            if message is not None and message.error() is None:
                yield message

    def _bounds(self, partition: int) -> tuple[int, int]:
        place = TopicPartition(self.topic, partition)
        try:
            return self._consumer.get_watermark_offsets(place, timeout=PATIENCE)
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
            partition = message.partition() or 0
            offset = message.offset() or 0
            at_the_end = message.error() is not None
            if not at_the_end:
                yield message
            # A partition ends with its last committed message, or at the end that it had at first,
            # because a busy topic never runs out of messages.
            if at_the_end or offset + 1 >= ends.get(partition, 0):
                ends.pop(partition, None)

    def _poll(self, seconds: float) -> Message | None:
        """Return a message, None, or a mark that a partition's end is reached.

        Such a mark has its ``error()`` set.
        """
        message = self._consumer.poll(seconds)
        error = message.error() if message is not None else None
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise self.link.error(error)
        return message


def stop_on_signals() -> Event:
    """Return an event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop = Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop
