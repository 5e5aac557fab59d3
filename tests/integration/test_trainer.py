"""The eleven rules of learning exactly once, on a real Kafka and Redis; feed() replaces Flink."""

import pickle
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import orjson
import pytest
from confluent_kafka import Producer
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewPartitions
from kafka.structs import OffsetAndMetadata, TopicPartition
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from harness.stack import Stack, redis_admin, until
from learners.learner import new_learner
from local.brokers import create_topics
from loop.lease import LEASE_MS, RENEW_SECONDS, new_submission
from loop.messages import DIGITS, MAX_RECORD_BYTES
from loop.model_store import AwayError, ModelStore
from loop.recovery import StopJob
from loop.topic_log import TopicLog
from loop.trainer import Trainer
from loop.transactions import start_at_the_model
from settings import HERE

X, Y = load_digits(return_X_y=True)


@pytest.fixture
def loop(parts: Stack) -> Stack:
    return parts.start("kafka", "redis").named(learner="sgd")


@pytest.fixture
def tasks(loop):
    """Return a function that opens trainers; they are closed after the test.

    All belong to one submission, unless the test names another.
    """
    opened, mine = [], new_submission(ModelStore(loop.settings))

    def make(submission: str = mine, settings=loop.settings) -> Trainer:
        task = Trainer(settings, submission)
        opened.append(task)
        task.open()
        return task

    yield make
    for task in opened:
        task.close()


def weights(model: bytes) -> tuple:
    """Return the exact weights of an estimator; equal estimators may pickle differently."""
    estimator = pickle.loads(model)
    return estimator.coef_.tobytes(), estimator.intercept_.tobytes(), estimator.t_


def send(loop: Stack, start: int, end: int, partition: int = 0, values=None) -> None:
    producer = KafkaProducer(**loop.settings.kafka_client(), acks="all")
    for i in range(start, end):
        value = values(i) if values else DIGITS.sample(X[i % 1797], Y[i % 1797])
        producer.send(loop.settings.input_topic, value, key=b"k", partition=partition)
    producer.flush()
    producer.close()


def send_in_transactions(loop: Stack, *sizes: int, partition: int = 0, values=None) -> None:
    """Send one transaction of each size; a negative size is aborted. Each leaves a marker."""
    name = f"{loop.settings.input_topic}-{partition}"
    producer = Producer(loop.settings.confluent_client() | {"transactional.id": name})
    producer.init_transactions(30)
    for size in sizes:
        producer.begin_transaction()
        for i in range(abs(size)):
            value = values(i) if values else DIGITS.sample(X[i % 1797], Y[i % 1797])
            producer.produce(loop.settings.input_topic, value, partition=partition)
        producer.flush(30)
        producer.commit_transaction(30) if size > 0 else producer.abort_transaction(30)


def feed(task: Trainer, start: int, end: int, partition: int = 0, size: int = 50) -> list[dict]:
    """Deliver the messages start..end of a partition as Flink does, and return the outputs."""
    out = []
    records = task.log.read(partition, start, end, limit=10**6)
    for i in range(0, len(records), size):
        batch = records[i : i + size]
        offsets = np.array([offset for offset, _ in batch], dtype=np.int64)
        learned = task.learn(
            [value for _, value in batch], np.full(len(batch), partition, np.int64), offsets
        )
        out += [orjson.loads(line) for line in learned.out]
    return out


def commit_group(loop: Stack, offset: int, partition: int = 0) -> None:
    admin = KafkaAdminClient(**loop.settings.kafka_client())
    topic = TopicPartition(loop.settings.input_topic, partition)
    until(
        lambda: admin.alter_group_offsets(
            loop.settings.kafka_group, {topic: OffsetAndMetadata(offset, "", -1)}
        ),
        20,
    )
    admin.close()


def snapshot(store: ModelStore) -> dict[str, bytes | None]:
    return {key: store.redis.dump(key) for key in store.keys.committed}


def put_back(store: ModelStore, old: dict[str, bytes | None]) -> None:
    for key, value in old.items():
        store.redis.delete(key)
        if value is not None:
            redis_admin(store.settings).restore(key, 0, value)


