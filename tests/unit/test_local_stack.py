"""What make run does with processes, ports, logs and restore points, without Kafka, Redis or Flink."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import local_parts
from local_job import KEPT, Job, prune_restore_points, reason, restore_points, set_restore_points_aside
from local_process import LOG_BYTES, Part, StackError, end_leftovers, port_is_free
from local_stack import LocalStack, Meter, Unit, alone
from model_store import Meta
from settings import HERE, Settings
from tests.stack import free_port, until

FAMILY = ["bash", "-c", "sleep 600 & echo $! > {child}; wait"]  # a process and a child that would outlive it


def part(run_dir: Path, *argv: str, **given) -> Part:
    return Part("Sleeper", list(argv), dict(os.environ), run_dir, **{"answers": lambda: True, **given})


def family(run_dir: Path) -> tuple[Part, psutil.Process]:
    """Start a process with a child; return both."""
    child = run_dir / "child"
    parent = part(run_dir, *(word.format(child=child) for word in FAMILY))
    parent.start()
    until(lambda: child.exists() and child.read_text().strip(), 20)
    return parent, psutil.Process(int(child.read_text()))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_taken_port_is_named_with_the_variable_that_moves_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sleeper = part(tmp_path, "sleep", "600", ports={port: "SLEEPER_PORT"})
        with pytest.raises(StackError, match=rf"Sleeper needs port {port}.*SLEEPER_PORT"):
            sleeper.start()
    assert sleeper.process is None


def test_a_port_is_taken_also_by_a_server_on_every_address():
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not port_is_free(server.getsockname()[1])
    assert port_is_free(free_port())


def test_a_part_that_ends_before_it_is_up_is_named_with_its_log(tmp_path):
    broken = part(tmp_path, "bash", "-c", "echo no such thing; exit 3", answers=lambda: False)
    broken.start()
    with pytest.raises(StackError, match=r"Sleeper ended before it was up.*sleeper\.log"):
        broken.wait_until_it_answers()
    assert broken.log.read_text() == "no such thing\n"


def test_a_part_that_never_answers_is_named_with_its_log(tmp_path):
    mute = part(tmp_path, "sleep", "600", answers=lambda: False, patience=0.3)
    mute.start()
    with pytest.raises(StackError, match=r"Sleeper did not answer.*sleeper\.log"):
        mute.wait_until_it_answers()
    mute.kill()


def test_stopping_a_part_ends_its_children_too(tmp_path):
    parent, child = family(tmp_path)
    parent.stop()
    until(lambda: gone(child), 10)
    assert not list((tmp_path / "pids").iterdir())


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    stubborn = part(tmp_path, "bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", grace=0.5)
    stubborn.start()
    until(lambda: stubborn.log.read_text(), 10)
    stubborn.stop()
    assert not stubborn.alive


def test_starting_again_ends_the_children_of_a_part_that_was_killed(tmp_path):
    parent, child = family(tmp_path)
    parent.send(signal.SIGKILL)
    parent.wait()
    assert not gone(child)
    parent.start()
    until(lambda: gone(child), 10)
    parent.kill()


@pytest.mark.parametrize("leader_lives", [True, False])
def test_what_a_killed_run_left_running_is_ended(tmp_path, leader_lives):
    parent, child = family(tmp_path)
    if not leader_lives:
        parent.send(signal.SIGKILL)
        parent.wait()
    assert end_leftovers(tmp_path) == ["sleeper"]
    until(lambda: gone(child), 10)
    assert end_leftovers(tmp_path) == []


def test_a_stranger_with_the_pid_of_a_part_that_ended_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        (tmp_path / "pids").mkdir()
        (tmp_path / "pids" / "kafka").write_text(f"{stranger.pid} {time.time() - 1000}")
        assert end_leftovers(tmp_path) == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_log_that_grew_too_long_is_put_aside_and_goes_on(tmp_path):
    writer = part(
        tmp_path, "bash", "-c", f"head -c {LOG_BYTES + 1} /dev/zero; read < {tmp_path / 'go'}; echo on; sleep 600"
    )
    os.mkfifo(tmp_path / "go")
    writer.start()
    until(lambda: writer.log.stat().st_size > LOG_BYTES, 20)
    writer.bound_log()
    (tmp_path / "go").write_text("\n")
    until(lambda: writer.log.read_bytes() == b"on\n", 10)
    assert writer.log.with_suffix(".log.1").stat().st_size == LOG_BYTES + 1
    writer.kill()


def test_a_second_run_beside_the_first_is_refused(tmp_path):
    refused = pytest.raises(StackError, match=rf"running already.*process {os.getpid()}")
    with alone(tmp_path), refused, alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_too_little_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    with pytest.raises(StackError, match="free disk; make run needs 1 GB"):
        LocalStack(Settings(run_dir=tmp_path), *stop_events()).prepare()


def stop_events() -> tuple[threading.Event, threading.Event]:
    return threading.Event(), threading.Event()


@pytest.mark.parametrize(
    ("start", "given", "variable"),
    [
        (local_parts.kafka, {"kafka_bootstrap_servers": "kafka.example.org:9092"}, "KAFKA_BOOTSTRAP_SERVERS"),
        (local_parts.kafka, {"kafka_security_protocol": "SASL_SSL"}, "KAFKA_BOOTSTRAP_SERVERS"),
        (local_parts.redis, {"redis_host": "redis.example.org"}, "REDIS_HOST"),
        (local_parts.redis, {"redis_tls": True}, "REDIS_TLS"),
    ],
)
def test_a_managed_service_is_not_what_make_run_starts(tmp_path, start, given, variable):
    with pytest.raises(StackError, match=variable):
        start(Settings(run_dir=tmp_path, **given))


def test_children_read_the_same_settings(tmp_path):
    given = Settings(run_dir=tmp_path, redis_port=1234, redis_password="päss wörd", page_hosts=("a", "b"))
    code = (
        "from settings import settings; c = settings(); print(c.redis_port, c.redis_client()['password'], c.page_hosts)"
    )
    env = local_parts.environment(given)
    out = subprocess.run([sys.executable, "-c", code], env=env, cwd=HERE, capture_output=True, text=True, check=True)
    assert out.stdout == "1234 päss wörd ('a', 'b')\n"


def test_the_signing_key_is_made_once_and_for_its_owner_only(tmp_path):
    config = Settings(run_dir=tmp_path, model_signing_key_file=tmp_path / "key")
    local_parts.make_signing_key(config)
    first = config.signing_key()
    local_parts.make_signing_key(config)
    assert config.signing_key() == first
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def restore_point(run_dir: Path, name: str, age: int) -> Path:
    folder = run_dir / name
    folder.mkdir(parents=True)
    (folder / "_metadata").touch()
    os.utime(folder / "_metadata", (age, age))
    return folder


def test_the_job_starts_from_the_newest_savepoint_or_checkpoint(tmp_path):
    old = restore_point(tmp_path, "checkpoints/job1/chk-7", 100)
    new = restore_point(tmp_path, "savepoints/savepoint-1", 200)
    (tmp_path / "checkpoints" / "job1" / "chk-8").mkdir()  # a checkpoint that was never completed
    assert restore_points(tmp_path) == [new, old]


def test_old_restore_points_are_deleted(tmp_path):
    made = [restore_point(tmp_path, f"checkpoints/job{age}/chk-{age}", age) for age in range(9)]
    (tmp_path / "checkpoints" / "job0" / "shared").mkdir()
    prune_restore_points(tmp_path)
    assert restore_points(tmp_path) == made[: -KEPT - 1 : -1]
    assert len(list((tmp_path / "checkpoints").iterdir())) == KEPT


def test_the_reason_of_a_failed_job_is_the_exception_of_its_python_worker():
    trace = (
        "org.apache.flink.runtime.taskmanager.AsynchronousException: Caught exception while processing timer.\n"
        "\tat org.apache.flink.streaming.runtime.tasks.StreamTask.handle(StreamTask.java:1)\n"
        "Caused by: java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):\n"
        '  File "trainer.py", line 68, in open\n'
        "    raise StopJob(str(error)) from error\n"
        "trainer.StopJob: Topic digits was deleted and made again.\n\n"
        "\tat org.apache.beam.Something(Something.java:1)\n"
        "Caused by: java.lang.IllegalStateException: closed\n"
    )
    assert reason(trace) == "StopJob: Topic digits was deleted and made again."


def test_the_reason_of_a_failed_job_without_python_is_the_last_cause():
    trace = "org.apache.flink.Outer: x\n\tat a.b.C\nCaused by: java.net.SocketException: Kafka is away\n"
    assert reason(trace) == "SocketException: Kafka is away"


def test_the_line_shows_samples_a_second_of_the_last_ten_seconds(tmp_path):
    meter = Meter(Settings(run_dir=tmp_path, model_signing_key="k" * 32))
    assert meter.text() == "no sample learned yet"
    meter.meta = Meta(model_id="a", version=42, samples=1300, rejected=2)
    meter.window.extend([(0.0, "older", 90_000), (1.0, "a", 1000), (11.0, "a", 1300)])
    assert "1,300 samples learned" in meter.text()
    assert "model version 42, 30.0 samples/s, 2 rejected" in meter.text()


def test_what_dies_at_once_again_waits_longer(tmp_path):
    unit = Unit([part(tmp_path, "true", answers=lambda: False)])
    stopping, _ = stop_events()
    waits = []
    for _ in range(3):
        unit.mend(stopping)
        waits.append(unit.next_try - unit.tried_at)
    assert "ended before it was up" in unit.problem
    assert waits[0] < waits[1] < waits[2]


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 13, 0)])
def test_an_unsupported_python_is_one_sentence(version):
    code = f"import sys, runpy; sys.version_info = {version}; runpy.run_path('bootstrap.py', run_name='__main__')"
    out = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stderr.startswith("This project runs on Python 3.11 or 3.12")
    assert out.stderr.count("\n") == 1


# As Flink 2.3 gives them, shortened.
UNFIT_TRACES = {
    "another job's": """org.apache.flink.runtime.client.JobInitializationException: Could not start the JobMaster.
