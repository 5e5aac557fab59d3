"""What people's producers send, through the whole job: every codec, and transactions that end well or badly."""

import threading
from collections import Counter
from collections.abc import Iterator

import orjson
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient

from harness.proof import read_committed
from harness.stack import FLINK, Stack, until
from local import brokers
from local.job import Job
from loop.messages import DIGITS
from loop.model_store import ModelStore
from loop.topic_log import TopicLog
from tests.e2e.test_loop import run

X = [i % 17 for i in range(64)]


def learned(stack: Stack) -> int:
    stored = ModelStore(stack.settings).read()
    return stored.meta.samples if stored else 0


def producer(stack: Stack, **config: str) -> Producer:
    names = {name.replace("_", "."): value for name, value in config.items()}
    return Producer(stack.settings.confluent_client() | {"linger.ms": 100} | names)


def produce(sender: Producer, stack: Stack, source: str, count: int = 20) -> None:
    for i in range(count):
        sender.produce(stack.settings.input_topic, DIGITS.sample(X, i % 10, source))
    assert sender.flush(30) == 0


def outputs(stack: Stack) -> list[dict]:
    """Return what was predicted and rejected."""
    topics = stack.settings.predict_topic, stack.settings.reject_topic
    return [
        orjson.loads(value)
        for topic in topics
        for value in read_committed(stack.settings, topic).values()
    ]


def test_after_accept_the_next_run_gives_each_message_one_output(parts):
    """The checkpoint of the topic before says 100; make run must not begin the new topic there.

    The first test of this file: no other job may write checkpoints beside it.
    """
    stack = parts.start("kafka", "redis", *FLINK).named(learner="sgd")
    settings, log = stack.settings, TopicLog(stack.settings)
    first = stack.submit_job()
    produce(producer(stack), stack, "old", 100)
    until(lambda: log.committed() == {0: 100}, 120, "a checkpoint is at 100")
    stack.cancel_job(first)

    admin = KafkaAdminClient(**settings.kafka_client())
    admin.delete_topics([settings.input_topic])
    until(lambda: settings.input_topic not in admin.list_topics(), 30, "the topic is gone")
    brokers.create_topics(settings)
    until(log.topic_id, 30, "the topic is there")
    admin.close()
    produce(producer(stack), stack, "new", 150)
    run(stack, "admin.py", "model", "accept", "--yes")

    job = Job(settings, threading.Event())
    job.submit()
    until(lambda: log.committed() == {0: 150}, 120, "a checkpoint is at 150")
    log.close()
    stack.cancel_job(job.id)
    counts = Counter(line["offset"] for line in outputs(stack) if line["source"] == "new")
    assert counts == {offset: 1 for offset in range(150)}


@pytest.fixture(scope="module")
def job(parts: Stack) -> Iterator[Stack]:
    """A stack whose job learns; the tests of this file send to it one after the other."""
    view = parts.start("kafka", "redis", *FLINK).named()
    running = view.submit_job(LEARNER="sgd")
    yield view
    view.cancel_job(running)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_the_job_learns_messages_of_every_codec(job, codec):
    before = learned(job)
    produce(producer(job, compression_type=codec), job, codec)
    until(lambda: learned(job) == before + 20, 120, f"20 samples in {codec} are learned")


def test_nothing_aborted_or_open_is_learned_predicted_or_rejected(job):
    before, offsets = learned(job), {}
    sender = producer(job, transactional_id=job.settings.input_topic)
    sender.init_transactions(30)

    def begin(fate: str) -> None:
        sender.begin_transaction()
        for value in (DIGITS.sample(X, 3, fate), b"bad"):
            sender.produce(
                job.settings.input_topic,
                value,
                on_delivery=lambda error, m: offsets.setdefault(fate, []).append(m.offset()),
            )
        assert sender.flush(30) == 0

    begin("aborted")
    sender.abort_transaction(30)
    begin("committed")
    sender.commit_transaction(30)
    until(lambda: learned(job) == before + 1, 60, "the committed sample is learned")
    begin("open")
    ready = threading.Event()
    assert not ready.wait(2), "long enough for a batch and a checkpoint"
    assert learned(job) == before + 1
    until(
        lambda: set(offsets["committed"]) <= {line["offset"] for line in outputs(job)},
        30,
        "the outputs are there",
    )
    found = {line["offset"] for line in outputs(job)}
    assert not found & {*offsets["aborted"], *offsets["open"]}
    sender.commit_transaction(30)
    until(lambda: learned(job) == before + 2, 60, "the open one is learned once it is committed")