def test_each_sample_is_predicted_scored_then_learned_as_scikit_learn_alone_does(loop, tasks):
    send(loop, 0, 500)
    task = tasks()
    out = feed(task, 0, 500)
    alone = SGDClassifier(alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=0)
    predicted: list = []
    for i in range(0, 500, 50):
        predicted += alone.predict(X[i : i + 50]).tolist() if i else [None] * 50
        alone.partial_fit(X[i : i + 50], Y[i : i + 50], classes=np.arange(10))
    assert [line["predict_y"] for line in out] == predicted
    assert [line["model_version"] for line in out] == [None] * 50 + [
        1 + i // 50 for i in range(450)
    ]
    stored = task.store.read()
    np.testing.assert_array_equal(stored.estimator().coef_, alone.coef_)
    meta = stored.meta
    assert (meta.samples, meta.rejected, meta.progress, meta.version) == (500, 0, {0: 500}, 10)
    assert meta.scores.right == sum(p == y for p, y in zip(predicted, Y, strict=False))
    assert meta.scores.predicted == 450


def test_a_restarted_task_continues_from_the_stored_model_and_learns_nothing_twice(loop, tasks):
    send(loop, 0, 600)
    first = tasks()
    feed(first, 0, 300)
    first.close()
    second = tasks()
    out = feed(second, 100, 600)  # Flink goes back to its last checkpoint
    assert [line.get("replayed", False) for line in out] == [True] * 200 + [False] * 300
    whole = new_learner("sgd", DIGITS.classes, 64)
    for i in range(0, 600, 50):
        whole.learn(X[i : i + 50], Y[i : i + 50])
    stored = second.store.read()
    assert weights(stored.model) == weights(whole.model_bytes())
    assert (stored.meta.samples, stored.meta.version) == (600, 12)
    assert stored.meta.scores.predicted == 550


def test_a_second_pass_counts_as_seen_before_also_across_a_restart(loop, tasks):
    send(loop, 0, 200, values=lambda i: DIGITS.sample(X[i % 100], Y[i % 100]))
    first = tasks()
    first_pass = feed(first, 0, 100)
    feed(first, 100, 120)
    first.close()
    second = tasks()
    feed(second, 120, 200)
    scores = second.store.read().meta.scores
    assert (scores.predicted, scores.new_predicted) == (150, 50)
    right = [line["predict_y"] == line["actual_y"] for line in first_pass[50:]]
    assert scores.new_right == sum(right)
    assert scores.accuracy > scores.accuracy_new


def test_a_message_that_the_parser_fails_on_is_rejected_and_logged(loop, tasks, caplog):
    fragile = loop.named(learner="sgd", message_format="tests.unit.test_messages_at_once:FRAGILE")
    poison = DIGITS.sample(X[0], 1, source="poison")
    send(fragile, 0, 10, values=lambda i: poison if i in (4, 7) else DIGITS.sample(X[i], Y[i]))
    task = tasks(settings=fragile.settings)
    out = feed(task, 0, 10)
    assert [i for i, line in enumerate(out) if "reason" in line] == [4, 7]
    meta = task.store.read().meta
    assert (meta.samples, meta.rejected_by_reason, meta.progress) == (8, {"unforeseen": 2}, {0: 10})
    assert "partition 0 offset 7" in caplog.text
    assert caplog.text.count("RuntimeError: bad luck") == 1  # one stack trace for all alike


def test_a_learner_that_fails_in_the_stream_stops_the_job_in_a_sentence(loop, tasks, monkeypatch):
    send(loop, 0, 20)
    task = tasks()
    feed(task, 0, 10)
    monkeypatch.setattr(task.held.learner._last, "eta0", None)  # as a fault in an estimator may
    monkeypatch.setattr(task.held.learner._last, "alpha", None)
    with pytest.raises(
        StopJob, match=r"LEARNER sgd fails on the samples .* offset 10 to .* offset 19"
    ):
        feed(task, 10, 20)
    assert task.store.read().meta.progress == {0: 10}


