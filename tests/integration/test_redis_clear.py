import os
import subprocess
import sys

import pytest
import redis as redis_py
from click.testing import CliRunner

import redis_clear
from model_store import Meta, ModelStore
from settings import HERE
from tests.stack import Stack, make_stack


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
    return subprocess.run([sys.executable, "redis_clear.py", *arguments], cwd=HERE, env=stack.env | env, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)  # fmt: skip


def commit(stack: Stack) -> ModelStore:
    store = ModelStore(stack.settings)
    store.commit(None, Meta(model_id="20260101T000000.000000Z-aaaa", version=1, progress={0: 5}), b"model", b"state")
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
    assert done.stderr.startswith("Nothing was deleted; --yes deletes everything in database 0 of Redis at ")
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


@pytest.mark.parametrize(
    ("env", "sentence"),
    [({"REDIS_PASSWORD": "wrong"}, "refuses the password"), ({"REDIS_PORT": "1"}, "can't be used"),
     ({"REDIS_PORT": "x"}, "REDIS_PORT"), ({"MODEL_SIGNING_KEY_FILE": os.devnull}, "The signing key in")],
)  # fmt: skip
def test_what_can_not_be_done_is_one_sentence_and_exit_1(own, client, env, sentence):
    done = clear(own, "online_ml_model", **env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "wrong" not in done.stderr