Caused by: java.lang.IllegalStateException: Failed to rollback to checkpoint/savepoint file:/keep/a. Cannot map state
\tat org.apache.flink.runtime.checkpoint.Checkpoints.throwNonRestoredStateException(Checkpoints.java:240)
\tat org.apache.flink.runtime.checkpoint.CheckpointCoordinator.restoreSavepoint(CheckpointCoordinator.java:1870)""",
    "a damaged state": """java.lang.Exception: Exception while creating StreamOperatorStateContext.
Caused by: org.apache.flink.util.FlinkException: Could not restore operator state backend for SourceOperator_cbc_(1/1)
Caused by: org.apache.flink.runtime.state.BackendBuildingException: Failed when trying to restore operator state""",
}
OTHER_TRACES = {
    "a slow Kafka": """org.apache.flink.util.FlinkRuntimeException: Failed to get metadata for topics [handwritten_digit].
Caused by: org.apache.flink.kafka.shaded.org.apache.kafka.common.errors.TimeoutException: Timed out waiting for a node""",
    "a slow Kafka in a sink": """org.apache.flink.kafka.shaded.org.apache.kafka.common.errors.TimeoutException: Timeout
\tat org.apache.flink.connector.kafka.sink.ExactlyOnceKafkaWriter.initialize(ExactlyOnceKafkaWriter.java:170)
\tat org.apache.flink.streaming.api.operators.StreamOperatorStateHandler.initializeOperatorState(Handler.java:147)""",
    "no answer of Redis": "redis.exceptions.ConnectionError: Error 111 connecting to 127.0.0.1:6379.",
    "nothing": "",
}


@pytest.mark.parametrize("why", [*UNFIT_TRACES, *OTHER_TRACES])
def test_only_a_restore_point_that_does_not_fit_is_left_aside(tmp_path, monkeypatch, why):
    savepoint = tmp_path / "savepoints" / "savepoint-1"
    savepoint.mkdir(parents=True)
    (savepoint / "_metadata").touch()
    trace = (UNFIT_TRACES | OTHER_TRACES)[why]
    answers = {
        "/jobs/overview": {"jobs": [{"jid": "1", "name": "online_learning", "state": "FAILED", "start-time": 1}]},
        "/jobs/1/exceptions": {"exceptionHistory": {"entries": [{"stacktrace": trace}]}},
    }
    monkeypatch.setattr(local_parts, "rest", lambda settings, path: answers[path])
    job = Job(Settings(run_dir=tmp_path), threading.Event())
    job.untried = savepoint
    job.look()
    assert job.wanted
    assert restore_points(tmp_path) == ([] if why in UNFIT_TRACES else [savepoint])
    assert ("left aside" in job.problem) == (why in UNFIT_TRACES)


def test_after_an_accept_no_older_restore_point_is_left(tmp_path):
    for name in ("savepoints/savepoint-1", "checkpoints/a/chk-3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "_metadata").touch()
    set_restore_points_aside(tmp_path)
    assert restore_points(tmp_path) == []
    set_restore_points_aside(tmp_path / "not there")
    newer = tmp_path / "checkpoints" / "b" / "chk-1"
    newer.mkdir(parents=True)
    (newer / "_metadata").touch()
    assert restore_points(tmp_path) == [newer]