def test_a_model_names_its_kafka_cluster_and_older_ones_get_it(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    cluster = TopicLog(loop.settings).cluster_id()
    assert cluster
    assert task.store.read().meta.cluster_id == cluster
    task.close()
    older = task.store.read(with_state=True)
    meta = replace(older.meta, cluster_id="")
    task.store.commit(older, meta, older.model, older.state)
    second = tasks()
    feed(second, 50, 100)
    assert second.store.read().meta.cluster_id == cluster


def test_a_batch_that_is_half_old_learns_the_new_half(loop, tasks):
    send(loop, 0, 100)
    feed(tasks(), 0, 70, size=70)
    second = tasks()
    out = feed(second, 40, 100, size=60)
    assert sum(line.get("replayed", False) for line in out) == 30
    assert second.store.read().meta.samples == 100


def test_a_batch_that_was_learned_before_commits_nothing(loop, tasks):
    send(loop, 0, 50)
    feed(tasks(), 0, 50)
    second = tasks()
    before = second.store.read()
    feed(second, 0, 50)
    assert second.store.read() == before


def test_bad_messages_move_progress_and_counts_and_leave_the_model_as_it_is(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    before = task.store.read()
    send(loop, 0, 3, values=lambda i: [b"nope", b"", None][i])
    out = feed(task, 50, 53)
    after = task.store.read()
    assert [line["reason"].split(":")[0] for line in out] == [
        "The message is not JSON",
        "The message is empty.",
        "The message has no value (a tombstone).",
    ]
    assert [line["offset"] for line in out] == [50, 51, 52]
    assert after.model == before.model
    assert (after.meta.samples, after.meta.rejected, after.meta.progress) == (50, 3, {0: 53})
    assert after.meta.rejected_by_reason == {"not_json": 1, "empty": 2}


def test_a_topic_that_begins_with_bad_messages_gives_a_model_later(loop, tasks):
    send(loop, 0, 2, values=lambda i: b"nope")
    send(loop, 0, 10)
    task = tasks()
    feed(task, 0, 2)
    feed(tasks(), 2, 12)
    assert task.store.read().meta.samples == 10


def test_a_task_that_slept_can_not_overwrite_a_newer_model(loop, tasks):
    send(loop, 0, 200)
    sleeper = tasks()
    feed(sleeper, 0, 50)
    other = tasks()
    feed(other, 50, 150)
    newer = other.store.read()
    out = feed(sleeper, 50, 100)  # it wakes up and finds all of this learned
    assert other.store.read() == newer
    assert all(line["replayed"] for line in out)


def test_a_cleared_model_starts_over_with_the_batch_that_meets_the_mark(loop, tasks):
    send(loop, 0, 200)
    task = tasks()
    feed(task, 0, 100)
    old = task.store.read().meta
    assert task.store.clear()
    out = feed(task, 100, 200)
    meta = task.store.read().meta
    assert meta.model_id > old.model_id
    assert meta.parent == f"{old.model_id}:{old.version}"
    assert (meta.samples, meta.starts, meta.progress, meta.version) == (100, {0: 100}, {0: 200}, 2)
    assert [line["predict_y"] for line in out[:50]] == [None] * 50
    fresh = new_learner("sgd", DIGITS.classes, 64)
    fresh.learn(X[100:150], Y[100:150])
    fresh.learn(X[150:200], Y[150:200])
    assert weights(task.store.read().model) == weights(fresh.model_bytes())


def test_a_model_cleared_while_no_job_ran_starts_over_where_the_stream_continues(loop, tasks):
    send(loop, 0, 100)
    first = tasks()
    feed(first, 0, 60)
    first.close()
    first.store.clear()
    commit_group(loop, 60)
    second = tasks()
    feed(second, 60, 100)
    meta = second.store.read().meta
    assert (meta.samples, meta.starts, meta.progress) == (40, {0: 60}, {0: 100})


def test_a_store_put_back_while_no_job_ran_catches_up_from_kafka_under_a_new_model_id(loop, tasks):
    send(loop, 0, 300)
    first = tasks()
    feed(first, 0, 100)
    old = snapshot(first.store)
    feed(first, 100, 200)
    lost = first.store.read().meta
    first.close()
    put_back(first.store, old)
    second = tasks()
    out = feed(second, 200, 300)  # Flink continues from its savepoint
    meta = second.store.read().meta
    assert (meta.samples, meta.progress, meta.starts) == (300, {0: 300}, {0: 0})
    assert meta.model_id > lost.model_id
    assert meta.parent == f"{lost.model_id}:2"
    assert not any(line.get("replayed") for line in out)


def test_a_store_put_back_while_the_job_runs_catches_up_from_kafka_under_a_new_model_id(
    loop, tasks
):
    send(loop, 0, 300)
    task = tasks()
    feed(task, 0, 100)
    old = snapshot(task.store)
    feed(task, 100, 200)
    lost = task.store.read().meta
    put_back(task.store, old)
    feed(task, 200, 300)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress) == (300, {0: 300})
    assert meta.model_id > lost.model_id


def test_a_store_older_than_the_consumer_group_writes_under_a_new_model_id(loop, tasks):
    send(loop, 0, 200)
    first = tasks()
    feed(first, 0, 100)
    old = snapshot(first.store)
    feed(first, 100, 200)
    lost = first.store.read().meta
    commit_group(loop, 150)
    first.close()
    put_back(first.store, old)
    second = tasks()
    feed(second, 50, 200)  # an older checkpoint: no gap shows that the store was put back
    meta = second.store.read().meta
    assert (meta.samples, meta.progress) == (200, {0: 200})
    assert meta.model_id > lost.model_id


def test_offsets_without_records_are_no_gap(loop, tasks):
    producer = KafkaProducer(
        **loop.settings.kafka_client(), transactional_id=loop.settings.input_topic
    )
    producer.init_transactions()
    for i in range(4):  # each transaction leaves a marker: samples at 0..2, 4..6, 8..10, 12..14
        producer.begin_transaction()
        for j in range(3):
            producer.send(loop.settings.input_topic, DIGITS.sample(X[3 * i + j], Y[3 * i + j]))
        producer.commit_transaction()
    producer.close()
    task = tasks()
    feed(task, 0, 15, size=4)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress, meta.parent) == (12, {0: 15}, "")


