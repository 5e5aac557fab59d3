"""The series in memory: counts by key, local day and local hour, and which of them were observed.

Time is local, as people watch television by their own clock: an hour that the spring clock change skips is not
observed; the hour that the autumn change repeats holds the mean of its two. An outage is not a zero.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd

KEYS = ["region", "network", "station"]
COLUMNS = [*KEYS, "timestamp", "count"]
MOST_PER_HOUR = 100_000_000
"""A count above this is a broken log, not an audience."""


class BadInput(ValueError):
    """Input that can't be a series, in one sentence that names the file or column."""


@dataclass(frozen=True)
class Series:
    """Hourly counts of every key.

    keys: one row per key with ``region``, ``network``, ``station`` and ``zone``, sorted by the first three.
    start: the first local day. counts: float32 (keys, days, 24). observed: bool, the same shape; where it is false
    the count is 0 and means nothing. rejects: reason to number of rows that the loader left out.
    """

    keys: pd.DataFrame
    start: date
    counts: np.ndarray
    observed: np.ndarray
    rejects: dict[str, int] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """The number of local days."""
        return self.counts.shape[1]

    @property
    def end(self) -> date:
        """The first local day after the series."""
        return self.start + timedelta(days=self.days)

    def until(self, day: int) -> "Series":
        """Return the series of the days before this index."""
        return replace(self, counts=self.counts[:, :day], observed=self.observed[:, :day])

    def codes(self, *columns: str) -> tuple[np.ndarray, int]:
        """Return each key's group number, int64 (keys,), by these columns, and how many groups there are."""
        group = self.keys.groupby(list(columns), sort=True).ngroup().to_numpy().astype(np.int64)
        return group, int(group.max()) + 1 if len(group) else 0


