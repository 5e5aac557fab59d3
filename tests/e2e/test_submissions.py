"""Submissions beside and after each other: none ends a live one's transactions, and none leaves any open."""

from contextlib import closing
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from sklearn.datasets import load_digits

from harness.stack import Stack, until
from loop.messages import DIGITS
from loop.model_store import ModelStore
from loop.transactions import MODEL_HEADER

X, LABELS = load_digits(return_X_y=True)


def send(stack: Stack, count: int) -> None:
    with closing(KafkaProducer(**stack.settings.kafka_client())) as producer:
        for i in range(count):
            producer.send(stack.settings.input_topic, DIGITS.sample(X[i], LABELS[i]))


def learned(stack: Stack, samples: int) -> None:
    store = ModelStore(stack.settings)

    def there() -> bool:
        stored = store.read()
        return stored is not None and stored.meta.samples >= samples

    until(there, 120, f"{samples} samples learned")


def open_ids(stack: Stack) -> set[str]:
    """Return the ids of the open transactions in this stack's output topics."""
    with closing(KafkaAdminClient(**stack.settings.kafka_client())) as admin:
        found = admin.list_transactions(state_filters=["Ongoing"]).values()
    topics = (stack.settings.predict_topic, stack.settings.reject_topic)
    return {
        t.transactional_id
        for listing in found
        for t in listing
        if t.transactional_id.startswith(topics)
    }


def outputs(stack: Stack) -> dict[bytes, int]:
    """Return how many committed predictions the topic holds of each model."""
    found: dict[bytes, int] = {}
    settings, place = stack.settings, TopicPartition(stack.settings.predict_topic, 0)
    with closing(
        KafkaConsumer(**settings.kafka_client(), isolation_level="read_committed")
    ) as consumer:
        consumer.assign([place])
        consumer.seek_to_beginning()
        end = consumer.end_offsets([place])[place]
        while consumer.position(place) < end:
            for record in consumer.poll(timeout_ms=500).get(place, []):
                model = dict(record.headers)[MODEL_HEADER]
                found[model] = found.get(model, 0) + 1
    return found


def test_a_second_pipeline_on_the_same_topics_leaves_the_first_alone(stack):
    other = object.__new__(Stack)
    other.__dict__ |= stack.__dict__
    other.given = stack.given | {
        "model_key": f"{stack.settings.model_key}-eu",
        "kafka_group": f"{stack.settings.kafka_group}-eu",
    }
    other.settings = type(stack.settings)(**other.given)
    first = stack.submit_job(LEARNER="sgd")
    send(stack, 50)
    learned(stack, 50)
    second = other.submit_job(LEARNER="sgd")
    send(stack, 50)
    learned(other, 100)
    learned(stack, 100)
    other.cancel_job(second)
    send(stack, 50)
    second = other.submit_job(LEARNER="sgd")
    learned(other, 150)
    learned(stack, 150)
    names = {view.settings.model_key.encode() for view in (stack, other)}

    def complete() -> bool:
        found = outputs(stack)
        return found.keys() == names and min(found.values()) >= 150

    until(complete, 60, "both have an output of each sample")
    assert stack.exceptions(first) == ""
    assert outputs(stack)[stack.settings.model_key.encode()] == 150
    stack.cancel_job(first)
    other.cancel_job(second)


def test_a_submission_between_a_checkpoint_and_its_resumption_leaves_nothing_open(stack):
    earlier = stack.submit_job(LEARNER="sgd")
    send(stack, 50)
    learned(stack, 50)
    checkpoint: Path = until(lambda: stack.newest_checkpoint(earlier), 30)
    stack.cancel_job(earlier)
    between = stack.submit_job(LEARNER="sgd")
    send(stack, 50)
    learned(stack, 100)
    ours = ModelStore(stack.settings).read().meta.submission

    def dies_with_an_open_transaction() -> bool:
        send(stack, 5)
        until(lambda: any(ours in name for name in open_ids(stack)), 20, "an open transaction")
        stack.pause("taskmanager")
        if any(ours in name for name in open_ids(stack)):
            return True
        stack.resume("taskmanager")
        return False

    until(dies_with_an_open_transaction, 60)
    stack.kill("taskmanager")
    stack.cancel_job(between)
    assert any(ours in name for name in open_ids(stack))
    stack.start("taskmanager")
    resumed = stack.submit_job(restore=checkpoint, LEARNER="sgd")
    assert not any(ours in name for name in open_ids(stack))
    send(stack, 50)
    learned(stack, 150)
    until(lambda: sum(outputs(stack).values()) >= 150, 60, "readers of committed messages go on")
    stack.cancel_job(resumed)