def test_a_gap_teaches_nothing_that_was_aborted(loop, tasks):
    send_in_transactions(loop, 10, -20, 10)  # 0..9 marker 11..30 marker 32..41 marker
    task = tasks()
    feed(task, 0, 5, size=5)
    old = snapshot(task.store)
    feed(task, 5, 42)
    put_back(task.store, old)
    send(loop, 40, 50)
    feed(task, 43, 53)
    meta = task.store.read().meta
    assert (meta.samples, meta.rejected, meta.progress) == (30, 0, {0: 53})


def test_an_open_transaction_is_not_read_into_a_gap(loop, tasks):
    send(loop, 0, 10)
    task = tasks()
    feed(task, 0, 10)
    producer = Producer(
        loop.settings.confluent_client() | {"transactional.id": loop.settings.input_topic}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(loop.settings.input_topic, DIGITS.sample(X[0], Y[0]))
    producer.flush(30)
    task.close()
    second = tasks()
    assert second.log.stable_ends() == {0: 10}
    assert second.log.bounds() == {0: (0, 11)}
    assert second.store.read().meta.samples == 10
    producer.abort_transaction(30)
    send(loop, 10, 20)
    feed(second, 12, 22)
    assert second.store.read().meta.samples == 20


def test_quiet_partitions_are_caught_up_when_a_task_begins(parts, tasks):
    loop = parts.named(partitions=3, learner="sgd")
    for partition in range(3):
        send(loop, 0, 60, partition)
    first = tasks(settings=loop.settings)
    feed(first, 0, 20, 0)
    feed(first, 0, 20, 1)
    old = snapshot(first.store)
    for partition, end in ((0, 60), (1, 50), (2, 40)):
        feed(first, 20 if partition < 2 else 0, end, partition)
        commit_group(loop, end, partition)
    lost = first.store.read().meta
    first.close()
    put_back(first.store, old)
    second = tasks(settings=loop.settings)
    meta = second.store.read().meta
    assert (meta.samples, meta.progress) == (150, {0: 60, 1: 50, 2: 40})
    assert meta.model_id > lost.model_id


def test_quiet_partitions_are_caught_up_after_a_conflict(parts, tasks):
    loop = parts.named(partitions=3, learner="sgd")
    for partition in range(3):
        send(loop, 0, 60, partition)
    task = tasks(settings=loop.settings)
    feed(task, 0, 20, 0)
    old = snapshot(task.store)
    for partition, begin in ((0, 20), (1, 0), (2, 0)):
        feed(task, begin, 50, partition)
    put_back(task.store, old)
    feed(task, 50, 60, 1)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress) == (160, {0: 50, 1: 60, 2: 50})


