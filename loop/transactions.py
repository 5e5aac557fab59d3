"""What a submission left in the output topics: its transactions, and the outputs that stand there.

Flink itself ends the transactions of the submission whose checkpoint it resumes from; the others are ended here.
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
from kafka.structs import OffsetAndMetadata

from loop.model_store import SUBMISSION
from loop.topic_log import TopicLog
from settings import Settings

MODEL_HEADER = (
    "model"  # of each output: the key of the model that it is of, as models may share a topic
)
SAMPLED = 1000  # records at each end of a partition that are looked through for outputs
# What else an output has beside its input's partition and offset.
FIELDS = ({"predict_y", "model_version"}, {"payload", "reason"})


def transactional_prefix(config: Settings, topic: str, submission: str) -> str:
    """Return the beginning of the ids of one submission's transactions in one output topic; Flink adds two numbers.

    The digits in the middle stand for the model and its Redis, where a lease allows one submission at a time.
    """
    store = [config.redis_host, config.redis_port, config.redis_db, config.model_key]
    return f"{topic}-{hashlib.sha256(orjson.dumps(store)).hexdigest()[:16]}-{submission}"


def submissions_in(config: Settings, checkpoint: bytes) -> set[str]:
    """Return the submissions of this model whose transactions a checkpoint's metadata names."""
    found = (
        match
        for topic in _outputs(config)
        for match in _ids(config, topic).finditer(checkpoint.decode("latin-1"))
    )
    return {match["submission"] for match in found}


def abort_open_transactions(config: Settings, resumed: Iterable[str] = ()) -> None:
    """Abort the transactions that submissions of this model left open, but for those that Flink resumes.

    Readers of committed messages wait for open transactions. Call it with the model's lease, so that no owner lives. Where
    nothing is resumed, the group reads again what stood in the transactions: a checkpoint commits the group's offsets and
    the transactions side by side, and who dies in between leaves messages that the group has behind it and that have no
    output.
    """
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        found = chain.from_iterable(admin.list_transactions(state_filters=["Ongoing"]).values())
        names = list(_left(config, (t.transactional_id for t in found), set(resumed)))
        if not names:
            return
        unread = {} if resumed else first_open_inputs(config)
        for name in names:
            producer = KafkaProducer(**config.kafka_client(), transactional_id=name)
            producer.init_transactions()  # aborts what the id has open, and fences whoever still has it
            producer.close()
        committed = admin.list_group_offsets({config.kafka_group: None}).get(config.kafka_group, {})
        back = {
            place: OffsetAndMetadata(unread[place.partition], "", -1)
            for place, at in committed.items()
            if place.topic == config.input_topic
            and unread.get(place.partition, at.offset) < at.offset
        }
        if back:
            admin.alter_group_offsets(config.kafka_group, back)


def first_open_inputs(config: Settings) -> dict[int, int]:
    """Return {input partition: lowest input offset} of the outputs behind the first open transaction."""
    lowest: dict[int, int] = {}
    for topic in _outputs(config):
        stable, ends = (
            _bounds(config, topic, "read_committed"),
            _bounds(config, topic, "read_uncommitted"),
        )
        spans = {partition: (stable[partition][1], end) for partition, (_, end) in ends.items()}
        for partition, offset in _inputs(config, topic, spans, "read_uncommitted"):
            lowest[partition] = min(offset, lowest.get(partition, offset))
    return lowest


def topic_with_outputs(config: Settings) -> str:
    """Return the first topic that holds outputs of this model at the beginning or end of a partition; "" if none does."""
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
    """Yield those of the transactional ids that are of this model and not of a submission that is resumed."""
    patterns = [re.compile(rf"{_ids(config, topic).pattern}-\d+-\d+") for topic in _outputs(config)]
    for name in names:
        match = next(filter(None, (pattern.fullmatch(name) for pattern in patterns)), None)
        if match and match["submission"] not in resumed:
            yield name


def _bounds(config: Settings, topic: str, isolation: str) -> dict[int, tuple[int, int]]:
    """Return {partition: (first offset, offset after the last that such a reader sees)}."""
    with closing(TopicLog(config, topic, isolation)) as records:
        bounds = records.bounds()
        if isolation == "read_uncommitted":
            return bounds
        return {
            partition: (bounds[partition][0], end)
            for partition, end in records.stable_ends().items()
        }


def _inputs(
    config: Settings, topic: str, spans: Mapping[int, tuple[int, int]], isolation: str
) -> Iterator[tuple[int, int]]:
    """Yield partition and offset of the input of each of this model's outputs in the spans; others may write there, too."""
    with closing(TopicLog(config, topic, isolation)) as records:
        for partition, (start, end) in spans.items():
            with closing(records.messages(partition, start, end)) as pieces:
                yield from filter(
                    None, (_input_of(config, message) for piece in pieces for message in piece)
                )


def _input_of(config: Settings, message: Message) -> tuple[int, int] | None:
    """Return partition and offset of the input of an output of this model, None for any other record."""
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
