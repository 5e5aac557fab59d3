"""The jars of Kafka and of Flink's connector, downloaded once and compared with their locks."""

import fcntl
import hashlib
import shutil
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from local.process import StackError
from settings import HERE

JARS = HERE / ".local" / "java"


def fetch_jars(progress: Callable[[Iterable, int], Iterable] = lambda items, total: items) -> bool:
    """Download the missing jars of local/java/*/jgo.lock.toml into .local/java/*.

    Returns whether any was missing. Each jar's SHA-256 is compared with its lock before the jar is
    put in its place. ``progress`` wraps the downloads, given their number. Raises ``StackError``
    without a network, or for a jar that is not the locked one.
    """
    if have_jars():
        return False
    JARS.mkdir(parents=True, exist_ok=True)
    with (JARS / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # a make run and a make test may both be the first
        jars = locked_jars()
        for jar in set(JARS.glob("*/*.jar")) - set(jars):
            jar.unlink()
        with ThreadPoolExecutor(8) as pool:
            for _ in progress(pool.map(fetch_jar, jars, jars.values()), len(jars)):
                pass
        shutil.rmtree(JARS / "repository", ignore_errors=True)
        (JARS / "locks.sha256").write_text(sha256_of_locks())
    return True


def have_jars() -> bool:
    """Return whether every locked jar is in its place, checked against the present lock files.

    The jars' contents were checked when they were downloaded; here only their presence is.
    """
    done = JARS / "locks.sha256"
    if not done.exists() or done.read_text() != sha256_of_locks():
        return False
    return all(jar.is_file() for jar in locked_jars())


def locked_jars() -> dict[Path, dict]:
    """Return each jar's place with its entry in the lock file."""
    return {
        JARS / lock.parent.name / jar_name(entry): entry
        for lock in jar_locks()
        for entry in tomllib.loads(lock.read_text())["dependencies"]
    }


def sha256_of_locks() -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in jar_locks())).hexdigest()


def jar_locks() -> list[Path]:
    return sorted(HERE.glob("local/java/*/jgo.lock.toml"))


def jar_name(entry: dict) -> str:
    return f"{entry['artifactId']}-{entry['version']}.jar"


def fetch_jar(place: Path, entry: dict) -> None:
    """Download a locked jar unless it is in its place; raises ``StackError``."""
    # Imported here: jgo is needed at the first run only, and its import takes a second.
    import requests
    from jgo.maven import MavenContext

    if place.exists() and sha256(place) == entry["sha256"]:
        return
    context = MavenContext(repo_cache=JARS / "repository", timeout=30)
    project = context.project(entry["groupId"], entry["artifactId"])
    artifact = project.at_version(entry["version"]).artifact()
    if artifact.cached_path:
        artifact.cached_path.unlink(missing_ok=True)  # half a file of a run that was killed
    try:
        fetched = artifact.resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise StackError(
            f"{place.name} could not be downloaded ({type(error).__name__}): "
            "the first run needs a network."
        ) from error
    if sha256(fetched) != entry["sha256"]:
        raise StackError(
            f"{place.name} is not the locked file: "
            "its SHA-256 differs from local/java/*/jgo.lock.toml."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(place)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
