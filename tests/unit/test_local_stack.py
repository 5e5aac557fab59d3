"""What make run does with processes, ports, logs and restore points, without Kafka, Redis or Flink."""

import fcntl
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

from harness.stack import free_port, until
from local import brokers, fetch, flink_cluster
from local.bootstrap import included
from local.environment import child_environment, make_signing_key
from local.job import KEPT, Job, prune_restore_points, reason, restore_points, skip_restore_points
from local.process import LOG_BYTES, Process, StackError, end_orphans, port_is_free, start_of
from local.stack import MADE, LocalStack, RestartGroup, alone
from local.status import Meter
from loop.model_store import Meta
from loop.scores import Scores
from settings import HERE, Settings, SettingsError
from settings import settings as this_process_settings

FAMILY = [
    "bash",
    "-c",
    "sleep 600 & echo $! > {child}; wait",
]  # a process and a child that would outlive it


def part(run_dir: Path, *argv: str, **given) -> Process:
    return Process(
        "Sleeper", list(argv), dict(os.environ), run_dir, **{"check": lambda: True, **given}
    )


def family(run_dir: Path) -> tuple[Process, psutil.Process]:
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
    assert sleeper.popen is None


def test_a_port_is_taken_also_by_a_server_on_every_address():
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not port_is_free(server.getsockname()[1])
    assert port_is_free(free_port())


def test_a_part_that_ends_before_it_is_up_is_named_with_its_log(tmp_path):
    broken = part(tmp_path, "bash", "-c", "echo no such thing; exit 3", check=lambda: False)
    broken.start()
    with pytest.raises(StackError, match=r"Sleeper ended during its start.*sleeper\.log"):
        broken.wait_until_it_answers()
    assert broken.log.read_text() == "no such thing\n"


def test_a_part_that_never_answers_is_named_with_its_log(tmp_path):
    mute = part(tmp_path, "sleep", "600", check=lambda: False, patience=0.3)
    mute.start()
    with pytest.raises(StackError, match=r"Sleeper did not answer.*sleeper\.log"):
        mute.wait_until_it_answers()
    mute.kill()


def test_stopping_a_part_ends_its_children_too(tmp_path):
    parent, child = family(tmp_path)
    parent.stop()
    until(lambda: gone(child), 30)
    assert not list((tmp_path / "pids").iterdir())


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    stubborn = part(
        tmp_path, "bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", grace=0.5
    )
    stubborn.start()
    until(lambda: stubborn.log.read_text(), 30)
    stubborn.stop()
    assert not stubborn.alive


def test_starting_again_ends_the_children_of_a_part_that_was_killed(tmp_path):
    parent, child = family(tmp_path)
    parent.send(signal.SIGKILL)
    parent.wait()
    assert not gone(child)
    parent.start()
    until(lambda: gone(child), 30)
    parent.kill()


@pytest.mark.parametrize("leader_lives", [True, False])
def test_what_a_killed_run_left_running_is_ended(tmp_path, leader_lives):
    parent, child = family(tmp_path)
    if not leader_lives:
        parent.send(signal.SIGKILL)
        parent.wait()
    assert end_orphans(tmp_path) == ["sleeper"]
    until(lambda: gone(child), 30)
    assert end_orphans(tmp_path) == []


def test_a_stranger_with_the_pid_of_a_part_that_ended_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        (tmp_path / "pids").mkdir()
        (tmp_path / "pids" / "kafka").write_text(f"{stranger.pid} {time.time() - 1000}")
        assert end_orphans(tmp_path) == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_log_that_grew_too_long_is_put_aside_and_goes_on(tmp_path):
    writer = part(
        tmp_path,
        "bash",
        "-c",
        f"head -c {LOG_BYTES + 1} /dev/zero; read < {tmp_path / 'go'}; echo on; sleep 600",
    )
    os.mkfifo(tmp_path / "go")
    writer.start()
    until(lambda: writer.log.stat().st_size > LOG_BYTES, 20)
    writer.bound_log()
    (tmp_path / "go").write_text("\n")
    until(lambda: writer.log.read_bytes() == b"on\n", 30)
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


