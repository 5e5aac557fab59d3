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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from settings import UserError

KEYS = ["region", "network", "station"]
COLUMNS = [*KEYS, "timestamp", "count"]
OUTAGE = ["region", "from", "to"]
MOST_PER_HOUR = 100_000_000
"""A count above this is a broken log, not an audience."""
FAR = 20
"""Rows at either end are far outside the rest where they are fewer than a usual day's, times empty days / FAR."""


class BadInput(UserError, ValueError):
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
        raise BadInput(
            f"There is no time zone {name!r}; a name such as America/Chicago is needed."
        ) from error


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
    first_of = np.concatenate(
        [[True], np.diff(slot) > 0]
    )  # every hour but the second of a repeated one
    twice = np.flatnonzero(~first_of)
    for part in (np.flatnonzero(first_of), twice):
        counts[:, slot[part]] += np.where(observed[:, part], hourly[:, part], 0)
        seen[:, slot[part]] += observed[:, part]
    counts /= np.maximum(seen, 1)
    return counts.reshape(-1, days, 24), (seen > 0).reshape(-1, days, 24)


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV or Parquet file of keys, timestamp and count; raises ``BadInput`` for what is neither.

    Keys are categories of text as they stand in the file; only an empty cell is missing.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise BadInput(f"{path} is no .csv and no .parquet file.")
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"{path} can't be read: {error}") from error
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise BadInput(
            f"{path} has no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}."
        )
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Read every cell as text, so that nothing is guessed from the rest of its column."""
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(KEYS, "category") | {"timestamp": str, "count": str},
        keep_default_na=False,
        na_values={name: [""] for name in COLUMNS},
        index_col=False,
        encoding="utf-8-sig",
    )


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read a file, or a folder of files; a pandas index is a column or nothing, whatever it was."""
    found = [name for name in KEYS if path.is_dir() and any(path.glob(f"**/{name}=*"))]
    names = pa.schema([(name, pa.string()) for name in found])  # or a folder's 007 becomes 7
    parts = ds.partitioning(names, flavor="hive") if found else None
    table = pq.read_table(path, partitioning=parts)
    table = table.select([name for name in COLUMNS if name in table.column_names])
    for name in KEYS:
        if name in table.column_names:
            at = table.column_names.index(name)
            table = table.set_column(at, name, _text(table[name]))
    return table.to_pandas(ignore_metadata=True)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as categories of text: 7 and 7.0 are both "7", as a gap turns whole numbers into floats."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text).dictionary_encode()


