"""What is published: model, data up to which day and forecast, as one folder that appears at once or not at all.

    published/2025-10-03-1f0c9a…/   manifest.json  model.npz  series.npz  forecast/day=2025-10-04/part-0.parquet …
    published/current               a link to the newest; it is replaced in one step, after everything is on disk

A run that was killed leaves a folder whose name begins with a dot, and yesterday's complete. Nothing in a folder
depends on the clock, so that the same day from the same parent gives the same folder again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forecast.series import KEYS, Series, local_slots

KEPT = 14  # published days that can be run again


class StoreError(RuntimeError):
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
            raise StoreError(f"{path} is missing or not what the manifest says; publish that day again.")
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
        raise StoreError(f"{folder} holds no manifest that can be read: {error}") from error


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
            columns.append((np.repeat(members, here.sum()), np.tile(local[here], n), np.tile(utc[here], n)))
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


def publish(
    root: Path, series: Series, weights: list[np.ndarray], expected: np.ndarray, facts: dict[str, Any]
) -> Published:
    """Write one folder and make it the current one; returns it. facts go into the manifest."""
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
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
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    (draft / "manifest.json").write_bytes(text)
    for path in [*draft.rglob("*"), draft]:
        _sync(path)
    folder = root / f"{manifest['as_of']}-{hashlib.sha256(text).hexdigest()[:12]}"
    if folder.exists():
        shutil.rmtree(draft)  # the same day from the same parent: the same bytes are there already
        os.utime(folder)  # and tomorrow goes on from this one
    else:
        draft.rename(folder)
    _point(root, folder)
    _prune(root)
    return Published(folder, manifest)


def _point(root: Path, folder: Path) -> None:
    """Replace the link ``current`` in one step."""
    link = root / f".link-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(root / "current")
    _sync(root)


def _prune(root: Path) -> None:
    """Drop drafts of killed runs and all but the newest published days."""
    for draft in root.glob(".draft-*"):
        shutil.rmtree(draft)
    keep = (root / "current").resolve()
    days = sorted({folder.name[:10] for folder in root.glob("????-??-??-*")})
    for folder in root.glob("????-??-??-*"):
        if folder.name[:10] not in days[-KEPT:] and folder != keep:
            shutil.rmtree(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