def test_an_accepted_model_refuses_a_flink_that_begins_later(loop, tasks):
    """A checkpoint of the deleted topic does that: the messages between would get no output."""
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    task.close()
    remake_topic(loop)
    send(loop, 0, 100)
    accept(loop)
    newer = new_submission(ModelStore(loop.settings))
    second = tasks(newer)
    with pytest.raises(
        StopJob, match=r"begins at offset 50 .* continue from 0.* Submit the job again without -s"
    ):
        feed(second, 50, 100)
    second.close()
    third = tasks(newer)
    feed(third, 0, 100)
    assert third.store.read().meta.samples == 150


def accept(loop: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "admin.py", "model", "accept", "--yes"], cwd=HERE, env=loop.env
    )
    assert done.returncode == 0


def test_a_submission_starts_at_the_lower_of_model_and_group(parts, tasks):
    loop = parts.named(partitions=3, learner="sgd")
    settings = loop.settings
    for partition in range(3):
        send(loop, 0, 60, partition)
    task = tasks(settings=settings)
    feed(task, 0, 20, 0)
    feed(task, 0, 30, 1)
    for partition in range(3):
        commit_group(loop, 25, partition)
    start_at_the_model(settings, {})
    assert task.log.committed() == {0: 25, 1: 25, 2: 25}, "without a model the group's offsets stay"
    start_at_the_model(settings, task.store.progress())
    assert task.log.committed() == {0: 20, 1: 25, 2: 0}
    task.store.clear()
    assert task.store.progress() == {0: 20, 1: 30, 2: 0}


def test_a_gap_of_large_messages_is_learned_in_pieces(loop, tasks):
    send(loop, 0, 10)
    task = tasks()
    feed(task, 0, 10)
    old = snapshot(task.store)
    producer = Producer(loop.settings.confluent_client() | {"message.max.bytes": MAX_RECORD_BYTES})
    for _ in range(40):
        producer.produce(loop.settings.input_topic, b"x" * 1_000_000)
        producer.flush(30)
    feed(task, 10, 50)
    put_back(task.store, old)
    send(loop, 0, 1)
    before = task.store.read().meta.version
    sizes = [sum(len(value) for _, value in piece) for piece in task.log.pieces(0, 10, 50)]
    assert max(sizes) <= 9_000_000
    feed(task, 50, 51)
    meta = task.store.read().meta
    assert (meta.samples, meta.rejected, meta.progress) == (11, 40, {0: 51})
    assert meta.version == before + len(sizes) + 1


def test_a_gap_in_one_of_two_partitions_is_learned_and_the_other_left_alone(parts, tasks):
    loop = parts.named(partitions=2, learner="sgd")
    for partition in (0, 1):
        send(loop, 0, 100, partition)
    task = tasks(settings=loop.settings)
    feed(task, 0, 50, 0)
    old = snapshot(task.store)
    feed(task, 0, 40, 1)
    put_back(task.store, old)
    feed(task, 40, 100, 1)
    feed(task, 50, 100, 0)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress) == (200, {0: 100, 1: 100})


def test_a_partition_that_is_added_is_learned_from_its_beginning(loop, tasks):
    send(loop, 0, 20)
    task = tasks()
    feed(task, 0, 20)
    admin = KafkaAdminClient(**loop.settings.kafka_client())
    admin.create_partitions({loop.settings.input_topic: NewPartitions(2)})
    until(lambda: len(task.log.bounds()) == 2, 20)
    send(loop, 0, 30, partition=1)
    feed(task, 10, 30, partition=1)  # Flink misses the first ten
    meta = task.store.read().meta
    assert (meta.samples, meta.progress, meta.starts) == (50, {0: 20, 1: 30}, {0: 0, 1: 0})
    admin.close()


