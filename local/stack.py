"""Everything on this machine with one command: starts the parts, shows and mends them, and stops them in order.

python3 local/bootstrap.py -m local.stack run
"""

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import redis
from tqdm import tqdm

from local import parts as local_parts
from local.bootstrap import remove
from local.job import Job, prune_restore_points
from local.process import Part, StackError, Stopping, end_leftovers, kill_session
from loop.model_store import Meta, ModelStore, StoreError
from settings import HERE, Settings, SettingsError, settings

DISK_BYTES = 1_000_000_000
MADE = ("kafka", "redis", "flink", "checkpoints", "savepoints", "log", "pids", "tmp", "signing.key")
LOCK = "run.lock"  # its presence says that what has the names above is make run's own
WINDOW_SECONDS = 10
STEADY_SECONDS = 90  # a part that lives so long has come up for good


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the whole pipeline on this machine, or forget it."""


@main.command()
def run() -> None:
    """Start everything and keep it up until Ctrl-C; a second Ctrl-C hurries."""
    config = settings()
    stopping, hurry = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, lambda *_: hurry.set() if stopping.is_set() else stopping.set())
    # A closed terminal and timeout may send these twice; only a person is in a hurry.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: stopping.set())
    os.environ.update(local_parts.loopback_without_proxy())
    with alone(config.run_dir), environment_in_use():
        LocalStack(config, stopping, hurry).run()


@main.command()
def clean() -> None:
    """Forget what make run made in RUN_DIR: model, topics, a signing key that lies there."""
    run_dir = settings().run_dir
    with alone(run_dir):
        end_leftovers(run_dir)
        for name in (*MADE, "forecast", LOCK):
            remove(run_dir / name)


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this process; raises ``StackError`` where another one does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    foreign = [name for name in MADE if (run_dir / name).exists()]
    if foreign and not (run_dir / LOCK).exists() and run_dir.resolve() != HERE / ".local":
        raise StackError(f"{run_dir} holds a {foreign[0]} that make run did not make: choose an empty RUN_DIR.")
    with (run_dir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"make run is running already in {run_dir} (process {lock.read()}): stop it first, or give this "
                "one a RUN_DIR and ports of its own."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def environment_in_use() -> Iterator[None]:
    """Keep make clean from deleting the environment that this process and its children run in."""
    local = HERE / ".local"
    local.mkdir(exist_ok=True)
    with (local / "use.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("make clean is deleting the environment: start again when it has ended.") from None
        yield


@dataclass
class Unit:
    """Parts that are started again together when the first of them dies; the others of them also alone."""

    parts: list[Part]
    mending: Future | None = None
    problem: str = ""
    tries: int = 0
    next_try: float = 0.0
    tried_at: float = 0.0

    @property
    def down(self) -> bool:
        return self.busy or not all(part.alive for part in self.parts)

    @property
    def busy(self) -> bool:
        return self.mending is not None and not self.mending.done()

    def mend(self, stopping: threading.Event) -> None:
        """Start again what is dead; ``problem`` says what keeps it down. What dies at once again waits longer."""
        now = time.monotonic()
        self.tries = 1 if now - self.tried_at > STEADY_SECONDS else self.tries + 1
        self.tried_at, self.next_try = now, now + min(30, 2**self.tries)
        dead = self.parts if not self.parts[0].alive else [part for part in self.parts if not part.alive]
        try:
            for part in dead:
                part.kill()
            for part in dead:
                part.start()
            for part in dead:
                part.wait_until_it_answers(stopping)
        except (StackError, OSError) as error:
            self.problem = str(error)
        else:
            self.problem = ""


class LocalStack:
    """The parts of one run and the one line that says how they are."""

    def __init__(self, config: Settings, stopping: threading.Event, hurry: threading.Event) -> None:
        self.config, self.stopping, self.hurry = config, stopping, hurry
        self.redis, self.kafka = local_parts.redis(config), local_parts.kafka(config)
        self.jobmanager, self.taskmanager = local_parts.jobmanager(config), local_parts.taskmanager(config)
        self.producer, self.page = local_parts.producer(config), local_parts.page(config)
        self.needed = [Unit([self.redis]), Unit([self.jobmanager, self.taskmanager]), Unit([self.kafka])]
        self.units = [*self.needed, Unit([self.producer]), Unit([self.page])]
        self.parts = [part for unit in self.units for part in unit.parts]
        self.job = Job(config, stopping)
        self.submitting: Future | None = None
        self.next_submit = 0.0
        self.silent: set[str] = set()  # parts that live and do not answer
        self.meter = Meter(config)
        self.line = Line(stopping)

    def run(self) -> None:
        """Start, watch until asked to stop, and stop; raises ``StackError`` when it does not come up."""
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # its warnings while a part is down are told on the line
        try:
            self.start()
            self.watch()
        except Stopping:
            pass
        finally:
            self.stopping.set()
            self.stop()

    # -- up --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the parts, those that need nothing of each other side by side, then the job, the producer, the page."""
        began = time.monotonic()
        self.prepare()
        for part in [part for unit in self.needed for part in unit.parts]:
            part.start()
        for part in [part for unit in self.needed for part in unit.parts]:
            part.wait_until_it_answers(self.stopping)
            self.line.say(f"  {part.name} is up ({time.monotonic() - began:.0f} s)")
        local_parts.create_topics(self.config)
        self.job.submit()
        for name in self.job.aside:
            self.line.say(f"  {name} does not fit this job and is left aside")
        resumed = f", going on from {self.job.untried.name}" if self.job.untried else ""
        self.line.say(f"  Job {self.job.id} is submitted{resumed} ({time.monotonic() - began:.0f} s)")
        for part in (self.producer, self.page):
            part.start()
        for part in (self.producer, self.page):
            part.wait_until_it_answers(self.stopping)
        self.line.say(f"  Producer and page are up ({time.monotonic() - began:.0f} s)\n\n{self.addresses()}\n")

    def prepare(self) -> None:
        """Check and get what the parts need; raises ``StackError``."""
        config = self.config
        free = shutil.disk_usage(config.run_dir).free
        if free < DISK_BYTES:
            raise StackError(f"{config.run_dir} has {free / 1e9:.2f} GB of free disk; make run needs 1 GB.")
        if os.statvfs(config.run_dir).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise StackError(
                f"{config.run_dir} is on a disk mounted noexec, and Java loads its libraries from there: "
                "choose another RUN_DIR."
            )
        for name in end_leftovers(config.run_dir):
            self.line.say(f"  Ended a {name} that a killed run had left running")
        remove(config.run_dir / "tmp")
        for part in self.parts:
            part.check_ports()
        if not local_parts.have_java_parts():
            fetch_java_parts(self.stopping)
            self.line.say("  Java parts: fetched")
        local_parts.make_signing_key(config)
        local_parts.write_flink_launcher()
        prune_restore_points(config.run_dir)

    def addresses(self) -> str:
        config = self.config
        topics = ", ".join((config.input_topic, config.predict_topic, config.reject_topic))
        return "\n".join([
            f"  page   http://{config.page_host}:{config.page_port}",
            f"  Flink  http://{config.flink_host}:{config.flink_port}",
            f"  Kafka  {config.kafka_bootstrap_servers}  {topics}",
            f"  Redis  {config.redis_host}:{config.redis_port}  {config.model_key}",
            f"  logs   {config.run_dir / 'log'}",
        ])  # fmt: skip

    # -- watching --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Mend what dies and keep the line true, until asked to stop."""
        for target in (self.meter.run, self.listen):
            threading.Thread(target=target, args=(self.stopping,), daemon=True).start()
        with ThreadPoolExecutor(len(self.units) + 1) as pool:
            while not self.stopping.wait(0.5):
                self.mend(pool)
                self.keep_job(pool)
                self.line.show(self.meter.text(), self.problems())

    def mend(self, pool: ThreadPoolExecutor) -> None:
        for unit in self.units:
            if unit.down and not unit.busy and time.monotonic() >= unit.next_try:
                for part in unit.parts:
                    if not part.alive:
                        self.line.say(
                            f"{time.strftime('%H:%M:%S')} {part.name} died, starting it again; log: {part.log}"
                        )
                unit.mending = pool.submit(unit.mend, self.stopping)

    def keep_job(self, pool: ThreadPoolExecutor) -> None:
        if any(unit.down for unit in self.needed) or (self.submitting and not self.submitting.done()):
            return
        try:
            self.job.look()
        except OSError:
            return  # the JobManager is busy; whether it answers at all, listen() tells
        if self.job.wanted and time.monotonic() >= self.next_submit:
            self.line.say(f"{time.strftime('%H:%M:%S')} The job: {self.job.problem}; submitting it again")
            self.submitting = pool.submit(self.submit)

    def submit(self) -> None:
        self.next_submit = time.monotonic() + 15
        self.job.problem = "is being submitted"
        try:
            self.job.submit()
        except StackError as error:
            self.job.problem = str(error)
        except Stopping:
            return

    def listen(self, stopping: threading.Event) -> None:
        """Note which of the living parts do not answer: a stopped or stuck process holds its port."""
        while not stopping.wait(3):
            for part in self.parts:
                if not part.alive or part.answers():
                    self.silent.discard(part.name)
                else:
                    self.silent.add(part.name)
            for part in self.parts:
                part.bound_log()

    def problems(self) -> list[str]:
        """Return what is down right now, one sentence or name each."""
        found = [self.problem_of(unit, part) for unit in self.units for part in unit.parts]
        if self.job.problem:
            found.append(f"job: {self.job.problem}")
        if self.meter.problem:
            found.append(self.meter.problem)
        if shutil.disk_usage(self.config.run_dir).free < DISK_BYTES / 4:
            found.append(f"the disk of {self.config.run_dir} is nearly full")
        return list(dict.fromkeys(filter(None, found)))

    def problem_of(self, unit: Unit, part: Part) -> str:
        if not part.alive:
            return unit.problem or f"{part.name} is down"
        if unit.busy:
            return f"{part.name} is starting"
        return f"{part.name} does not answer" if part.name in self.silent else ""

    # -- down ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the job with a savepoint and the parts in order, whatever of them runs."""
        if any(part.process for part in self.parts):
            self.line.say("Stopping; a second Ctrl-C hurries")
        for part in (self.producer, self.page):
            self.stop_part(part)
        if self.job.id and self.taskmanager.alive:
            savepoint = self.job.stop(self.hurry)
            self.line.say(
                f"  Job: {f'stopped with {savepoint.name}' if savepoint else 'goes on from its last checkpoint'}"
            )
        for part in (self.taskmanager, self.jobmanager, self.kafka, self.redis):
            self.stop_part(part)

    def stop_part(self, part: Part) -> None:
        if part.process:
            part.stop(self.hurry)
            self.line.say(f"  {part.name}: stopped")