def clean(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that can be counted, with an epoch-hour column ``hour``, and the number left out by reason.

    Timestamps are UTC or carry an offset. Of several rows of one key and hour the last counts: an earlier one with
    the same count is its duplicate, one with another count was corrected.
    """
    rejects: dict[str, int] = {}

    def keep(rows: pd.DataFrame, good: pd.Series, reason: str) -> pd.DataFrame:
        if not good.all():
            rejects[reason] = int((~good).sum())
        return rows[good]

    table = table.reset_index(drop=True)  # labels may repeat
    table = keep(table, (table[KEYS].notna() & (table[KEYS] != "")).all(axis=1), "key missing")
    stamps = _utc(table["timestamp"])
    hours = (
        stamps.dt.as_unit("s").astype("int64") // 3600
    )  # an offset of half an hour counts in the hour it is in
    table = table.assign(hour=hours)
    table = keep(table, stamps.notna(), "timestamp unreadable")
    counts = pd.to_numeric(table["count"], errors="coerce").astype(float)
    table = table.assign(count=counts)
    table = keep(table, counts.notna(), "count unreadable")
    table = keep(table, table["count"] >= 0, "count negative")
    table = keep(table, table["count"] <= MOST_PER_HOUR, "count absurd")
    cell = pd.Series(_cell_ids(table), index=table.index)
    if cell.is_unique:
        return table, rejects
    last = ~cell.duplicated(keep="last")
    final = table["count"][last].set_axis(cell[last])
    same = table["count"] == final.reindex(cell).to_numpy()
    table = keep(table, last | ~same, "duplicate")
    return keep(table, last[table.index], "corrected by a later row"), rejects


def _utc(stamps: pd.Series) -> pd.Series:
    """Return timestamps in UTC, NaT where one can't be read: a number has no unit, so it is none."""
    if isinstance(stamps.dtype, pd.DatetimeTZDtype):
        return stamps
    if pd.api.types.is_numeric_dtype(stamps):
        return pd.Series(pd.NaT, stamps.index, dtype="datetime64[s, UTC]")
    if isinstance(stamps.dtype, pd.CategoricalDtype):
        stamps = stamps.astype(object)
    return pd.to_datetime(stamps, utc=True, errors="coerce", format="ISO8601")


def without_strays(table: pd.DataFrame, rejects: dict[str, int]) -> pd.DataFrame:
    """Return the rows without the few that lie far before or after the rest, which are counted as rejects.

    The longer the gap without a row, the more rows must lie beyond it: one wrong year in a date would otherwise
    become decades of zeros.
    """
    day, rows = np.unique(table["hour"].to_numpy() // 24, return_counts=True)
    before = np.cumsum(rows)[:-1]
    after = len(table) - before
    fewest = np.median(rows) * (np.diff(day) - 1) / FAR if len(day) else before
    early = np.flatnonzero((before < fewest) & (before <= after))
    late = np.flatnonzero((after < fewest) & (after < before))
    first = day[early[-1] + 1] if len(early) else -np.inf
    last = day[late[0]] if len(late) else np.inf
    inside = (table["hour"] // 24).between(first, last)
    if not inside.all():
        rejects["far outside the other days"] = int((~inside).sum())
    return table[inside]


def _cell_ids(table: pd.DataFrame) -> np.ndarray:
    """Return one number per row, int64, the same for the same key and hour."""
    cell = table["hour"].to_numpy() - table["hour"].min() if len(table) else np.zeros(0, np.int64)
    for column in KEYS:
        values = pd.Categorical(table[column])
        cell = cell * (len(values.categories) + 1) + values.codes
    return cell


def load(
    path: Path,
    zones: dict[str, str] | str,
    outages: pd.DataFrame | None = None,
    known: pd.DataFrame | None = None,
) -> Series:
    """Return the series in a file, zero-filled from its first to its last complete local day.

    A region's days without any row, amid days that have some, are not observed.

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
    table = without_strays(table, rejects)
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
    homeless = (
        [] if isinstance(zones, str) else [region for region in regions if region not in zones]
    )
    if homeless:
        raise BadInput(
            f"The region {homeless[0]!r} has no time zone; {len(homeless)} such regions are in {path}."
        )
    zone_of = {region: zones if isinstance(zones, str) else zones[region] for region in regions}
    for name in set(zone_of.values()):
        zone(name)
    keys["zone"] = keys["region"].map(zone_of)
    return without_empty_days(build(keys, table, outages, rejects))


def without_empty_days(series: Series) -> Series:
    """Return the series in which a region's day without any row is not observed, where that weekday usually has one.

    Such a day was not recorded. Days before a region's first count and after its last stay as they are.
    """
    observed = series.observed.copy()
    weekday = np.arange(series.days) % 7
    for members in series.keys.groupby("region").indices.values():
        some = series.counts[members].any(axis=(0, 2))
        alive = np.flatnonzero(some)
        if not len(alive):
            continue
        inside = np.zeros(series.days, bool)
        inside[alive[0] : alive[-1] + 1] = True
        with_rows, all_days = (np.bincount(weekday[days], minlength=7) for days in (some, inside))
        usual = 2 * with_rows > all_days
        observed[np.ix_(members, np.flatnonzero(inside & ~some & usual[weekday]))] = False
    return replace(series, observed=observed)


def read_outages(path: Path) -> pd.DataFrame:
    """Return a Parquet file of outages, ``region``, ``from`` and ``to``; raises ``BadInput`` where it is none."""
    try:
        table = pq.read_table(path, partitioning=None).select(OUTAGE)
        return table.set_column(0, "region", _text(table["region"])).to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise BadInput(f"{path} holds no outages ({', '.join(OUTAGE)}): {error}") from error


def key_rows(keys: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Return the row in keys of each row of the table, int64, -1 where there is none."""
    places, codes = [], []
    for column in KEYS:
        names = pd.Index(keys[column].unique())
        places.append(names.get_indexer(keys[column]))
        values = pd.Categorical(table[column])
        codes.append(names.get_indexer(values.categories.astype(str))[values.codes])
    lookup = np.full(
        [place.max() + 2 for place in places], -1, np.int64
    )  # the last place of each is "unknown"
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
    outside, none = len(table), pd.DataFrame(columns=OUTAGE)
    for name, members in keys.groupby("zone").indices.items():
        begin, day, _ = local_slots(str(name), start, days)
        hourly = np.zeros((len(keys), len(day)), np.float32)
        inside = np.isin(row, members) & (hour >= begin) & (hour < begin + len(day))
        outside -= int(inside.sum())
        hourly[row[inside], hour[inside] - begin] = table["count"].to_numpy()[inside]
        seen = np.ones(hourly.shape, bool)
        for region, since, until in (outages if outages is not None else none)[OUTAGE].itertuples(
            index=False
        ):
            everywhere = pd.isna(region) or region == ""
            hit = np.ones(len(keys), bool) if everywhere else (keys["region"] == region).to_numpy()
            lo, hi = (int(pd.Timestamp(t).timestamp()) for t in (since, until))
            seen[hit, max(lo // 3600 - begin, 0) : max(-(-hi // 3600) - begin, 0)] = False
        counts[members], observed[members] = to_local(
            hourly[members], seen[members], str(name), start, days
        )
    if outside:
        rejects["outside the days"] = outside
    return Series(keys, start, counts, observed, rejects)


def complete_days(keys: pd.DataFrame, table: pd.DataFrame) -> tuple[date, int]:
    """Return the first local day that the rows cover in every zone, and how many there are."""
    first, last = (
        pd.Timestamp(int(hour) * 3600, unit="s", tz="UTC")
        for hour in (table["hour"].min(), table["hour"].max() + 1)
    )
    local = [(first.tz_convert(name), last.tz_convert(name)) for name in keys["zone"].unique()]
    start = max((t if t == t.normalize() else t + pd.Timedelta(days=1)).date() for t, _ in local)
    days = (min(t.date() for _, t in local) - start).days
    if days < 1:
        raise BadInput("The rows cover no complete local day.")
    return start, days