def delete_records(loop: Stack, before: int) -> None:
    admin = KafkaAdminClient(**loop.settings.kafka_client())
    admin.delete_records({TopicPartition(loop.settings.input_topic, 0): before})
    admin.close()


def test_samples_that_retention_deleted_unread_stop_the_running_job_with_a_sentence(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 20)
    delete_records(loop, 60)
    with pytest.raises(
        StopJob,
        match=r"begins at offset 60, but the next sample to learn is 20: retention has deleted 40",
    ):
        feed(task, 60, 100)
    assert task.store.read().meta.progress == {0: 20}


def test_samples_that_retention_deleted_unread_stop_the_next_start_with_a_sentence(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 20)
    task.close()
    delete_records(loop, 60)
    with pytest.raises(StopJob, match=r"retention has deleted 40 messages unread"):
        tasks()


def test_samples_that_retention_deleted_after_they_were_learned_are_no_gap(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 60)
    task.close()
    delete_records(loop, 60)
    second = tasks()
    feed(second, 60, 100)
    assert second.store.read().meta.samples == 100


def remake_topic(loop: Stack) -> None:
    admin = KafkaAdminClient(**loop.settings.kafka_client())
    admin.delete_topics([loop.settings.input_topic])
    until(lambda: loop.settings.input_topic not in admin.list_topics(), 20)
    admin.close()
    until(lambda: create_topics(loop.settings) or True, 20)


