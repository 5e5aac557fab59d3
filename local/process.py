"""Processes with a log file and a session each; later runs know them by pid and start time."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from settings import HERE, UserError

LOG_BYTES = 10_000_000  # a longer log is moved to .log.1
NO_ANSWER = (OSError, http.client.HTTPException)  # what urllib raises


class StackError(UserError):
    """A failure of the local stack, in one sentence for the user."""


class Stopping(Exception):
    """The user asked to stop during a start."""


@dataclass
class Process:
    """A process in its own session, which its pid file lets later runs recognise.

    ``check`` returns whether the process answers, or raises one of ``check_errors`` if it does not.
    ``ports``: {port: the setting that changes it}. ``prepare`` runs before each start.
    """

    name: str
    argv: list[str]
    env: dict[str, str]
    run_dir: Path
    check: Callable[[], bool]
    check_errors: tuple[type[Exception], ...] = NO_ANSWER
    ports: dict[int, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    patience: float = 120.0  # seconds until it must answer
    grace: float = 20.0  # seconds from SIGTERM to SIGKILL
    popen: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        return self.run_dir / "log" / f"{self.name.lower()}.log"

    @property
    def pid_file(self) -> Path:
        return self.run_dir / "pids" / self.name.lower()

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def answers(self) -> bool:
        """Return whether the process answers."""
        try:
            return self.check()
        except self.check_errors:
            return False

    def start(self) -> None:
        """Start the process; raises ``StackError`` naming a port that another program uses."""
        self.kill()  # its children may still run
        self.check_ports()
        env = self.env | temporary(self.run_dir)
        self.prepare()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.popen = spawn(self.argv, env, out)
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        new = self.pid_file.with_suffix(".new")
        new.write_text(f"{self.popen.pid} {start_of(self.popen.pid)}")
        new.replace(self.pid_file)  # whole or not at all

    def check_ports(self) -> None:
        """Raise ``StackError`` naming a port that another program uses."""
        for port, variable in self.ports.items():
            if not port_is_free(port):
                raise StackError(
                    f"{self.name} needs port {port}, which another program uses: stop that "
                    f"program, or give {self.name} another port with {variable}."
                )

    def wait_until_it_answers(self, stopping: threading.Event | None = None) -> None:
        """Return when the process answers; raises ``StackError`` if it ends or takes too long."""
        deadline = time.monotonic() + self.patience
        while True:
            if not self.alive:
                raise StackError(
                    f"{self.name} ended during its start; its log says why: {self.log}"
                )
            if self.answers():
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} did not answer within {self.patience:.0f} s; "
                    f"see its log: {self.log}"
                )
            if stopping and stopping.wait(0.1):
                raise Stopping
            time.sleep(0.1)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its children."""
        if self.alive and self.popen:
            self.popen.send_signal(number)

    def stop(self, force: threading.Event | None = None) -> None:
        """Send SIGTERM, then SIGKILL to the session after ``grace`` or once ``force`` is set."""
        deadline = time.monotonic() + self.grace
        self.send(signal.SIGTERM)
        while self.alive and time.monotonic() < deadline and not (force and force.is_set()):
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the process and all processes of its session."""
        if self.popen is None:
            return
        kill_session(self.popen.pid)
        self.popen.wait()
        self.popen = None
        # If the pid file stays, the next run sees by the start time that the process has ended.
        with contextlib.suppress(OSError):
            self.pid_file.unlink()

    def wait(self) -> None:
        """Return when the process has ended."""
        if self.popen:
            self.popen.wait()

    def bound_log(self) -> None:
        """Copy a log above ``LOG_BYTES`` to ``.log.1`` and empty it; the process appends to it.

        On a full disk the log is emptied without a copy.
        """
        copy = self.log.with_suffix(".log.1")
        with contextlib.suppress(OSError):  # no log yet, or a full disk
            if self.log.stat().st_size <= LOG_BYTES:
                return
            try:
                shutil.copyfile(self.log, copy)
            except OSError:
                copy.unlink(missing_ok=True)
            os.truncate(self.log, 0)


def temporary(run_dir: Path) -> dict[str, str]:
    """Create the folder of temporary files and return the variable that points to it.

    The variable also marks every process of this run folder.
    """
    folder = run_dir / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(folder)}


def spawn(argv: list[str], env: dict[str, str], out: IO[bytes]) -> subprocess.Popen:
    """Start a process in its own session, which the terminal's Ctrl-C does not reach."""
    return subprocess.Popen(
        argv,
        env=env,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1 at this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def session(leader: int) -> list[int]:
    """Return the pids of the running processes in the session of this leader, alive or not."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            zombie = psutil.STATUS_ZOMBIE
            if os.getsid(pid) == leader and psutil.Process(pid).status() != zombie:
                found.append(pid)
    return found


def kill_session(leader: int) -> int:
    """SIGKILL a session and return its number of processes.

    The leader may have ended: Flink's Python workers outlive the TaskManager.
    """
    processes = session(leader)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(processes)


def end_orphans(run_dir: Path) -> list[str]:
    """End the processes that a killed run left running; return their names when they have ended."""
    ended = []
    for pid_file in sorted((run_dir / "pids").glob("*")):
        pid, start = read_pid_file(pid_file)
        if is_ours(pid, start, run_dir) and kill_session(pid):
            ended.append(pid_file.name)
            deadline = time.monotonic() + 10
            while session(pid) and time.monotonic() < deadline:  # they still hold their ports
                time.sleep(0.05)
        pid_file.unlink()
    return ended


def read_pid_file(pid_file: Path) -> tuple[int, str]:
    """Return pid and start time of a pid file; the pid is 0 if the file is incomplete."""
    pid, _, start = pid_file.read_text(errors="replace").partition(" ")
    return (int(pid), start) if pid.isdecimal() and start else (0, "")


def start_of(pid: int) -> str:
    """Return the boot's id and the process's start time; with the pid they identify a process.

    The kernel counts the start time from the boot, so setting the clock does not change it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return str(psutil.Process(pid).create_time())  # without /proc, as on macOS
    ticks = stat.rpartition(")")[2].split()[19]
    return f"{boot}/{ticks}"


def is_ours(leader: int, start: str, run_dir: Path) -> bool:
    """Return whether the session still exists that this pid began at this start time."""
    if leader <= 1 or boot_of(start) != boot_of(start_of(os.getpid())):
        return False
    try:
        return start_of(leader) == start
    except psutil.NoSuchProcess:
        # Its children may still run. So may those of a later process with the same pid.
        return all(is_marked(pid, run_dir) for pid in session(leader))


def boot_of(start: str) -> str:
    return start.rpartition("/")[0]


def is_marked(pid: int, run_dir: Path) -> bool:
    """Return whether the process belongs to this run folder or has ended."""
    try:
        return psutil.Process(pid).environ().get("TMPDIR") == str(run_dir / "tmp")
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def run_to_end(
    argv: list[str],
    env: dict[str, str],
    log: Path,
    stopping: threading.Event | None = None,
    patience: float = 240.0,
) -> tuple[int, str]:
    """Run a command and return its exit code and output, which is also appended to the log.

    Raises ``Stopping`` once ``stopping`` is set, and ``StackError`` after ``patience`` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+b") as out:
        begin = out.seek(0, os.SEEK_END)
        process = spawn(argv, env, out)
        deadline = time.monotonic() + patience
        try:
            while process.poll() is None:
                if stopping and stopping.is_set():
                    raise Stopping
                if time.monotonic() > deadline:
                    raise StackError(
                        f"{Path(argv[0]).name} did not end within {patience:.0f} s; see {log}"
                    )
                time.sleep(0.05)
        finally:
            kill_session(process.pid)
            process.wait()
        out.seek(begin)
        return process.returncode, out.read().decode(errors="replace")
