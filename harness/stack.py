"""A real Kafka, Redis and Flink for tests and benchmarks, on free ports and in a given folder."""

import contextlib
import fcntl
import itertools
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import redis

from local import brokers, fetch, flink_cluster
from local.environment import VENV_BIN, make_signing_key
from local.process import Process, run_to_end
from settings import HERE, Settings

T = TypeVar("T")
ADMIN_PASSWORD = secrets.token_hex(16)
# Kafka last: its first start waits until its folder is formatted.
STARTS = {
    "redis": lambda settings: with_admin(brokers.redis(settings)),
    "jobmanager": flink_cluster.jobmanager,
    "taskmanager": flink_cluster.taskmanager,
    "kafka": brokers.kafka,
}
FLINK = ("jobmanager", "taskmanager")
PORTS = 5_000  # for each pytest worker


def until(check: Callable[[], T], seconds: float = 60, what: str = "") -> T:
    """Call the check every 0.1 s until its answer is true; return that answer.

    After ``seconds``, raises ``AssertionError`` with ``what`` and the last answer or exception.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            answer = check()
            if answer:
                return answer
            last = answer
        except Exception as error:  # noqa: BLE001 - a process that is starting may raise anything
            last = error
        if time.monotonic() > deadline:
            name = what or check.__name__
            raise AssertionError(f"not within {seconds:.0f} s: {name}; last: {last!r}")
        time.sleep(0.1)


def ports_to_try() -> Iterator[int]:
    """Yield ports endlessly, from a range that no other pytest worker of this session uses.

    They are below the ports that the system gives to clients, so no connection occupies one.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + worker % 4 * PORTS
    begin = random.SystemRandom().randrange(PORTS)  # two sessions seldom collide
    yield from (first + (begin + i) % PORTS for i in itertools.count())


def free_port() -> int:
    """Return a port that nothing listens on and that this process has not returned recently."""
    while True:
        port = next(PORTS_TO_TRY)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


PORTS_TO_TRY = ports_to_try()


def with_admin(server: Process) -> Process:
    """Add a Redis user who may do everything; the default user's rights are limited."""
    prepare_without_admin = server.prepare

    def prepare() -> None:
        prepare_without_admin()
        with (server.run_dir / "redis" / "redis.conf").open("a") as conf:
            conf.write(f"user admin on >{ADMIN_PASSWORD} ~* &* +@all\n")

    server.prepare = prepare
    return server