def test_a_recreated_topic_stops_the_next_start_with_a_sentence(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    task.close()
    remake_topic(loop)
    send(loop, 0, 100)
    with pytest.raises(StopJob, match=r"was deleted and recreated .* python admin.py model accept"):
        tasks()


def test_offsets_that_go_back_stop_the_running_job_with_a_sentence(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    with pytest.raises(StopJob, match=r"went back to offset 0 after"):
        feed(task, 0, 10)


def test_a_log_that_lost_its_end_stops_the_next_start_with_a_sentence(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    meta = task.store.read().meta
    meta = replace(meta, progress={0: 70}, version=meta.version + 1)
    task.store.commit(task.held.stored, meta, task.held.stored.model, task.held.stored.state)
    task.close()
    with pytest.raises(StopJob, match=r"ends at offset 50, but the model has learned up to 70"):
        tasks()


def test_another_message_where_one_was_learned_stops_the_next_start_with_a_sentence(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    meta = task.store.read().meta
    meta = replace(meta, checksums={0: [49, 1]}, version=meta.version + 1)
    task.store.commit(task.held.stored, meta, task.held.stored.model, task.held.stored.state)
    task.close()
    with pytest.raises(StopJob, match=r"holds another message at offset 49"):
        tasks()


def test_an_emptied_redis_stops_the_running_job_with_a_sentence(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    task.store.redis.delete(*task.store.keys)
    with pytest.raises(StopJob, match=r"Redis holds no model, but consumer group"):
        feed(task, 50, 100)


def test_an_emptied_redis_stops_the_next_start_with_a_sentence_until_it_is_cleared_on_purpose(
    loop, tasks
):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    task.close()
    commit_group(loop, 50)
    task.store.redis.delete(*task.store.keys)
    with pytest.raises(
        StopJob, match=r"put the model back from a backup, or start over on purpose"
    ):
        tasks()
    task.store.clear()
    feed(tasks(), 50, 100)
    assert task.store.read().meta.samples == 50


def test_an_emptied_redis_is_noticed_also_when_kafka_has_forgotten_the_group(loop, tasks):
    send(loop, 0, 100)
    task = tasks()
    producer = KafkaProducer(**loop.settings.kafka_client())
    for line in feed(task, 0, 50):
        producer.send(loop.settings.predict_topic, orjson.dumps(line))
    producer.close()
    task.close()
    task.store.redis.delete(*task.store.keys)
    assert task.log.committed() == {}
    with pytest.raises(
        StopJob, match=r"digit_predict-\w+ holds its outputs: put the model back .*redis_clear\.py"
    ):
        tasks()
    task.store.clear()
    feed(tasks(), 0, 100)
    assert task.store.read().meta.samples == 100


@pytest.mark.parametrize("key", [0, 1])
def test_one_key_that_is_gone_stops_the_job_with_a_sentence(loop, tasks, key):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    task.store.redis.delete(task.store.keys[key])
    with pytest.raises(StopJob, match=r"is gone|unsigned model"):
        feed(task, 50, 100)
    task.close()
    with pytest.raises(StopJob, match=r"is gone|unsigned model"):
        tasks()


def test_a_second_submission_ends_with_a_sentence_while_the_first_lives(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    with pytest.raises(StopJob, match="Another submission of this job"):
        tasks(submission=new_submission(task.store))
    feed(task, 0, 50)
    assert task.store.read().meta.samples == 50


def test_a_submission_whose_lease_ran_out_is_succeeded_and_ends_when_it_wakes(loop, tasks):
    send(loop, 0, 100)
    sleeper = tasks()
    feed(sleeper, 0, 50)
    sleeper.lease._stop.set()  # it stops renewing, as a stopped process does
    time.sleep(1.1)  # ids are of one second
    began = time.monotonic()
    successor = tasks(submission=new_submission(sleeper.store))
    assert time.monotonic() - began < LEASE_MS / 1000 + 5
    feed(successor, 50, 80)
    with pytest.raises(StopJob, match="has taken over"):
        feed(sleeper, 50, 100)
    assert successor.store.read().meta.samples == 80


def test_a_submission_does_not_get_the_model_back_from_a_newer_one(loop, tasks):
    """Both may restart at once, or the newer one may have ended since.

    Its outputs are behind the group's offsets.
    """
    send(loop, 0, 100)
    sleeper = tasks()
    feed(sleeper, 0, 50)
    sleeper.lease.give_back()
    successor = tasks(submission=new_submission(sleeper.store))
    feed(successor, 50, 80)
    successor.close()
    with pytest.raises(StopJob, match="has taken over"):
        feed(sleeper, 50, 100)
    with pytest.raises(StopJob, match="newer submission of this job"):
        tasks()
    assert sleeper.store.read().meta.samples == 80


def test_a_lease_that_was_given_back_is_free_at_once(loop, tasks):
    task = tasks()
    task.close()
    assert not task.store.redis.exists(task.store.keys.lease)


def test_a_task_that_can_not_open_gives_its_lease_back(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    task.close()
    task.store.redis.delete(task.store.keys.model)
    with pytest.raises(StopJob, match="is gone"):
        tasks()
    assert not task.store.redis.exists(task.store.keys.lease)
    time.sleep(2 * RENEW_SECONDS)  # a thread that still renewed it would take it again
    assert not task.store.redis.exists(task.store.keys.lease)


def test_a_batch_waits_for_a_redis_that_is_away_and_is_learned_once(parts, loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    parts.restart("redis")
    feed(task, 0, 50)
    assert task.store.read().meta.samples == 50


def test_a_redis_that_stays_away_fails_the_task_with_a_sentence_and_loses_nothing(
    loop, tasks, monkeypatch
):
    monkeypatch.setattr("loop.model_store.RETRY_SECONDS", 0.5)
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    loop.redis_admin().config_set("maxmemory", 1)
    try:
        with pytest.raises(AwayError, match="No sample is lost"):
            feed(task, 50, 100)
    finally:
        loop.redis_admin().config_set("maxmemory", 0)
    feed(tasks(), 50, 100)
    assert task.store.read().meta.samples == 100


def test_another_learner_than_the_stored_one_stops_the_job_with_a_sentence(parts, loop, tasks):
    send(loop, 0, 50)
    feed(tasks(), 0, 50)
    other = parts.named(
        learner="default", model_key=loop.settings.model_key, input_topic=loop.settings.input_topic
    )
    with pytest.raises(StopJob, match=r"LEARNER=sgd, this job has LEARNER=default"):
        tasks(settings=other.settings)


def test_a_wrong_redis_password_stops_the_job_with_a_sentence(loop, tasks):
    wrong = loop.settings.model_copy(
        update={"redis_password": type(loop.settings.redis_password)("wrong")}
    )
    with pytest.raises(StopJob, match="refuses the password"):
        tasks(settings=wrong)
