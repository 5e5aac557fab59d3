"""The operator's days: a full training once, then each day a fine-tune, a gate and one publication.

Each command reads only what was published before and the day's file, so that a day can be run again, by hand or by
a scheduler, and gives the same folder.
"""

import dataclasses
import json
import time
import zlib
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from forecast import baselines, completeness, store, v5
from forecast.features import Examples, Features
from forecast.scoring import BUCKETS
from forecast.series import (
    KEYS,
    BadInput,
    Series,
    build,
    clean,
    key_rows,
    load,
    read_outages,
    read_table,
)
from settings import settings

STEPS, BATCH, RATE, REPLAY = 18, 1024, 1e-4, 0.9
SHARE = 0.02  # of a full training's rows: a fine-tune may not cost more
HELD_OUT = 5  # one key-day in this many is not fine-tuned on: the gate's slice
GATE_DAYS = 14
WINDOW = 1096  # days of history that are carried from day to day


@dataclass(frozen=True)
class Folders:
    """Where the data come from and where the results go, under the run folder."""

    root: Path

    @property
    def history(self) -> Path:
        """Everything up to the first day."""
        return self.root / "log" / "history.parquet"

    @property
    def operator(self) -> Path:
        """The regions' time zones: ``{"zones": {"r000": "America/New_York"}}``."""
        return self.root / "log" / "operator.json"

    @property
    def outages(self) -> Path:
        """The ad servers' outages: ``region``, ``from``, ``to``."""
        return self.root / "log" / "outages.parquet"

    @property
    def published(self) -> Path:
        """What the optimiser reads."""
        return self.root / "published"

    def day(self, day: date) -> Path:
        """Return the file of one day."""
        return self.root / "log" / f"day={day.isoformat()}.parquet"

    def zones(self) -> dict[str, str]:
        """Return the time zone of each region."""
        try:
            return dict(json.loads(self.operator.read_bytes())["zones"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f'{self.operator} holds no time zones, {{"zones": {{"a region": "America/Chicago"}}}}: {error!r}'
            ) from error


def folders() -> Folders:
    """Return the folders of this installation."""
    return Folders(settings().run_dir / "forecast")


def initialise(where: Folders, seed: int = 0, force: bool = False) -> store.Published:
    """Train on the whole history, forecast and publish; force takes a last day that looks cut short as it is.

    Raises ``BadInput`` where the history is too short or cut short, ``StoreError`` where another run publishes.
    """
    with store.locked(where.published, "initialise"):
        return _initialise(where, seed, force)


def _initialise(where: Folders, seed: int, force: bool) -> store.Published:
    began = time.perf_counter()
    series = trimmed(load(where.history, where.zones(), outages_of(where)))
    if not force and (lack := completeness.lack(series)):
        raise BadInput(
            f"{where.history} looks cut short on its last day: {lack}. Bring the whole file, "
            "or take it as it is with initialise --force."
        )
    features = Features(series)
    model = v5.cold_start(features, seed)
    forecast = model.forecast(features, series.days)
    facts = {
        "parent": None,
        "kept": False,
        "held_out_error": None,
        "rejects": series.rejects,
        "errors": errors_by_horizon(model, features),
        "seed": seed,
        "vocabulary": dataclasses.asdict(model.vocabulary),
    }
    published = store.publish(where.published, series, model.weights(), forecast, facts, anew=True)
    print(
        f"initialised with {len(series.keys)} keys to {published.as_of} in {time.perf_counter() - began:.1f} s"
    )
    return published


def next_day(where: Folders) -> date:
    """Return the day after the newest published one; raises ``BadInput`` before the first."""
    newest = store.current(where.published)
    if newest is None:
        raise BadInput("Nothing is published yet; run initialise first.")
    return newest.as_of + timedelta(days=1)


def trimmed(series: Series) -> Series:
    """Return the series' last days."""
    drop = max(series.days - WINDOW, 0)
    return dataclasses.replace(
        series,
        start=series.start + timedelta(days=drop),
        counts=series.counts[:, drop:],
        observed=series.observed[:, drop:],
    )


def update(where: Folders, day: date, lost: bool = False, force: bool = False) -> store.Published:
    """Learn one day, forecast the 90 after it and publish; lost says that no file of that day will ever come.

    force takes a file that looks cut short as it is. Raises ``BadInput`` where the day before was not published or
    the day's file is missing or looks cut short, ``StoreError`` where another run publishes.
    """
    with store.locked(where.published, f"update --day {day}"):
        return _update(where, day, lost, force)


def _update(where: Folders, day: date, lost: bool, force: bool) -> store.Published:
    parent = store.of_day(where.published, day - timedelta(days=1))
    if parent is None:
        newest = store.current(where.published)
        raise BadInput(
            f"{day} can't be learned: nothing was published for the day before it"
            + (f"; the newest is {newest.as_of}." if newest else "; run initialise first.")
        )
    series = parent.series() if lost else appended(where, parent.series(), day, force)
    series = trimmed(with_lost_day(series) if lost else series)
    features = Features(series)
    names = {name: tuple(values) for name, values in parent.manifest["vocabulary"].items()}
    arrays = parent.arrays("model")
    model = v5.V5.stored(
        v5.Vocabulary(**names), [arrays[name] for name in sorted(arrays)], day.toordinal()
    )
    kept, error = (True, None) if lost else fine_tune(model, features, seed=day.toordinal())
    facts = {
        "parent": parent.folder.name,
        "kept": kept,
        "held_out_error": error,
        "rejects": series.rejects,
        "errors": errors_by_horizon(model, features),
        "seed": parent.manifest["seed"],
        "vocabulary": parent.manifest["vocabulary"],
    }
    return store.publish(
        where.published, series, model.weights(), model.forecast(features, series.days), facts
    )


def with_lost_day(series: Series) -> Series:
    """Return the series with one more day, of which nothing was observed."""
    gap = np.zeros((len(series.keys), 1, 24))
    return dataclasses.replace(
        series,
        counts=np.concatenate([series.counts, gap.astype(np.float32)], axis=1),
        observed=np.concatenate([series.observed, gap.astype(bool)], axis=1),
    )


def appended(where: Folders, series: Series, day: date, force: bool = False) -> Series:
    """Return the series with one more day from its file: new stations of known regions join, others are rejected.

    Raises ``BadInput`` where the file is missing or, unless forced, looks cut short.
    """
    path = where.day(day)
    if not path.exists():
        raise BadInput(
            f"{path} is missing; bring it, or say with --lost that {day} was never recorded."
        )
    table, rejects = clean(read_table(path))
    zones = where.zones()
    homeless = ~table["region"].isin(list(zones)).to_numpy()
    if homeless.any():
        rejects["region without a time zone"] = int(homeless.sum())
    table = table[~homeless]
    fresh = (
        table.loc[key_rows(series.keys, table) < 0, KEYS].drop_duplicates()
        if len(table)
        else table[KEYS]
    )
    keys = (
        pd.concat([series.keys[KEYS], fresh.astype(str)]).sort_values(KEYS).reset_index(drop=True)
    )
    keys["zone"] = keys["region"].map(zones)
    today = build(keys, table, outages_of(where), rejects, day)
    place = key_rows(keys, series.keys)
    counts, observed = (
        np.zeros((len(keys), series.days + 1, 24), np.float32),
        np.ones((len(keys), series.days + 1, 24), bool),
    )
    counts[place, :-1], observed[place, :-1] = series.counts, series.observed
    counts[:, -1:], observed[:, -1:] = today.counts, today.observed
    result = Series(keys, series.start, counts, observed, today.rejects)
    if not force and (lack := completeness.lack(result)):
        rejected = f" (rejected rows: {today.rejects})" if today.rejects else ""
        raise BadInput(
            f"{path} looks cut short: {lack}{rejected}. Bring the whole file, take it as it is with "
            f"--force, or forecast without {day} with --lost."
        )
    return result


def outages_of(where: Folders) -> pd.DataFrame | None:
    """Return the known outages."""
    return read_outages(where.outages) if where.outages.exists() else None


def fine_tune(model: v5.V5, features: Features, seed: int) -> tuple[bool, float | None]:
    """Train on the last day and a replay of old ones; returns whether the old weights were kept, and the error.

    One key-day in five is held out of the fine-tune; where the new weights do worse on those of the last two weeks
    than the old ones, the old ones stay. They stay, too, where there is nothing to learn or to judge by.
    """
    last = features.days - 1
    recent = features.examples(max(last - GATE_DAYS + 1, v5.FIRST), last + 1, seed=0, copies=2)
    slice_, learned = held_out(features, recent, True), lesson(features, seed)
    if not len(slice_.key) or not len(learned.key):
        return True, None
    inputs = model.inputs(features, slice_.key, slice_.target, slice_.horizon)
    before, old = model.error(inputs, slice_), model.weights()
    model.learn(features, learned, epochs=1, batch=batch_of(features), rate=RATE)
    after = model.error(inputs, slice_)
    kept = not after <= before  # so that an error that is no number keeps the old ones too
    if kept:
        model.set_weights(old)
    return kept, before if kept else after


def lesson(features: Features, seed: int, replay: float = REPLAY) -> Examples:
    """Return what a fine-tune learns: the last day at many horizons, and a share of old days, the gate's left out."""
    rows, last, rng = STEPS * batch_of(features), features.days - 1, np.random.default_rng(seed)
    new = held_out(features, features.examples(last, last + 1, seed, copies=64), False)
    n_new = min(round(rows * (1 - replay)), len(new.key))
    n_old = rows - n_new if replay else 0
    old = held_out(features, features.sample(v5.FIRST, last, round(n_old * 1.5), seed), False)
    return new.take(rng.permutation(len(new.key))[:n_new]).joined(
        old.take(rng.permutation(len(old.key))[:n_old])
    )


def batch_of(features: Features) -> int:
    """Return the rows of a fine-tune's step: at most what keeps all its steps under 2 % of a full training's rows.

    A power of two, as each new shape is compiled once and the series grows every day.
    """
    full = v5.EPOCHS * v5.lesson_rows(features)
    most = min(BATCH, max(int(SHARE * full / STEPS), 16))
    return 1 << (most.bit_length() - 1)


def errors_by_horizon(model: v5.V5, features: Features) -> dict[str, dict[str, float]]:
    """Return the WAPE over the last two weeks in percent, the model's and the four-week median's, by days ahead."""
    examples = features.examples(max(features.days - GATE_DAYS, v5.FIRST), features.days, seed=1)
    key, target, horizon = examples.key, examples.target, examples.horizon
    level = np.nan_to_num(features.level_28[key, target - horizon])[:, None]
    actual, result = np.nan_to_num(examples.day) * level, {}
    expected = {
        "model": model.trainer.predict(model.inputs(features, key, target, horizon)) * level,
        "median": baselines.median_of(features.series, key, target, horizon),
    }
    for bucket, (low, high) in BUCKETS.items():
        here = ((horizon > low) & (horizon <= high))[:, None] & ~np.isnan(examples.day)
        result[bucket] = {
            name: round(
                100 * float(np.abs(values - actual)[here].sum() / max(actual[here].sum(), 1)), 2
            )
            for name, values in expected.items()
        }
    return result


def held_out(features: Features, examples: Examples, wanted: bool) -> Examples:
    """Return the examples that belong, or don't, to the gate's slice.

    A key's name and the day decide, not its row: rows move when a station joins, and the slice would then hold what
    earlier fine-tunes have learned.
    """
    names = features.series.keys[KEYS].itertuples(index=False)
    codes = np.array([zlib.crc32("\x1f".join(name).encode()) for name in names], np.int64)
    chosen = (codes[examples.key] + examples.day_number * 3) % HELD_OUT == 0
    return examples.take(np.flatnonzero(chosen == wanted))
