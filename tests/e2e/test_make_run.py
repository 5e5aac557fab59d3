"""make run as a person uses it: it comes up, mends what dies, stops with Ctrl-C and goes on where it left off.

One run after the other in one folder, in the order of this file, since each takes half a minute to come up.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.stack import Stack, until
from local.environment import VENV_BIN, child_environment
from local.job import restore_points
from local.process import port_is_free
from loop.model_store import ModelStore
from settings import HERE

UP = 420  # seconds; a tenth of it where nothing else runs


class MakeRun:
    """``make run`` in a session of its own, as a terminal starts it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.settings = stack.settings
        self.out = self.settings.run_dir / "out"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = self.popen()

    def environment(self) -> dict[str, str]:
        env = child_environment(self.settings) | {"PRODUCER_RATE": "50"}
        env["PATH"] = os.environ["PATH"].replace(f"{VENV_BIN}{os.pathsep}", "")
        for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS"):
            env.pop(name, None)  # the make that runs these tests is not the person's
        return env

    def popen(self) -> subprocess.Popen:
        out = self.out.open("wb")
        return subprocess.Popen(
            ["make", "run", f"PYTHON={VENV_BIN / 'python'}"],
            cwd=HERE,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def samples(self) -> int:
        """Return the samples learned by the model in Redis."""
        stored = ModelStore(self.settings).read()
        return stored.meta.samples if stored else 0

    def learns(self, more: int = 200) -> None:
        """Return when so many more samples are learned than at the first answer, and the line says that all is well."""
        before = until(lambda: [self.samples()], UP)[0]
        until(lambda: self.samples() >= before + more, UP, f"make run learns {more} samples more")
        until(lambda: re.search(r"rejected$", self.said().strip()), UP, "all is well")

    def press_ctrl_c(self) -> int:
        """Send what a terminal sends to all of the foreground, and return the exit code."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(UP)

    def part(self, name: str) -> psutil.Process:
        return psutil.Process(int((self.settings.run_dir / "pids" / name).read_text().split()[0]))

    def mine(self) -> list[psutil.Process]:
        """Return the processes whose command or environment names the run folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RUN_DIR") == str(self.settings.run_dir):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != os.getpid()]

    def left_nothing(self) -> None:
        until(lambda: not self.mine(), 20, f"no process is left of {self.mine()}")
        ports = [
            self.settings.redis_port,
            self.settings.flink_port,
            self.settings.flink_rpc_port,
            self.settings.page_port,
            self.settings.kafka_controller_port,
            int(self.settings.kafka_bootstrap_servers.split(":")[1]),
        ]
        assert all(port_is_free(port) for port in ports)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRun]:
    """A run folder and ports of this module's own; whatever is left at its end is killed."""
    make_run = MakeRun(Stack(tmp_path_factory.mktemp("make-run")))
    yield make_run
    for process in make_run.mine():
        process.kill()


@pytest.fixture
def up(made: MakeRun) -> MakeRun:
    """make run, up and learning."""
    if made.process is None or made.process.poll() is not None:
        made.start()
        made.learns()
    return made