def fetch_java_parts(stopping: threading.Event) -> None:
    """Fetch the jars in a process of its own, which Ctrl-C ends at once; raises ``StackError``."""
    code = "from local import stack as local_stack; local_stack.show_java_parts()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, start_new_session=True)
    try:
        while process.poll() is None:
            if stopping.wait(0.1):
                raise Stopping
    finally:
        kill_session(process.pid)
        process.wait()
    if process.returncode:
        raise StackError("The jars of Kafka and Flink's connector are not complete; why stands above.")


def show_java_parts() -> None:
    """Fetch the jars with a progress bar, or exit with a sentence."""
    try:
        local_parts.get_java_parts(lambda jars, number: tqdm(jars, "  Java parts", number, leave=False, disable=None))
    except StackError as error:
        sys.exit(f"make run: {error}")


class Meter:
    """What the live line shows, read from Redis once a second."""

    def __init__(self, config: Settings) -> None:
        self.store = ModelStore(config)
        self.meta: Meta | None = None
        self.problem = ""
        self.window: deque[tuple[float, str, int]] = deque(maxlen=WINDOW_SECONDS + 1)

    def run(self, stopping: threading.Event) -> None:
        """Read until asked to stop."""
        while not stopping.wait(1):
            try:
                stored = self.store.read()
            except redis.RedisError as error:
                self.problem = f"the model can't be read ({error})"
            except StoreError as error:
                self.problem = str(error)
            except ValueError as error:  # a field that no program of ours wrote
                self.problem = f"the model can't be read ({error})"
            else:
                self.problem = ""
                self.meta = stored.meta if stored else None
                self.window.append(
                    (time.monotonic(), self.meta.model_id, self.meta.samples) if self.meta else (0, "", 0)
                )

    def text(self) -> str:
        """Return samples learned, accuracy, model version, samples/s and rejected."""
        if self.meta is None:
            return "no sample learned yet"
        scores = self.meta.scores
        accuracy = "-" if scores.accuracy is None else f"{scores.accuracy:.3f}"
        recent = "-" if scores.accuracy_100 is None else f"{scores.accuracy_100:.2f}"
        return (
            f"{self.meta.samples:,} samples learned, accuracy {accuracy} (last 100: {recent}), "
            f"model version {self.meta.version:,}, {self.rate():.1f} samples/s, {self.meta.rejected:,} rejected"
        )

    def rate(self) -> float:
        """Return samples a second over the last ten seconds of this model."""
        same = [entry for entry in list(self.window) if self.meta and entry[1] == self.meta.model_id]
        if len(same) < 2 or same[-1][0] == same[0][0]:
            return 0.0
        return max(0.0, (same[-1][2] - same[0][2]) / (same[-1][0] - same[0][0]))


class Line:
    """One line that is written over on a terminal, and said again every ten seconds or at a change elsewhere.

    Where nobody reads any more (a closed terminal, ``make run | head``), it asks to stop.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.terminal = sys.stdout.isatty()
        self.said_at = 0.0
        self.problems: list[str] = []

    def say(self, text: str) -> None:
        """Print lines that stay."""
        self.write("\r\033[K" * self.terminal + text + "\n")

    def show(self, text: str, problems: list[str]) -> None:
        """Show how things are."""
        text = " | ".join([text, *problems])
        if self.terminal:
            self.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
        elif problems != self.problems or time.monotonic() - self.said_at >= WINDOW_SECONDS:
            self.write(text + "\n")
            self.said_at, self.problems = time.monotonic(), problems

    def write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                self.stopping.set()
                # The text stays in the buffer and would fail again, at the latest at the exit.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)


if __name__ == "__main__":
    try:
        main()
    except (StackError, SettingsError) as error:
        sys.exit(f"make run: {error}")
    except Stopping:
        sys.exit(130)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"make run: {error.filename or HERE} can't be used: {error.strerror}.")
