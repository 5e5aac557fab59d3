"""The whole pipeline on this machine: processes are started, restarted if they die, and stopped.

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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm import tqdm

from local import brokers, fetch, flink_cluster, programs
from local.bootstrap import remove
from local.environment import loopback_without_proxy, make_signing_key
from local.job import Job, prune_restore_points
from local.process import Process, StackError, Stopping, end_orphans, kill_session
from local.status import Line, Meter
from settings import HERE, Settings, one_line, settings

DISK_BYTES = 1_000_000_000
MADE = ("kafka", "redis", "flink", "checkpoints", "savepoints", "log", "pids", "tmp", "signing.key")
LOCK = "run.lock"  # if it exists, make run created the names above
STEADY_SECONDS = 90  # after a shorter life, the next restart waits longer


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the whole pipeline on this machine, or delete its files."""


@main.command()
def run() -> None:
    """Run everything until Ctrl-C; a second Ctrl-C kills at once."""
    config = settings()
    stopping, force = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, lambda *_: force.set() if stopping.is_set() else stopping.set())
    # A closed terminal and timeout may send these twice, so only Ctrl-C kills at once.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: stopping.set())
    os.environ.update(loopback_without_proxy())
    with alone(config.run_dir), environment_in_use():
        LocalStack(config, stopping, force).run()


