"""Secrets stay where they belong, and nothing is unpickled that this installation has not signed."""

import contextlib
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaProducer
from pydantic import SecretStr
from sklearn.datasets import load_digits

from harness.page import drawing, serving
from harness.stack import Stack, free_port, make_stack, until
from local import brokers
from loop.messages import DIGITS
from loop.model_store import ModelStore, Stored
from settings import HERE, Settings

X, LABELS = load_digits(return_X_y=True)


def send(stack: Stack, count: int) -> None:
    """Send samples and return when they have arrived."""
    with contextlib.closing(KafkaProducer(**stack.settings.kafka_client())) as producer:
        for i in range(count):
            producer.send(stack.settings.input_topic, DIGITS.sample(X[i], LABELS[i]))


def learned(stack: Stack, samples: int) -> Stored:
    """Return what is stored once so many samples are learned."""
    store = ModelStore(stack.settings)

    def there() -> Stored:
        stored = store.read()
        assert stored
        assert stored.meta.samples >= samples
        return stored

    return until(there, 180, f"{samples} samples learned")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Stack]:
    """A stack whose Kafka asks for a password (SASL), as managed services do, and whose secrets are random."""
    kafka_port = free_port()
    given = {
        "kafka_bootstrap_servers": f"127.0.0.1:{kafka_port}",
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_username": "loop",
        "kafka_sasl_password": SecretStr(f"kafka-{secrets.token_hex(12)}"),
        "redis_password": SecretStr(f"redis-{secrets.token_hex(12)}"),
    }
    with make_stack(tmp_path, **given) as stack:
        inside = {
            "kafka_bootstrap_servers": f"127.0.0.1:{free_port()}",
            "kafka_security_protocol": "PLAINTEXT",
        }
        broker = brokers.kafka(Settings(**(stack.given | inside)))
        plain = broker.prepare

        def prepare() -> None:
            plain()
            with (tmp_path / "kafka" / "server.properties").open("a") as properties:
                properties.write(sasl_listener(inside["kafka_bootstrap_servers"], stack.settings))

        broker.prepare = prepare
        stack.parts["kafka"] = broker
        yield stack.start("kafka", "redis", "jobmanager", "taskmanager").named(learner="sgd")


def sasl_listener(inside: str, settings: Settings) -> str:
    """Return the broker's properties for a listener that asks for a password; a later line overrides an earlier one."""
    outside, password = (
        settings.kafka_bootstrap_servers,
        settings.kafka_sasl_password.get_secret_value(),
    )
    login = (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_loop="{password}";'
    )
    return f"""
listeners=PLAINTEXT://{inside},SASL_PLAINTEXT://{outside},CONTROLLER://127.0.0.1:{settings.kafka_controller_port}
advertised.listeners=PLAINTEXT://{inside},SASL_PLAINTEXT://{outside}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config={login}
"""


def test_the_loop_runs_with_passwords_and_they_stand_nowhere_but_in_their_own_files(guarded):
    config = guarded.settings
    hidden = {
        "KAFKA_SASL_PASSWORD": config.kafka_sasl_password.get_secret_value(),
        "REDIS_PASSWORD": config.redis_password.get_secret_value(),
        "the signing key": config.signing_key().decode(),
    }
    job = guarded.submit_job()
    send(guarded, 200)
    learned(guarded, 200)
    refused = [
        failing(guarded, "redis_clear.py", "x", REDIS_PASSWORD="wrong-" + hidden["REDIS_PASSWORD"]),
        failing(
            guarded,
            "admin.py",
            "model",
            "show",
            MODEL_SIGNING_KEY="wrong-" + hidden["the signing key"],
        ),
    ]
    for worker in own_processes(config.run_dir):  # a restart writes errors and stack traces
        if "pyflink.fn_execution" in worker:
            psutil.Process(int(worker.split()[0])).kill()
    send(guarded, 1)  # its death is noticed when the next sample comes
    until(lambda: guarded.exceptions(job), 60, "the killed worker is reported")
    guarded.wait_for_job(job, seconds=120)

    places = {f"process {line.split()[0]}": line.encode() for line in own_processes(config.run_dir)}
    places |= {f"output {i}": text.encode() for i, text in enumerate(refused)}
    places |= {path: str(guarded.rest(path)).encode() for path in rest_paths(guarded, job)}
    own = {"redis.conf", "server.properties", "signing.key"}
    written = [
        path for path in config.run_dir.rglob("*") if path.is_file() and path.name not in own
    ]
    places |= {str(path): path.read_bytes() for path in written if path.exists()}
    found = [
        (what, where)
        for what, text in hidden.items()
        for where, content in places.items()
        if text.encode() in content
    ]
    assert not found
    for name in own:
        path = next(config.run_dir.rglob(name))
        assert name == "server.properties" or path.stat().st_mode & 0o077 == 0, (
            f"{name} is readable by others"
        )
    guarded.cancel_job(job)


