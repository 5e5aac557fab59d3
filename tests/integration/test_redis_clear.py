import os
import subprocess
import sys

import pytest
import redis as redis_py
from click.testing import CliRunner

import redis_clear
from harness.stack import Stack, make_stack
from loop.lease import Lease, new_submission
from loop.model_store import Meta, ModelStore
from settings import HERE


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A Redis of this module's own, as the command also clears whole databases."""
    with make_stack(tmp_path_factory.mktemp("redis")) as stack:
        yield stack.start("redis")


@pytest.fixture
def client(own):
    client = redis_py.Redis(**own.settings.redis_client())
    client.flushdb()
    return client


def clear(stack: Stack, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "redis_clear.py", *arguments],
        cwd=HERE,
        env=stack.env | env,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )


def commit(stack: Stack) -> ModelStore:
    store = ModelStore(stack.settings)
    store.commit(
        None,
        Meta(model_id="20260101T000000.000000Z-aaaa", version=1, progress={0: 5}),
        b"model",
        b"state",
    )
    return store


def test_it_says_of_each_key_whether_it_was_there(own, client):
    client.set("one", 1)
    done = clear(own, "one", "two")
    assert (done.returncode, done.stdout) == (0, "one: deleted\ntwo: did not exist\n")
    assert not client.exists("one")


def test_clearing_the_model_key_clears_what_belongs_to_it_and_leaves_the_mark(own, client):
    store = commit(own)
    done = clear(own, "online_ml_model")
    assert (done.returncode, done.stdout) == (0, "online_ml_model: deleted\n")
    assert client.keys() == [b"{online_ml_model}:meta"]
    assert store.read().cleared
    assert clear(own, "online_ml_model").stdout == "online_ml_model: did not exist\n"


def test_the_whole_database_is_cleared_only_with_yes_where_nobody_can_be_asked(own, client):
    commit(own)
    client.set("one", 1)
    done = clear(own)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Nothing was deleted; --yes deletes everything in database 0 of Redis at "
    )
    assert client.exists("one", "online_ml_model") == 2
    done = clear(own, "--yes")
    assert (done.returncode, done.stdout) == (0, "one: deleted\nonline_ml_model: deleted\n")
    assert client.keys() == [b"{online_ml_model}:meta"]


def test_a_person_at_a_terminal_is_asked_first(own, client, monkeypatch):
    client.set("one", 1)
    monkeypatch.setattr(redis_clear, "settings", lambda: own.settings)
    monkeypatch.setattr(redis_clear, "asks", lambda: True)
    answer = CliRunner().invoke(redis_clear.main, [], input="n\n")
    assert answer.exit_code == 1
    assert client.exists("one")
    answer = CliRunner().invoke(redis_clear.main, [], input="y\n")
    assert answer.exit_code == 0
    assert not client.exists("one")


# Spring Data Redis writes the first, msgpack and hand-made prefixes write the others.
BINARY = [
    b"\xac\xed\x00\x05t\x00\x04user",
    b"\xff",
    b"\xc3",
    b"a\x00b",
    b"line\nline",
    "schlüssel".encode(),
    b"",
]


def test_keys_of_any_bytes_are_cleared_with_everything(own, client):
    for key in BINARY:
        client.set(key, 1)
    done = clear(own, "--yes")
    assert done.returncode == 0, done.stderr
    assert client.keys() == [b"{online_ml_model}:meta"]
    assert "did not exist" not in done.stdout.replace("online_ml_model: did not exist", "")
    assert "\\xac\\xed\\x00\\x05t\\x00\\x04user: deleted\n" in done.stdout
    assert "schlüssel: deleted\n" in done.stdout


def test_a_key_named_on_the_command_line_may_be_any_bytes(own, client):
    names = [key for key in BINARY if key and b"\0" not in key]
    for key in names:
        client.set(key, 1)
    done = subprocess.run(
        [sys.executable, "redis_clear.py", *names],
        cwd=HERE,
        env=own.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert client.keys() == []
    assert b"did not exist" not in done.stdout


def test_a_key_named_twice_is_deleted_once(own, client):
    client.set("one", 1)
    assert clear(own, "one", "one").stdout == "one: deleted\n"


def test_a_terminal_without_a_letter_of_the_name_is_no_error(own, client):
    client.set("schlüssel", 1)
    done = clear(own, "--yes", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert not client.exists("schlüssel")


OTHER_TYPES = {
    "string": lambda client, key: client.set(key, "x"),
    "hash": lambda client, key: client.hset(key, "field", "x"),
    "list": lambda client, key: client.rpush(key, "x"),
    "set": lambda client, key: client.sadd(key, "x"),
    "sorted set": lambda client, key: client.zadd(key, {"x": 1}),
    "stream": lambda client, key: client.xadd(key, {"field": "x"}),
}


@pytest.mark.parametrize("part", [0, 1, 2, 3])
def test_model_keys_of_any_type_are_cleared_and_leave_the_mark(own, client, part):
    store = ModelStore(own.settings)
    for kind, write in OTHER_TYPES.items():
        client.flushdb()
        commit(own)
        client.delete(store.keys[part])
        write(client, store.keys[part])
        redis_clear.clear(store, b"online_ml_model")
        assert store.read(with_state=True).cleared, kind
        lease = {store.keys.lease.encode()} if (part, kind) == (3, "string") else set()
        assert set(client.keys()) == {store.keys.meta.encode()} | lease, kind


@pytest.mark.parametrize("arguments", [["online_ml_model"], ["--yes"]])
def test_a_meta_of_another_type_is_no_error_of_the_command(own, client, arguments):
    client.rpush("{online_ml_model}:meta", "x")
    client.rpush("{online_ml_model}:lease", "x")
    done = clear(own, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert ModelStore(own.settings).read().cleared


def test_clearing_everything_leaves_the_lease_of_a_running_job(own, client):
    store = commit(own)
    lease = Lease(store, new_submission(store))
    lease.take()
    assert clear(own, "--yes").returncode == 0
    assert client.get(store.keys.lease) == lease.submission.encode()


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"REDIS_PASSWORD": "wrong"}, "refuses the password"),
        ({"REDIS_PORT": "1"}, "can't be used"),
        ({"REDIS_PORT": "x"}, "REDIS_PORT"),
        ({"MODEL_SIGNING_KEY_FILE": os.devnull}, "The signing key in"),
    ],
)
def test_what_can_not_be_done_is_one_sentence_and_exit_1(own, client, env, sentence):
    done = clear(own, "online_ml_model", **env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "wrong" not in done.stderr
