"""The Flink job of ``make run``: submitted from its newest checkpoint, stopped with a savepoint."""

import re
import shutil
import threading
import time
from pathlib import Path

from local import flink_cluster
from local.environment import VENV_BIN
from local.process import StackError, run_to_end
from settings import HERE, Settings

NAME = "online_learning"
ENDED = {"FAILED", "CANCELED", "FINISHED"}
STOP = "StopJob: "  # raised by loop/trainer.py if only a person can decide how to continue
# Flink's stack trace holds one of these if the restore point can't be read or fits another job.
UNFIT = re.compile(
    r"CheckpointCoordinator\.restoreSavepoint"
    r"|Could not restore \w+ state backend"
    r"|StateMigrationException"
    r"|SimpleVersioned(?:Serialization|ListState)"
)
KEPT = 3  # restore points (savepoints and checkpoints) kept from earlier runs
SAVEPOINT_SECONDS = 30


class Job:
    """The job of a run; ``problem`` says in a phrase why it does not run, or is empty."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self.settings = settings
        self.stopping = stopping
        self.log = settings.run_dir / "log" / "job.log"
        self.id = ""
        self.problem = ""
        self.needs_submit = True
        self.restore_point: Path | None = None  # given to flink run; None once the job runs
        self.unusable: list[str] = []  # names of restore points that did not fit

    def submit(self) -> None:
        """Submit the job from the newest restore point that fits, if any; raises ``StackError``."""
        while not self._submit():
            pass

    def _submit(self) -> bool:
        """Run ``flink run``; return False if the restore point did not fit and is skipped now."""
        self.restore_point = next(iter(restore_points(self.settings.run_dir)), None)
        restore = []
        if self.restore_point:
            restore = ["-s", str(self.restore_point), "-claimMode", "CLAIM"]
        address = f"{self.settings.flink_host}:{self.settings.flink_port}"
        run = [str(VENV_BIN / "flink"), "run", "-d", "-m", address]
        code, output = run_to_end(
            [*run, *restore, "-py", str(HERE / f"{NAME}.py")],
            flink_cluster.flink_environment(self.settings),
            self.log,
            self.stopping,
        )
        found = re.search(r"JobID ([0-9a-f]{32})", output)
        if code or not found:
            if UNFIT.search(output) and self._skip_restore_point():
                return False
            errors = re.findall(rf"^{NAME}\.py: (.+)$", output, re.MULTILINE)
            if errors:
                raise StackError(errors[-1])
            raise StackError(f"Flink did not accept the job; the log says why: {self.log}")
        self.id, self.problem, self.needs_submit = found.group(1), "starting", False
        return True

    def _skip_restore_point(self) -> bool:
        """Mark the job's restore point as unusable; returns False if there is none."""
        if not self.restore_point or not (self.restore_point / "_metadata").exists():
            return False
        (self.restore_point / "_metadata").rename(self.restore_point / "_metadata.unusable")
        self.unusable.append(self.restore_point.name)
        return True

    def refresh(self) -> None:
        """Update ``problem`` and ``needs_submit``.

        Raises ``OSError`` if the JobManager does not answer.
        """
        overview = flink_cluster.rest(self.settings, "/jobs/overview")
        jobs = [job for job in overview["jobs"] if job["name"] == NAME]
        if not jobs:
            self.problem, self.needs_submit = "lost with the JobManager", True
            return
        self.needs_submit = False
        # A job that the user submitted by hand replaces ours.
        job = max(jobs, key=lambda job: (job["state"] not in ENDED, job["start-time"]))
        self.id, state = job["jid"], job["state"]
        if state == "RUNNING" and job["tasks"]["running"] == job["tasks"]["total"]:
            self.problem, self.restore_point = "", None
        elif state in ("CANCELED", "FINISHED"):
            self.problem = "stopped in Flink; the next make run starts it again"
        else:
            self._read_failure(state)

    def _read_failure(self, state: str) -> None:
        """Set ``problem`` from the job's newest exception, and ``needs_submit`` if it failed."""
        exceptions = flink_cluster.rest(self.settings, f"/jobs/{self.id}/exceptions")
        history = exceptions["exceptionHistory"]["entries"]
        trace = history[0]["stacktrace"] if history else ""
        why = reason(trace)
        name = "starting" if state == "RUNNING" else state.lower()
        self.problem = f"{name}: {why}" if why else name
        if state != "FAILED" or STOP in why:
            return
        self.needs_submit = True
        # A job that never ran may only have waited for Kafka; then its restore point is good.
        if UNFIT.search(trace) and self._skip_restore_point():
            self.problem = f"could not start from {self.unusable[-1]}, which is skipped now: {why}"

    def stop(self, force: threading.Event) -> Path | None:
        """Stop the job with a savepoint and return its folder, or None if there is no savepoint."""
        body = {"drain": False, "formatType": "CANONICAL"}
        try:
            trigger = flink_cluster.rest(self.settings, f"/jobs/{self.id}/stop", body)["request-id"]
            deadline = time.monotonic() + SAVEPOINT_SECONDS
            while time.monotonic() < deadline and not force.wait(0.1):
                found = flink_cluster.rest(self.settings, f"/jobs/{self.id}/savepoints/{trigger}")
                if found["status"]["id"] == "COMPLETED":
                    location = found["operation"].get("location")
                    return Path(location.removeprefix("file:")) if location else None
        except OSError:
            return None  # no JobManager, or no such running job; its last checkpoint is kept
        return None


def reason(trace: str) -> str:
    """Return the last Python exception in a Java stack trace as ``Class: text``.

    If there is none, return the last Java exception.
    """
    python = re.findall(r"^(?!Caused|java\.|org\.)(?:\w+\.)*(\w+: .+)$", trace, re.MULTILINE)
    java = re.findall(r"^(?:Caused by: )?(?:[\w$]+\.)+(\w+: .+)$", trace, re.MULTILINE)
    return (python or java or [""])[-1][:300]


def restore_points(run_dir: Path) -> list[Path]:
    """Return the folders of completed savepoints and checkpoints, the newest first."""
    found = [
        *run_dir.glob("savepoints/*/_metadata"),
        *run_dir.glob("checkpoints/*/chk-*/_metadata"),
    ]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in found]


def skip_restore_points(run_dir: Path) -> None:
    """Let the next submission start without ``-s``: the old positions do not fit the model now."""
    for point in restore_points(run_dir):
        (point / "_metadata").rename(point / "_metadata.before_accept")


def prune_restore_points(run_dir: Path) -> None:
    """Delete all but the newest restore points; call this only while no job runs."""
    kept = restore_points(run_dir)[:KEPT]
    patterns = ("savepoints/*", "checkpoints/*/chk-*", "checkpoints/*")
    folders = [folder for pattern in patterns for folder in run_dir.glob(pattern)]
    for folder in folders:
        if not any(point.is_relative_to(folder) for point in kept):
            shutil.rmtree(folder, ignore_errors=True)
