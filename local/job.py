"""The Flink job as make run keeps it: submitted from its newest checkpoint, looked at, stopped with a savepoint."""

import re
import shutil
import threading
import time
from pathlib import Path

from local import parts as local_parts
from local.process import StackError, run_to_end
from settings import Settings

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
    """The one job of a run; what is wrong with it stands in ``problem``, empty while it runs."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self.settings = settings
        self.stopping = stopping
        self.log = settings.run_dir / "log" / "job.log"
        self.id = ""
        self.problem = ""
        self.wanted = True  # whether it is to be submitted (again)
        self.untried: Path | None = None  # the restore point that the job has not yet run from
        self.aside: list[str] = []  # the restore points that did not fit

    def submit(self) -> None:
        """Run ``flink run`` from the newest restore point that fits, if any; raises ``StackError``."""
        while not self._submit():
            pass

    def _submit(self) -> bool:
        """Run ``flink run`` and return whether the job was accepted; False where its restore point did not fit."""
        self.untried = next(iter(restore_points(self.settings.run_dir)), None)
        resume = ["-s", str(self.untried), "-claimMode", "CLAIM"] if self.untried else []
        address = f"{self.settings.flink_host}:{self.settings.flink_port}"
        flink = str(local_parts.VENV_BIN / "flink")
        code, output = run_to_end(
            [flink, "run", "-d", "-m", address, *resume, "-py", str(local_parts.HERE / f"{NAME}.py")],
            local_parts.flink_environment(self.settings), self.log, self.stopping,
        )  # fmt: skip
        found = re.search(r"JobID ([0-9a-f]{32})", output)
        if code or not found:
            if UNFIT.search(output) and self._set_aside():
                return False
            said = re.findall(rf"^{NAME}\.py: (.+)$", output, re.MULTILINE)
            raise StackError(said[-1] if said else f"The job was not accepted; its log says why: {self.log}")
        self.id, self.problem, self.wanted = found.group(1), "starting", False
        return True

    def _set_aside(self) -> bool:
        """Leave out the restore point that the job was to run from; returns False where there is none."""
        if not self.untried or not (self.untried / "_metadata").exists():
            return False
        (self.untried / "_metadata").rename(self.untried / "_metadata.unusable")
        self.aside.append(self.untried.name)
        return True

    def look(self) -> None:
        """Bring ``problem`` and ``wanted`` up to date; raises ``OSError`` where the JobManager does not answer."""
        jobs = [job for job in local_parts.rest(self.settings, "/jobs/overview")["jobs"] if job["name"] == NAME]
        if not jobs:
            self.problem, self.wanted = "gone with the JobManager", True
            return
        self.wanted = False
        # One that was submitted by hand in place of ours is taken over.
        job = max(jobs, key=lambda job: (job["state"] not in ENDED, job["start-time"]))
        self.id, state = job["jid"], job["state"]
        if state == "RUNNING" and job["tasks"]["running"] == job["tasks"]["total"]:
            self.problem, self.untried = "", None
        elif state in ("CANCELED", "FINISHED"):
            self.problem = "stopped in Flink; make run takes it up again when it is started anew"
        else:
            self._look_at_failure(state)

    def _look_at_failure(self, state: str) -> None:
        history = local_parts.rest(self.settings, f"/jobs/{self.id}/exceptions")["exceptionHistory"]["entries"]
        trace = history[0]["stacktrace"] if history else ""
        why = reason(trace)
        self.problem = ": ".join(filter(None, ["starting" if state == "RUNNING" else state.lower(), why]))
        if state != "FAILED" or STOP in why:
            return
        self.wanted = True
        # A job that never ran may as well have waited in vain for Kafka: then its restore point is good.
        if UNFIT.search(trace) and self._set_aside():
            self.problem = f"could not start from {self.aside[-1]}, which is left aside: {why}"

    def stop(self, hurry: threading.Event) -> Path | None:
        """Stop the job with a savepoint and return it; None where it does not run or no savepoint comes about."""
        body = {"drain": False, "formatType": "CANONICAL"}
        try:
            trigger = local_parts.rest(self.settings, f"/jobs/{self.id}/stop", body)["request-id"]
            deadline = time.monotonic() + SAVEPOINT_SECONDS
            while time.monotonic() < deadline and not hurry.wait(0.1):
                found = local_parts.rest(self.settings, f"/jobs/{self.id}/savepoints/{trigger}")
                if found["status"]["id"] == "COMPLETED":
                    location = found["operation"].get("location")
                    return Path(location.removeprefix("file:")) if location else None
        except OSError:
            return None  # no JobManager, or it knows no such running job: its last checkpoint is kept
        return None


def reason(trace: str) -> str:
    """Return the Python exception that a Java stack trace carries, else its last Java one, as ``Class: text``."""
    python = re.findall(r"^(?!Caused|java\.|org\.)(?:\w+\.)*(\w+: .+)$", trace, re.MULTILINE)
    java = re.findall(r"^(?:Caused by: )?(?:[\w$]+\.)+(\w+: .+)$", trace, re.MULTILINE)
    return (python or java or [""])[-1][:300]


def restore_points(run_dir: Path) -> list[Path]:
    """Return the folders of completed savepoints and checkpoints, the newest first."""
    found = [*run_dir.glob("savepoints/*/_metadata"), *run_dir.glob("checkpoints/*/chk-*/_metadata")]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def set_restore_points_aside(run_dir: Path) -> None:
    """Have the next submission start without ``-s``: the positions in these are not the model's any more."""
    for point in restore_points(run_dir):
        (point / "_metadata").rename(point / "_metadata.before_accept")


def prune_restore_points(run_dir: Path) -> None:
    """Delete what earlier jobs left, but for the newest restore points; call it while no job runs."""
    kept = restore_points(run_dir)[:KEPT]
    for folder in [*run_dir.glob("savepoints/*"), *run_dir.glob("checkpoints/*/chk-*"), *run_dir.glob("checkpoints/*")]:
        if not any(point.is_relative_to(folder) for point in kept):
            shutil.rmtree(folder, ignore_errors=True)
