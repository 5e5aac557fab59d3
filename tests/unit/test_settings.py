"""Errors that a person can act on are one line; all others keep their traceback."""

import subprocess
import sys

import pytest
import redis
from click.testing import CliRunner
from confluent_kafka import KafkaError as ConfluentError
from confluent_kafka import KafkaException
from kafka.errors import KafkaConnectionError

import admin
import settings as module
from forecast.series import InputError
from forecast.store import StoreError as ForecastStoreError
from local.process import StackError
from loop.clients import ClientError
from loop.model_store import LeaseError, StoreError
from loop.topic_log import TopicLogError
from settings import HERE, Settings, SettingsError, one_line

OURS = [
    SettingsError,
    StoreError,
    LeaseError,
    TopicLogError,
    ClientError,
    StackError,
    InputError,
    ForecastStoreError,
]
REDIS, KAFKA = "Redis at there:7 ", "Kafka at there:8 can't be used: "


def ended(error: Exception, program: str = "Error") -> str:
    """Return the line that a program ends with where ``error`` is raised."""
    with pytest.raises(SystemExit) as exited, one_line(program):
        raise error
    return exited.value.code


@pytest.mark.parametrize("kind", OURS)
def test_each_error_of_ours_is_one_line(kind):
    assert ended(kind("First this.\nThen that."), "make run") == "make run: First this. Then that."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (redis.ConnectionError("refused."), REDIS + "can't be used: refused."),
        (
            redis.AuthenticationError("WRONGPASS"),
            REDIS + "refuses the password (WRONGPASS): set REDIS_PASSWORD.",
        ),
        (KafkaConnectionError("it is away"), KAFKA + "KafkaConnectionError: it is away."),
        (
            KafkaException(ConfluentError(ConfluentError._TRANSPORT, "it is away")),
            KAFKA + "it is away.",
        ),
    ],
)
def test_a_clients_error_is_one_line_with_the_address(monkeypatch, error, line):
    given = Settings(redis_host="there", redis_port=7, kafka_bootstrap_servers="there:8")
    monkeypatch.setattr(module, "settings", lambda: given)
    assert ended(error) == f"Error: {line}"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), OSError("a disk")])
def test_any_other_error_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, one_line():
        raise error
    assert raised.value is error


def test_a_broken_message_format_is_one_line_for_admin(tmp_path, monkeypatch):
    monkeypatch.setenv("MESSAGE_FORMAT", "nowhere:FORM")
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    command = [sys.executable, "admin.py", "rejects", "save", str(tmp_path / "rejects")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: MESSAGE_FORMAT 'nowhere:FORM'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["show", "accept", "sign", "resign"])
def test_a_command_under_its_old_name_says_the_new_one(monkeypatch, tmp_path, name):
    called = []
    monkeypatch.setattr(
        admin.model.commands[name], "callback", lambda **arguments: called.append(arguments)
    )
    file = tmp_path / "file"
    file.touch()
    given = {
        "show": {},
        "accept": {"yes": True},
        "sign": {"file": file},
        "resign": {"old_key": file},
    }[name]
    words = ["--yes" if value is True else str(value) for value in given.values()]
    done = CliRunner().invoke(admin.main, [name, *words])
    assert (done.exit_code, called) == (0, [given])
    assert done.stderr == f"This command has moved: python admin.py model {name}\n"
