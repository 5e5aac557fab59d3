"""What is published: model, data up to which day and forecast, as one folder that appears at once or not at all.

    published/2025-10-03-1f0c9a…/   manifest.json  model.npz  series.npz  forecast/day=2025-10-04/part-0.parquet …
    published/current               a link to the newest; it is replaced in one step, after everything is on disk

A run that was killed leaves a folder whose name begins with a dot, and yesterday's complete. Nothing in a folder
depends on the clock, so that the same day from the same parent gives the same folder again.
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
    """Something published is missing or damaged, in a sentence."""


@dataclass(frozen=True)
class Published:
    """One published folder; ``manifest`` says what is in it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def as_of(self) -> date:
        """The last day of data that it has seen."""
        return date.fromisoformat(self.manifest["as_of"])

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of ``model`` or ``series``; raises ``StoreError`` where the file is not as written."""
        path = self.folder / f"{name}.npz"
        if not path.exists() or digest(path) != self.manifest["files"][path.name]["sha256"]:
            raise StoreError(
                f"{path} is missing or not what the manifest says; {_again(self.folder)}"
            )
        with np.load(path) as file:
            return {key: file[key] for key in file.files}

    def series(self) -> Series:
        """Return the series that it was made from."""
        arrays = self.arrays("series")
        return Series(
            pd.DataFrame(self.manifest["keys"]),
            date.fromisoformat(self.manifest["start"]),
            arrays["counts"],
            arrays["observed"],
        )

    def forecast(self) -> pd.DataFrame:
        """Return the forecast: ``KEYS``, ``day``, ``hour`` (local), ``timestamp`` (UTC) and ``expected``."""
        return pq.read_table(self.folder / "forecast").to_pandas()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def current(root: Path) -> Published | None:
    """Return what is published now, or None before the first."""
    link = root / "current"
    return opened(link.resolve()) if link.is_symlink() else None


def opened(folder: Path) -> Published:
    """Return one published folder; raises ``StoreError`` where it has no readable manifest."""
    try:
        return Published(folder, json.loads((folder / "manifest.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{folder} holds no manifest that can be read ({error}); {_again(folder)}"
        ) from error


def _again(folder: Path) -> str:
    """Return the command that brings a damaged folder back."""
    return (
        f"publish that day again: python -m forecast update --day {folder.name[:10]}, "
        "or initialise where it was the first."
    )


def of_day(root: Path, day: date) -> Published | None:
    """Return the newest published folder whose data end with this day."""
    found = sorted(root.glob(f"{day.isoformat()}-*"), key=lambda folder: folder.stat().st_mtime)
    return opened(found[-1]) if found else None


def forecast_tables(series: Series, expected: np.ndarray) -> dict[date, pa.Table]:
    """Return one table per local day of a forecast, (keys, days, 24): each hour that the day has, once.

    On the day of the spring clock change a region has 23 hours, in autumn 25: the repeated hour is in it twice, told
    apart by its UTC ``timestamp``.
    """
    days = expected.shape[1]
    parts = []
    for name, members in series.keys.groupby("zone").indices.items():
        begin, day, hour = local_slots(str(name), series.end, days)
        parts.append((members, begin + np.arange(len(day)), day, hour))
    names = {column: pa.array(series.keys[column]).dictionary_encode() for column in KEYS}
    tables = {}
    for step in range(days):
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for members, utc, day, local in parts:
            here = day == step
            n = len(members)
            columns.append(
                (np.repeat(members, here.sum()), np.tile(local[here], n), np.tile(utc[here], n))
            )
        k, h, t = (np.concatenate(values) for values in zip(*columns, strict=True))
        order = np.lexsort((t, k))
        k, h, t = k[order], h[order], t[order]
        tables[series.end + timedelta(days=step)] = pa.table(
            {column: names[column].take(pa.array(k)) for column in KEYS}
            | {
                "hour": pa.array(h.astype(np.int8)),
                "timestamp": pa.array(t * 3600, pa.timestamp("s", "UTC")),
                "expected": pa.array(expected[k, step, h].astype(np.float32)),
            }
        )
    return tables


@contextmanager
def locked(root: Path, what: str) -> Iterator[None]:
    """Hold the right to publish; raises ``StoreError`` that names who holds it. It ends with its process."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as file:
        if not _taken(file.fileno()):
            file.seek(0)
            raise StoreError(
                f"{root} is held by {file.read() or 'another run'}; wait until it has ended, then run this again."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} ({what})")
        file.flush()
        yield


def _taken(handle: int) -> bool:
    """Take an open file's lock, if nobody has it."""
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
    anew: bool = False,
) -> Published:
    """Write one folder and make it the current one, unless a later day is; returns it.

    facts go into the manifest. anew makes it the current one in any case. Raises ``StoreError`` where it can't be
    written.
    """
    draft = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
        with _owned(draft):
            manifest = _write(draft, series, weights, expected, facts)
            folder = _put(root, draft, manifest)
        if anew or not _is_later(root, folder):
            _point(root, folder)
        _prune(root, folder)
    except OSError as error:
        if draft:
            shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(f"Nothing was published: {root} can't be written: {error}") from error
    return Published(folder, manifest)


@contextmanager
def _owned(draft: Path) -> Iterator[None]:
    """Hold a draft's own lock, so that another publication tells it from a killed run's."""
    handle = os.open(draft, os.O_RDONLY)
    try:
        _taken(handle)
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
    """Write every file of a folder, the manifest last, down to the disk; returns the manifest."""
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
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _put(root: Path, draft: Path, manifest: dict[str, Any]) -> Path:
    """Give the draft its name; where that folder is there already, repair what is damaged in it."""
    text = _json(manifest)
    folder = root / f"{manifest['as_of']}-{hashlib.sha256(text).hexdigest()[:12]}"
    if not folder.exists():
        draft.rename(folder)
        _sync(root)
        return folder
    wanted = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    for name, sha256 in (wanted | {"manifest.json": hashlib.sha256(text).hexdigest()}).items():
        there = folder / name
        if not there.is_file() or digest(there) != sha256:
            there.parent.mkdir(parents=True, exist_ok=True)
            (draft / name).replace(there)
            _sync(there.parent)
    shutil.rmtree(draft)
    os.utime(folder)  # tomorrow goes on from this one
    return folder


def _is_later(root: Path, folder: Path) -> bool:
    """Return whether what is current is of a later day than this folder; a link to nothing is not."""
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
    """Drop drafts of killed runs and all but the newest published days."""
    for draft in root.glob(".draft-*"):
        _drop_if_dead(draft)
    keep = {(root / "current").resolve().name, newest.name}
    days = sorted({folder.name[:10] for folder in root.glob("????-??-??-*")})
    for folder in root.glob("????-??-??-*"):
        if folder.name[:10] not in days[-KEPT:] and folder.name not in keep:
            shutil.rmtree(folder)


def _drop_if_dead(draft: Path) -> None:
    """Remove a draft that no run holds."""
    try:
        handle = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return  # its run has just given it its name
    try:
        if _taken(handle):
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
