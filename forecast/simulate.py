"""A synthetic cable operator: what its ad server would log, and the intensity behind it that an oracle knows.

The intensity of a key in a local hour is the product of region and channel scale, a daily and weekly shape by kind
of channel, the programmes of the season's schedule, holidays, yearly phase, trend and a slow wander of its level.
The count is a Poisson draw around the intensity times gamma noise. Nothing of it was fitted to a model's taste.
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
    """A simulated operator: its series, the intensity behind it, its outages and the complete catalogue's size.

    intensity: float32 (keys, days, 24), the mean that the counts were drawn around; an oracle forecasts it.
    hourly: int32 (keys, hours), the counts in UTC from the epoch hours ``first`` (keys,) on. grid_keys: the pairs of
    region and station in the complete grid, most of which never carry an advertisement.
    """

    series: Series
    intensity: np.ndarray
    hourly: list[np.ndarray]
    first: np.ndarray
    outages: pd.DataFrame
    regions: int
    stations: int


def line_up(rng: np.random.Generator, regions: int, stations: int) -> pd.DataFrame:
    """Return the keys that carry advertisements: each region has national stations and some of its own choice."""
    carried = max(4, round(stations / 30))
    national, pool = round(carried * 0.6), max(carried, round(carried * 1.4))
    rows = []
    for region in range(regions):
        chosen = rng.choice(np.arange(national, pool), carried - national, replace=False)
        for station in [*range(national), *sorted(chosen)]:
            kind = KINDS[station % len(KINDS)]
            rows.append(
                (
                    f"r{region:03d}",
                    f"{kind}_net",
                    f"{kind}_{station:03d}",
                    ZONES[region % len(ZONES)],
                    station,
                )
            )
    return (
        pd.DataFrame(rows, columns=[*KEYS, "zone", "code"]).sort_values(KEYS).reset_index(drop=True)
    )


def shapes(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Return the log of the daily shape of each kind and weekday, float64 (kinds, 7, 24)."""
    hour = np.arange(24)
    result = np.empty((kinds, 7, 24))
    for kind in range(kinds):
        peaks = rng.choice([7, 12, 16, 20, 21], 2, replace=False)
        widths, weights = rng.uniform(1.5, 3.5, 2), rng.uniform(0.6, 1.4, 2)
        base = sum(
            w * np.exp(-0.5 * (((hour - p + 12) % 24 - 12) / s) ** 2)
            for p, s, w in zip(peaks, widths, weights, strict=True)
        )
        weekend = rng.normal(0, 0.25) * np.sin(np.pi * (hour - 6) / 18).clip(0) + rng.normal(
            0.05, 0.15
        )
        for weekday in range(7):
            result[kind, weekday] = (
                np.log(0.06 + base) + (weekend if weekday >= 5 else 0) + rng.normal(0, 0.04)
            )
    return result


def programmes(rng: np.random.Generator, stations: int, days: int) -> np.ndarray:
    """Return the log effect of the programme on air, float32 (stations, seasons, 7, 24).

    A programme holds two hours; at each season's start a tenth of them change.
    """
    seasons = -(-days // SEASON_DAYS)
    slots = rng.normal(0, 0.3, (stations, 1, 7, 12)).repeat(seasons, 1)
    for season in range(1, seasons):
        changed = rng.random((stations, 7, 12)) < 0.1
        slots[:, season:] = np.where(
            changed[:, None], rng.normal(0, 0.3, (stations, 1, 7, 12)), slots[:, season:]
        )
    return slots.repeat(2, axis=3).astype(np.float32)


def yearly(rng: np.random.Generator, stations: int, start: date, days: int) -> np.ndarray:
    """Return the log of yearly phase and trend of each station, float64 (stations, days)."""
    phase = 2 * np.pi * calendar_us.day_of_year(start, days)
    waves = np.stack([np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase)])
    common = np.array([0.12, 0.02, 0.04, 0.0])  # people watch more in winter
    trend = rng.normal(-0.03, 0.08, (stations, 1)) * np.arange(days) / 365
    return (common + rng.normal(0, [0.08, 0.08, 0.04, 0.04], (stations, 4))) @ waves + trend


