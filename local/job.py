"""The Flink job of ``make run``: submitted from the newest checkpoint, watched, stopped with a savepoint."""

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
STOP = "StopJob: "  # what trainer.py raises where only a person can decide how to go on
# What Flink's stack trace holds where the restore point itself can't be read or fits another job.
UNFIT = re.compile(
    r"CheckpointCoordinator\.restoreSavepoint|Could not restore \w+ state backend|StateMigrationException|"
    r"SimpleVersioned(?:Serialization|ListState)"
)
KEPT = 3  # restore points kept from earlier runs
SAVEPOINT_SECONDS = 30


class Job:
    """The one job of a run; ``problem`` says what is wrong with it and is empty while it runs."""

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
        """Run ``flink run`` from the newest restore point that fits, if any; raises ``StackError``."""
        while not self._submit():
            pass

    def _submit(self) -> bool:
        """Run ``flink run`` and return whether the job was accepted; False where its restore point did not fit."""
        self.restore_point = next(iter(restore_points(self.settings.run_dir)), None)
        resume = (
            ["-s", str(self.restore_point), "-claimMode", "CLAIM"] if self.restore_point else []
        )
        address = f"{self.settings.flink_host}:{self.settings.flink_port}"
        flink = str(VENV_BIN / "flink")
        code, output = run_to_end(
            [flink, "run", "-d", "-m", address, *resume, "-py", str(HERE / f"{NAME}.py")],
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
            raise StackError(f"The job was not accepted; its log says why: {self.log}")
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
        """Bring ``problem`` and ``needs_submit`` up to date; raises ``OSError`` where the JobManager does not answer."""
        jobs = [
            job
            for job in flink_cluster.rest(self.settings, "/jobs/overview")["jobs"]
            if job["name"] == NAME
        ]
        if not jobs:
            self.problem, self.needs_submit = "gone with the JobManager", True
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
        history = flink_cluster.rest(self.settings, f"/jobs/{self.id}/exceptions")[
            "exceptionHistory"
        ]["entries"]
        trace = history[0]["stacktrace"] if history else ""
        why = reason(trace)
        self.problem = ": ".join(
            filter(None, ["starting" if state == "RUNNING" else state.lower(), why])
        )
        if state != "FAILED" or STOP in why:
            return
        self.needs_submit = True
        # A job that never ran may have waited for Kafka in vain; then its restore point is good.
        if UNFIT.search(trace) and self._skip_restore_point():
            self.problem = (
                f"could not start from {self.unusable[-1]}, which is skipped from now on: {why}"
            )

    def stop(self, force: threading.Event) -> Path | None:
        """Stop the job with a savepoint and return it; None if the job does not run or none is made."""
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
            return (
                None  # no JobManager, or it knows no such running job: its last checkpoint is kept
            )
        return None


def reason(trace: str) -> str:
    """Return the Python exception that a Java stack trace carries, else its last Java one, as ``Class: text``."""
    python = re.findall(r"^(?!Caused|java\.|org\.)(?:\w+\.)*(\w+: .+)$", trace, re.MULTILINE)
    java = re.findall(r"^(?:Caused by: )?(?:[\w$]+\.)+(\w+: .+)$", trace, re.MULTILINE)
    return (python or java or [""])[-1][:300]


def restore_points(run_dir: Path) -> list[Path]:
    """Return the folders of completed savepoints and checkpoints, the newest first."""
    found = [
        *run_dir.glob("savepoints/*/_metadata"),
        *run_dir.glob("checkpoints/*/chk-*/_metadata"),
    ]
    return [
        path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    ]


def skip_restore_points(run_dir: Path) -> None:
    """Let the next submission start without ``-s``: these positions no longer belong to the model."""
    for point in restore_points(run_dir):
        (point / "_metadata").rename(point / "_metadata.before_accept")


def prune_restore_points(run_dir: Path) -> None:
    """Delete all but the newest restore points of earlier jobs; only while no job runs."""
    kept = restore_points(run_dir)[:KEPT]
    for folder in [
        *run_dir.glob("savepoints/*"),
        *run_dir.glob("checkpoints/*/chk-*"),
        *run_dir.glob("checkpoints/*"),
    ]:
        if not any(point.is_relative_to(folder) for point in kept):
            shutil.rmtree(folder, ignore_errors=True)
