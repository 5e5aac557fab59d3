"""Questions to Kafka about the input topic that decide whether a model and a stream still fit together."""

import time

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from settings import Settings

ANSWER_SECONDS = 20


class SourceLogError(RuntimeError):
    """Kafka did not answer, or not in time; the text names topic and partition."""


class SourceLog:
    """The input topic as Kafka holds it; connects at the first question. Not for the stream itself: Flink reads that."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.input_topic
        self._consumer: KafkaConsumer | None = None

    def _open(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = KafkaConsumer(**self.settings.kafka_client(), group_id=None, enable_auto_commit=False,
                                           auto_offset_reset="none", allow_auto_create_topics=False)  # fmt: skip
        return self._consumer

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def topic_id(self) -> str:
        """Return the id that Kafka gave the topic when it was made; a topic of the same name made later has another."""
        admin = KafkaAdminClient(**self.settings.kafka_client())
        try:
            return str(admin.describe_topics([self.topic])[0]["topic_id"])
        finally:
            admin.close()

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
        retrying = Retrying(retry=retry_if_exception(lambda e: isinstance(e, KafkaError) and e.retriable),
                            wait=wait_fixed(0.2), stop=stop_after_delay(ANSWER_SECONDS), reraise=True)  # fmt: skip
        try:
            found = retrying(admin.list_group_offsets, {self.settings.kafka_group: None})
        finally:
            admin.close()
        offsets = found.get(self.settings.kafka_group, {})
        return {tp.partition: at.offset for tp, at in offsets.items() if tp.topic == self.topic and at.offset >= 0}

    def bounds(self) -> dict[int, tuple[int, int]]:
        """Return {partition: (first offset in the log, offset after the last)}."""
        self.close()  # a partition that was added is not known to a consumer of before
        consumer = self._open()
        partitions = [TopicPartition(self.topic, p) for p in sorted(consumer.partitions_for_topic(self.topic) or ())]
        first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        return {tp.partition: (first[tp], end[tp]) for tp in partitions}

    def read(self, partition: int, start: int, end: int, limit: int = 1000) -> list[tuple[int, bytes | None]]:
        """Return up to ``limit`` records of ``partition`` with start <= offset < end, in order.

        An empty list means that there are none: offsets without records are transaction markers, or were compacted.
        """
        consumer, tp = self._open(), TopicPartition(self.topic, partition)
        consumer.assign([tp])
        consumer.seek(tp, start)
        found: list[tuple[int, bytes | None]] = []
        patience = time.monotonic() + ANSWER_SECONDS
        while len(found) < limit and consumer.position(tp) < end:
            records = consumer.poll(timeout_ms=500, max_records=limit).get(tp, [])
            found += [(r.offset, r.value) for r in records if r.offset < end]
            if records:
                patience = time.monotonic() + ANSWER_SECONDS
            elif time.monotonic() > patience:
                raise SourceLogError(f"Kafka gave no records of {self.topic} partition {partition} from offset "
                                     f"{consumer.position(tp)} for {ANSWER_SECONDS} s.")  # fmt: skip
        return found[:limit]