def zone(name: str) -> ZoneInfo:
    """Return a time zone; raises ``BadInput`` for a name that is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise BadInput(f"There is no time zone {name!r}; a name such as America/Chicago is needed.") from error


def local_slots(zone_name: str, start: date, days: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the UTC hours of these local days: the first one's epoch hour, and each one's local day and hour.

    The arrays are int64 of one entry per UTC hour; a day has 23, 24 or 25. A zone whose offset is no whole hour
    puts an hour where its first minute falls.
    """
    where = zone(zone_name)
    first = datetime(start.year, start.month, start.day, tzinfo=where).astimezone(UTC)
    last_day = start + timedelta(days=days)
    last = datetime(last_day.year, last_day.month, last_day.day, tzinfo=where).astimezone(UTC)
    begin, stop = int(first.timestamp() // 3600), int(last.timestamp() // 3600)
    local = pd.date_range(first, periods=stop - begin, freq="h").tz_convert(where).tz_localize(None)
    day = (local.normalize() - pd.Timestamp(start)).days.to_numpy().astype(np.int64)
    return begin, day, local.hour.to_numpy().astype(np.int64)


def to_local(
    hourly: np.ndarray, observed: np.ndarray, zone_name: str, start: date, days: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put UTC hours, (keys, hours) from the first hour of the local start day on, into local days.

    Returns counts float32 and observed bool, (keys, days, 24).
    """
    _, day, hour = local_slots(zone_name, start, days)
    slot = day * 24 + hour
    counts = np.zeros((len(hourly), days * 24), np.float32)
    seen = np.zeros((len(hourly), days * 24), np.float32)
    first_of = np.concatenate([[True], np.diff(slot) > 0])  # every hour but the second of a repeated one
    twice = np.flatnonzero(~first_of)
    for part in (np.flatnonzero(first_of), twice):
        counts[:, slot[part]] += np.where(observed[:, part], hourly[:, part], 0)
        seen[:, slot[part]] += observed[:, part]
    counts /= np.maximum(seen, 1)
    return counts.reshape(-1, days, 24), (seen > 0).reshape(-1, days, 24)


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV or Parquet file of keys, timestamp and count; raises ``BadInput`` for what is neither."""
    if path.suffix not in (".csv", ".parquet"):
        raise BadInput(f"{path} is no .csv and no .parquet file.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} can't be read: {error}") from error
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise BadInput(f"{path} has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}.")
    return table


def clean(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that can be counted, with an epoch-hour column ``hour``, and the number left out by reason.

    Timestamps are UTC or carry an offset; the same key and hour twice with the same count is a duplicate and
    counted once, with another count the later row corrects the earlier.
    """
    rejects: dict[str, int] = {}

    def keep(rows: pd.DataFrame, good: pd.Series, reason: str) -> pd.DataFrame:
        if not good.all():
            rejects[reason] = int((~good).sum())
        return rows[good]

    table = keep(table, table[KEYS].notna().all(axis=1), "key missing")
    stamps = table["timestamp"]
    if not isinstance(stamps.dtype, pd.DatetimeTZDtype):
        stamps = pd.to_datetime(stamps, utc=True, errors="coerce", format="ISO8601")
    hours = stamps.dt.as_unit("s").astype("int64") // 3600  # an offset of half an hour counts in the hour it is in
    table = table.assign(hour=hours)
    table = keep(table, stamps.notna(), "timestamp unreadable")
    counts = pd.to_numeric(table["count"], errors="coerce")
    table = table.assign(count=counts)
    table = keep(table, counts.notna(), "count unreadable")
    table = keep(table, table["count"] >= 0, "count negative")
    table = keep(table, table["count"] <= MOST_PER_HOUR, "count absurd")
    cell = pd.Series(_cell_ids(table), index=table.index)
    if cell.is_unique:
        return table, rejects
    same = table.assign(cell=cell).duplicated(["cell", "count"], keep="first")
    table = keep(table, ~same, "duplicate")
    return keep(table, ~cell[table.index].duplicated(keep="last"), "corrected by a later row"), rejects


def _cell_ids(table: pd.DataFrame) -> np.ndarray:
    """Return one number per row, int64, the same for the same key and hour."""
    cell = table["hour"].to_numpy() - table["hour"].min() if len(table) else np.zeros(0, np.int64)
    for column in KEYS:
        values = pd.Categorical(table[column])
        cell = cell * (len(values.categories) + 1) + values.codes
    return cell


def load(
    path: Path, zones: dict[str, str] | str, outages: pd.DataFrame | None = None, known: pd.DataFrame | None = None
) -> Series:
    """Return the series in a file, zero-filled from its first to its last complete local day.

    zones: the time zone of each region, or one for all. outages: ``region``, ``from``, ``to`` (UTC, to excluded);
    an empty region means everywhere. known: the keys that may occur; others are rejected and counted.
    Raises ``BadInput`` where nothing is left or a region has no zone.
    """
    table, rejects = clean(read_table(path))
    if known is not None:
        of_known = key_rows(known.reset_index(drop=True), table) >= 0
        if not of_known.all():
            rejects["unknown key"] = int((~of_known).sum())
        table = table[of_known]
    if table.empty:
        raise BadInput(f"{path} holds no row that can be counted ({rejects}).")
    keys = (
        (known if known is not None else table)[KEYS]
        .drop_duplicates()
        .astype(str)
        .sort_values(KEYS)
        .reset_index(drop=True)
    )
    regions = keys["region"].unique()
    homeless = [] if isinstance(zones, str) else [region for region in regions if region not in zones]
    if homeless:
        raise BadInput(f"The region {homeless[0]!r} has no time zone; {len(homeless)} such regions are in {path}.")
    zone_of = {region: zones if isinstance(zones, str) else zones[region] for region in regions}
    for name in set(zone_of.values()):
        zone(name)
    keys["zone"] = keys["region"].map(zone_of)
    return build(keys, table, outages, rejects)


def key_rows(keys: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Return the row in keys of each row of the table, int64, -1 where there is none."""
    places, codes = [], []
    for column in KEYS:
        names = pd.Index(keys[column].unique())
        places.append(names.get_indexer(keys[column]))
        values = pd.Categorical(table[column])
        codes.append(names.get_indexer(values.categories.astype(str))[values.codes])
    lookup = np.full([place.max() + 2 for place in places], -1, np.int64)  # the last place of each is "unknown"
    lookup[tuple(places)] = np.arange(len(keys))
    return lookup[tuple(codes)]


def build(
    keys: pd.DataFrame,
    table: pd.DataFrame,
    outages: pd.DataFrame | None = None,
    rejects: dict[str, int] | None = None,
    only: date | None = None,
) -> Series:
    """Return the zero-filled series of clean rows (``KEYS``, epoch ``hour``, ``count``).

    It has the complete local days that the rows cover, or only one; rows of other hours are counted as rejects.
    """
    rejects = dict(rejects or {})
    start, days = (only, 1) if only else complete_days(keys, table)
    row = key_rows(keys, table)
    hour = table["hour"].to_numpy()
    counts = np.zeros((len(keys), days, 24), np.float32)
    observed = np.zeros((len(keys), days, 24), bool)
    outside = len(table)
    for name, members in keys.groupby("zone").indices.items():
        begin, day, _ = local_slots(str(name), start, days)
        hourly = np.zeros((len(keys), len(day)), np.float32)
        inside = np.isin(row, members) & (hour >= begin) & (hour < begin + len(day))
        outside -= int(inside.sum())
        hourly[row[inside], hour[inside] - begin] = table["count"].to_numpy()[inside]
        seen = np.ones(hourly.shape, bool)
        for outage in (outages if outages is not None else pd.DataFrame()).itertuples():
            hit = (keys["region"] == outage.region).to_numpy() if outage.region else np.ones(len(keys), bool)
            lo, hi = (int(pd.Timestamp(t).timestamp()) for t in (outage[2], outage[3]))
            seen[hit, max(lo // 3600 - begin, 0) : max(-(-hi // 3600) - begin, 0)] = False
        counts[members], observed[members] = to_local(hourly[members], seen[members], str(name), start, days)
    if outside:
        rejects["outside the days"] = outside
    return Series(keys, start, counts, observed, rejects)


def complete_days(keys: pd.DataFrame, table: pd.DataFrame) -> tuple[date, int]:
    """Return the first local day that the rows cover in every zone, and how many there are."""
    first, last = (
        pd.Timestamp(int(hour) * 3600, unit="s", tz="UTC") for hour in (table["hour"].min(), table["hour"].max() + 1)
    )
    local = [(first.tz_convert(name), last.tz_convert(name)) for name in keys["zone"].unique()]
    start = max((t if t == t.normalize() else t + pd.Timedelta(days=1)).date() for t, _ in local)
    days = (min(t.date() for _, t in local) - start).days
    if days < 1:
        raise BadInput("The rows cover no complete local day.")
    return start, days
