"""Transactions and outputs of earlier submissions in the output topics.

Flink ends the open transactions of the submission whose checkpoint it resumes from. The others are
aborted here.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from typing import cast

import orjson
from confluent_kafka import Message
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition

from loop.model_store import SUBMISSION
from loop.topic_log import TopicLog
from settings import Settings

# The header of each output that names its model by key, because models may share a topic.
MODEL_HEADER = "model"
SAMPLED = 1000  # records at each end of a partition that are searched for outputs
# The fields of a prediction and of a reject, in addition to the input's partition and offset.
FIELDS = ({"predict_y", "model_version"}, {"payload", "reason"})


def transactional_prefix(config: Settings, topic: str, submission: str) -> str:
    """Return the beginning of the ids of one submission's transactions in one output topic.

    Flink adds two numbers. The digits in the middle identify the model and its Redis, where the
    lease allows one submission at a time.
    """
    store = [config.redis_host, config.redis_port, config.redis_db, config.model_key]
    digest = hashlib.sha256(orjson.dumps(store)).hexdigest()
    return f"{topic}-{digest[:16]}-{submission}"


def submissions_in(config: Settings, checkpoint: bytes) -> set[str]:
    """Return the submissions of this model whose transactions a checkpoint's metadata names."""
    text = checkpoint.decode("latin-1")
    found: set[str] = set()
    for topic in _outputs(config):
        found |= {match["submission"] for match in _ids(config, topic).finditer(text)}
    return found


def abort_open_transactions(config: Settings, resumed: Iterable[str] = ()) -> None:
    """Abort the transactions that submissions of this model left open.

    ``resumed``: submissions whose transactions stay open, because Flink ends them. The caller holds
    the model's lease, so no owner of the others is alive. Readers of committed messages wait for
    open transactions.

    If nothing is resumed, the group reads the inputs of the aborted outputs again. A checkpoint
    commits the group's offsets and the transactions in two steps. A job that dies between the steps
    leaves messages that the group has passed but that have no output.
    """
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        found = chain.from_iterable(admin.list_transactions(state_filters=["Ongoing"]).values())
        names = list(_left(config, (t.transactional_id for t in found), set(resumed)))
        if not names:
            return
        starts = {} if resumed else first_open_inputs(config)
        for name in names:
            producer = KafkaProducer(**config.kafka_client(), transactional_id=name)
            # This aborts the id's open transaction and fences any producer that still uses the id.
            producer.init_transactions()
            producer.close()
        _move_group_back(admin, config, _committed(admin, config), starts)


def start_at_the_model(config: Settings, progress: dict[int, int]) -> None:
    """Let the group read from the model's offset if that is lower, so each sample has an output.

    ``progress``: {partition: next offset to learn}, empty if there is no model.
    """
    if not progress:
        return
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        committed = _committed(admin, config)
        # A partition that the model does not know is new to it.
        starts = {place.partition: progress.get(place.partition, 0) for place in committed}
        _move_group_back(admin, config, committed, starts)


def _committed(admin: KafkaAdminClient, config: Settings) -> dict[TopicPartition, int]:
    """Return the offsets that the group has committed in the input topic."""
    found = admin.list_group_offsets({config.kafka_group: None}).get(config.kafka_group, {})
    return {place: at.offset for place, at in found.items() if place.topic == config.input_topic}


def _move_group_back(
    admin: KafkaAdminClient,
    config: Settings,
    committed: Mapping[TopicPartition, int],
    starts: Mapping[int, int],
) -> None:
    """Set the group's offsets to ``starts``, {partition: offset}, if they are lower."""
    back = {}
    for place, offset in committed.items():
        start = starts.get(place.partition, offset)
        if start < offset:
            back[place] = OffsetAndMetadata(start, "", -1)
    if back:
        admin.alter_group_offsets(config.kafka_group, back)


def first_open_inputs(config: Settings) -> dict[int, int]:
    """Return {input partition: lowest input offset} of the outputs behind an open transaction."""
    lowest: dict[int, int] = {}
    for topic in _outputs(config):
        stable = _bounds(config, topic, "read_committed")
        ends = _bounds(config, topic, "read_uncommitted")
        spans = {partition: (stable[partition][1], end) for partition, (_, end) in ends.items()}
        for partition, offset in _inputs(config, topic, spans, "read_uncommitted"):
            lowest[partition] = min(offset, lowest.get(partition, offset))
    return lowest


def topic_with_outputs(config: Settings) -> str:
    """Return the first topic that holds outputs of this model, "" if none does.

    Only the beginning and the end of each partition are searched.
    """
    for topic in _outputs(config):
        bounds = _bounds(config, topic, "read_committed")
        first = {p: (start, min(end, start + SAMPLED)) for p, (start, end) in bounds.items()}
        last = {p: (max(start, end - SAMPLED), end) for p, (start, end) in bounds.items()}
        for spans in (first, last):
            if any(_inputs(config, topic, spans, "read_committed")):
                return topic
    return ""


def _outputs(config: Settings) -> tuple[str, str]:
    return config.predict_topic, config.reject_topic


def _ids(config: Settings, topic: str) -> re.Pattern[str]:
    beginning = re.escape(transactional_prefix(config, topic, ""))
    return re.compile(rf"{beginning}(?P<submission>{SUBMISSION.pattern})")


def _left(config: Settings, names: Iterable[str], resumed: set[str]) -> Iterator[str]:
    """Yield the transactional ids in ``names`` that are this model's, without those ``resumed``."""
    patterns = [re.compile(rf"{_ids(config, topic).pattern}-\d+-\d+") for topic in _outputs(config)]
    for name in names:
        for pattern in patterns:
            match = pattern.fullmatch(name)
            if match and match["submission"] not in resumed:
                yield name
                break


def _bounds(config: Settings, topic: str, isolation: str) -> dict[int, tuple[int, int]]:
    """Return {partition: (first offset, offset after the last)} for a reader with ``isolation``."""
    with closing(TopicLog(config, topic, isolation)) as records:
        bounds = records.bounds()
        if isolation == "read_uncommitted":
            return bounds
        ends = records.stable_ends()
        return {partition: (bounds[partition][0], end) for partition, end in ends.items()}


def _inputs(
    config: Settings, topic: str, spans: Mapping[int, tuple[int, int]], isolation: str
) -> Iterator[tuple[int, int]]:
    """Yield the input's partition and offset for each of this model's outputs in ``spans``.

    ``spans``: {output partition: (start, end)}. Records of others are skipped.
    """
    with closing(TopicLog(config, topic, isolation)) as records:
        for partition, (start, end) in spans.items():
            with closing(records.messages(partition, start, end)) as pieces:
                for message in chain.from_iterable(pieces):
                    place = _input_of(config, message)
                    if place is not None:
                        yield place


def _input_of(config: Settings, message: Message) -> tuple[int, int] | None:
    """Return the input's partition and offset if this is an output of this model, None if not."""
    headers = cast(list[tuple[str, bytes]], message.headers() or [])
    models = [value for name, value in headers if name == MODEL_HEADER]
    if models and models[-1] != config.model_key.encode():
        return None
    try:
        output = orjson.loads(message.value() or b"")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(output, dict) or not any(fields <= output.keys() for fields in FIELDS):
        return None
    partition, offset = output.get("partition"), output.get("offset")
    return (partition, offset) if type(partition) is type(offset) is int else None