def get(run: MakeRun, path: str) -> dict:
    """Return what the page answers."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{run.settings.page_port}{path}", timeout=10
    ) as answer:
        return json.load(answer)


def test_make_run_learns_and_says_where_everything_is(up):
    said = up.said()
    for address in (
        f"http://127.0.0.1:{up.settings.page_port}",
        f"http://127.0.0.1:{up.settings.flink_port}",
        up.settings.kafka_bootstrap_servers,
        f"127.0.0.1:{up.settings.redis_port}",
    ):
        assert address in said
    assert re.search(
        r"samples learned, accuracy 0\.\d+ .*model version \d.*samples/s, 0 rejected", said
    )
    assert get(up, "/model")["samples"] > 0


def test_no_secret_stands_in_a_process_list(up):
    secrets = up.settings.redis_password.get_secret_value(), up.settings.signing_key().decode()
    words = " ".join(word for process in up.mine() for word in process.cmdline())
    assert not any(secret in words for secret in secrets)


def test_a_second_make_run_beside_the_first_is_one_sentence(up):
    first, up.out = up.out, up.settings.run_dir / "second"
    second = up.popen()
    assert second.wait(60) != 0
    sentence = up.said().splitlines()[0]
    up.out = first
    assert re.match(
        r"make run: make run is running already in .* \(process \d+\): stop it first", sentence
    )


OTHERS = ["taskmanager", "kafka", "redis", "producer"]


@pytest.mark.parametrize(
    "name", ["jobmanager", "page", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
)
def test_a_part_that_is_killed_comes_back_and_the_loop_goes_on(up, name):
    before, said = up.part(name), len(up.said())
    before.kill()
    until(
        lambda: up.part(name).pid != before.pid and up.part(name).is_running(),
        UP,
        f"{name} is back",
    )
    up.learns()
    assert re.search(
        rf"{name}.* died; restarting it; log: .*\.log", up.said()[said:], re.IGNORECASE
    )
    until(lambda: get(up, "/healthz")["success"], UP, "the page is healthy")


def test_a_part_that_hangs_is_told_on_the_line_and_left_alone(up):
    kafka, said = up.part("kafka"), len(up.said())
    kafka.suspend()
    try:
        until(lambda: "Kafka does not answer" in up.said()[said:], UP)
    finally:
        kafka.resume()
    up.learns()
    assert up.part("kafka").pid == kafka.pid


def test_ctrl_c_stops_the_job_with_a_savepoint_and_leaves_nothing(up):
    up.press_ctrl_c()
    said = up.said()
    stops = [
        said.index(f"  {name}: stopped")
        for name in ("Producer", "Page", "Job", "TaskManager", "Kafka", "Redis")
    ]
    assert stops == sorted(stops)
    assert f"Job: stopped with {restore_points(up.settings.run_dir)[0].name}" in said
    up.left_nothing()


def test_the_next_run_goes_on_from_the_savepoint_and_repeats_nothing(made):
    savepoint = restore_points(made.settings.run_dir)[0].name
    made.start()
    made.learns()
    assert f"restored from {savepoint}" in made.said()
    meta = ModelStore(made.settings).read().meta
    assert meta.samples > meta.scores.predicted > 1000
    assert meta.samples + meta.rejected == sum(meta.progress.values())


def test_what_a_run_that_was_killed_left_behind_is_ended_by_the_next(up):
    left = [
        up.part(name)
        for name in ("kafka", "redis", "jobmanager", "taskmanager", "producer", "page")
    ]
    assert up.process
    os.killpg(up.process.pid, signal.SIGKILL)
    up.process.wait()
    assert all(part.is_running() for part in left)
    up.start()
    up.learns()
    assert "Ended a kafka that a killed run had left running" in up.said()
    assert not any(part.is_running() for part in left)


def test_a_second_ctrl_c_kills_at_once(up):
    assert up.process
    os.killpg(up.process.pid, signal.SIGINT)
    until(lambda: "Stopping" in up.said(), 20)
    os.killpg(up.process.pid, signal.SIGINT)
    up.process.wait(15)
    up.left_nothing()


def test_a_taken_port_is_one_sentence_and_nothing_is_left(made):
    with socket.create_server(("127.0.0.1", made.settings.flink_port)):
        made.start()
        assert made.process.wait(60) != 0
    last = [line for line in made.said().splitlines() if not line.startswith("make: ")][-1]
    port = made.settings.flink_port
    assert last.startswith(f"make run: JobManager needs port {port}, which another program uses")
    made.left_nothing()


def test_sigterm_while_it_starts_leaves_nothing(made):
    made.start()
    until(lambda: "Redis is up" in made.said(), UP)
    made.process.terminate()
    made.process.wait(60)
    assert "Traceback" not in made.said()
    made.left_nothing()


def test_a_part_that_cannot_start_is_one_sentence_with_its_log(made):
    folder = made.settings.run_dir / "redis"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "appendonly.aof").mkdir(parents=True)  # where Redis 6 wants a file
    (folder / "appendonlydir").touch()  # where Redis 7 wants a folder
    made.start()
    assert made.process.wait(UP) != 0
    last = [line for line in made.said().splitlines() if not line.startswith("make: ")][-1]
    assert re.match(r"make run: Redis ended during its start; its log says why: .*redis\.log", last)
    assert "Traceback" not in made.said()
    made.left_nothing()


# --- an awkward machine: blanks, accents and URL characters in every path, an ASCII locale, a proxy, no HOME -------


class AwkwardRun(MakeRun):
    """``make run | head`` in a copy of the project, in a terminal that may be closed."""

    def __init__(self, folder: Path) -> None:
        run_dir = folder / "rün #1 %20 $x 'q' * ?" / "dir"
        run_dir.mkdir(parents=True)
        super().__init__(Stack(run_dir))
        self.out = folder / "out"
        self.temporary = folder / "temporary files"
        self.temporary.mkdir()
        self.project = folder / "my pröject #2 %41 (x) & 'y'"
        # .local holds no more than links to the environment and the jars, which are this checkout's.
        ignored = shutil.ignore_patterns(".git", ".local", "tests", "docs", "*cache*")
        shutil.copytree(HERE, self.project, ignore=ignored)
        (self.project / ".local").mkdir()
        (self.project / ".local" / "java").symlink_to(HERE / ".local" / "java")
        link_environment(self.project / ".local" / "venv")

    def environment(self) -> dict[str, str]:
        env = super().environment()
        for name in ("HOME", "LANG", "PYTHONUTF8", "no_proxy", "NO_PROXY"):
            env.pop(name, None)
        nowhere = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
        return env | nowhere | {"LC_ALL": "C", "TMPDIR": str(self.temporary)}

    def popen(self) -> subprocess.Popen:
        """Start it with a reader of its output that can be ended."""
        make = subprocess.Popen(
            ["make", "run", f"PYTHON={VENV_BIN / 'python'}"],
            cwd=self.project,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self.out.open("wb") as out:
            self.reader = subprocess.Popen(["cat"], stdin=make.stdout, stdout=out)
        assert make.stdout
        make.stdout.close()
        return make

    def stop_reading(self) -> None:
        self.reader.kill()
        self.reader.wait()


def link_environment(venv: Path) -> None:
    """Make an environment of links to this checkout's, with a place for a ``flink`` command."""
    (venv / "bin").mkdir(parents=True)
    for original in (HERE / ".local" / "venv", VENV_BIN):
        copy = venv / original.relative_to(HERE / ".local" / "venv")
        for path in original.iterdir():
            if path.name != "bin" and not path.name.startswith("flink"):
                (copy / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwkwardRun]:
    run = AwkwardRun(tmp_path_factory.mktemp("awkward"))
    try:
        run.start()
        # Every name below the system's temporary folder would be another user's obstacle.
        submits = "the job's files are unpacked under RUN_DIR"
        until(lambda: list(run.settings.run_dir.glob("tmp/flink.*/pyflink/*")), UP, submits)
        run.learns()
        yield run
    finally:
        run.stop_reading()
        for process in run.mine():
            process.kill()