@main.command()
def clean() -> None:
    """Delete what make run created in RUN_DIR: model, topics, checkpoints, logs, signing key."""
    run_dir = settings().run_dir
    with alone(run_dir):
        end_orphans(run_dir)
        for name in (*MADE, "forecast", LOCK):
            remove(run_dir / name)


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Lock the run folder for this process; raises ``StackError`` if another one has locked it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    foreign = [name for name in MADE if (run_dir / name).exists()]
    if foreign and not (run_dir / LOCK).exists() and run_dir.resolve() != HERE / ".local":
        raise StackError(
            f"{run_dir} holds a {foreign[0]} that make run did not create: choose an empty RUN_DIR."
        )
    with (run_dir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"make run is running already in {run_dir} (process {lock.read()}): "
                "stop it first, or set another RUN_DIR and other ports."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def environment_in_use() -> Iterator[None]:
    """Keep make clean from deleting the environment of this process and its children."""
    local = HERE / ".local"
    local.mkdir(exist_ok=True)
    with (local / "use.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(
                "make clean is deleting the environment: start again when it has ended."
            ) from None
        yield


@dataclass
class RestartGroup:
    """Processes of which all are restarted if the first dies; any other is restarted alone.

    ``next_try``, ``tried_at``: monotonic seconds.
    """

    processes: list[Process]
    restarting: Future | None = None
    problem: str = ""
    tries: int = 0
    next_try: float = 0.0
    tried_at: float = 0.0

    @property
    def down(self) -> bool:
        return self.busy or not all(process.alive for process in self.processes)

    @property
    def busy(self) -> bool:
        return self.restarting is not None and not self.restarting.done()

    def restart(self, stopping: threading.Event) -> None:
        """Restart the dead processes; if that fails, ``problem`` says why and the delay grows."""
        now = time.monotonic()
        self.tries = 1 if now - self.tried_at > STEADY_SECONDS else self.tries + 1
        self.tried_at, self.next_try = now, now + min(30, 2**self.tries)
        dead = self.processes
        if self.processes[0].alive:
            dead = [process for process in self.processes if not process.alive]
        try:
            for process in dead:
                process.kill()
            for process in dead:
                process.start()
            for process in dead:
                process.wait_until_it_answers(stopping)
        except (StackError, OSError) as error:
            self.problem = str(error)
        else:
            self.problem = ""


class LocalStack:
    """The processes of one run, the job, and the live line."""

    def __init__(self, config: Settings, stopping: threading.Event, force: threading.Event) -> None:
        self.config, self.stopping, self.force = config, stopping, force
        self.redis = brokers.redis(config)
        self.kafka = brokers.kafka(config)
        self.jobmanager = flink_cluster.jobmanager(config)
        self.taskmanager = flink_cluster.taskmanager(config)
        self.producer = programs.producer(config)
        self.page = programs.page(config)
        self.job_needs = [
            RestartGroup([self.redis]),
            RestartGroup([self.jobmanager, self.taskmanager]),
            RestartGroup([self.kafka]),
        ]
        self.groups = [*self.job_needs, RestartGroup([self.producer]), RestartGroup([self.page])]
        self.processes = [process for group in self.groups for process in group.processes]
        self.job = Job(config, stopping)
        self.submitting: Future | None = None
        self.next_submit = 0.0
        self.unresponsive: set[str] = set()  # names of processes that run and do not answer
        self.meter = Meter(config)
        self.line = Line(stopping)

    def run(self) -> None:
        """Run everything until asked to stop; raises ``StackError`` if the start fails."""
        # The live line says what is down. The Kafka client's warnings would only repeat it.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        try:
            self.start()
            self.watch()
        except Stopping:
            pass
        finally:
            self.stopping.set()
            self.stop()

    # -- start -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what the job needs, then the job, the producer and the page."""
        began = time.monotonic()
        self.prepare()
        self.start_for_the_job(began)
        brokers.create_topics(self.config)
        self.job.submit()
        for name in self.job.unusable:
            self.line.say(f"  {name} does not fit this job and is skipped")
        point = self.job.restore_point
        restored = f", restored from {point.name}" if point else ""
        seconds = time.monotonic() - began
        self.line.say(f"  Job {self.job.id} is submitted{restored} ({seconds:.0f} s)")
        for process in (self.producer, self.page):
            process.start()
        for process in (self.producer, self.page):
            process.wait_until_it_answers(self.stopping)
        seconds = time.monotonic() - began
        self.line.say(f"  Producer and page are up ({seconds:.0f} s)\n\n{self.addresses()}\n")

    def start_for_the_job(self, began: float) -> None:
        """Start what the job needs, all at once; ``began``: monotonic seconds at the start."""
        needed = [process for group in self.job_needs for process in group.processes]
        for process in needed:
            process.start()
        for process in needed:
            process.wait_until_it_answers(self.stopping)
            self.line.say(f"  {process.name} is up ({time.monotonic() - began:.0f} s)")

    def prepare(self) -> None:
        """Check disk and ports, end orphans and fetch the jars; raises ``StackError``."""
        config = self.config
        self.check_disk()
        for name in end_orphans(config.run_dir):
            self.line.say(f"  Ended a {name} that a killed run had left running")
        remove(config.run_dir / "tmp")
        for process in self.processes:
            process.check_ports()
        if not fetch.have_jars():
            fetch_jars_apart(self.stopping)
            self.line.say("  Jars are downloaded")
        make_signing_key(config)
        flink_cluster.write_flink_launcher()
        prune_restore_points(config.run_dir)

    def check_disk(self) -> None:
        """Raise ``StackError`` if the run folder's disk is full or does not run programs."""
        run_dir = self.config.run_dir
        free = shutil.disk_usage(run_dir).free
        if free < DISK_BYTES:
            raise StackError(
                f"{run_dir} has {free / 1e9:.2f} GB of free disk; make run needs 1 GB."
            )
        if os.statvfs(run_dir).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise StackError(
                f"{run_dir} is on a disk mounted noexec, and Java loads its libraries from there: "
                "choose another RUN_DIR."
            )

    def addresses(self) -> str:
        """Return where everything is, one line each."""
        config = self.config
        topics = ", ".join((config.input_topic, config.predict_topic, config.reject_topic))
        lines = [
            f"  page   http://{config.page_host}:{config.page_port}",
            f"  Flink  http://{config.flink_host}:{config.flink_port}",
            f"  Kafka  {config.kafka_bootstrap_servers}  {topics}",
            f"  Redis  {config.redis_host}:{config.redis_port}  {config.model_key}",
            f"  logs   {config.run_dir / 'log'}",
        ]
        return "\n".join(lines)

    # -- watch -------------------------------------------------------------------------------

    def watch(self) -> None:
        """Restart what dies and update the live line, until asked to stop."""
        for target in (self.meter.run, self.poll):
            threading.Thread(target=target, args=(self.stopping,), daemon=True).start()
        with ThreadPoolExecutor(len(self.groups) + 1) as pool:
            while not self.stopping.wait(0.5):
                self.restart_dead(pool)
                self.keep_job(pool)
                self.line.show(self.meter.text(), self.problems())

    def restart_dead(self, pool: ThreadPoolExecutor) -> None:
        """Begin to restart each group that is down, once its delay is over."""
        for group in self.groups:
            if group.busy or not group.down or time.monotonic() < group.next_try:
                continue
            for process in group.processes:
                if not process.alive:
                    now = time.strftime("%H:%M:%S")
                    self.line.say(f"{now} {process.name} died; restarting it; log: {process.log}")
            group.restarting = pool.submit(group.restart, self.stopping)

    def keep_job(self, pool: ThreadPoolExecutor) -> None:
        """Submit the job again if it has failed or its JobManager has lost it."""
        if any(group.down for group in self.job_needs):
            return
        if self.submitting and not self.submitting.done():
            return
        try:
            self.job.refresh()
        except OSError:
            return  # the JobManager is busy; poll() notices if it does not answer at all
        if self.job.needs_submit and time.monotonic() >= self.next_submit:
            now = time.strftime("%H:%M:%S")
            self.line.say(f"{now} The job: {self.job.problem}; submitting it again")
            self.submitting = pool.submit(self.submit)

    def submit(self) -> None:
        """Submit the job again; the next submission may follow after 15 s."""
        self.next_submit = time.monotonic() + 15
        self.job.problem = "is being submitted"
        try:
            self.job.submit()
        except StackError as error:
            self.job.problem = str(error)
        except Stopping:
            return

    def poll(self, stopping: threading.Event) -> None:
        """Note every 3 s which running processes do not answer, and bound their logs."""
        while not stopping.wait(3):
            for process in self.processes:
                if not process.alive or process.answers():
                    self.unresponsive.discard(process.name)
                else:
                    self.unresponsive.add(process.name)
            for process in self.processes:
                process.bound_log()

    def problems(self) -> list[str]:
        """Return what is wrong now, one phrase each."""
        found = [
            self.problem_of(group, process) for group in self.groups for process in group.processes
        ]
        if self.job.problem:
            found.append(f"job: {self.job.problem}")
        if self.meter.problem:
            found.append(self.meter.problem)
        if shutil.disk_usage(self.config.run_dir).free < DISK_BYTES / 4:
            found.append(f"the disk of {self.config.run_dir} is nearly full")
        return list(dict.fromkeys(filter(None, found)))

    def problem_of(self, group: RestartGroup, process: Process) -> str:
        """Return what is wrong with a process, or an empty string."""
        if not process.alive:
            return group.problem or f"{process.name} is down"
        if group.busy:
            return f"{process.name} is starting"
        if process.name in self.unresponsive:
            return f"{process.name} does not answer"
        return ""

    # -- stop --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the producer, the page, the job with a savepoint, then Flink, Kafka and Redis."""
        if any(process.popen for process in self.processes):
            self.line.say("Stopping; press Ctrl-C again to kill at once")
        for process in (self.producer, self.page):
            self.stop_process(process)
        if self.job.id and self.taskmanager.alive:
            savepoint = self.job.stop(self.force)
            end = "no savepoint; the next run starts from the last checkpoint"
            if savepoint:
                end = f"stopped with {savepoint.name}"
            self.line.say(f"  Job: {end}")
        for process in (self.taskmanager, self.jobmanager, self.kafka, self.redis):
            self.stop_process(process)

    def stop_process(self, process: Process) -> None:
        if process.popen:
            process.stop(self.force)
            self.line.say(f"  {process.name}: stopped")


def fetch_jars_apart(stopping: threading.Event) -> None:
    """Download the jars in a child process, which Ctrl-C ends at once; raises ``StackError``."""
    code = "from local.stack import show_fetching; show_fetching()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, start_new_session=True)
    try:
        while process.poll() is None:
            if stopping.wait(0.1):
                raise Stopping
    finally:
        kill_session(process.pid)
        process.wait()
    if process.returncode:
        raise StackError(
            "The jars of Kafka and Flink's connector are incomplete; the reason is printed above."
        )


def show_fetching() -> None:
    """Download the jars with a progress bar; exit with one line if that fails."""

    def progress(jars: Iterable, number: int) -> Iterable:
        return tqdm(jars, "  Jars", number, leave=False, disable=None)

    with one_line("make run"):
        fetch.fetch_jars(progress)


if __name__ == "__main__":
    try:
        with one_line("make run"):
            main()
    except Stopping:
        sys.exit(130)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"make run: {error.filename or HERE} can't be used: {error.strerror}.")
