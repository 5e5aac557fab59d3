"""Simulator of a cable operator: its ad server's log, and the intensity behind the counts.

The intensity of a key in a local hour is a product: scale of region and station, daily and weekly
shape by kind of station, the season's programmes, holidays, yearly phase, trend and a slow drift
of the level. A count is a Poisson draw around the intensity times gamma noise. An oracle knows the
intensity. No part was fitted to what a model forecasts well.
"""

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import click
import numpy as np
import pandas as pd

from forecast import calendar_us
from forecast.series import KEYS, Series, local_slots, to_local
from settings import settings

START = date(2023, 1, 1)
KINDS = ("news", "sports", "kids", "movies", "general", "music", "documentary", "home")
ZONES = (
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "America/Phoenix",
)
NOISE_CV = 0.2
SEASON_DAYS = 91


@dataclass(frozen=True)
class Operator:
    """A simulated operator.

    intensity: float32 (keys, days, 24), the means of the draws, which an oracle forecasts.
    hourly: int32 (hours,) of each key, its counts by UTC hour.
    first: int64 (keys,), the epoch hour of each key's first count.
    outages: ``region``, ``from``, ``to``.
    regions, stations: the size of the complete catalogue. Most of its pairs carry no
    advertisement and are no keys.
    """

    series: Series
    intensity: np.ndarray
    hourly: list[np.ndarray]
    first: np.ndarray
    outages: pd.DataFrame
    regions: int
    stations: int


def line_up(rng: np.random.Generator, regions: int, stations: int) -> pd.DataFrame:
    """Return the keys that carry advertisements, with ``zone`` and the station's number ``code``.

    Each region has all national stations and a draw of the others.
    """
    carried = max(4, round(stations / 30))
    national = round(carried * 0.6)
    pool = max(carried, round(carried * 1.4))
    rows = []
    for region in range(regions):
        zone = ZONES[region % len(ZONES)]
        chosen = rng.choice(np.arange(national, pool), carried - national, replace=False)
        for code in [*range(national), *sorted(chosen)]:
            kind = KINDS[code % len(KINDS)]
            rows.append((f"r{region:03d}", f"{kind}_net", f"{kind}_{code:03d}", zone, code))
    keys = pd.DataFrame(rows, columns=[*KEYS, "zone", "code"])
    return keys.sort_values(KEYS).reset_index(drop=True)


