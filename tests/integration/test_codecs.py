"""Every codec that the broker accepts is read wherever the project reads Kafka; the job itself: tests/e2e/test_input.py."""

from threading import Event

import orjson
import pytest
from confluent_kafka import Producer

from harness.stack import Stack, until
from loop.clients import Reader
from loop.messages import DIGITS
from loop.topic_log import TopicLog
from loop.transactions import first_open_inputs
from page.newest import NewestSamples

CODECS = ("gzip", "snappy", "lz4", "zstd")
SAMPLE = DIGITS.sample([i % 17 for i in range(64)], 3)


@pytest.fixture
def names(kafka: Stack) -> Stack:
    return kafka.named()


def send(
    stack: Stack, codec: str, topic: str, values: list[bytes], transaction: str = ""
) -> Producer:
    """Send the values in one compressed batch; with a transaction's name they are left in it, open."""
    config = {"compression.type": codec, "linger.ms": 100}
    if transaction:
        config["transactional.id"] = transaction
    producer = Producer(stack.settings.confluent_client() | config)
    if transaction:
        producer.init_transactions(30)
        producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0
    return producer


@pytest.mark.parametrize("codec", CODECS)
def test_the_gap_checks_read_every_codec(names, codec):
    send(names, codec, names.settings.input_topic, [SAMPLE] * 20)
    log = TopicLog(names.settings)
    assert log.read(0, 5, 20) == [(offset, SAMPLE) for offset in range(5, 20)]
    log.close()


@pytest.mark.parametrize("codec", CODECS)
def test_the_page_shows_samples_of_every_codec(names, codec):
    prediction = orjson.dumps(orjson.loads(SAMPLE) | {"predict_y": 3})
    send(names, codec, names.settings.predict_topic, [prediction] * 20)
    newest = NewestSamples(names.settings, on_cluster=lambda cluster: None)
    newest.start()
    try:
        until(lambda: len(newest.samples) == 20, 30, f"20 samples, {newest.error}")
    finally:
        newest.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_the_producer_shows_messages_of_every_codec(names, codec):
    send(names, codec, names.settings.input_topic, [SAMPLE] * 20)
    reader = Reader(names.settings, names.settings.input_topic)
    assert [message.value() for message in reader.everything(Event())] == [SAMPLE] * 20


@pytest.mark.parametrize("codec", CODECS)
def test_a_dead_jobs_open_outputs_are_found_in_every_codec(names, codec):
    topic = names.settings.predict_topic
    outputs = [
        orjson.dumps({"predict_y": 1, "model_version": 1, "partition": 0, "offset": i})
        for i in range(7, 27)
    ]
    producer = send(names, codec, topic, outputs, transaction=f"{topic}-dead")
    assert first_open_inputs(names.settings) == {0: 7}
    producer.abort_transaction(30)
