"""Questions to Kafka about a topic that decide whether a model and a stream still fit together."""

import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from itertools import chain, islice
from typing import cast

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import KafkaAdminClient
from kafka.errors import KafkaError as PythonKafkaError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from settings import Settings, UserError

ANSWER_SECONDS = 20
PIECE_RECORDS = 1000
PIECE_BYTES = 8_000_000  # a worker's memory holds a model, a piece, and the client's queue

Records = list[tuple[int, bytes | None]]  # offset and payload

log = logging.getLogger(__name__)


class TopicLogError(UserError, RuntimeError):
    """Kafka did not answer, or not in time; the text names the topic."""


class TopicLog:
    """One topic as Kafka holds it, the input topic by default; connects at the first question.

    It skips records of aborted and open transactions, as Flink does, unless ``isolation`` is
    "read_uncommitted". The stream itself is read by Flink. librdkafka reads the records here,
    because it knows every codec that a broker accepts and computes checksums in C.
    """

    def __init__(
        self, settings: Settings, topic: str = "", isolation: str = "read_committed"
    ) -> None:
        self.settings = settings
        self.topic = topic or settings.input_topic
        self.isolation = isolation
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None

    def close(self) -> None:
        """Close the connections."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._admin = None

    def topic_id(self) -> str:
        """Return the id that Kafka gave the topic; a recreated topic has another id."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        try:
            found = admin.describe_topics([self.topic])[0]["topic_id"]
        finally:
            admin.close()
        if not found:
            raise TopicLogError(f"Kafka has no topic {self.topic}: create it, or set INPUT_TOPIC.")
        return str(found)

    def cluster_id(self) -> str:
        """Return the id of the Kafka cluster."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        try:
            return str(admin.describe_cluster()["cluster_id"])
        finally:
            admin.close()

    def committed(self) -> dict[int, int]:
        """Return {partition: next offset} that the job's consumer group has committed."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        # A broker has no group coordinator at first after its start.
        retrying = Retrying(
            retry=retry_if_exception(lambda e: isinstance(e, PythonKafkaError) and e.retriable),
            wait=wait_fixed(0.2),
            stop=stop_after_delay(ANSWER_SECONDS),
            reraise=True,
        )
        try:
            found = retrying(admin.list_group_offsets, {self.settings.kafka_group: None})
        finally:
            admin.close()
        offsets = found.get(self.settings.kafka_group, {})
        return {
            tp.partition: at.offset
            for tp, at in offsets.items()
            if tp.topic == self.topic and at.offset >= 0
        }

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Return {partition: (first offset in the log, offset after the last)}.

        Open transactions count, too.
        """
        firsts = self.beginnings(self._partitions())
        ends = self._ask(firsts, OffsetSpec.latest())()
        return {partition: (first, ends[partition]) for partition, first in firsts.items()}

    def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return {partition: first offset in the log}, with one request."""
        return self.ask_for_beginnings(partitions)()

    def ask_for_beginnings(self, partitions: Iterable[int]) -> Callable[[], dict[int, int]]:
        """Send the request of ``beginnings`` and return a function that waits for its answer."""
        return self._ask(partitions, OffsetSpec.earliest())

    def stable_ends(self) -> dict[int, int]:
        """Return {partition: offset} at which readers of committed messages wait."""
        return self._ask(self._partitions(), OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)()

    def read(self, partition: int, start: int, end: int, limit: int = PIECE_RECORDS) -> Records:
        """Return up to ``limit`` records of ``partition`` with start <= offset < end, in order.

        The list is empty if all these offsets were transaction markers, aborted or compacted.
        """
        with closing(self.pieces(partition, start, end)) as pieces:
            return list(islice(chain.from_iterable(pieces), limit))

    def pieces(self, partition: int, start: int, end: int) -> Generator[Records, None, None]:
        """Yield what ``read`` returns without a limit, in pieces.

        A piece has at most 1,000 records and about 8 MB. Close the generator before you read other
        records. Raises ``TopicLogError``.
        """
        with closing(self.messages(partition, start, end)) as pieces:
            for piece in pieces:
                yield [(cast(int, m.offset()), cast(bytes | None, m.value())) for m in piece]

    def messages(
        self, partition: int, start: int, end: int
    ) -> Generator[list[Message], None, None]:
        """Yield the same records as ``pieces``, as Kafka's messages with headers and timestamps."""
        consumer = self._reader()
        consumer.assign([TopicPartition(self.topic, partition, start)])
        piece: list[Message] = []
        size = 0
        at = start
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while at < end:
                message = consumer.poll(0.2)
                if message is None or message.error() is not None:
                    # Readers may wait below ``end`` for an open transaction or a starting broker.
                    at = self._end_reached(message, at)
                    if at < end and time.monotonic() > deadline:
                        raise TopicLogError(
                            f"Kafka returned no records of topic {self.topic} partition "
                            f"{partition} from offset {at} for {ANSWER_SECONDS} s."
                        )
                    continue
                deadline = time.monotonic() + ANSWER_SECONDS
                at = cast(int, message.offset()) + 1
                if at <= end:
                    piece.append(message)
                    size += len(message.value() or b"")
                if len(piece) >= PIECE_RECORDS or size >= PIECE_BYTES:
                    yield piece
                    piece = []
                    size = 0
                    # The caller may have learned the piece for longer than that.
                    deadline = time.monotonic() + ANSWER_SECONDS
            if piece:
                yield piece
        finally:
            consumer.unassign()

    def _end_reached(self, message: Message | None, at: int) -> int:
        """Return the end that the message marks, or ``at`` if it marks none.

        Raises ``TopicLogError`` for an error that a retry does not solve.
        """
        error = message.error() if message is not None else None
        if message is None or error is None or error.retriable():
            return at
        if error.code() != KafkaError._PARTITION_EOF:
            raise self._error(error)
        return cast(int, message.offset())

    def _reader(self) -> Consumer:
        if self._consumer is None:
            reading = {
                # The client needs a group's name, and the login may describe this one.
                # It does not join the group and commits no offsets.
                "group.id": self.settings.kafka_group,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": self.isolation,
                "enable.partition.eof": True,
                # A fetch that waits at the log's end delays the next request on its connection.
                "fetch.wait.max.ms": 10,
                "queued.max.messages.kbytes": PIECE_BYTES // 1024,
                # A full queue is soon empty; the default would wait a second.
                "fetch.queue.backoff.ms": 10,
            }
            self._consumer = Consumer(self.settings.confluent_client() | reading, logger=log)
        return self._consumer

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient(self.settings.confluent_client(), logger=log)
        return self._admin

    def _partitions(self) -> list[int]:
        try:
            # All topics, because a broker may create a topic that a client asks for by name.
            topics = self._client().list_topics(timeout=ANSWER_SECONDS).topics
        except KafkaException as error:
            raise self._error(error.args[0]) from error
        return sorted(topics[self.topic].partitions) if self.topic in topics else []

    def _ask(
        self,
        partitions: Iterable[int],
        spec: OffsetSpec,
        isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    ) -> Callable[[], dict[int, int]]:
        """Ask for an offset of each partition; return what waits for {partition: offset}."""
        specs = {TopicPartition(self.topic, partition): spec for partition in partitions}
        if not specs:
            return dict
        futures = self._client().list_offsets(
            specs, isolation_level=isolation, request_timeout=ANSWER_SECONDS
        )

        def answer() -> dict[int, int]:
            try:
                return {
                    place.partition: future.result().offset for place, future in futures.items()
                }
            except KafkaException as error:
                raise self._error(error.args[0]) from error

        return answer

    def _error(self, error: KafkaError) -> TopicLogError:
        where = self.settings.kafka_bootstrap_servers
        reason = error.str().rstrip(".")
        return TopicLogError(f"Kafka at {where} gave no answer about topic {self.topic}: {reason}.")
