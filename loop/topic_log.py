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
PIECE_BYTES = 8_000_000  # a piece, and what waits behind it in the client, fit beside a model

Records = list[tuple[int, bytes | None]]  # offset and payload

log = logging.getLogger(__name__)


class TopicLogError(UserError, RuntimeError):
    """Kafka did not answer, or not in time; the text names topic and partition."""


class TopicLog:
    """One topic as Kafka holds it, the input topic by default; connects at the first question.

    Records of aborted and of open transactions are not read, as Flink does not deliver them either,
    unless ``isolation`` is "read_uncommitted". Not for the stream itself: Flink reads that. librdkafka
    reads the records: it knows every codec that a broker accepts, and its checksums are made in C.
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
        """Return the id that Kafka gave the topic when it was made; a topic of the same name made later has another."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        try:
            found = admin.describe_topics([self.topic])[0]["topic_id"]
        finally:
            admin.close()
        if not found:
            raise TopicLogError(f"Kafka has no topic {self.topic}: create it, or set INPUT_TOPIC.")
        return str(found)

    def cluster_id(self) -> str:
        """Return the id that Kafka's cluster was made with."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        try:
            return str(admin.describe_cluster()["cluster_id"])
        finally:
            admin.close()

    def committed(self) -> dict[int, int]:
        """Return the offsets that the job's consumer group has committed, {partition: next offset}."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        # A broker that has just started has no group coordinator yet.
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
        """Return {partition: (first offset in the log, offset after the last)}, open transactions included."""
        firsts = self.beginnings(self._partitions())
        ends = self._ask(firsts, OffsetSpec.latest())()
        return {partition: (first, ends[partition]) for partition, first in firsts.items()}

    def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the first offset in the log of these partitions, in one question."""
        return self.ask_for_beginnings(partitions)()

    def ask_for_beginnings(self, partitions: Iterable[int]) -> Callable[[], dict[int, int]]:
        """Put the question of ``beginnings`` and return what waits for its answer."""
        return self._ask(partitions, OffsetSpec.earliest())

    def stable_ends(self) -> dict[int, int]:
        """Return the offsets where readers of committed messages wait, {partition: offset}."""
        return self._ask(self._partitions(), OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)()

    def read(self, partition: int, start: int, end: int, limit: int = PIECE_RECORDS) -> Records:
        """Return up to ``limit`` records of ``partition`` with start <= offset < end, in order.

        An empty list means that there are none: offsets without records are transaction markers, or were
        aborted or compacted.
        """
        with closing(self.pieces(partition, start, end)) as pieces:
            return list(islice(chain.from_iterable(pieces), limit))

    def pieces(self, partition: int, start: int, end: int) -> Generator[Records, None, None]:
        """Yield what ``read`` returns, without a limit, in pieces of at most 1,000 records and about 8 MB.

        Close the generator before you ask for other records.
        """
        with closing(self.messages(partition, start, end)) as pieces:
            for piece in pieces:
                yield [(cast(int, m.offset()), cast(bytes | None, m.value())) for m in piece]

    def messages(
        self, partition: int, start: int, end: int
    ) -> Generator[list[Message], None, None]:
        """Yield the same records as ``pieces``, with all that Kafka says of each."""
        consumer = self._reader()
        consumer.assign([TopicPartition(self.topic, partition, start)])
        piece: list[Message] = []
        size, at = 0, start
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while at < end:
                message = consumer.poll(0.2)
                if message is None or message.error() is not None:
                    # An open transaction, or a broker that has just started, may hold readers below ``end``.
                    at = self._end_reached(message, at)
                    if at < end and time.monotonic() > deadline:
                        raise TopicLogError(
                            f"Kafka gave no records of {self.topic} partition {partition} from offset "
                            f"{at} for {ANSWER_SECONDS} s."
                        )
                    continue
                deadline = time.monotonic() + ANSWER_SECONDS
                at = cast(int, message.offset()) + 1
                if at <= end:
                    piece.append(message)
                    size += len(message.value() or b"")
                if len(piece) >= PIECE_RECORDS or size >= PIECE_BYTES:
                    yield piece
                    piece, size = [], 0
                    deadline = time.monotonic() + ANSWER_SECONDS  # learning the piece took its time
            if piece:
                yield piece
        finally:
            consumer.unassign()

    def _end_reached(self, message: Message | None, at: int) -> int:
        """Return the end that the message marks, or ``at``; raises ``TopicLogError`` for a lasting fault."""
        error = message.error() if message is not None else None
        if message is None or error is None or error.retriable():
            return at
        if error.code() != KafkaError._PARTITION_EOF:
            raise self._error(error)
        return cast(int, message.offset())

    def _reader(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                self.settings.confluent_client()
                | {
                    # Of the group only the name is used, which the user may describe: no joining, no committing.
                    "group.id": self.settings.kafka_group,
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",
                    "isolation.level": self.isolation,
                    "enable.partition.eof": True,
                    # A question that waits at the log's end holds up the next one on the same connection.
                    "fetch.wait.max.ms": 10,
                    "queued.max.messages.kbytes": PIECE_BYTES // 1024,
                    "fetch.queue.backoff.ms": 10,  # a full queue is soon empty: not a second's rest
                },
                logger=log,
            )
        return self._consumer

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient(self.settings.confluent_client(), logger=log)
        return self._admin

    def _partitions(self) -> list[int]:
        try:
            # All topics, not one by its name: a broker may make a topic that is asked for by name.
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
        wanted = {TopicPartition(self.topic, partition): spec for partition in partitions}
        if not wanted:
            return dict
        client = self._client()
        asked = client.list_offsets(
            wanted, isolation_level=isolation, request_timeout=ANSWER_SECONDS
        )

        def answer() -> dict[int, int]:
            try:
                return {place.partition: future.result().offset for place, future in asked.items()}
            except KafkaException as error:
                raise self._error(error.args[0]) from error

        return answer

    def _error(self, error: KafkaError) -> TopicLogError:
        where = self.settings.kafka_bootstrap_servers
        said = error.str().rstrip(".")
        return TopicLogError(f"Kafka at {where} was asked about topic {self.topic}: {said}.")
