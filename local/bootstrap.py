"""Run a program of this project in the project's own environment, after making that environment.

    python3 local/bootstrap.py [SET...] PROGRAM [ARGUMENT...]
    python3 local/bootstrap.py --clean

Sets of packages besides requirements.txt: --dev, --bench, --forecast; --contenders and --airflow
each have their own environment beside the project's. Needs nothing but Python 3.11 or 3.12.
What it makes is in .local; nothing is installed twice.
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
AIRFLOW_VENV = LOCAL / "venv-airflow"
CONTENDERS_VENV = LOCAL / "venv-bench"
BASE = "requirements.txt"
SETS = {  # option -> environment, requirements file
    "--dev": (VENV, "requirements/dev.txt"),
    "--bench": (VENV, "requirements/bench.txt"),
    "--forecast": (VENV, "forecast/requirements.txt"),
    "--contenders": (CONTENDERS_VENV, "benchmarks/contenders/requirements.txt"),
    "--airflow": (AIRFLOW_VENV, "forecast/requirements-airflow.txt"),
}
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
    """Make the environments that are asked for and become the program in the project's own."""
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
                make_environment(VENV, BASE)  # it finds what a killed run left running
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


def install(sets: list[str]) -> None:
    """Bring the project's environment, and those of the sets, to what their files pin."""
    if not any(SETS[name][0] == VENV for name in sets):
        make_environment(VENV, BASE)  # the other files include it
    for name in sets:
        make_environment(*SETS[name])


def make_environment(venv: Path, requirements: str) -> None:
    """Bring an environment to what the requirements file pins; does nothing if it is there."""
    files = [BASE] if venv == VENV else []
    if requirements not in files:
        files.append(requirements)
    stamp = venv / f"{requirements.replace('/', '-')}.sha256"
    pins = hashlib.sha256(b"".join(path.read_bytes() for path in included(files))).hexdigest()
    python = venv / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text() == pins:
        return
    free = shutil.disk_usage(LOCAL).free
    if free < DISK_BYTES:
        sys.exit(
            f"{LOCAL} has {free / 1e9:.1f} GB of free disk; the environment needs {DISK_BYTES / 1e9:.0f} GB."
        )
    make_uv()
    uv = str(VENV / "bin" / "uv")
    if not python.exists():
        step(venv.name, [uv, "venv", "--python", str(PYTHON), str(venv)])
    named = [argument for file in files for argument in ("-r", str(HERE / file))]
    target = ["--python", str(python), "--compile-bytecode"]
    step(f"packages of {requirements}", [uv, "pip", "install", *target, *named])
    stamp.write_text(pins)


def make_uv() -> None:
    """Make the project's environment with uv in it, which installs everything else."""
    if not (VENV / "bin" / "pip").exists():
        step("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    if not (VENV / "bin" / "uv").exists():
        pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
        step("uv", [*pip, "--timeout", "20", "--retries", "2", "install", UV])


def included(requirements: list[str]) -> list[Path]:
    """Return the requirements files and those that they include with ``-r``, each once, sorted."""
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
    """Run one step, its output in the log, and say how long it has taken; exits with a sentence when it fails."""
    began = time.monotonic()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if sys.stdout.isatty():
                    print(
                        f"\r\033[K  {title}: {time.monotonic() - began:.0f} s  {last_line()}",
                        end="",
                        flush=True,
                    )
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    print(
        "\r\033[K" * sys.stdout.isatty() + f"  {title}: {time.monotonic() - began:.0f} s",
        flush=True,
    )
    if process.returncode:
        sys.exit(
            f"The step '{title}' failed; the first run needs a network, and the log says what was missing: {LOG}"
        )


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
