"""What the holder of Redis's password may do, and which password that is."""

import os
import subprocess
import sys

import pytest
import redis as client

from harness.page import a_model, commit
from harness.stack import make_stack
from loop.model_store import ModelStore
from settings import HERE, Settings

REFUSED = [
    "CONFIG SET dir /tmp",
    "CONFIG GET *",
    "CONFIG REWRITE",
    "CONFIG RESETSTAT",
    "MODULE LOAD /tmp/x.so",
    "MODULE LIST",
    "DEBUG SLEEP 0",
    "DEBUG SEGFAULT",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "LASTSAVE",
    "REPLICAOF 127.0.0.1 1",
    "SLAVEOF 127.0.0.1 1",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "ACL SETUSER default +@all",
    "ACL SAVE",
    "MIGRATE 127.0.0.1 1 k 0 1",
    "RESTORE k 0 x",
    "FAILOVER",
    "SYNC",
    "PSYNC ? -1",
    "MONITOR",
    "CLIENT KILL ID 1",
    "CLIENT PAUSE 1",
    "CLIENT LIST",
    "CLUSTER RESET",
    "SLOWLOG GET",
    "LATENCY RESET",
    "SWAPDB 0 1",
    "SCRIPT DEBUG SYNC",
    "SCRIPT FLUSH",
    "PFDEBUG GETREG k",
]


@pytest.mark.parametrize("command", REFUSED)
def test_the_passwords_user_may_not(redis, command):
    with client.Redis(**redis.settings.redis_client()) as connection:
        with pytest.raises(client.ResponseError, match=r"(?i)permission|not allowed"):
            connection.execute_command(*command.split())
        with pytest.raises(client.ResponseError, match=r"(?i)permission|not allowed|can.t run"):
            connection.eval("return redis.call(unpack(ARGV))", 0, *command.split())


def test_the_passwords_user_may_use_and_clear_a_database(redis):
    with client.Redis(**redis.settings.redis_client() | {"db": 9}, client_name="me") as connection:
        connection.set("a", 1)
        assert connection.keys("*") == [b"a"]
        assert connection.script_exists(connection.script_load("return 1")) == [True]
        assert connection.info("server")["redis_mode"] == "standalone"
        assert connection.flushdb()
        connection.set("a", 1)
        assert connection.eval("redis.call('FLUSHDB'); return redis.call('DBSIZE')", 0) == 0


@pytest.mark.parametrize("password", ["", 'a "quoted" \\ pässword $HOME #1 \' {x}\n2'])
def test_each_password_opens_redis_for_every_part(tmp_path, monkeypatch, password):
    monkeypatch.setenv("REDIS_PASSWORD", password)
    monkeypatch.setenv("MODEL_SIGNING_KEY", "k" * 40)
    with make_stack(tmp_path) as stack:
        stack.start("redis")
        store = ModelStore(stack.settings)
        commit(store, None, a_model())
        with client.Redis(port=stack.settings.redis_port, password=password or None) as plain:
            assert plain.exists(stack.settings.model_key)
        given = {"RUN_DIR": str(tmp_path), "REDIS_PORT": str(stack.settings.redis_port)}
        argv = [sys.executable, "redis_clear.py", stack.settings.model_key]
        done = subprocess.run(
            argv, cwd=HERE, env=os.environ | given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if password:
            with (
                pytest.raises(client.AuthenticationError),
                client.Redis(port=stack.settings.redis_port) as nobody,
            ):
                nobody.ping()


def test_an_empty_password_means_none_and_any_other_empty_variable_the_default(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    empty = Settings()
    assert empty.redis_password.get_secret_value() == ""
    monkeypatch.delenv("REDIS_PASSWORD")
    default = Settings()
    assert default.redis_password.get_secret_value() == "redis_password"
    assert empty.model_copy(update={"redis_password": default.redis_password}) == default
