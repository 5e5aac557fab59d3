"""Kafka, Redis and the set-up as make run starts them."""

import os
import shutil
import socket
import stat
import subprocess
import sys

import psutil
import pytest
import redis
from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import MessageSizeTooLargeError

from harness.stack import make_stack, until
from local.fetch import fetch_jar
from local.flink_cluster import write_flink_launcher
from local.process import StackError
from loop.messages import MAX_RECORD_BYTES
from settings import HERE

PASSWORD = 'a "quoted" \\ pässword $HOME #1'


def test_redis_keeps_its_password_in_a_file_of_its_owners_and_what_it_confirmed_over_a_sigkill(
    tmp_path,
):
    with make_stack(tmp_path, redis_password=PASSWORD) as stack:
        stack.start("redis")
        process = psutil.Process(stack.parts["redis"].popen.pid)
        assert not any("quoted" in word for word in process.cmdline())
        assert stat.S_IMODE((tmp_path / "redis" / "redis.conf").stat().st_mode) == 0o600
        client = redis.Redis(**stack.settings.redis_client())
        client.set("learned", b"\x00\xff")
        stack.kill("redis")
        stack.start("redis")
        assert client.get("learned") == b"\x00\xff"
        client.connection_pool.disconnect()
        wrong = redis.Redis(**(stack.settings.redis_client() | {"password": "wrong"}))
        with pytest.raises(redis.AuthenticationError):
            wrong.ping()


def test_kafka_takes_a_message_of_1_mb_and_refuses_a_larger_one(kafka):
    names = kafka.named()
    producer = KafkaProducer(**names.settings.kafka_client(), max_request_size=10_000_000)
    producer.send(names.settings.input_topic, b"0" * 1_048_000).get(30)
    with pytest.raises(MessageSizeTooLargeError):
        producer.send(names.settings.input_topic, b"0" * (MAX_RECORD_BYTES + 1)).get(30)
    producer.close()


def test_kafka_bounds_what_it_keeps(kafka):
    names = kafka.named()
    admin = KafkaAdminClient(**names.settings.kafka_client())
    topic = ConfigResource(ConfigResourceType.TOPIC, names.settings.input_topic)
    found = admin.describe_configs([topic], config_filter="all")["topic"][
        names.settings.input_topic
    ]
    admin.close()
    assert found["retention.bytes"]["value"] == str(1 << 30)
    assert found["segment.bytes"]["value"] == str(64 << 20)


def test_flink_answers_on_127_0_0_1_only_and_takes_no_jar_from_a_page(flink):
    manager = psutil.Process(flink.parts["jobmanager"].popen.pid)
    listening = {c.laddr.ip for c in manager.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert flink.rest("/config")["features"]["web-submit"] is False


def test_the_flink_command_needs_no_java_and_no_environment_on_path(flink):
    address = f"127.0.0.1:{flink.settings.flink_port}"
    env = {"PATH": "/usr/bin:/bin", "RUN_DIR": str(flink.settings.run_dir)}
    argv = [str(write_flink_launcher()), "list", "-m", address]
    out = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "No running jobs" in out.stdout or "Running/Restarting Jobs" in out.stdout
    assert not list((flink.settings.run_dir / "tmp").glob("flink.*"))


def test_a_flink_command_that_is_ended_leaves_nothing_behind(flink, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the client waits for its answer
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        environment = os.environ | {"RUN_DIR": str(flink.settings.run_dir)}
        argv = [str(write_flink_launcher()), "list", "-m", address]
        client = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
        mute.settimeout(60)
        with mute.accept()[0]:
            [java] = psutil.Process(client.pid).children()
            client.terminate()
            assert client.wait(20) == 143
    assert not java.is_running()
    assert not list((flink.settings.run_dir / "tmp").glob("flink.*"))


def test_a_jar_that_is_not_the_locked_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("local.fetch.JARS", tmp_path)
    entry = {
        "groupId": "org.jspecify",
        "artifactId": "jspecify",
        "version": "1.0.0",
        "sha256": "0" * 64,
    }
    with pytest.raises(StackError, match=r"jspecify-1\.0\.0\.jar.*SHA-256 differs"):
        fetch_jar(tmp_path / "kafka" / "jspecify-1.0.0.jar", entry)
    assert not list((tmp_path / "kafka").glob("*.jar"))


def test_a_first_run_without_a_network_is_one_sentence(tmp_path):
    (tmp_path / "local").mkdir()
    shutil.copy(HERE / "local" / "bootstrap.py", tmp_path / "local")
    for name in ("paths.py", "requirements.txt"):
        shutil.copy(HERE / name, tmp_path)
    shutil.copytree(HERE / "requirements", tmp_path / "requirements")
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    out = subprocess.run(
        [sys.executable, str(tmp_path / "local" / "bootstrap.py"), "-m", "local.stack", "run"],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 1
    assert out.stderr.startswith("The step 'uv' failed; the first run needs a network")
    assert out.stderr.count("\n") == 1
    assert (tmp_path / ".local" / "log" / "setup.log").exists()


def test_the_lock_files_are_those_of_their_jgo_toml():
    from jgo.env import LockFile, compute_spec_hash

    for spec in sorted(HERE.glob("local/java/*/jgo.toml")):
        locked = LockFile.load(spec.with_name("jgo.lock.toml"))
        assert locked.spec_hash == compute_spec_hash(spec)
        assert all(entry.sha256 for entry in locked.dependencies)


def test_a_test_session_that_is_killed_leaves_nothing_running(tmp_path):
    code = (
        "import os, pathlib, sys; from harness.stack import Stack; Stack(pathlib.Path(sys.argv[1])).start('redis');"
        "print((pathlib.Path(sys.argv[1]) / 'pids' / 'redis').read_text().split()[0], flush=True); os.kill(os.getpid(), 9)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    server = int(out.stdout)
    until(
        lambda: (
            not psutil.pid_exists(server) or psutil.Process(server).status() == psutil.STATUS_ZOMBIE
        ),
        20,
    )
