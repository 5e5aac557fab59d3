"""Counts on which the job's speed depends; unlike seconds they are the same on each machine."""

import threading

import numpy as np
import pytest
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils.counters import CounterFactory
from redis import Redis

from benchmarks.loop.measure import fill
from harness.stack import Stack, until
from loop.messages import DIGITS, Format
from loop.model_store import STATE_PAGE, Keys
from loop.seen import Seen
from loop.trainer import Trainer
from udf_model import end_bundles_at_once

X = [i % 17 for i in range(64)]


@pytest.fixture
def trainer(parts: Stack):
    task = Trainer(parts.start("kafka", "redis").named(learner="sgd").settings, "counts")
    task.open()
    yield task
    task.close()


def test_a_batch_of_any_size_costs_one_command_to_redis_and_no_question_to_kafka(
    trainer, monkeypatch
):
    commands, questions, mine = [], [], threading.current_thread()
    execute = trainer.store.redis.execute_command

    def count(*args, **options):
        if threading.current_thread() is mine:  # the lease is renewed in another one
            commands.append(args[0])
        return execute(*args, **options)

    # The first commit sends the script itself, so it is not counted.
    trainer.learn([DIGITS.sample(X, 3)], np.zeros(1, np.int64), np.zeros(1, np.int64))
    monkeypatch.setattr(trainer.store.redis, "execute_command", count)
    monkeypatch.setattr(trainer.log, "read", lambda *args, **options: questions.append(args))
    monkeypatch.setattr(trainer.log, "bounds", lambda: questions.append("bounds"))
    following = 1
    for size in (1, 10, 1000, 5000):
        trainer.learn(
            [DIGITS.sample(X, 3)] * size,
            np.zeros(size, np.int64),
            np.arange(following, following + size),
        )
        following += size
    assert commands == ["EVALSHA"] * 4
    assert questions == []


def test_a_batch_with_transaction_markers_costs_one_question(trainer, monkeypatch):
    """The number of markers does not matter, and no record is read again, now or later."""
    questions, ask = [], trainer.log.ask_for_beginnings
    monkeypatch.setattr(trainer.log, "pieces", lambda *args: questions.append(args))
    monkeypatch.setattr(
        trainer.log, "ask_for_beginnings", lambda missing: questions.append(missing) or ask(missing)
    )
    following = 0
    for size in (1, 100, 5000):
        markers = np.arange(size) // 3  # one after each three samples
        offsets = following + np.arange(size) + markers
        trainer.learn([DIGITS.sample(X, 3)] * size, np.zeros(size, np.int64), offsets)
        following = int(offsets[-1]) + 2  # and one between the batches
    assert trainer.meta.samples == 5101
    assert questions == [{0: 1}, {0: 135}], "the first offset that each batch lacks"


def test_a_batch_of_good_messages_is_judged_at_once_and_one_bad_message_takes_few_with_it(
    monkeypatch,
):
    judged, judge = [], Format._judge
    monkeypatch.setattr(
        Format, "_judge", lambda form, payload: judged.append(payload) or judge(form, payload)
    )
    good = DIGITS.sample(X, 3)
    DIGITS.parse([good] * 5000)
    assert len(judged) == 0
    DIGITS.parse([good] * 2500 + [b"bad"] + [good] * 2499)
    assert 1 <= len(judged) <= 8


def test_a_commit_writes_few_bytes_beside_the_model(trainer, monkeypatch):
    sent = []
    monkeypatch.setattr(trainer.store, "_commit", lambda keys, args: sent.append(args) or b"done")
    partitions, offsets = np.zeros(1000, np.int64), np.arange(1000)
    trainer.learn([DIGITS.sample(X, 3)] * 1000, partitions, offsets)
    trainer.learn([DIGITS.sample([1, *X[1:]], 3)] * 1000, partitions, offsets + 1000)
    model = len(trainer.held.stored.model)
    first, second = (written(arguments) for arguments in sent)
    assert first < model + 4000 + Seen.size
    assert second < model + 4000 + 2 * STATE_PAGE


def written(arguments: list) -> int:
    """Return how many bytes a commit sends to Redis."""
    return sum(len(part if isinstance(part, bytes) else str(part)) for part in arguments)


def test_a_bundle_starts_no_thread_of_the_profiler(monkeypatch):
    for name in ("start", "stop"):  # restored after the test
        monkeypatch.setattr(StateSampler, name, getattr(StateSampler, name))
    end_bundles_at_once()
    sampler, threads = StateSampler("stage", CounterFactory()), threading.active_count()
    for _ in range(2):
        sampler.start()
        assert threading.active_count() == threads
        sampler.stop_if_still_running()
        assert sampler.finished
        sampler.reset()


def test_a_flood_is_learned_in_large_batches_each_message_by_one_evaluation(stack):
    fill(stack.settings, 20_000)
    job = stack.submit_job(LEARNER="sgd")
    client = Redis(**stack.settings.redis_client())
    key = Keys.of(stack.settings.model_key).meta
    until(lambda: int(client.hget(key, "samples") or 0) == 20_000, 240, "20,000 samples learned")
    # That is at least 100 messages a commit; an idle machine reaches 1,000 and more.
    assert int(client.hget(key, "version")) <= 200
    plan = stack.rest(f"/jobs/{job}/plan")["plan"]["nodes"]
    assert sum(node["description"].count("PythonCalc(") for node in plan) == 1
    # The sinks have a task of their own, because committing a transaction takes time.
    assert len(plan) == 2
    stack.cancel_job(job)
