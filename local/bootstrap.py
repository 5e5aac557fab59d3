"""Set-up: creates the project's environment if needed and runs a program in it.

    python3 local/bootstrap.py [SET...] PROGRAM [ARGUMENT...]
    python3 local/bootstrap.py --clean

SET adds packages to those of requirements.txt: --dev, --bench or --forecast. --contenders,
--airflow and --audit each create a separate environment. Every package is checked against the
hashes in requirements/*.lock, which ``make lock`` writes. Only Python 3.11 or 3.12 is needed. Everything is
created in .local, and nothing is installed twice.
"""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 12):  # before imports that an older Python lacks
    sys.exit(
        "This project runs on Python 3.11 or 3.12, and this is "
        f"{sys.version.split()[0]}: choose one with 'make run PYTHON=python3.12' or "
        "'python3.12 local/bootstrap.py -m local.stack run'."
    )

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from paths import why_unusable  # noqa: E402 - a script finds the project's root only now

LOCAL = HERE / ".local"
VENV = LOCAL / "venv"
PYTHON = VENV / "bin" / "python"
LOG = LOCAL / "log" / "setup.log"
UV = "requirements/uv.lock"
DISK_BYTES = 3_000_000_000
AIRFLOW_VENV = LOCAL / "venv-airflow"
CONTENDERS_VENV = LOCAL / "venv-bench"
AUDIT_VENV = LOCAL / "venv-audit"
LOCKS = {
    VENV: "requirements/project.lock",
    AIRFLOW_VENV: "requirements/airflow.lock",
    CONTENDERS_VENV: "requirements/contenders.lock",
    AUDIT_VENV: "requirements/audit.lock",
}
BASE = "requirements.txt"
SETS = {  # option -> environment, requirements file
    "--dev": (VENV, "requirements/dev.txt"),
    "--bench": (VENV, "requirements/bench.txt"),
    "--forecast": (VENV, "forecast/requirements.txt"),
    "--contenders": (CONTENDERS_VENV, "benchmarks/contenders/requirements.txt"),
    "--airflow": (AIRFLOW_VENV, "forecast/requirements-airflow.txt"),
    "--audit": (AUDIT_VENV, "requirements/audit.txt"),
}
MADE = (
    "venv",
    "venv-airflow",
    "venv-bench",
    "venv-audit",
    "java",
    "forecast",
    "log",
    ".cache",
    "setup.lock",
    "use.lock",
)


def main(arguments: list[str]) -> None:
    """Create the environments of the sets, then replace this process by the program."""
    use_whole_paths()
    if arguments == ["--clean"]:
        clean()
        return
    program = list(arguments)
    sets = []
    while program and program[0] in SETS:
        sets.append(program.pop(0))
    if not program:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with (LOCAL / "setup.lock").open("w") as turn:
        take_turn(turn)
        install(sets)
    os.chdir(HERE)
    os.execv(PYTHON, [str(PYTHON), *program])  # noqa: S606 - the user's command


def use_whole_paths() -> None:
    """Make the paths in environment variables absolute; exit if Java could not use one."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(LOCAL)  # a user without a home folder, as in a container
    for name in ("RUN_DIR", "MODEL_SIGNING_KEY_FILE"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))
    folders = {"The project's folder": str(HERE), "RUN_DIR": os.environ.get("RUN_DIR", "")}
    for name, folder in folders.items():
        if problem := why_unusable(folder):
            sys.exit(f"{name}: {problem}")


def clean() -> None:
    """Delete what make run created in RUN_DIR; with the default RUN_DIR also the environment."""
    run_dir = Path(os.environ.get("RUN_DIR") or LOCAL)
    everything = run_dir.resolve() == LOCAL.resolve()
    if not run_dir.exists():
        return
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "setup.lock").open("w") as setup, (LOCAL / "use.lock").open("a") as use:
        hold(setup, "another process is creating the environment")
        if everything:
            hold(use, f"a make run uses {LOCAL}")
        if (run_dir / "run.lock").exists():
            if not any(VENV.glob("*.sha256")):
                make_environment(VENV, BASE)  # it finds the processes of a killed run
            argv = [str(PYTHON), "-m", "local.stack", "clean"]
            code = subprocess.run(argv, cwd=HERE, check=False).returncode
            if code:
                sys.exit(code)
        if everything:
            for name in MADE:
                remove(LOCAL / name)
            with contextlib.suppress(OSError):  # not empty: a person's files
                LOCAL.rmdir()


def hold(lock: IO[str], why: str) -> None:
    """Take the lock for make clean; exit with ``why`` if another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"make clean: {why}: stop it first.")


