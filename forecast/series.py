"""Hourly counts by key in memory, by local day and local hour, with what was observed.

Time is local, as people watch television by their own clock. An hour that the spring clock change
skips is not observed. The hour that the autumn change repeats holds the mean of its two. An
outage is not a zero.
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
"""A count above this comes from a broken log, not from an audience."""
FAR = 20
"""Stray rows at either end are fewer than a usual day's rows, times the empty days, over FAR."""


class InputError(UserError, ValueError):
    """Input that can't become a series, in one sentence that names the file or column."""


@dataclass(frozen=True)
class Series:
    """Hourly counts of every key.

    keys: one row per key with ``region``, ``network``, ``station`` and ``zone``, sorted by the
    first three.
    start: the first local day.
    counts: float32 (keys, days, 24).
    observed: bool, the same shape; where it is false the count is 0 and means nothing.
    rejects: reason to number of rows that the loader rejected.
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
        """Group the keys by these columns.

        Returns each key's group number, int64 (keys,), and the number of groups.
        """
        group = self.keys.groupby(list(columns), sort=True).ngroup().to_numpy().astype(np.int64)
        return group, int(group.max()) + 1 if len(group) else 0


# --- local time ---


def zone(name: str) -> ZoneInfo:
    """Return a time zone by its name; raises ``InputError`` for an unknown name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise InputError(
            f"There is no time zone {name!r}; use a name such as America/Chicago."
        ) from error


def local_slots(zone_name: str, start: date, days: int) -> tuple[int, np.ndarray, np.ndarray]:
    """List the UTC hours of these local days.

    Returns the first one's epoch hour, and each one's local day and local hour, int64 (hours,);
    a day has 23, 24 or 25. In a zone whose offset is not a whole hour, an hour belongs to the
    local hour of its first minute.
    """
    where = zone(zone_name)
    begin, first = _midnight(start, where)
    stop, _ = _midnight(start + timedelta(days=days), where)
    hours = pd.date_range(first, periods=stop - begin, freq="h")
    local = hours.tz_convert(where).tz_localize(None)
    day = (local.normalize() - pd.Timestamp(start)).days.to_numpy().astype(np.int64)
    return begin, day, local.hour.to_numpy().astype(np.int64)


def _midnight(day: date, where: ZoneInfo) -> tuple[int, datetime]:
    """Return the epoch hour in which a local day begins, and the moment in UTC."""
    moment = datetime(day.year, day.month, day.day, tzinfo=where).astimezone(UTC)
    return int(moment.timestamp() // 3600), moment


def to_local(
    hourly: np.ndarray, observed: np.ndarray, zone_name: str, start: date, days: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put UTC hours, (keys, hours) from the first hour of the local start day, into local days.

    Returns counts float32 and observed bool, both (keys, days, 24).
    """
    _, day, hour = local_slots(zone_name, start, days)
    slot = day * 24 + hour
    counts = np.zeros((len(hourly), days * 24), np.float32)
    seen = np.zeros((len(hourly), days * 24), np.float32)
    first = np.concatenate([[True], np.diff(slot) > 0])  # false for the second of a repeated hour
    for part in (np.flatnonzero(first), np.flatnonzero(~first)):
        counts[:, slot[part]] += np.where(observed[:, part], hourly[:, part], 0)
        seen[:, slot[part]] += observed[:, part]
    counts /= np.maximum(seen, 1)
    return counts.reshape(-1, days, 24), (seen > 0).reshape(-1, days, 24)


# --- files ---


def read_table(path: Path) -> pd.DataFrame:
    """Return the keys, timestamps and counts of a CSV or Parquet file.

    Keys are categories of text, exactly as in the file; only an empty cell is missing.
    Raises ``InputError`` for a file of another kind, an unreadable file or a missing column.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path} is neither a .csv nor a .parquet file.")
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}."
        )
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Read every cell as text, so that no cell is guessed from the rest of its column."""
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(KEYS, "category") | {"timestamp": str, "count": str},
        keep_default_na=False,
        na_values={name: [""] for name in COLUMNS},
        index_col=False,
        encoding="utf-8-sig",
    )


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read a file, or a folder of files; a pandas index is a column or nothing, never a label."""
    in_folder_names = [name for name in KEYS if path.is_dir() and any(path.glob(f"**/{name}=*"))]
    partitioning = None
    if in_folder_names:  # with the type of text, as a folder's 007 would become 7
        schema = pa.schema([(name, pa.string()) for name in in_folder_names])
        partitioning = ds.partitioning(schema, flavor="hive")
    table = pq.read_table(path, partitioning=partitioning)
    table = table.select([name for name in COLUMNS if name in table.column_names])
    for name in KEYS:
        if name in table.column_names:
            at = table.column_names.index(name)
            table = table.set_column(at, name, _text(table[name]))
    return table.to_pandas(ignore_metadata=True)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as categories of text.

    7 and 7.0 are both "7", as one missing value turns a column of whole numbers into floats.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text).dictionary_encode()