def shapes(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Return the log of the daily shape of each kind and weekday, float64 (kinds, 7, 24)."""
    hour = np.arange(24)
    daytime = np.sin(np.pi * (hour - 6) / 18).clip(0)
    result = np.empty((kinds, 7, 24))
    for kind in range(kinds):
        peaks = rng.choice([7, 12, 16, 20, 21], 2, replace=False)
        widths = rng.uniform(1.5, 3.5, 2)
        weights = rng.uniform(0.6, 1.4, 2)
        base = 0
        for peak, width, weight in zip(peaks, widths, weights, strict=True):
            distance = (hour - peak + 12) % 24 - 12
            base = base + weight * np.exp(-0.5 * (distance / width) ** 2)
        weekend = rng.normal(0, 0.25) * daytime + rng.normal(0.05, 0.15)
        for weekday in range(7):
            extra = weekend if weekday >= 5 else 0
            result[kind, weekday] = np.log(0.06 + base) + extra + rng.normal(0, 0.04)
    return result


def programmes(rng: np.random.Generator, stations: int, days: int) -> np.ndarray:
    """Return the log effect of the programme on air, float32 (stations, seasons, 7, 24).

    A programme lasts two hours; at each season's start a tenth of them change.
    """
    seasons = -(-days // SEASON_DAYS)  # rounded up
    slots = rng.normal(0, 0.3, (stations, 1, 7, 12)).repeat(seasons, 1)
    for season in range(1, seasons):
        changed = rng.random((stations, 7, 12)) < 0.1
        new = rng.normal(0, 0.3, (stations, 1, 7, 12))
        slots[:, season:] = np.where(changed[:, None], new, slots[:, season:])
    return slots.repeat(2, axis=3).astype(np.float32)


def yearly(rng: np.random.Generator, stations: int, start: date, days: int) -> np.ndarray:
    """Return the log of yearly phase and trend of each station, float64 (stations, days)."""
    phase = 2 * np.pi * calendar_us.day_of_year(start, days)
    waves = np.stack([np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase)])
    common = np.array([0.12, 0.02, 0.04, 0.0])  # people watch more in winter
    trend = rng.normal(-0.03, 0.08, (stations, 1)) * np.arange(days) / 365
    own = rng.normal(0, [0.08, 0.08, 0.04, 0.04], (stations, 4))
    return (common + own) @ waves + trend


def holiday_effect(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Return the log effect of each holiday on each kind, float64 (kinds, holidays, dayparts)."""
    names = len(calendar_us.NAMES)
    effect = rng.normal(0, 0.25, (1, names, 1)) + rng.normal(0, 0.15, (kinds, names, 5))
    effect[:, 0] = 0
    return effect


def log_intensity(
    rng: np.random.Generator, keys: pd.DataFrame, stations: int, start: date, days: int
) -> np.ndarray:
    """Return the log of every key's intensity, float32 (keys, days, 24)."""
    station = keys["code"].to_numpy()
    kind = station % len(KINDS)
    day = np.arange(days)
    weekday = calendar_us.weekdays(start, days)
    holiday = calendar_us.holiday_ids(start, days)
    level = _level(rng, keys, stations)
    drift = _drift(rng, len(keys), days)
    shape = shapes(rng, len(KINDS))
    on_air = rng.random((stations, 24)) < np.where(np.arange(24) < 6, 0.25, 0.5)
    programme = programmes(rng, stations, days)
    by_day = level[:, None] + yearly(rng, stations, start, days)[station] + drift[:, day // 7]
    result = by_day.astype(np.float32)[:, :, None] + shape[kind][:, weekday].astype(np.float32)
    effect = holiday_effect(rng, len(KINDS))[:, :, calendar_us.DAYPARTS].astype(np.float32)
    result += effect[kind][:, holiday]
    result += rng.normal(0, 0.08, (len(keys), 1, 24)).astype(np.float32)
    for key in range(len(keys)):  # all keys at once would need the memory of all cells twice
        result[key] += programme[station[key], day // SEASON_DAYS, weekday]
    result[~np.broadcast_to(on_air[station][:, None], result.shape)] = -np.inf
    return result


def _level(rng: np.random.Generator, keys: pd.DataFrame, stations: int) -> np.ndarray:
    """Return the log of each key's mean level, float64 (keys,)."""
    region = keys.groupby("region").ngroup().to_numpy()
    of_region = rng.normal(0, 0.6, keys["region"].nunique())
    of_station = rng.normal(0, 0.8, stations)
    own = rng.normal(0, 0.3, len(keys))
    return 5.5 + of_region[region] + of_station[keys["code"].to_numpy()] + own


def _drift(rng: np.random.Generator, keys: int, days: int) -> np.ndarray:
    """Return the slow change of each key's log level, float64 (keys, weeks)."""
    steps = rng.normal(0, 0.012, (keys, days // 7 + 2))
    drift = np.zeros_like(steps)
    for week in range(1, steps.shape[1]):
        drift[:, week] = 0.98 * drift[:, week - 1] + steps[:, week]
    return drift


def draw_outages(
    rng: np.random.Generator, regions: list[str], start: date, days: int
) -> pd.DataFrame:
    """Return outages, ``region``, ``from`` and ``to`` in UTC.

    A region has about three a year, each of 2 hours to 3 days.
    """
    rows = []
    for region in regions:
        for _ in range(rng.poisson(3 * days / 365)):
            hours = int(rng.integers(0, days * 24))
            begin = pd.Timestamp(start, tz="UTC") + pd.Timedelta(hours=hours)
            length = int(np.exp(rng.uniform(np.log(2), np.log(72))))
            rows.append((region, begin, begin + pd.Timedelta(hours=length)))
    return pd.DataFrame(rows, columns=["region", "from", "to"])


def simulate(cells: int = 250_000_000, days: int = 1096, seed: int = 0) -> Operator:
    """Return an operator whose complete region x station x hour grid has about this many cells."""
    rng = np.random.default_rng(seed)
    pairs = max(cells / (24 * days), 18)
    regions = max(3, round((pairs / 47) ** 0.5))
    stations = round(pairs / regions)
    keys = line_up(rng, regions, stations)
    intensity = np.exp(log_intensity(rng, keys, stations, START, days))
    outages = draw_outages(rng, sorted(keys["region"].unique()), START, days)
    counts = np.zeros(intensity.shape, np.float32)
    observed = np.zeros(intensity.shape, bool)
    hourly = [np.zeros(0, np.int32)] * len(keys)
    first = np.zeros(len(keys), np.int64)
    for (name, region), members in keys.groupby(["zone", "region"]).indices.items():
        begin, day, hour = local_slots(str(name), START, days)
        lost = _lost_hours(outages[outages["region"] == region], begin, len(day))
        for key in members:
            drawn = draw_counts(rng, intensity[key, day, hour])
            hourly[key] = np.where(lost, 0, drawn)
            first[key] = begin
            row = slice(key, key + 1)
            counts[row], observed[row] = to_local(
                hourly[key][None], ~lost[None], str(name), START, days
            )
    return Operator(
        Series(keys[[*KEYS, "zone"]], START, counts, observed),
        intensity,
        hourly,
        first,
        outages,
        regions,
        stations,
    )


def _lost_hours(outages: pd.DataFrame, begin: int, hours: int) -> np.ndarray:
    """Return which UTC hours, from epoch hour ``begin`` on, lie in an outage, bool (hours,)."""
    lost = np.zeros(hours, bool)
    for outage in outages.itertuples():
        first = int(pd.Timestamp(outage[2]).timestamp()) // 3600 - begin
        end = int(pd.Timestamp(outage[3]).timestamp()) // 3600 - begin
        lost[max(first, 0) : max(end, 0)] = True
    return lost


def draw_counts(rng: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    """Return counts around the means, int32; where the mean is 0, the count is."""
    on = np.flatnonzero(mean)
    noise = rng.gamma(NOISE_CV**-2, NOISE_CV**2, len(on))
    counts = np.zeros(len(mean), np.int32)
    counts[on] = rng.poisson(mean[on] * noise)
    return counts


def positives(operator: Operator) -> pd.DataFrame:
    """Return the log's positive hours: ``KEYS``, UTC ``timestamp`` and ``count``."""
    rows = [np.flatnonzero(counts) for counts in operator.hourly]
    key = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    hours = [row + first for row, first in zip(rows, operator.first, strict=True)]
    counts = [of_key[row] for of_key, row in zip(operator.hourly, rows, strict=True)]
    table = pd.DataFrame({name: pd.Categorical(operator.series.keys[name])[key] for name in KEYS})
    table["timestamp"] = pd.to_datetime(np.concatenate(hours) * 3600, unit="s", utc=True)
    table["count"] = np.concatenate(counts)
    return table


def count_positives(operator: Operator) -> int:
    """Return the number of rows of ``positives``."""
    return sum(int((counts > 0).sum()) for counts in operator.hourly)


def grid_cells(operator: Operator) -> int:
    """Return the cells of the complete grid: every region, station and hour."""
    return operator.regions * operator.stations * operator.series.days * 24


def write_log(operator: Operator, folder: Path, days: int) -> list[date]:
    """Write the operator's log: a history, a file for each of the last days, zones, outages.

    A day's file is cut at each region's own midnights. Returns the last days.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = operator.series
    first = series.end - timedelta(days=days)
    table = positives(operator)
    local = _local_days(table, series.keys)
    table[local < np.datetime64(first)].to_parquet(folder / "history.parquet", index=False)
    later = [first + timedelta(days=i) for i in range(days)]
    for day in later:
        path = folder / f"day={day.isoformat()}.parquet"
        table[local == np.datetime64(day)].to_parquet(path, index=False)
    operator.outages.to_parquet(folder / "outages.parquet", index=False)
    zones = dict(zip(series.keys["region"], series.keys["zone"], strict=True))
    (folder / "operator.json").write_text(json.dumps({"zones": zones}, indent=1))
    return later


def _local_days(table: pd.DataFrame, keys: pd.DataFrame) -> np.ndarray:
    """Return the local day of each row of a log, datetime64[D] (rows,)."""
    zone = table[KEYS].astype(str).merge(keys, on=KEYS, how="left")["zone"].to_numpy()
    local = np.empty(len(table), "datetime64[D]")
    for name in np.unique(zone):
        here = zone == name
        times = table["timestamp"][here].dt.tz_convert(name).dt.tz_localize(None)
        local[here] = times.to_numpy().astype(local.dtype)
    return local


@click.command()
@click.option(
    "--cells",
    default=250_000_000,
    show_default=True,
    help="cells of the complete region x station x hour grid",
)
@click.option(
    "--days",
    default=1096,
    show_default=True,
    help="days of history and of the daily files together",
)
@click.option(
    "--later", default=90, show_default=True, help="days that get a file each, after the history"
)
@click.option("--seed", default=0, show_default=True, help="another seed gives another operator")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="folder of the log; default: that of the run folder",
)
def main(cells: int, days: int, later: int, seed: int, folder: Path | None) -> None:
    """Write the log of a simulated operator: positive hourly counts in Parquet, zones, outages."""
    operator = simulate(cells, days, seed)
    folder = folder or settings().run_dir / "forecast" / "log"
    write_log(operator, folder, later)
    positive = count_positives(operator)
    grid = grid_cells(operator)
    click.echo(
        f"{len(operator.series.keys)} keys, {positive:,} positive hours, "
        f"1 in {grid / positive:.0f} of a grid of {grid:,} cells, in {folder}"
    )


if __name__ == "__main__":
    main()
