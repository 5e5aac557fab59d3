"""The jars of Kafka and of Flink's connector, fetched once and compared with their locks."""

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
    """Fetch the jars that local/java/*/jgo.lock.toml name into .local/java/*, and return whether any was not there.

    Raises ``StackError`` without a network, or for a jar that is not the locked one.

    Each jar's SHA-256 is compared with the lock before the jar goes to its place; nothing is fetched twice.
    """
    if have_jars():
        return False
    locks = jar_locks()
    JARS.mkdir(parents=True, exist_ok=True)
    with (JARS / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # a make run and a make test may both be the first
        jars = {
            JARS / lock.parent.name / jar_name(entry): entry
            for lock in locks
            for entry in tomllib.loads(lock.read_text())["dependencies"]
        }
        for jar in set(JARS.glob("*/*.jar")) - set(jars):
            jar.unlink()
        with ThreadPoolExecutor(8) as pool:
            for _ in progress(pool.map(fetch_jar, jars, jars.values()), len(jars)):
                pass
        shutil.rmtree(JARS / "repository", ignore_errors=True)
        (JARS / "locks.sha256").write_text(sha256_of_locks())
    return True


def have_jars() -> bool:
    """Return whether the jars are those that the lock files name."""
    done = JARS / "locks.sha256"
    return done.exists() and done.read_text() == sha256_of_locks()


def sha256_of_locks() -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in jar_locks())).hexdigest()


def jar_locks() -> list[Path]:
    return sorted(HERE.glob("local/java/*/jgo.lock.toml"))


def jar_name(entry: dict) -> str:
    return f"{entry['artifactId']}-{entry['version']}.jar"


def fetch_jar(place: Path, entry: dict) -> None:
    """Fetch one locked jar to its place, if it isn't there already; raises ``StackError``."""
    # Imported here: jgo is needed at the first run only, and its import takes a second.
    import requests
    from jgo.maven import MavenContext

    if place.exists() and sha256(place) == entry["sha256"]:
        return
    context = MavenContext(repo_cache=JARS / "repository", timeout=30)
    artifact = (
        context.project(entry["groupId"], entry["artifactId"])
        .at_version(entry["version"])
        .artifact()
    )
    if artifact.cached_path:
        artifact.cached_path.unlink(missing_ok=True)  # half a file of a run that was killed
    try:
        fetched = artifact.resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise StackError(
            f"{place.name} could not be fetched ({type(error).__name__}): the first run needs a network."
        ) from error
    if sha256(fetched) != entry["sha256"]:
        raise StackError(
            f"{place.name} is not the file that was locked: its SHA-256 differs from local/java/*/jgo.lock.toml."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(place)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
