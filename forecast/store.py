"""Published folders: model, series and forecast of one day, complete or absent.

    published/2025-10-03-1f0c9a…/
        manifest.json  model.npz  series.npz  forecast/day=2025-10-04/part-0.parquet …
    published/current    a link to the newest folder

The link is replaced in one step after everything is on disk. A killed run leaves a folder whose
name begins with a dot, and yesterday's complete folder. Nothing in a folder depends on the clock:
the same day from the same parent gives the same folder.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forecast.series import KEYS, Series, local_slots
from settings import UserError

KEPT = 14  # published days that can be run again


class StoreError(UserError, RuntimeError):
    """A published folder that is missing, damaged or can't be written, in one sentence."""


@dataclass(frozen=True)
class Published:
    """One published folder with its manifest: parent, dates, keys, errors, digest of each file."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def as_of(self) -> date:
        """The last day of the series."""
        return date.fromisoformat(self.manifest["as_of"])

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of ``model`` or ``series`` by name.

        Raises ``StoreError`` where the file is missing or differs from the manifest's digest.
        """
        path = self.folder / f"{name}.npz"
        if not path.exists() or digest(path) != self.manifest["files"][path.name]["sha256"]:
            raise StoreError(
                f"{path} is missing or differs from its manifest; {_how_to_repair(self.folder)}"
            )
        with np.load(path) as file:
            return {key: file[key] for key in file.files}

    def series(self) -> Series:
        """Return the series that the forecast was made from; raises ``StoreError`` as arrays do."""
        arrays = self.arrays("series")
        return Series(
            pd.DataFrame(self.manifest["keys"]),
            date.fromisoformat(self.manifest["start"]),
            arrays["counts"],
            arrays["observed"],
        )

    def forecast(self) -> pd.DataFrame:
        """Return the forecast, one row per key and hour.

        Columns: ``KEYS``, ``day`` and ``hour`` (local), ``timestamp`` (UTC), ``expected``.
        """
        return pq.read_table(self.folder / "forecast").to_pandas()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def current(root: Path) -> Published | None:
    """Return the current published folder, or None before the first."""
    link = root / "current"
    return opened(link.resolve()) if link.is_symlink() else None