def holiday_effect(rng: np.random.Generator, kinds: int) -> np.ndarray:
    """Return the log effect of each special day on each kind by daypart, float64 (kinds, holidays, 5)."""
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
    region, n_regions = keys.groupby("region").ngroup().to_numpy(), keys["region"].nunique()
    weekday, holiday = calendar_us.weekdays(start, days), calendar_us.holiday_ids(start, days)
    level = (
        5.5
        + rng.normal(0, 0.6, n_regions)[region]
        + rng.normal(0, 0.8, stations)[station]
        + rng.normal(0, 0.3, len(keys))
    )
    steps = rng.normal(0, 0.012, (len(keys), days // 7 + 2))
    wander = np.zeros_like(steps)
    for week in range(1, steps.shape[1]):
        wander[:, week] = 0.98 * wander[:, week - 1] + steps[:, week]
    shape, on_air = (
        shapes(rng, len(KINDS)),
        rng.random((stations, 24)) < np.where(np.arange(24) < 6, 0.25, 0.5),
    )
    programme = programmes(rng, stations, days)
    day = np.arange(days)
    result = (
        level[:, None] + yearly(rng, stations, start, days)[station] + wander[:, day // 7]
    ).astype(np.float32)
    result = result[:, :, None] + shape[kind][:, weekday].astype(np.float32)
    effect = holiday_effect(rng, len(KINDS))[:, :, calendar_us.DAYPARTS].astype(np.float32)
    result += effect[kind][:, holiday]
    result += rng.normal(0, 0.08, (len(keys), 1, 24)).astype(np.float32)
    for k in range(len(keys)):  # a season at a time would not fit 700 M cells
        result[k] += programme[station[k], day // SEASON_DAYS, weekday]
    result[~np.broadcast_to(on_air[station][:, None], result.shape)] = -np.inf
    return result


def draw_outages(
    rng: np.random.Generator, regions: list[str], start: date, days: int
) -> pd.DataFrame:
    """Return about three outages a year and region, of 2 hours to 3 days: ``region``, ``from``, ``to`` in UTC."""
    rows = []
    for region in regions:
        for _ in range(rng.poisson(3 * days / 365)):
            begin = pd.Timestamp(start, tz="UTC") + pd.Timedelta(
                hours=int(rng.integers(0, days * 24))
            )
            rows.append(
                (
                    region,
                    begin,
                    begin + pd.Timedelta(hours=int(np.exp(rng.uniform(np.log(2), np.log(72))))),
                )
            )
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
    counts, observed = np.zeros(intensity.shape, np.float32), np.zeros(intensity.shape, bool)
    hourly, first = [np.zeros(0, np.int32)] * len(keys), np.zeros(len(keys), np.int64)
    for (name, region), members in keys.groupby(["zone", "region"]).indices.items():
        begin, day, hour = local_slots(str(name), START, days)
        lost = np.zeros(len(day), bool)
        for outage in outages[outages["region"] == region].itertuples():
            lo, hi = (
                int(pd.Timestamp(t).timestamp()) // 3600 - begin for t in (outage[2], outage[3])
            )
            lost[max(lo, 0) : max(hi, 0)] = True
        for k in members:
            mean = intensity[k, day, hour]
            on = np.flatnonzero(mean)
            count = np.zeros(len(day), np.int32)
            count[on] = rng.poisson(mean[on] * rng.gamma(NOISE_CV**-2, NOISE_CV**2, len(on)))
            hourly[k], first[k] = np.where(lost, 0, count), begin
            counts[k : k + 1], observed[k : k + 1] = to_local(
                hourly[k][None], ~lost[None], str(name), START, days
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


def positives(operator: Operator) -> pd.DataFrame:
    """Return the log as hourly rows, ``KEYS``, UTC ``timestamp`` and ``count``: positive hours only."""
    rows = [np.flatnonzero(counts) for counts in operator.hourly]
    key = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    hour = np.concatenate([row + first for row, first in zip(rows, operator.first, strict=True)])
    table = pd.DataFrame({name: pd.Categorical(operator.series.keys[name])[key] for name in KEYS})
    table["timestamp"] = pd.to_datetime(hour * 3600, unit="s", utc=True)
    table["count"] = np.concatenate([c[row] for c, row in zip(operator.hourly, rows, strict=True)])
    return table


def write_log(operator: Operator, folder: Path, days: int) -> list[date]:
    """Write what the operator's log would hold: the history, then these last days one by one; returns those days.

    A day's file is cut at the regions' own midnights. Beside them go the zones and the outages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = operator.series
    first = series.end - timedelta(days=days)
    table = positives(operator)
    zone = table[KEYS].astype(str).merge(series.keys, on=KEYS, how="left")["zone"].to_numpy()
    local = np.empty(len(table), "datetime64[D]")
    for name in np.unique(zone):
        here = zone == name
        local[here] = (
            table["timestamp"][here]
            .dt.tz_convert(name)
            .dt.tz_localize(None)
            .to_numpy()
            .astype(local.dtype)
        )
    table[local < np.datetime64(first)].to_parquet(folder / "history.parquet", index=False)
    later = [first + timedelta(days=i) for i in range(days)]
    for day in later:
        table[local == np.datetime64(day)].to_parquet(
            folder / f"day={day.isoformat()}.parquet", index=False
        )
    operator.outages.to_parquet(folder / "outages.parquet", index=False)
    zones = dict(zip(series.keys["region"], series.keys["zone"], strict=True))
    (folder / "operator.json").write_text(json.dumps({"zones": zones}, indent=1))
    return later


@click.command()
@click.option(
    "--cells",
    default=250_000_000,
    show_default=True,
    help="cells of the complete region x station x hour grid",
)
@click.option(
    "--days", default=1096, show_default=True, help="days of history and of the later days together"
)
@click.option(
    "--later", default=90, show_default=True, help="days written one file each, after the history"
)
@click.option("--seed", default=0, show_default=True, help="another seed is another operator")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="where to; default: the run folder's",
)
def main(cells: int, days: int, later: int, seed: int, folder: Path | None) -> None:
    """Write the log of a synthetic operator: hourly positive counts in Parquet, zones, outages."""
    operator = simulate(cells, days, seed)
    folder = folder or settings().run_dir / "forecast" / "log"
    write_log(operator, folder, later)
    positive = sum(int((counts > 0).sum()) for counts in operator.hourly)
    grid = operator.regions * operator.stations * days * 24
    click.echo(
        f"{len(operator.series.keys)} keys, {positive:,} positive hours, 1 in {grid / positive:.0f} of a grid of "
        f"{grid:,} cells, in {folder}"
    )


if __name__ == "__main__":
    main()