def failing(stack: Stack, *command: str, **env: str) -> str:
    """Run a command that must fail in one sentence and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=HERE, env=stack.env | env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def own_processes(run_dir: Path) -> list[str]:
    """Return pid and command line of each process of this run, as anybody on the machine can list them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RUN_DIR") == str(run_dir):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def rest_paths(stack: Stack, job: str) -> list[str]:
    """Return what Flink's page shows of the cluster and of the job."""
    manager = stack.rest("/taskmanagers")["taskmanagers"][0]["id"]
    cluster = [
        "/config",
        "/jobmanager/config",
        "/jobmanager/environment",
        "/taskmanagers",
        f"/taskmanagers/{manager}",
    ]
    return cluster + [
        f"/jobs/{job}{part}"
        for part in ("", "/config", "/plan", "/exceptions", "/checkpoints/config")
    ]


class Canary:
    """Leaves a file behind when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def test_what_is_unsigned_altered_of_another_key_or_swapped_is_opened_neither_by_the_job_nor_by_the_page(
    stack, tmp_path
):
    store = ModelStore(stack.settings)
    model, meta, _ = store.keys.committed
    job = stack.submit_job(LEARNER="sgd")
    send(stack, 50)
    early = learned(stack, 50)
    early_meta = store.redis.hgetall(meta)
    send(stack, 50)
    good = learned(stack, 100)
    kept, kept_meta = store.redis.get(model), store.redis.hgetall(meta)
    opened = tmp_path / "opened"
    trap = pickle.dumps(Canary(opened))
    foreign_store = ModelStore(
        Settings(**(stack.given | {"model_signing_key": SecretStr("k" * 40)}))
    )
    foreign = {k: v for k, v in kept_meta.items() if k != b"signature"}
    signature = foreign_store.sign(trap, {k.decode(): v for k, v in foreign.items()}).encode()

    tamperings: dict[str, tuple[bytes, dict]] = {
        "unsigned": (trap, {}),
        "altered": (trap, kept_meta),
        "signed with another key": (trap, foreign | {b"signature": signature}),
        "beside an older meta of the same key": (kept, early_meta),
    }
    assert early.meta.version < good.meta.version
    with serving(stack) as page:
        page.ready(good.meta.version)
        for name, (bytes_, fields) in tamperings.items():
            with store.redis.pipeline(transaction=True) as pipe:
                pipe.delete(meta).set(model, bytes_)
                if fields:
                    pipe.hset(meta, mapping=fields)
                pipe.execute()
            sentence = (
                "holds an unsigned model"
                if name == "unsigned"
                else "is not signed with this installation's key"
            )
            if stack.job_state(job) == "FAILED":  # it gives up after ten restarts
                job = stack.submit_job(restore=stack.newest_checkpoint(job), LEARNER="sgd")
            since = time.time()
            kill_workers(stack)
            send(stack, 1)  # the model is loaded when the first sample comes
            until(
                lambda job=job, since=since, sentence=sentence: said(stack, job, since, sentence),
                120,
                sentence,
            )
            status, answer = page.post("/predict", imgStr=drawing(3))
            assert (status, answer["model_version"]) == (
                201,
                good.meta.version,
            ), name
            assert not opened.exists(), f"a model {name} was opened"
        with store.redis.pipeline(transaction=True) as pipe:
            pipe.set(model, kept).hset(meta, mapping=kept_meta).execute()
        if stack.job_state(job) == "FAILED":
            job = stack.submit_job(restore=stack.newest_checkpoint(job), LEARNER="sgd")
        assert learned(stack, 100 + len(tamperings)).meta.model_id == good.meta.model_id
    stack.cancel_job(job)


def said(stack: Stack, job: str, since: float, sentence: str) -> bool:
    """Return whether a failure of the job after this time (seconds since 1970) says the sentence."""
    entries = stack.rest(f"/jobs/{job}/exceptions?maxExceptions=1000")["exceptionHistory"][
        "entries"
    ]
    return any(
        sentence in entry["stacktrace"] for entry in entries if entry["timestamp"] > 1000 * since
    )


def kill_workers(stack: Stack) -> None:
    """SIGKILL the Python workers, so that the task opens anew."""
    for line in own_processes(stack.settings.run_dir):
        if "pyflink.fn_execution" in line:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(int(line.split()[0])).kill()