def test_a_disk_that_runs_no_programs_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _: SimpleNamespace(
            f_flag=os.ST_NOEXEC, f_bavail=1e9, f_blocks=1e9, f_bfree=1e9, f_frsize=1
        ),
    )
    with pytest.raises(StackError, match="is on a disk mounted noexec"):
        LocalStack(Settings(run_dir=tmp_path), *stop_events()).prepare()


def stop_events() -> tuple[threading.Event, threading.Event]:
    return threading.Event(), threading.Event()


@pytest.mark.parametrize(
    ("start", "given", "variable"),
    [
        (
            brokers.kafka,
            {"kafka_bootstrap_servers": "kafka.example.org:9092"},
            "KAFKA_BOOTSTRAP_SERVERS",
        ),
        (brokers.kafka, {"kafka_security_protocol": "SASL_SSL"}, "KAFKA_BOOTSTRAP_SERVERS"),
        (brokers.redis, {"redis_host": "redis.example.org"}, "REDIS_HOST"),
        (brokers.redis, {"redis_tls": True}, "REDIS_TLS"),
    ],
)
def test_a_managed_service_is_not_what_make_run_starts(tmp_path, start, given, variable):
    with pytest.raises(StackError, match=variable):
        start(Settings(run_dir=tmp_path, **given))


def test_children_read_the_same_settings(tmp_path):
    given = Settings(
        run_dir=tmp_path, redis_port=1234, redis_password="päss wörd", page_hosts=("a", "b")
    )
    code = "from settings import settings; c = settings(); print(c.redis_port, c.redis_client()['password'], c.page_hosts)"
    env = child_environment(given)
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=HERE, capture_output=True, text=True, check=True
    )
    assert out.stdout == "1234 päss wörd ('a', 'b')\n"


def test_the_signing_key_is_made_once_and_for_its_owner_only(tmp_path):
    config = Settings(run_dir=tmp_path, model_signing_key_file=tmp_path / "key")
    make_signing_key(config)
    first = config.signing_key()
    make_signing_key(config)
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
        "trainer.StopJob: Topic digits was deleted and recreated.\n\n"
        "\tat org.apache.beam.Something(Something.java:1)\n"
        "Caused by: java.lang.IllegalStateException: closed\n"
    )
    assert reason(trace) == "StopJob: Topic digits was deleted and recreated."


def test_the_reason_of_a_failed_job_without_python_is_the_last_cause():
    trace = "org.apache.flink.Outer: x\n\tat a.b.C\nCaused by: java.net.SocketException: Kafka is away\n"
    assert reason(trace) == "SocketException: Kafka is away"


def test_the_line_shows_samples_a_second_of_the_last_ten_seconds(tmp_path):
    meter = Meter(Settings(run_dir=tmp_path, model_signing_key="k" * 32))
    assert meter.text() == "no sample learned yet"
    scores = Scores(predicted=10, right=9, recent="1", new_predicted=4, new_right=3)
    meter.meta = Meta(model_id="a", version=42, samples=1300, rejected=2, scores=scores)
    for reading in [(0.0, "older", 90_000), (1.0, "a", 1000), (11.0, "a", 1300)]:
        meter.rate.add(*reading)
    assert "1,300 samples learned" in meter.text()
    assert "accuracy 0.900 (last 100: 1.00, new samples: 0.750)" in meter.text()
    assert "model version 42, 30.0 samples/s, 2 rejected" in meter.text()


def test_what_dies_at_once_again_waits_longer(tmp_path):
    group = RestartGroup([part(tmp_path, "true", check=lambda: False)])
    stopping, _ = stop_events()
    waits = []
    for _ in range(3):
        group.restart(stopping)
        waits.append(group.next_try - group.tried_at)
    assert "ended during its start" in group.problem
    assert waits[0] < waits[1] < waits[2]


def test_a_missing_jar_is_noticed_although_the_locks_have_not_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "JARS", tmp_path)
    jars = list(fetch.locked_jars())
    for jar in jars:
        jar.parent.mkdir(exist_ok=True)
        jar.touch()
    (tmp_path / "locks.sha256").write_text(fetch.sha256_of_locks())
    assert fetch.have_jars()
    jars[0].unlink()
    assert not fetch.have_jars()


