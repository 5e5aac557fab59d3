"""Run a program of this project in the project's own environment, after making that environment.

    python3 local/bootstrap.py [--dev] PROGRAM [ARGUMENT...]
    python3 local/bootstrap.py --clean

Needs nothing but Python 3.11 or 3.12. What it makes is in .local/venv; nothing is installed twice.
"""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 12):  # before whatever an older Python cannot read
    sys.exit(
        f"This project runs on Python 3.11 or 3.12, and this is {sys.version.split()[0]}: choose one with "
        "'make run PYTHON=python3.12' or 'python3.12 local/bootstrap.py -m local.stack run'."
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

HERE = Path(__file__).resolve().parent.parent
LOCAL = HERE / ".local"
VENV = LOCAL / "venv"
PYTHON = VENV / "bin" / "python"
LOG = LOCAL / "log" / "setup.log"
PATH_BYTES = 3_000  # the system's limit is 4,096 with what lies inside
UV = "uv==0.13.8"  # installs the requirements in a tenth of pip's time
DISK_BYTES = 3_000_000_000
MADE = (
    "venv",
    "venv-airflow",
    "venv-bench",
    "java",
    "forecast",
    "log",
    ".cache",
    "setup.lock",
    "use.lock",
)


def main(arguments: list[str]) -> None:
    """Make the environment and become the program in it."""
    use_whole_paths()
    if arguments == ["--clean"]:
        clean()
        return
    dev = arguments[:1] == ["--dev"]
    program = arguments[1:] if dev else arguments
    if not program:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with (LOCAL / "setup.lock").open("w") as turn:
        take_turn(turn)
        make_environment("requirements/dev.txt" if dev else "requirements.txt")
    os.chdir(HERE)
    os.execv(PYTHON, [str(PYTHON), *program])  # noqa: S606 - the program that was asked for


def use_whole_paths() -> None:
    """Make relative paths in the environment absolute, and refuse those that no part can use."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(LOCAL)  # a user without a home, as in a container
    for name in ("RUN_DIR", "MODEL_SIGNING_KEY_FILE"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))
    problem = unusable(str(HERE))
    if problem:
        sys.exit(f"The project's folder {str(HERE)!a} {problem}: move the project.")
    run_dir = os.environ.get("RUN_DIR", "")
    problem = unusable(run_dir)
    if problem:
        sys.exit(f"RUN_DIR {run_dir!a} {problem}: choose another folder.")


def unusable(path: str) -> str:
    """Return what is wrong with a path that Java, Kafka or Flink would misread, or nothing."""
    separators = {"a colon": ":", "a comma": ",", "a backslash": "\\"}
    held = [name for name, character in separators.items() if character in path]
    if held:
        return f"holds {held[0]}, which separates paths for Java, Kafka or Flink"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "holds a control character"
    if any("\ud800" <= character <= "\udfff" for character in path):
        return "is not UTF-8"
    if len(os.fsencode(path)) > PATH_BYTES:
        return f"is longer than {PATH_BYTES:,} bytes"
    return ""


def clean() -> None:
    """Delete what make run made in its folder, and with the default folder the environment, too."""
    run_dir = Path(os.environ.get("RUN_DIR") or LOCAL)
    everything = run_dir.resolve() == LOCAL.resolve()
    if not run_dir.exists():
        return
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "setup.lock").open("w") as setup, (LOCAL / "use.lock").open("a") as use:
        hold(setup, "another process is making the environment")
        if everything:
            hold(use, f"a make run uses what is in {LOCAL}")
        if (run_dir / "run.lock").exists():
            if not any(VENV.glob("*.sha256")):
                make_environment("requirements.txt")  # it finds what a killed run left running
            argv = [str(PYTHON), "-m", "local.stack", "clean"]
            code = subprocess.run(argv, cwd=HERE, check=False).returncode
            if code:
                sys.exit(code)
        if everything:
            for name in MADE:
                remove(LOCAL / name)
            with contextlib.suppress(OSError):  # not empty: a person's files
                LOCAL.rmdir()


def hold(lock, why: str) -> None:
    """Take the lock for make clean, or exit with a sentence."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"make clean: {why}: stop it first.")


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link but not where it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_turn(turn) -> None:
    """Wait while another process makes the same environment."""
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting: another process is making the environment.", flush=True)
        fcntl.flock(turn, fcntl.LOCK_EX)


def make_environment(requirements: str) -> None:
    """Bring .local/venv to what the requirements file pins; does nothing when it is there."""
    pins = b"".join((HERE / name).read_bytes() for name in sorted({"requirements.txt", requirements}))
    stamp, wanted = VENV / f"{Path(requirements).name}.sha256", hashlib.sha256(pins).hexdigest()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    free = shutil.disk_usage(LOCAL).free
    if free < DISK_BYTES:
        sys.exit(f"{LOCAL} has {free / 1e9:.1f} GB of free disk; the environment needs {DISK_BYTES / 1e9:.0f} GB.")
    if not (VENV / "bin" / "pip").exists():
        step("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--timeout", "20", "--retries", "2"]
    if not (VENV / "bin" / "uv").exists():
        step("uv", [*pip, "install", UV])
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), "--compile-bytecode"]
    step(f"packages of {requirements}", [*uv, "-r", str(HERE / requirements)])
    stamp.write_text(wanted)


def step(title: str, argv: list[str]) -> None:
    """Run one step, its output in the log, and say how long it has taken; exits with a sentence when it fails."""
    began = time.monotonic()
    with LOG.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if sys.stdout.isatty():
                    print(f"\r\033[K  {title}: {time.monotonic() - began:.0f} s  {last_line()}", end="", flush=True)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    print("\r\033[K" * sys.stdout.isatty() + f"  {title}: {time.monotonic() - began:.0f} s", flush=True)
    if process.returncode:
        sys.exit(f"The step '{title}' failed; the first run needs a network, and the log says what was missing: {LOG}")


def last_line() -> str:
    """Return the newest line of the log, cut to half a line of the terminal."""
    lines = LOG.read_bytes()[-500:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:50]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"{error.filename or LOCAL}: {error.strerror}.")