class Stack:
    """The processes of one test session, and the settings to use them.

    A process with the environment ``env`` reads ``settings``. ``named`` returns a view of the same
    processes with other topics and another model key.
    """

    def __init__(self, run_dir: Path, **overrides: Any) -> None:
        kafka, controller, redis_port, flink, rpc, page = (free_port() for _ in range(6))
        self.given: dict[str, Any] = {
            "run_dir": run_dir,
            "model_signing_key_file": run_dir / "signing.key",
            "kafka_bootstrap_servers": f"127.0.0.1:{kafka}",
            "kafka_controller_port": controller,
            "redis_port": redis_port,
            "flink_port": flink,
            "flink_rpc_port": rpc,
            "page_port": page,
            **overrides,
        }
        self.settings = Settings(**self.given)
        self.parts: dict[str, Process] = {}
        self.guard: subprocess.Popen | None = None

    @property
    def env(self) -> dict[str, str]:
        return flink_cluster.flink_environment(self.settings)

    def named(self, partitions: int = 1, **overrides: Any) -> "Stack":
        """Return a view of the same processes with unused topics, consumer group and model key."""
        mark = secrets.token_hex(3)
        fields = ("input_topic", "predict_topic", "reject_topic", "kafka_group", "model_key")
        names = {name: f"{Settings.model_fields[name].default}-{mark}" for name in fields}
        view = object.__new__(Stack)
        view.given = self.given | names | overrides
        view.settings = Settings(**view.given)
        view.parts, view.guard = self.parts, self.guard
        if "kafka" in self.parts:
            brokers.create_topics(view.settings, partitions)
        return view

    # --- processes, by name: kafka, redis, jobmanager, taskmanager ---

    def start(self, *names: str) -> "Stack":
        """Start those processes that do not run, and wait until they answer."""
        self.guard = self.guard or guard(self.settings.run_dir)
        fetch.fetch_jars()
        make_signing_key(self.settings)
        flink_cluster.write_flink_launcher()
        alive = {name for name, process in self.parts.items() if process.alive}
        missing = [name for name in STARTS if name in names and name not in alive]
        for name in missing:
            if name not in self.parts:
                self.parts[name] = STARTS[name](self.settings)
            self.parts[name].start()
        for name in missing:
            self.parts[name].wait_until_it_answers()
        return self

    def stop(self, *names: str) -> None:
        """Stop processes with SIGTERM."""
        for name in names:
            self.parts[name].stop()

    def kill(self, *names: str) -> None:
        """SIGKILL processes, but not their children, such as a TaskManager's Python workers."""
        for name in names:
            self.parts[name].send(signal.SIGKILL)
            self.parts[name].wait()

    def restart(self, *names: str) -> None:
        """SIGKILL processes and their children, and start them again."""
        for name in names:
            self.parts[name].kill()
        self.start(*names)

    def pause(self, *names: str) -> None:
        for name in names:
            self.parts[name].send(signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        for name in names:
            self.parts[name].send(signal.SIGCONT)

    def close(self) -> None:
        """SIGKILL all processes."""
        for part in self.parts.values():
            part.kill()
        if self.guard and self.guard.stdin:
            self.guard.stdin.close()
            self.guard.wait()

    def redis_admin(self) -> redis.Redis:
        """Return a client of this Redis as the user who may do everything."""
        return redis_admin(self.settings)

    # --- the job ---

    def rest(self, path: str, body: dict | None = None) -> dict:
        """Return the JSON answer of Flink's REST API to a path such as ``/jobs/overview``."""
        return flink_cluster.rest(self.settings, path, body)

    def submit_job(
        self, script: str = "online_learning.py", restore: str | Path | None = None, **env: str
    ) -> str:
        """Submit the job with ``flink run`` and return its id; ``env`` adds variables."""
        from_restore = ["-s", str(restore), "-claimMode", "CLAIM"] if restore else []
        address = f"{self.settings.flink_host}:{self.settings.flink_port}"
        run = [str(VENV_BIN / "flink"), "run", "-d", "-m", address]
        code, output = run_to_end(
            [*run, *from_restore, "-py", str(HERE / script)],
            self.env | env,
            self.settings.run_dir / "log" / "job.log",
        )
        found = re.search(r"JobID ([0-9a-f]{32})", output)
        if code or not found:
            raise AssertionError(f"flink run ended with {code}: {output[-4000:]}")
        return found.group(1)

    def job_state(self, job: str) -> str:
        return self.rest(f"/jobs/{job}")["state"]

    def wait_for_job(self, job: str, state: str = "RUNNING", seconds: float = 60) -> None:
        """Return when the job is in this state; if it is RUNNING, all its tasks are, too."""

        def is_in_state() -> bool:
            answer = self.rest(f"/jobs/{job}")
            tasks = {vertex["status"] for vertex in answer["vertices"]}
            return answer["state"] == state and (state != "RUNNING" or tasks == {"RUNNING"})

        until(is_in_state, seconds, f"job {job} is {state}")

    def exceptions(self, job: str) -> str:
        """Return the stack trace of the job's newest failure, or an empty string."""
        history = self.rest(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return history[0]["stacktrace"] if history else ""

    def cancel_job(self, job: str) -> None:
        """Cancel the job and return when it has ended; its last checkpoint is retained."""
        from urllib.request import Request, urlopen

        url = f"http://127.0.0.1:{self.settings.flink_port}/jobs/{job}?mode=cancel"
        with urlopen(Request(url, method="PATCH"), timeout=10):
            pass
        self.wait_for_job(job, "CANCELED")

    def newest_checkpoint(self, job: str) -> Path:
        """Return the folder of the job's newest completed checkpoint."""
        done = (self.settings.run_dir / "checkpoints" / job).glob("chk-*/_metadata")
        return max(done, key=lambda path: path.stat().st_mtime).parent


def redis_admin(settings: Settings) -> redis.Redis:
    """Return a client of a test's Redis as the user who may do everything."""
    return redis.Redis(
        **settings.redis_client() | {"username": "admin", "password": ADMIN_PASSWORD}
    )


def guard(run_dir: Path) -> subprocess.Popen:
    """Start a process that ends the stack's processes if the test session is killed."""
    code = (
        "import sys, pathlib; from local.process import end_orphans; sys.stdin.read();"
        f"end_orphans(pathlib.Path({str(run_dir)!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdin=subprocess.PIPE, start_new_session=True
    )


def make_stack(run_dir: Path, **overrides: Any) -> contextlib.closing[Stack]:
    """Return a context manager around a stack for one test that would disturb others."""
    return contextlib.closing(Stack(run_dir, **overrides))


def chromium() -> str:
    """Return the path of Chrome or Chromium on PATH; as root, install Debian's if there is none."""
    found = chromium_on_path()
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        folder = HERE / ".local" / "log"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "chromium.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # two workers may both need it first
            if not chromium_on_path():
                install_chromium(folder / "chromium.log")
        found = chromium_on_path()
    assert found, "The browser tests need Chromium or Chrome on PATH: install the package chromium."
    return found


def chromium_on_path() -> str | None:
    """Return the path of the first Chrome or Chromium on PATH."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


def install_chromium(log: Path) -> None:
    """Install Debian's Chromium."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
    for argv in (["apt-get", "update"], install):
        run_to_end(argv, env, log, patience=600)
