"""The whole loop on real parts: Kafka, Flink, Redis, through the commands that people use."""

import pickle
import subprocess
import sys

import orjson
import redis
from kafka import KafkaConsumer
from sklearn.datasets import load_digits

from harness.stack import Stack, until
from loop.model_store import ModelStore
from settings import HERE

X, Y = load_digits(return_X_y=True)


def run(stack: Stack, *command: str) -> str:
    """Run one of the project's commands and return what it printed; fails where it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=HERE,
        env=stack.env,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def read_committed(stack: Stack, topic: str, wanted: int) -> list[dict]:
    """Return what stands in a topic for readers of committed messages, once there are ``wanted``."""
    consumer = KafkaConsumer(
        topic,
        **stack.settings.kafka_client(),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
        group_id=None,
    )
    found: list[dict] = []

    def enough() -> bool:
        for records in consumer.poll(timeout_ms=500).values():
            found.extend(orjson.loads(record.value) for record in records)
        return len(found) >= wanted

    try:
        until(enough, 60, f"{wanted} messages in {topic}")
        consumer.poll(timeout_ms=1000)
    finally:
        consumer.close()
    return found


def learned(stack: Stack, samples: int, seconds: float = 240):
    """Wait until so many samples are learned, and return what is stored."""
    store = ModelStore(stack.settings)

    def there():
        stored = store.read()
        return stored if stored is not None and stored.meta.samples >= samples else None

    return until(there, seconds, f"{samples} samples learned")


def metrics(stack: Stack, job: str) -> dict[str, str]:
    """Return the job's metrics of group online_ml as Flink's REST API gives them, {name: value}."""
    vertex = stack.rest(f"/jobs/{job}")["vertices"][0]["id"]
    path = f"/jobs/{job}/vertices/{vertex}/metrics"
    names = [metric["id"] for metric in stack.rest(path) if ".online_ml." in metric["id"]]
    answer = stack.rest(f"{path}?get={','.join(names)}") if names else []
    return {metric["id"].split("online_ml.")[1]: metric["value"] for metric in answer}


def test_every_digit_is_learned_once_comes_out_once_and_is_counted_in_flinks_metrics(stack):
    job = stack.submit_job()
    run(stack, "data_producer.py", "--rate", "2000")
    stored = learned(stack, 1797)
    assert (stored.meta.samples, stored.meta.rejected, stored.meta.progress) == (1797, 0, {0: 1797})

    plain = redis.Redis(**stack.settings.redis_client())
    estimator = pickle.loads(plain.get(stack.settings.model_key))
    assert (estimator.predict(X) == Y).mean() > 0.9

    out = read_committed(stack, stack.settings.predict_topic, 1797)
    assert sorted(line["offset"] for line in out) == list(range(1797))
    assert not any("replayed" in line for line in out)
    assert sorted(tuple(line["x"]) for line in out) == sorted(tuple(map(int, x)) for x in X)
    right = sum(line["predict_y"] == line["actual_y"] for line in out)
    assert right == stored.meta.scores.right
    assert set(out[0]) == {
        "ts",
        "x",
        "actual_y",
        "predict_y",
        "model_version",
        "partition",
        "offset",
    }

    wanted = {
        "sample_count",
        "prediction_acc",
        "prediction_acc_new",
        "seen_before",
        "metric_distribution_y",
        "total_10_sec",
        "right_10_sec",
    }
    found = until(
        lambda: (
            (m := metrics(stack, job)).keys() >= wanted and m.get("sample_count") == "1797" and m
        ),
        60,
    )
    assert int(found["prediction_acc"]) == round(10_000 * stored.meta.scores.accuracy)
    assert int(found["prediction_acc_new"]) == round(10_000 * stored.meta.scores.accuracy_new)
    assert int(found["seen_before"]) == 0
    assert int(found["right_10_sec"]) <= int(found["total_10_sec"]) <= 1797

    printed = run(stack, "redis_clear.py", stack.settings.model_key)
    assert printed == f"{stack.settings.model_key}: deleted\n"
    run(stack, "data_producer.py", "--rate", "2000", "--count", "500")
    again = learned(stack, 500)
    assert (again.meta.samples, again.meta.starts) == (500, {0: 1797})
    assert again.meta.model_id > stored.meta.model_id
    stack.cancel_job(job)


def test_the_ten_second_metrics_cover_ten_seconds(stack):
    job = stack.submit_job(LEARNER="sgd")
    producer = subprocess.Popen(
        [sys.executable, "data_producer.py", "--rate", "50", "--endless"],
        cwd=HERE,
        env=stack.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        learned(stack, 1000)
        # 50 a second is 500 in ten seconds; more at first, as samples waited for the job, and many more since the start.
        until(
            lambda: 350 <= int(metrics(stack, job).get("total_10_sec", 0)) <= 650,
            120,
            "500 in ten seconds",
        )
    finally:
        producer.terminate()
        producer.wait(20)
        stack.cancel_job(job)