def opened(folder: Path) -> Published:
    """Return one published folder; raises ``StoreError`` where it has no readable manifest."""
    try:
        return Published(folder, json.loads((folder / "manifest.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder} holds no manifest that can be read ({error}); {_how_to_repair(folder)}"
        ) from error


def _how_to_repair(folder: Path) -> str:
    """Return the clause that names the command for a damaged folder."""
    return (
        f"publish that day again: python -m forecast update --day {folder.name[:10]}, "
        "or initialise if it was the first."
    )


def of_day(root: Path, day: date) -> Published | None:
    """Return the newest published folder whose data end with this day."""
    found = sorted(root.glob(f"{day.isoformat()}-*"), key=lambda folder: folder.stat().st_mtime)
    return opened(found[-1]) if found else None


def forecast_tables(series: Series, expected: np.ndarray) -> dict[date, pa.Table]:
    """Return one table per local day of a forecast, (keys, days, 24), with each hour of the day.

    On the day of the spring clock change a region has 23 hours, in autumn 25. The repeated hour
    has two rows, which differ in their UTC ``timestamp``.
    """
    days = expected.shape[1]
    zones = []  # of each zone: its keys, and the UTC hour, local day and local hour of its slots
    for name, members in series.keys.groupby("zone").indices.items():
        begin, day, hour = local_slots(str(name), series.end, days)
        zones.append((members, begin + np.arange(len(day)), day, hour))
    names = {column: pa.array(series.keys[column]).dictionary_encode() for column in KEYS}
    tables = {}
    for step in range(days):
        key, utc, hour = _rows_of_day(zones, step)
        columns = {column: names[column].take(pa.array(key)) for column in KEYS}
        columns["hour"] = pa.array(hour.astype(np.int8))
        columns["timestamp"] = pa.array(utc * 3600, pa.timestamp("s", "UTC"))
        columns["expected"] = pa.array(expected[key, step, hour].astype(np.float32))
        tables[series.end + timedelta(days=step)] = pa.table(columns)
    return tables


def _rows_of_day(
    zones: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return key, UTC hour and local hour of one day's rows, by key and then by time."""
    keys, times, hours = [], [], []
    for members, utc, day, hour in zones:
        here = day == step
        keys.append(np.repeat(members, here.sum()))
        times.append(np.tile(utc[here], len(members)))
        hours.append(np.tile(hour[here], len(members)))
    key = np.concatenate(keys)
    time = np.concatenate(times)
    order = np.lexsort((time, key))
    return key[order], time[order], np.concatenate(hours)[order]


@contextmanager
def locked(root: Path, what: str) -> Iterator[None]:
    """Hold the right to publish while the block runs; it ends with the process, too.

    what: the command, for the sentence that another process gets.
    Raises ``StoreError``, which names the holder, where another process has the right.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as file:
        if not _lock(file.fileno()):
            file.seek(0)
            raise StoreError(
                f"{root} is held by {file.read() or 'another run'}; "
                "wait until it has ended, then run this again."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} ({what})")
        file.flush()
        yield


def _lock(handle: int) -> bool:
    """Take an open file's lock; return whether it was free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def publish(
    root: Path,
    series: Series,
    weights: list[np.ndarray],
    expected: np.ndarray,
    facts: dict[str, Any],
    start_over: bool = False,
) -> Published:
    """Write one folder and make it current unless a later day is; returns the folder.

    facts: further entries of the manifest.
    start_over: makes the folder current even if a later day is.
    Raises ``StoreError`` where the folder can't be written.
    """
    draft = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
        with _owned(draft):
            manifest = _write(draft, series, weights, expected, facts)
            folder = _put(root, draft, manifest)
        if start_over or not _is_later(root, folder):
            _point(root, folder)
        _prune(root, folder)
    except OSError as error:
        if draft:
            shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(f"Nothing was published: {root} can't be written: {error}") from error
    return Published(folder, manifest)


@contextmanager
def _owned(draft: Path) -> Iterator[None]:
    """Hold a draft's lock, which tells another run that the draft is no killed run's."""
    handle = os.open(draft, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _write(
    draft: Path,
    series: Series,
    weights: list[np.ndarray],
    expected: np.ndarray,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write and sync every file of a folder, the manifest last; returns the manifest."""
    np.savez(draft / "model.npz", **{f"w{i:03d}": value for i, value in enumerate(weights)})
    np.savez(draft / "series.npz", counts=series.counts, observed=series.observed)
    for day, table in forecast_tables(series, expected).items():
        folder = draft / "forecast" / f"day={day.isoformat()}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part-0.parquet", compression="zstd")
    files: dict[str, dict[str, Any]] = {
        str(path.relative_to(draft)): {"sha256": digest(path), "bytes": path.stat().st_size}
        for path in sorted(draft.rglob("*"))
        if path.is_file()
    }
    manifest = facts | {
        "as_of": (series.end - timedelta(days=1)).isoformat(),
        "start": series.start.isoformat(),
        "model": digest(draft / "model.npz")[:16],
        "keys": series.keys.to_dict("list"),
        "files": files,
    }
    (draft / "manifest.json").write_bytes(_json(manifest))
    for path in [*draft.rglob("*"), draft]:
        _sync(path)
    return manifest


def _json(manifest: dict[str, Any]) -> bytes:
    """Return a manifest's bytes, the same for the same manifest."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _put(root: Path, draft: Path, manifest: dict[str, Any]) -> Path:
    """Rename the draft to its final name, or repair the folder that has this name already."""
    manifest_digest = hashlib.sha256(_json(manifest)).hexdigest()
    folder = root / f"{manifest['as_of']}-{manifest_digest[:12]}"
    if not folder.exists():
        draft.rename(folder)
        _sync(root)
        return folder
    digests = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    digests["manifest.json"] = manifest_digest
    for name, sha256 in digests.items():
        path = folder / name
        if not path.is_file() or digest(path) != sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            (draft / name).replace(path)
            _sync(path.parent)
    shutil.rmtree(draft)
    os.utime(folder)  # of_day takes the newest, so the next day continues from this folder
    return folder


def _is_later(root: Path, folder: Path) -> bool:
    """Return whether the current folder is of a later day; a link to nothing is not."""
    now = (root / "current").resolve()
    return now.is_dir() and now.name[:10] > folder.name[:10]


def _point(root: Path, folder: Path) -> None:
    """Replace the link ``current`` in one step."""
    link = root / f".link-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(root / "current")
    _sync(root)


def _prune(root: Path, newest: Path) -> None:
    """Delete drafts of killed runs and all but the newest published days."""
    for draft in root.glob(".draft-*"):
        _delete_if_dead(draft)
    keep = {(root / "current").resolve().name, newest.name}
    days = sorted({folder.name[:10] for folder in root.glob("????-??-??-*")})
    for folder in root.glob("????-??-??-*"):
        if folder.name[:10] not in days[-KEPT:] and folder.name not in keep:
            shutil.rmtree(folder)


def _delete_if_dead(draft: Path) -> None:
    """Delete a draft that no run holds."""
    try:
        handle = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return  # its run has just renamed it
    try:
        if _lock(handle):
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