def remove(path: Path) -> None:
    """Delete a file, a folder with its contents, or a link without its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_turn(turn: IO[str]) -> None:
    """Wait while another process creates the same environment."""
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting: another process is creating the environment.", flush=True)
        fcntl.flock(turn, fcntl.LOCK_EX)


def install(sets: list[str]) -> None:
    """Install what the requirements files of the project and of the sets pin."""
    if not any(SETS[name][0] == VENV for name in sets):
        make_environment(VENV, BASE)  # the other files include it
    for name in sets:
        make_environment(*SETS[name])


def make_environment(venv: Path, requirements: str) -> None:
    """Create an environment with the pinned packages; do nothing if it has them already."""
    files = [BASE] if venv == VENV else []
    if requirements not in files:
        files.append(requirements)
    stamp = venv / f"{requirements.replace('/', '-')}.sha256"
    pinned = [*included(files), HERE / LOCKS[venv]]
    pins = hashlib.sha256(b"".join(path.read_bytes() for path in pinned)).hexdigest()
    python = venv / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text() == pins:
        return
    free = shutil.disk_usage(LOCAL).free
    if free < DISK_BYTES:
        sys.exit(
            f"{LOCAL} has {free / 1e9:.1f} GB of free disk; "
            f"the environment needs {DISK_BYTES / 1e9:.0f} GB."
        )
    make_uv()
    uv = str(VENV / "bin" / "uv")
    if not python.exists():
        step(venv.name, [uv, "venv", "--python", str(PYTHON), str(venv)])
    named = [argument for file in files for argument in ("-r", str(HERE / file))]
    options = ["--python", str(python), "--compile-bytecode"]
    hashes = ["--require-hashes", "-c", str(HERE / LOCKS[venv])]
    step(f"packages of {requirements}", [uv, "pip", "install", *options, *hashes, *named])
    stamp.write_text(pins)


def make_uv() -> None:
    """Create the project's environment with uv, which installs everything else."""
    if not (VENV / "bin" / "pip").exists():
        step("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    if not (VENV / "bin" / "uv").exists():
        pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
        patience = ["--timeout", "20", "--retries", "2"]
        step("uv", [*pip, *patience, "install", "--require-hashes", "-r", str(HERE / UV)])


def included(requirements: list[str]) -> list[Path]:
    """Return these requirements files and all that they include with ``-r``, sorted."""
    found: set[Path] = set()
    waiting = [HERE / file for file in requirements]
    while waiting:
        path = waiting.pop().resolve()
        if path in found:
            continue
        found.add(path)
        for line in path.read_text().splitlines():
            option, _, file = line.partition(" ")
            if option == "-r":
                waiting.append(path.parent / file.strip())
    return sorted(found)


def step(title: str, argv: list[str]) -> None:
    """Run a command with its output in the log and show its duration; exit if it fails."""
    began = time.monotonic()
    clear_line = "\r\033[K" if sys.stdout.isatty() else ""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                seconds = time.monotonic() - began
                if clear_line:
                    text = f"{clear_line}  {title}: {seconds:.0f} s  {last_line()}"
                    print(text, end="", flush=True)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    print(f"{clear_line}  {title}: {time.monotonic() - began:.0f} s", flush=True)
    if process.returncode:
        sys.exit(
            f"The step '{title}' failed; the first run needs a network. "
            f"The log says what was missing: {LOG}"
        )


def last_line() -> str:
    """Return the last line of the log, cut to 50 characters."""
    lines = LOG.read_bytes()[-500:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:50]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{error.filename or LOCAL}: {error.strerror}.")
