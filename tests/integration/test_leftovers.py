"""Open transactions and outputs of earlier submissions in the output topics, on a real Kafka."""

from contextlib import closing

import orjson
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition

from harness.stack import Stack, until
from loop.lease import new_submission
from loop.model_store import ModelStore
from loop.transactions import (
    MODEL_HEADER,
    abort_open_transactions,
    submissions_in,
    topic_with_outputs,
    transactional_prefix,
)
from settings import Settings

OUTPUT = {
    "ts": "2026-01-01 00:00:00",
    "actual_y": 3,
    "predict_y": 3,
    "model_version": 7,
    "partition": 0,
    "offset": 40,
}
REJECT = {"payload": "bm9wZQ==", "reason": "The message is not JSON.", "partition": 0, "offset": 30}


@pytest.fixture
def loop(parts: Stack) -> Stack:
    return parts.start("kafka", "redis").named()


@pytest.fixture
def leave_open(loop):
    """Return a function that sends records and leaves their transaction open.

    Its producers are closed after the test.
    """
    producers = []

    def leave(
        name: str, *values: bytes | None, topic: str = "", headers=(), commit: bool = False
    ) -> None:
        producer = KafkaProducer(**loop.settings.kafka_client(), transactional_id=name)
        producers.append(producer)
        producer.init_transactions()
        producer.begin_transaction()
        target = topic or loop.settings.predict_topic
        for value in values:
            sent = producer.send(target, value, key=b"k", headers=list(headers), partition=0)
            sent.get(30)
        if commit:
            producer.commit_transaction()

    yield leave
    for producer in producers:
        producer.close(timeout=1)


def ids(config: Settings, submission: str, topic: str = "") -> str:
    return f"{transactional_prefix(config, topic or config.predict_topic, submission)}-0-1"


def open_ids(config: Settings) -> set[str]:
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        found = admin.list_transactions(state_filters=["Ongoing"]).values()
        return {t.transactional_id for listing in found for t in listing}


def group_at(config: Settings, offset: int) -> None:
    place = TopicPartition(config.input_topic, 0)
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        until(
            lambda: admin.alter_group_offsets(
                config.kafka_group, {place: OffsetAndMetadata(offset, "", -1)}
            ),
            20,
        )


def committed(config: Settings) -> int:
    with closing(KafkaAdminClient(**config.kafka_client())) as admin:
        found = admin.list_group_offsets({config.kafka_group: None})[config.kafka_group]
        return found[TopicPartition(config.input_topic, 0)].offset


def old(loop: Stack) -> str:
    return new_submission(ModelStore(loop.settings))


def test_what_a_dead_submission_left_open_is_ended_and_read_again(loop, leave_open):
    config, mine = loop.settings, old(loop)
    group_at(config, 100)
    leave_open(ids(config, mine), orjson.dumps(OUTPUT))
    leave_open(
        ids(config, mine, config.reject_topic), orjson.dumps(REJECT), topic=config.reject_topic
    )
    abort_open_transactions(config)
    assert not open_ids(config) & {ids(config, mine), ids(config, mine, config.reject_topic)}
    assert committed(config) == 30


def other_pipelines(config: Settings, mine: str) -> dict[str, str]:
    """Return {what differs: transactional id} of other pipelines."""
    moved = {
        "model key": {"model_key": f"{config.model_key}-eu"},
        "model key that another begins with": {"model_key": config.model_key[:-1]},
        "topics": {"predict_topic": f"{config.predict_topic}-eu"},
        "database": {"redis_db": 1},
        "Redis": {"redis_port": config.redis_port + 1},
    }
    names = {why: ids(config.model_copy(update=update), mine) for why, update in moved.items()}
    own = ids(config, mine)
    return names | {
        "earlier version": f"{config.predict_topic}-{mine}-0-1",
        "by hand": f"{config.predict_topic}-by-hand",
        "longer": f"{own}-eu",
        "longer in front": f"eu-{own}",
    }


def test_transactions_of_other_pipelines_are_left_alone(loop, leave_open):
    config, mine = loop.settings, old(loop)
    group_at(config, 100)
    others = other_pipelines(config, mine)
    for name in others.values():
        leave_open(name, orjson.dumps(OUTPUT))
    leave_open(ids(config, mine), orjson.dumps(OUTPUT | {"offset": 90}))
    abort_open_transactions(config)
    assert set(others.values()) <= open_ids(config)
    assert ids(config, mine) not in open_ids(config)


FOREIGN = {
    "text": b"hello",
    "not UTF-8": b"\xff\xfe",
    "empty": b"",
    "tombstone": None,
    "a number": b"7",
    "a list": b"[1]",
    "another object": b'{"partition": 0, "offset": 1}',
    "no place": b'{"predict_y": 1, "model_version": 1}',
    "text for a place": b'{"predict_y": 1, "model_version": 1, "partition": "0", "offset": null}',
}


def test_foreign_records_behind_an_open_transaction_are_skipped(loop, leave_open):
    config, mine = loop.settings, old(loop)
    group_at(config, 100)
    leave_open(ids(config, mine), orjson.dumps(OUTPUT), *FOREIGN.values())
    leave_open("foreign", *FOREIGN.values())
    of_another_model = [(MODEL_HEADER, b"another")]
    leave_open("another", orjson.dumps(OUTPUT | {"offset": 5}), headers=of_another_model)
    abort_open_transactions(config)
    assert ids(config, mine) not in open_ids(config)
    assert committed(config) == 40


def test_only_the_submission_that_is_resumed_keeps_its_transactions(loop, leave_open):
    config = loop.settings
    group_at(config, 100)
    resumed, between = "20260101T000000.000000Z-aaaaaaaa", "20260102T000000.000000Z-bbbbbbbb"
    for submission in (resumed, between):
        leave_open(ids(config, submission), orjson.dumps(OUTPUT))
    prefix = transactional_prefix(config, config.predict_topic, resumed)
    metadata = b"\x00\xff" + prefix.encode() + b"\x80\x01"
    assert submissions_in(config, metadata) == {resumed}
    abort_open_transactions(config, {resumed})
    assert ids(config, resumed) in open_ids(config)
    assert ids(config, between) not in open_ids(config)
    assert committed(config) == 100  # Flink continues from the checkpoint's own offsets
    abort_open_transactions(config)
    assert committed(config) == 40


def test_metadata_of_another_model_names_no_submission(loop):
    other = loop.settings.model_copy(update={"model_key": "another"})
    submission = "20260101T000000.000000Z-aaaaaaaa"
    prefix = transactional_prefix(other, other.predict_topic, submission)
    assert submissions_in(loop.settings, prefix.encode()) == set()


@pytest.mark.parametrize(("output", "model"), [(OUTPUT, True), (REJECT, True), (OUTPUT, False)])
def test_only_outputs_of_this_model_are_found(loop, leave_open, output, model):
    config = loop.settings
    leave_open("t", *FOREIGN.values(), commit=True)
    leave_open("t", orjson.dumps(OUTPUT), headers=[(MODEL_HEADER, b"another")], commit=True)
    leave_open("t", orjson.dumps(OUTPUT))  # aborted by the next use of its id
    assert topic_with_outputs(config) == ""
    # One of an earlier version has no header.
    headers = [(MODEL_HEADER, config.model_key.encode())] if model else []
    leave_open("t", orjson.dumps(output), headers=headers, topic=config.reject_topic, commit=True)
    assert topic_with_outputs(config) == config.reject_topic