def read_outages(path: Path) -> pd.DataFrame:
    """Return the outages in a Parquet file: ``region``, ``from`` and ``to``.

    Raises ``InputError`` where the file can't be read or lacks a column.
    """
    try:
        table = pq.read_table(path, partitioning=None).select(OUTAGE)
        return table.set_column(0, "region", _text(table["region"])).to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path} holds no outages ({', '.join(OUTAGE)}): {error}") from error


# --- rows ---


def clean(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the usable rows with their epoch ``hour``, and the number of rejects by reason.

    Timestamps are UTC or carry an offset. The last of several rows of one key and hour counts.
    An earlier one with the same count is a duplicate; one with another count was corrected.
    """
    rejects: dict[str, int] = {}

    def keep(rows: pd.DataFrame, good: pd.Series, reason: str) -> pd.DataFrame:
        if not good.all():
            rejects[reason] = int((~good).sum())
        return rows[good]

    table = table.reset_index(drop=True)  # labels may repeat
    table = keep(table, (table[KEYS].notna() & (table[KEYS] != "")).all(axis=1), "key missing")
    stamps = _utc(table["timestamp"])
    # Rounded down: a half-hour offset puts a row into the UTC hour in which it lies.
    table = table.assign(hour=stamps.dt.as_unit("s").astype("int64") // 3600)
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
    """Return timestamps in UTC, NaT where one can't be read; a number can't, as it has no unit."""
    if isinstance(stamps.dtype, pd.DatetimeTZDtype):
        return stamps
    if pd.api.types.is_numeric_dtype(stamps):
        return pd.Series(pd.NaT, stamps.index, dtype="datetime64[s, UTC]")
    if isinstance(stamps.dtype, pd.CategoricalDtype):
        stamps = stamps.astype(object)
    return pd.to_datetime(stamps, utc=True, errors="coerce", format="ISO8601")


def _cell_ids(table: pd.DataFrame) -> np.ndarray:
    """Return one number per row, int64, the same for the same key and hour."""
    if not len(table):
        return np.zeros(0, np.int64)
    cell = table["hour"].to_numpy() - table["hour"].min()
    for column in KEYS:
        values = pd.Categorical(table[column])
        cell = cell * (len(values.categories) + 1) + values.codes
    return cell


def without_strays(table: pd.DataFrame, rejects: dict[str, int]) -> pd.DataFrame:
    """Return the rows without the few that lie far before or after the rest; counts the rejects.

    The longer the gap without rows, the more rows must lie beyond it. If one wrong year in a date
    were kept, decades would be filled with zeros.
    """
    day, rows = np.unique(table["hour"].to_numpy() // 24, return_counts=True)
    before = np.cumsum(rows)[:-1]  # rows before each gap between two days that have rows
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


def key_rows(keys: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Return the row in keys of each row of the table, int64, -1 where the key is unknown."""
    places, codes = [], []
    for column in KEYS:
        names = pd.Index(keys[column].unique())
        places.append(names.get_indexer(keys[column]))
        values = pd.Categorical(table[column])
        codes.append(names.get_indexer(values.categories.astype(str))[values.codes])
    shape = [place.max() + 2 for place in places]  # the last place of each axis is "unknown"
    lookup = np.full(shape, -1, np.int64)
    lookup[tuple(places)] = np.arange(len(keys))
    return lookup[tuple(codes)]


# --- from rows to a series ---


def load(
    path: Path,
    zones: dict[str, str] | str,
    outages: pd.DataFrame | None = None,
    known: pd.DataFrame | None = None,
) -> Series:
    """Return the series in a file, zero-filled from its first to its last complete local day.

    A region's days without any row are not observed if there are rows before and after them.

    zones: the time zone of each region, or one for all.
    outages: ``region``, ``from``, ``to`` (UTC, to excluded); an empty region means everywhere.
    known: the keys that may occur; others are rejected and counted.
    Raises ``InputError`` where no row is left or a region has no zone.
    """
    table, rejects = clean(read_table(path))
    if known is not None:
        of_known = key_rows(known.reset_index(drop=True), table) >= 0
        if not of_known.all():
            rejects["unknown key"] = int((~of_known).sum())
        table = table[of_known]
    table = without_strays(table, rejects)
    if table.empty:
        raise InputError(f"{path} holds no row that can be counted ({rejects}).")
    keys = sorted_keys(table if known is None else known)
    keys["zone"] = keys["region"].map(_zone_of(keys["region"].unique(), zones, path))
    return without_empty_days(build(keys, table, outages, rejects))


def sorted_keys(table: pd.DataFrame) -> pd.DataFrame:
    """Return the distinct keys of a table as text, sorted, with the row number as index."""
    keys = table[KEYS].drop_duplicates().astype(str)
    return keys.sort_values(KEYS).reset_index(drop=True)


def _zone_of(regions: np.ndarray, zones: dict[str, str] | str, path: Path) -> dict[str, str]:
    """Return the time zone of each region.

    Raises ``InputError`` where a region has no zone or an unknown one.
    """
    if isinstance(zones, str):
        zones = dict.fromkeys(regions, zones)
    homeless = [region for region in regions if region not in zones]
    if homeless:
        raise InputError(
            f"The region {homeless[0]!r} has no time zone; {path} has {len(homeless)} such regions."
        )
    found = {region: zones[region] for region in regions}
    for name in set(found.values()):
        zone(name)
    return found


def without_empty_days(series: Series) -> Series:
    """Return the series with a region's unrecorded days as not observed.

    A day was not recorded if the region has no row although that weekday usually has one. Days
    before a region's first count and after its last stay as they are.
    """
    observed = series.observed.copy()
    weekday = np.arange(series.days) % 7
    for members in series.keys.groupby("region").indices.values():
        counted = series.counts[members].any(axis=(0, 2))
        alive = np.flatnonzero(counted)
        if not len(alive):
            continue
        inside = np.zeros(series.days, bool)
        inside[alive[0] : alive[-1] + 1] = True
        with_rows = np.bincount(weekday[counted], minlength=7)
        all_days = np.bincount(weekday[inside], minlength=7)
        usual = 2 * with_rows > all_days
        lost = np.flatnonzero(inside & ~counted & usual[weekday])
        observed[np.ix_(members, lost)] = False
    return replace(series, observed=observed)


def build(
    keys: pd.DataFrame,
    table: pd.DataFrame,
    outages: pd.DataFrame | None = None,
    rejects: dict[str, int] | None = None,
    only: date | None = None,
) -> Series:
    """Return the zero-filled series of clean rows (``KEYS``, epoch ``hour``, ``count``).

    It has the complete local days that the rows cover, or only the day ``only``. Rows of other
    hours are counted as rejects.
    """
    start, days = (only, 1) if only else complete_days(keys, table)
    row = key_rows(keys, table)
    hour = table["hour"].to_numpy()
    count = table["count"].to_numpy()
    counts = np.zeros((len(keys), days, 24), np.float32)
    observed = np.zeros((len(keys), days, 24), bool)
    outside = len(table)
    for name, members in keys.groupby("zone").indices.items():
        begin, day, _ = local_slots(str(name), start, days)
        inside = np.isin(row, members) & (hour >= begin) & (hour < begin + len(day))
        outside -= int(inside.sum())
        hourly = np.zeros((len(keys), len(day)), np.float32)
        hourly[row[inside], hour[inside] - begin] = count[inside]
        seen = np.ones(hourly.shape, bool)
        if outages is not None:
            seen &= ~_in_outage(keys, outages, begin, len(day))
        counts[members], observed[members] = to_local(
            hourly[members], seen[members], str(name), start, days
        )
    rejects = dict(rejects or {})
    if outside:
        rejects["outside the days"] = outside
    return Series(keys, start, counts, observed, rejects)


def _in_outage(keys: pd.DataFrame, outages: pd.DataFrame, begin: int, hours: int) -> np.ndarray:
    """Return which UTC hours, from epoch hour ``begin``, an outage touches, bool (keys, hours)."""
    touched = np.zeros((len(keys), hours), bool)
    for region, since, until in outages[OUTAGE].itertuples(index=False):
        first = int(pd.Timestamp(since).timestamp()) // 3600 - begin
        last = -(-int(pd.Timestamp(until).timestamp()) // 3600) - begin  # rounded up, excluded
        everywhere = pd.isna(region) or region == ""
        members = slice(None) if everywhere else (keys["region"] == region).to_numpy()
        touched[members, max(first, 0) : max(last, 0)] = True
    return touched


def complete_days(keys: pd.DataFrame, table: pd.DataFrame) -> tuple[date, int]:
    """Return the first local day that the rows cover in every zone, and the number of such days.

    Raises ``InputError`` where there is none.
    """
    first = pd.Timestamp(int(table["hour"].min()) * 3600, unit="s", tz="UTC")
    end = pd.Timestamp(int(table["hour"].max() + 1) * 3600, unit="s", tz="UTC")
    zones = keys["zone"].unique()
    start = max(_first_midnight(first.tz_convert(name)).date() for name in zones)
    days = (min(end.tz_convert(name).date() for name in zones) - start).days
    if days < 1:
        raise InputError("The rows cover no complete local day.")
    return start, days


def _first_midnight(local: pd.Timestamp) -> pd.Timestamp:
    """Return the moment itself if it is a midnight, or the same time a day later."""
    return local if local == local.normalize() else local + pd.Timedelta(days=1)