def test_the_stamp_of_an_environment_covers_the_files_that_are_included():
    names = {path.relative_to(HERE).as_posix() for path in included(["requirements/dev.txt"])}
    assert names == {"requirements/dev.txt", "requirements.txt", "forecast/requirements.txt"}


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 13, 0)])
def test_an_unsupported_python_is_one_sentence(version):
    code = f"import sys, runpy; sys.version_info = {version}; runpy.run_path('local/bootstrap.py', run_name='__main__')"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False
    )
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
def test_only_a_restore_point_that_does_not_fit_is_skipped(tmp_path, monkeypatch, why):
    savepoint = tmp_path / "savepoints" / "savepoint-1"
    savepoint.mkdir(parents=True)
    (savepoint / "_metadata").touch()
    trace = (UNFIT_TRACES | OTHER_TRACES)[why]
    answers = {
        "/jobs/overview": {
            "jobs": [{"jid": "1", "name": "online_learning", "state": "FAILED", "start-time": 1}]
        },
        "/jobs/1/exceptions": {"exceptionHistory": {"entries": [{"stacktrace": trace}]}},
    }
    monkeypatch.setattr(flink_cluster, "rest", lambda settings, path: answers[path])
    job = Job(Settings(run_dir=tmp_path), threading.Event())
    job.restore_point = savepoint
    job.refresh()
    assert job.needs_submit
    assert restore_points(tmp_path) == ([] if why in UNFIT_TRACES else [savepoint])
    assert ("is skipped" in job.problem) == (why in UNFIT_TRACES)


def test_after_an_accept_no_older_restore_point_is_left(tmp_path):
    for name in ("savepoints/savepoint-1", "checkpoints/a/chk-3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "_metadata").touch()
    skip_restore_points(tmp_path)
    assert restore_points(tmp_path) == []
    skip_restore_points(tmp_path / "not there")
    newer = tmp_path / "checkpoints" / "b" / "chk-1"
    newer.mkdir(parents=True)
    (newer / "_metadata").touch()
    assert restore_points(tmp_path) == [newer]


# --- pid files -------------------------------------------------------------------------------------------------


def write_pid_file(run_dir: Path, text: str) -> Path:
    pid_file = run_dir / "pids" / "kafka"
    pid_file.parent.mkdir(exist_ok=True)
    pid_file.write_text(text)
    return pid_file


def test_a_stranger_with_a_parts_pid_after_a_reboot_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        ticks = start_of(stranger.pid).rpartition("/")[2]
        write_pid_file(tmp_path, f"{stranger.pid} 00000000-an-earlier-boot/{ticks}")
        assert end_orphans(tmp_path) == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_strangers_session_without_its_leader_is_left_alone(tmp_path):
    stranger, child = family(tmp_path)
    stranger.send(signal.SIGKILL)
    stranger.wait()
    other_run = tmp_path / "other"
    other_run.mkdir()
    boot = start_of(os.getpid()).rpartition("/")[0]
    write_pid_file(other_run, f"{stranger.popen.pid} {boot}/1")
    assert end_orphans(other_run) == []
    assert not gone(child)
    stranger.kill()


@pytest.mark.parametrize("text", ["", "12", "12 ", "kafka 1 2", "0 x", "\udcff\udcfe"])
def test_half_a_pid_file_is_deleted_and_ends_nothing(tmp_path, text):
    pid_file = write_pid_file(tmp_path, "")
    pid_file.write_bytes(text.encode(errors="surrogateescape"))
    assert end_orphans(tmp_path) == []
    assert not pid_file.exists()


def test_a_clock_that_is_set_loses_no_process(tmp_path, monkeypatch):
    _, child = family(tmp_path)
    shown = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: shown(self) + 3600)
    assert end_orphans(tmp_path) == ["sleeper"]
    until(lambda: gone(child), 30)


# --- a full disk, a closed terminal, an answer cut short -------------------------------------------------------


def test_a_log_that_cannot_be_copied_is_emptied(tmp_path):
    full = part(tmp_path, "true")
    full.log.parent.mkdir()
    full.log.write_bytes(bytes(LOG_BYTES + 1))
    full.log.with_suffix(".log.1").symlink_to("/dev/full")
    full.bound_log()
    assert full.log.stat().st_size == 0
    assert not full.log.with_suffix(".log.1").exists()