@pytest.mark.long
def test_make_run_learns_on_an_awkward_machine(awkward):
    assert list(awkward.temporary.iterdir()) == []
    assert not list((awkward.settings.run_dir / "tmp").glob("flink.*"))
    assert {path.name for path in awkward.settings.run_dir.parent.iterdir()} == {"dir"}


@pytest.mark.long
def test_a_closed_terminal_stops_all_with_a_savepoint(awkward):
    """The output ends and SIGHUP comes twice, as from a terminal and a shell."""
    assert awkward.process
    awkward.stop_reading()
    for _ in range(2):
        os.killpg(awkward.process.pid, signal.SIGHUP)
    until(lambda: not awkward.mine(), 120, "all has stopped")
    awkward.left_nothing()
    assert list(awkward.settings.run_dir.glob("savepoints/*/_metadata"))


@pytest.mark.long
def test_make_run_piped_into_head_stops_all_with_a_savepoint(awkward):
    [first] = awkward.settings.run_dir.glob("savepoints/*")
    awkward.start()
    awkward.learns()
    assert f"restored from {first.name}" in awkward.said()
    awkward.stop_reading()  # as head and tee end
    until(lambda: not awkward.mine(), 120, "all has stopped")
    awkward.left_nothing()
    assert restore_points(awkward.settings.run_dir)[0].parent.name == "savepoints"
    assert restore_points(awkward.settings.run_dir)[0].name != first.name
    assert {path.name for path in awkward.settings.run_dir.parent.iterdir()} == {"dir"}
