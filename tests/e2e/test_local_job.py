"""The job as make run submits it, on a Flink of its own: which restore point it goes on from."""

import shutil
import threading

from kafka import KafkaProducer
from sklearn.datasets import load_digits

from harness.stack import Stack, make_stack, until
from local.job import Job
from loop.messages import DIGITS
from loop.model_store import ModelStore

X, LABELS = load_digits(return_X_y=True)


def learned(stack: Stack, more: int) -> None:
    """Send so many samples and return when they are learned."""
    store = ModelStore(stack.settings)
    stored = store.read()
    before = stored.meta.samples if stored else 0
    producer = KafkaProducer(**stack.settings.kafka_client())
    for i in range(more):
        producer.send(stack.settings.input_topic, DIGITS.sample(X[i], LABELS[i]))
    producer.close()

    def there() -> bool:
        found = store.read()
        return found is not None and found.meta.samples == before + more

    until(there, 120, f"{more} samples more")


def runs(job: Job) -> bool:
    job.refresh()
    return not job.problem


def test_a_savepoint_that_can_not_be_read_is_skipped_and_the_one_before_it_taken(tmp_path):
    with make_stack(tmp_path, learner="sgd") as own:
        stack = own.start("kafka", "redis", "jobmanager", "taskmanager").named()
        job = Job(stack.settings, threading.Event())
        job.submit()
        learned(stack, 20)
        until(lambda: runs(job), 60)
        savepoint = job.stop(threading.Event())
        assert savepoint
        broken = savepoint.with_name("savepoint-cut")
        shutil.copytree(savepoint, broken)
        (broken / "_metadata").write_bytes((savepoint / "_metadata").read_bytes()[:2000])
        job = Job(stack.settings, threading.Event())
        job.submit()
        assert job.unusable == ["savepoint-cut"]
        assert job.restore_point == savepoint
        until(lambda: runs(job), 60)
        learned(stack, 20)