SAY = (
    "import sys, threading; from local.status import Line; stopping = threading.Event(); line = Line(stopping);"
    "sys.stdin.read(); line.say('one'); line.say('two'); line.show('three', []);"
    "sys.stderr.write(str(stopping.is_set()))"
)


@pytest.mark.parametrize("open_pair", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_where_nobody_reads_any_more_make_run_asks_to_stop(open_pair):
    reading, writing = open_pair()
    process = subprocess.Popen(
        [sys.executable, "-c", SAY],
        cwd=HERE,
        text=True,
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    os.close(reading)
    _, said = process.communicate("")
    assert said == "True"
    assert process.returncode == 0


def test_output_to_a_full_disk_stops_nothing():
    with open("/dev/full", "w") as full:
        out = subprocess.run(
            [sys.executable, "-c", SAY],
            cwd=HERE,
            text=True,
            input="",
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert out.stderr.startswith("False")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n{",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"",
    ],
)
def test_an_answer_that_a_dying_jobmanager_cuts_short_is_an_oserror(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(answer)
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(OSError):  # noqa: PT011 - any of them
            flink_cluster.rest(Settings(flink_port=server.getsockname()[1]), "/jobs")


# --- settings and the environment of children ------------------------------------------------------------------


@pytest.mark.parametrize(
    "servers",
    [
        "127.0.0.1:99999",
        "127.0.0.1:0",
        "127.0.0.1",
        "127.0.0.1:",
        ":9092",
        "a:1,",
        "a b:1",
        "http://a:1",
        "a:1:2",
    ],
)
def test_a_broken_kafka_address_is_one_sentence(servers, monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    this_process_settings.cache_clear()
    with pytest.raises(SettingsError, match=r"^KAFKA_BOOTSTRAP_SERVERS: '.*' is not host:port"):
        this_process_settings()


def test_several_kafka_addresses_may_have_blanks_between_them():
    given = Settings(kafka_bootstrap_servers="a.example:1, [::1]:65535")
    assert given.kafka_bootstrap_servers == "a.example:1,[::1]:65535"


PROGRAMS = [
    ["-m", "local.stack", "run"],
    ["data_producer.py"],
    ["server.py"],
    ["redis_clear.py", "--yes"],
    ["admin.py", "model", "show"],
    ["online_learning.py"],
]


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_every_program_says_a_broken_kafka_address_in_a_sentence(tmp_path, program):
    env = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:99999", "RUN_DIR": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", *program],
        cwd=HERE,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode != 0
    assert "KAFKA_BOOTSTRAP_SERVERS: '127.0.0.1:99999' is not host:port" in out.stderr
    assert len(out.stderr.splitlines()) == 1


def test_run_dir_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(run_dir="here").run_dir == tmp_path / "here"
    assert Settings(run_dir="~/there").run_dir == tmp_path / "there"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("example.org,localhost", "example.org,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_children_ask_this_machine_without_a_proxy(given, expected, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", given)
    env = child_environment(Settings())
    assert (env["no_proxy"], env["NO_PROXY"]) == (expected, expected)


def test_a_path_is_written_into_kafkas_properties_in_ascii():
    written = brokers.java_property("/run é😀\\ü")
    assert written == "/run\\u0020\\u00e9\\ud83d\\ude00\\u005c\\u00fc"


# --- folders ---------------------------------------------------------------------------------------------------


UNUSABLE_NAMES = ["a:b", "a,b", "a;b", "a${b}", "a\\b", "a\nb", "a\udcff", "x/" * 1600]


def start_make_run(run_dir: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(HERE / "local/bootstrap.py"), *(argv or ("-m", "local.stack", "run"))],
        cwd="/",
        env=os.environ | {"RUN_DIR": run_dir},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "name",
    [
        *UNUSABLE_NAMES,
        "x" * 256,
        "file",
        "file/x",
    ],
)
def test_a_run_dir_that_cannot_be_used_is_one_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    out = start_make_run(f"{tmp_path}/{name}")
    assert out.returncode == 1
    assert len(out.stderr.splitlines()) == 1
    assert out.stderr.startswith(("RUN_DIR: '", "make run: "))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("name", UNUSABLE_NAMES)
def test_set_up_and_settings_refuse_a_run_dir_in_the_same_words(tmp_path, monkeypatch, name):
    run_dir = str(tmp_path / name)
    monkeypatch.setenv("RUN_DIR", run_dir)
    this_process_settings.cache_clear()
    with pytest.raises(SettingsError) as refused:
        this_process_settings()
    assert start_make_run(run_dir).stderr == f"{refused.value}\n"


def test_a_folder_with_a_persons_files_does_not_become_run_dir(tmp_path):
    (tmp_path / "log").mkdir()
    refused = pytest.raises(StackError, match="holds a log that make run did not create")
    with refused, alone(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]


def used_run_dir(run_dir: Path) -> None:
    """Make a folder as a run leaves it, with a person's file in it."""
    with alone(run_dir):
        for name in MADE:
            (run_dir / name).mkdir(parents=True) if "." not in name else (run_dir / name).touch()
    (run_dir / "mine.txt").touch()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_make_clean_deletes_what_make_run_made_in_run_dir_only(tmp_path, monkeypatch):
    run_dir, key = tmp_path / "run", tmp_path / "signing.key"
    used_run_dir(run_dir)
    key.write_text("k" * 32)
    (tmp_path / "elsewhere").mkdir()
    (run_dir / "kafka").rmdir()
    (run_dir / "kafka").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("MODEL_SIGNING_KEY_FILE", str(key))
    before = names_in(HERE / ".local")
    assert start_make_run(str(run_dir), "--clean").returncode == 0
    assert names_in(run_dir) == {"mine.txt"}
    assert names_in(tmp_path) == {"run", "signing.key", "elsewhere"}
    assert before <= names_in(HERE / ".local")


def test_make_clean_leaves_a_run_dir_alone_that_make_run_never_used(tmp_path):
    (tmp_path / "log").mkdir()
    assert start_make_run(str(tmp_path), "--clean").returncode == 0
    assert names_in(tmp_path) == {"log"}


def test_make_clean_refuses_while_make_run_is_running(tmp_path):
    used_run_dir(tmp_path)
    with alone(tmp_path):
        out = start_make_run(str(tmp_path), "--clean")
    assert out.returncode == 1
    assert "running already" in out.stderr
    assert names_in(tmp_path) >= set(MADE)


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of this project in a folder with a blank, with this project's environment."""
    copy = tmp_path / "my pröject"
    (copy / ".local").mkdir(parents=True)
    for file in [*HERE.glob("*.py"), HERE / "requirements.txt"]:
        shutil.copy(file, copy)
    for package in ("learners", "local", "loop"):
        shutil.copytree(HERE / package, copy / package)
    (copy / ".local" / "venv").symlink_to(HERE / ".local" / "venv")
    return copy


def clean(project: Path) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "RUN_DIR"}
    return subprocess.run(
        [sys.executable, str(project / "local/bootstrap.py"), "--clean"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_clean_without_run_dir_deletes_the_environment_too(project):
    local = project / ".local"
    (local / "run.lock").touch()
    (local / "mine.txt").touch()
    for name in ("kafka", "java", "log"):
        (local / name).mkdir()
    assert clean(project).returncode == 0
    assert names_in(local) == {"mine.txt"}
    assert (HERE / ".local" / "venv" / "bin" / "python").exists()


def test_make_clean_keeps_the_environment_that_another_stack_uses(project):
    with (project / ".local" / "use.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        out = clean(project)
    assert out.returncode == 1
    assert out.stderr.startswith("make clean: a make run uses ")
    assert (project / ".local" / "venv").exists()


def test_ctrl_c_ends_the_download_of_the_jars(project, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        proxy = f"http://127.0.0.1:{mute.getsockname()[1]}"
        ports = {
            name: str(free_port())
            for name in ("REDIS_PORT", "FLINK_PORT", "FLINK_RPC_PORT", "PAGE_PORT")
        }
        ports |= {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "KAFKA_CONTROLLER_PORT": str(free_port()),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "local.stack", "run"],
            cwd=project,
            env=os.environ
            | ports
            | {"RUN_DIR": str(tmp_path / "run"), "HTTPS_PROXY": proxy, "https_proxy": proxy},
            start_new_session=True,
        )
        mute.settimeout(60)
        with mute.accept()[0]:  # the download has begun, and no answer comes
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(10) == 0
