"""Several partitions, one learner: progress is kept and gaps are found per partition."""

import contextlib
import shutil

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewPartitions
from sklearn.datasets import load_digits

from harness.proof import Proof, read_committed
from harness.stack import Stack, redis_admin, until
from loop.messages import DIGITS
from loop.model_store import ModelStore
from loop.topic_log import TopicLog

X, LABELS = load_digits(return_X_y=True)


def send(stack: Stack, begin: int, end: int, partitions: int) -> None:
    """Send samples ``begin`` to ``end``, whose numbers stand in ``ts``, to the partitions in turn."""
    with contextlib.closing(
        KafkaProducer(**stack.settings.kafka_client(), linger_ms=5)
    ) as producer:
        for i in range(begin, end):
            value = DIGITS.sample(X[i % len(X)], LABELS[i % len(X)], ts=f"{i:019d}")
            producer.send(stack.settings.input_topic, value, partition=i % partitions)


def learned(stack: Stack, progress: dict[int, int]) -> None:
    """Return when the model has learned up to these offsets."""
    store = ModelStore(stack.settings)

    def there() -> bool:
        stored = store.read()
        return stored is not None and stored.meta.progress == progress

    until(there, 120, f"progress {progress}")


def test_partitions_are_learned_once_each_also_one_added_and_a_gap_in_one_of_two(parts):
    stack = parts.start("kafka", "redis", "jobmanager", "taskmanager").named(
        partitions=2, learner="sgd"
    )
    store, log = ModelStore(stack.settings), TopicLog(stack.settings)
    redis_admin(stack.settings).config_set("auto-aof-rewrite-percentage", 0)
    proof = Proof(stack.settings, stack.settings.run_dir / "redis")
    job = stack.submit_job()
    send(stack, 0, 600, 2)
    learned(stack, {0: 300, 1: 300})

    with contextlib.closing(KafkaAdminClient(**stack.settings.kafka_client())) as client:
        client.create_partitions({stack.settings.input_topic: NewPartitions(3)})
    send(stack, 600, 900, 3)
    learned(stack, {0: 400, 1: 400, 2: 100})

    # The store goes back, and only partition 1 gets a new sample: the quiet ones are caught up, too.
    copied = {key: store.redis.dump(key) for key in store.keys.committed}
    send(stack, 900, 1200, 3)
    learned(stack, {0: 500, 1: 500, 2: 200})
    for key, value in copied.items():
        redis_admin(stack.settings).restore(
            key, 0, value, replace=True
        ) if value else store.redis.delete(key)
    before = store.read()
    assert before is not None
    assert before.meta.progress == {0: 400, 1: 400, 2: 100}
    with contextlib.closing(KafkaProducer(**stack.settings.kafka_client())) as producer:
        producer.send(
            stack.settings.input_topic,
            DIGITS.sample(X[0], LABELS[0], ts=f"{1200:019d}"),
            partition=1,
        )
    learned(stack, {0: 500, 1: 501, 2: 200})
    send(stack, 1203, 1206, 3)
    learned(stack, {0: 501, 1: 502, 2: 201})

    stored = store.read()
    assert stored is not None
    assert stored.meta.samples == 501 + 502 + 201
    assert stored.meta.model_id > before.meta.model_id, "a store that went back is another model"
    until(lambda: log.committed() == stored.meta.progress, 60, "a checkpoint holds everything")
    proof.messages = {
        (stored.meta.topic_id, *place): value
        for place, value in read_committed(stack.settings, stack.settings.input_topic).items()
    }
    proof.check_once()
    stack.cancel_job(job)
    log.close()


def test_a_parallelism_above_one_is_refused_in_a_sentence(stack, tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(stack.settings.run_dir / "flink" / "conf", conf)
    text = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(
        text.replace("parallelism.default: 1\n", "parallelism.default: 2\n")
    )
    with pytest.raises(AssertionError, match="one model learns one stream in one order") as refusal:
        stack.submit_job(FLINK_CONF_DIR=str(conf))
    assert "Traceback" not in str(refusal.value)
