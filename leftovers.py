"""What a dead submission left open in the output topics: its transactions, and what stood in them.

Flink itself ends the transactions of a checkpoint that it resumes from; this is for a submission without one.
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain

import orjson
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import OffsetAndMetadata

from settings import Settings
from source_log import SourceLog


def end_leftovers(config: Settings) -> None:
    """Abort the transactions that a dead submission left open, and have the group read again what stood in them.

    Readers of committed messages wait for open transactions. A checkpoint commits the group's offsets and the transactions
    side by side: who dies in between leaves messages that the group has behind it and that have no output.
    """
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        found = chain.from_iterable(admin.list_transactions(state_filters=["Ongoing"]).values())
        prefixes = (f"{config.predict_topic}-", f"{config.reject_topic}-")
        names = [t.transactional_id for t in found if t.transactional_id.startswith(prefixes)]
        if not names:
            return
        unread = first_open_inputs(config)
        for name in names:
            producer = KafkaProducer(**config.kafka_client(), transactional_id=name)
            producer.init_transactions()  # aborts what the id has open, and fences whoever still has it
            producer.close()
        committed = admin.list_group_offsets({config.kafka_group: None}).get(config.kafka_group, {})
        back = {
            place: OffsetAndMetadata(unread[place.partition], "", -1)
            for place, at in committed.items()
            if place.topic == config.input_topic and unread.get(place.partition, at.offset) < at.offset
        }
        if back:
            admin.alter_group_offsets(config.kafka_group, back)


def first_open_inputs(config: Settings) -> dict[int, int]:
    """Return {input partition: lowest input offset} of the outputs behind the first open transaction."""
    lowest: dict[int, int] = {}
    for topic in (config.predict_topic, config.reject_topic):
        for output in map(orjson.loads, _uncommitted(config, topic)):
            partition, offset = output["partition"], output["offset"]
            lowest[partition] = min(offset, lowest.get(partition, offset))
    return lowest


def _uncommitted(config: Settings, topic: str) -> Iterator[bytes]:
    """Yield the records from where readers of committed messages wait to the end."""
    with closing(SourceLog(config, topic, isolation="read_uncommitted")) as records:
        ends = records.bounds()
        for partition, begin in records.stable_ends().items():
            for piece in records.pieces(partition, begin, ends[partition][1]):
                yield from (value or b"" for _, value in piece)


def start_at_the_model(config: Settings, progress: dict[int, int]) -> None:
    """Have the group read from the model's position where that is the lower one, so that each sample has an output.

    ``progress``: {partition: next offset to learn}, empty where there is no model. A partition that a model does not know
    is new to it.
    """
    if not progress:
        return
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        committed = admin.list_group_offsets({config.kafka_group: None}).get(config.kafka_group, {})
        back = {
            place: OffsetAndMetadata(progress.get(place.partition, 0), "", -1)
            for place, at in committed.items()
            if place.topic == config.input_topic and progress.get(place.partition, 0) < at.offset
        }
        if back:
            admin.alter_group_offsets(config.kafka_group, back)
