"""Daily operation: one full training, then each day a fine-tune, a gate and a publication.

Each command reads only the day before's published folder and the day's file. So a day can be run
again, by hand or by a scheduler, and gives the same folder.
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
    InputError,
    Series,
    build,
    clean,
    key_rows,
    load,
    read_outages,
    read_table,
    sorted_keys,
)
from settings import settings

STEPS = 18  # of a fine-tune
BATCH = 1024  # rows of a step, at most
RATE = 1e-4
REPLAY = 0.9  # share of a fine-tune's rows that are old days
SHARE = 0.02  # a fine-tune's rows are at most this share of a full training's
HELD_OUT = 5  # one key-day in this many belongs to the gate and is not learned
GATE_DAYS = 14  # the gate's key-days are of the last so many days
WINDOW = 1096  # days of history that a published series keeps


@dataclass(frozen=True)
class Folders:
    """The forecast's files and folders, under its part of the run folder."""

    root: Path

    @property
    def history(self) -> Path:
        """The log up to the day before the first daily file."""
        return self.root / "log" / "history.parquet"

    @property
    def operator(self) -> Path:
        """The file of the regions' time zones: ``{"zones": {"r000": "America/New_York"}}``."""
        return self.root / "log" / "operator.json"

    @property
    def outages(self) -> Path:
        """The file of the ad servers' outages: ``region``, ``from``, ``to``."""
        return self.root / "log" / "outages.parquet"

    @property
    def published(self) -> Path:
        """The published folders, which the optimiser reads."""
        return self.root / "published"

    def day(self, day: date) -> Path:
        """Return the path of one day's file."""
        return self.root / "log" / f"day={day.isoformat()}.parquet"

    def zones(self) -> dict[str, str]:
        """Return the time zone of each region; raises ``InputError`` where the file has none."""
        try:
            return dict(json.loads(self.operator.read_bytes())["zones"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.operator} holds no time zones, such as "
                f'{{"zones": {{"a region": "America/Chicago"}}}}: {error!r}'
            ) from error


def folders() -> Folders:
    """Return the folders of this installation."""
    return Folders(settings().run_dir / "forecast")


def initialise(where: Folders, seed: int = 0, force: bool = False) -> store.Published:
    """Train on the whole history, forecast and publish.

    force: accept a history whose last day looks cut short.
    Raises ``InputError`` where the history is too short or looks cut short, ``StoreError`` where
    another run publishes.
    """
    with store.locked(where.published, "initialise"):
        return _initialise(where, seed, force)


def _initialise(where: Folders, seed: int, force: bool) -> store.Published:
    """Train, forecast and publish while the lock is held."""
    began = time.perf_counter()
    series = trimmed(load(where.history, where.zones(), outages_of(where)))
    if not force and (lack := completeness.lack(series)):
        raise InputError(
            f"{where.history} looks cut short on its last day: {lack}. Bring the whole file, "
            "or accept it as it is with initialise --force."
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
    weights = model.weights()
    published = store.publish(where.published, series, weights, forecast, facts, start_over=True)
    seconds = time.perf_counter() - began
    print(f"initialised with {len(series.keys)} keys to {published.as_of} in {seconds:.1f} s")
    return published


def next_day(where: Folders) -> date:
    """Return the day after the newest published one; raises ``InputError`` before the first."""
    newest = store.current(where.published)
    if newest is None:
        raise InputError("Nothing is published yet; run initialise first.")
    return newest.as_of + timedelta(days=1)


def trimmed(series: Series) -> Series:
    """Return the series' last ``WINDOW`` days."""
    drop = max(series.days - WINDOW, 0)
    return dataclasses.replace(
        series,
        start=series.start + timedelta(days=drop),
        counts=series.counts[:, drop:],
        observed=series.observed[:, drop:],
    )


def update(where: Folders, day: date, lost: bool = False, force: bool = False) -> store.Published:
    """Learn one day, forecast the 90 after it and publish.

    lost: no file of that day will ever come; forecast without it.
    force: accept a file that looks cut short.
    Raises ``InputError`` where the day before was not published, or the day's file is missing or
    looks cut short; ``StoreError`` where another run publishes.
    """
    with store.locked(where.published, f"update --day {day}"):
        return _update(where, day, lost, force)


def _update(where: Folders, day: date, lost: bool, force: bool) -> store.Published:
    """Learn, forecast and publish while the lock is held."""
    parent = _parent_of(where, day)
    before = parent.series()
    longer = with_lost_day(before) if lost else appended(where, before, day, force)
    series = trimmed(longer)
    features = Features(series)
    model = _stored_model(parent, seed=day.toordinal())
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
    forecast = model.forecast(features, series.days)
    return store.publish(where.published, series, model.weights(), forecast, facts)


def _parent_of(where: Folders, day: date) -> store.Published:
    """Return the folder of the day before; raises ``InputError`` where there is none."""
    parent = store.of_day(where.published, day - timedelta(days=1))
    if parent is None:
        newest = store.current(where.published)
        hint = f"the newest is {newest.as_of}." if newest else "run initialise first."
        raise InputError(
            f"{day} can't be learned: nothing was published for the day before it; {hint}"
        )
    return parent


def _stored_model(published: store.Published, seed: int) -> v5.V5:
    """Return the model of a published folder; the seed is that of its next training."""
    vocabulary = v5.Vocabulary(
        **{name: tuple(values) for name, values in published.manifest["vocabulary"].items()}
    )
    arrays = published.arrays("model")
    return v5.V5.stored(vocabulary, [arrays[name] for name in sorted(arrays)], seed)


def with_lost_day(series: Series) -> Series:
    """Return the series with one more day, of which nothing was observed."""
    gap = np.zeros((len(series.keys), 1, 24))
    return dataclasses.replace(
        series,
        counts=np.concatenate([series.counts, gap.astype(np.float32)], axis=1),
        observed=np.concatenate([series.observed, gap.astype(bool)], axis=1),
    )


def appended(where: Folders, series: Series, day: date, force: bool = False) -> Series:
    """Return the series with one more day from its file.

    New stations of regions that have a time zone join; rows of other regions are rejects.
    Raises ``InputError`` where the file is missing or, unless forced, looks cut short.
    """
    path = where.day(day)
    if not path.exists():
        raise InputError(f"{path} is missing; bring it, or use --lost if {day} was never recorded.")
    table, rejects = clean(read_table(path))
    zones = where.zones()
    has_zone = table["region"].isin(list(zones)).to_numpy()
    if not has_zone.all():
        rejects["region without a time zone"] = int((~has_zone).sum())
    table = table[has_zone]
    keys = _keys_with_new(series.keys, table)
    keys["zone"] = keys["region"].map(zones)
    today = build(keys, table, outages_of(where), rejects, day)
    result = _joined(series, today)
    if not force and (lack := completeness.lack(result)):
        rejected = f" (rejected rows: {today.rejects})" if today.rejects else ""
        raise InputError(
            f"{path} looks cut short: {lack}{rejected}. Bring the whole file, accept it as it is "
            f"with --force, or forecast without {day} with --lost."
        )
    return result


def _keys_with_new(keys: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the keys and those that only the table has, sorted, without zones."""
    if not len(table):
        return sorted_keys(keys)
    new = table.loc[key_rows(keys, table) < 0, KEYS].drop_duplicates()
    return sorted_keys(pd.concat([keys[KEYS], new.astype(str)]))


def _joined(series: Series, today: Series) -> Series:
    """Return the series and then the day, over the day's keys.

    A key that is new today counted nothing on the days before, and they were observed.
    """
    shape = (len(today.keys), series.days + 1, 24)
    counts = np.zeros(shape, np.float32)
    observed = np.ones(shape, bool)
    place = key_rows(today.keys, series.keys)
    counts[place, :-1] = series.counts
    observed[place, :-1] = series.observed
    counts[:, -1:] = today.counts
    observed[:, -1:] = today.observed
    return Series(today.keys, series.start, counts, observed, today.rejects)


def outages_of(where: Folders) -> pd.DataFrame | None:
    """Return the known outages, or None without a file of them."""
    return read_outages(where.outages) if where.outages.exists() else None


def fine_tune(model: v5.V5, features: Features, seed: int) -> tuple[bool, float | None]:
    """Train on the last day and a replay of old days, unless the gate finds the result worse.

    The gate compares the errors on held-out key-days of the last two weeks. The old weights stay
    where the new ones do worse, and where there is nothing to learn or to compare on.
    Returns whether the old weights were kept, and the error of the weights that stay.
    """
    last = features.days - 1
    first = max(last - GATE_DAYS + 1, v5.FIRST)
    recent = features.examples(first, last + 1, seed=0, copies=2)
    judged = held_out(features, recent, True)
    learned = lesson(features, seed)
    if not len(judged.key) or not len(learned.key):
        return True, None
    inputs = model.inputs(features, judged.key, judged.target, judged.horizon)
    before = model.error(inputs, judged)
    old = model.weights()
    model.learn(features, learned, epochs=1, batch=batch_of(features), rate=RATE)
    after = model.error(inputs, judged)
    kept = not after <= before  # also where an error is NaN
    if kept:
        model.set_weights(old)
    return kept, before if kept else after


def lesson(features: Features, seed: int, replay: float = REPLAY) -> Examples:
    """Return a fine-tune's examples: the last day at many horizons, and a share of old days.

    The gate's key-days are not among them.
    """
    rows = STEPS * batch_of(features)
    last = features.days - 1
    rng = np.random.default_rng(seed)
    new = held_out(features, features.examples(last, last + 1, seed, copies=64), False)
    n_new = min(round(rows * (1 - replay)), len(new.key))
    n_old = rows - n_new if replay else 0
    old = held_out(features, features.sample(v5.FIRST, last, round(n_old * 1.5), seed), False)
    chosen_new = new.take(rng.permutation(len(new.key))[:n_new])
    chosen_old = old.take(rng.permutation(len(old.key))[:n_old])
    return chosen_new.joined(chosen_old)


def batch_of(features: Features) -> int:
    """Return the rows of a fine-tune's step, so that all steps stay within ``SHARE``.

    It is a power of two: each new shape is compiled once, and the series grows every day.
    """
    full = v5.EPOCHS * v5.lesson_rows(features)
    most = min(BATCH, max(int(SHARE * full / STEPS), 16))
    return 1 << (most.bit_length() - 1)


def errors_by_horizon(model: v5.V5, features: Features) -> dict[str, dict[str, float]]:
    """Return the WAPE of the last two weeks in percent, by days ahead, of model and median."""
    examples = features.examples(max(features.days - GATE_DAYS, v5.FIRST), features.days, seed=1)
    key, target, horizon = examples.key, examples.target, examples.horizon
    level = np.nan_to_num(features.level_28[key, target - horizon])[:, None]
    actual = np.nan_to_num(examples.day) * level
    expected = {
        "model": model.trainer.predict(model.inputs(features, key, target, horizon)) * level,
        "median": baselines.median_of(features.series, key, target, horizon),
    }
    result = {}
    for bucket, (low, high) in BUCKETS.items():
        ahead = (horizon > low) & (horizon <= high)
        cells = ahead[:, None] & ~np.isnan(examples.day)
        result[bucket] = {name: _wape(values, actual, cells) for name, values in expected.items()}
    return result


def _wape(expected: np.ndarray, actual: np.ndarray, cells: np.ndarray) -> float:
    """Return the sum of errors over the sum of counts of these cells, in percent."""
    error = np.abs(expected - actual)[cells].sum()
    return round(100 * float(error / max(actual[cells].sum(), 1)), 2)


def held_out(features: Features, examples: Examples, for_gate: bool) -> Examples:
    """Return the examples of the gate's key-days, or all others.

    A key-day is chosen by the key's name and the day, not by the key's row. Rows move when a
    station joins, and then the gate would judge by what earlier fine-tunes have learned.
    """
    names = features.series.keys[KEYS].itertuples(index=False)
    codes = np.array([zlib.crc32("\x1f".join(name).encode()) for name in names], np.int64)
    chosen = (codes[examples.key] + examples.day_number * 3) % HELD_OUT == 0
    return examples.take(np.flatnonzero(chosen == for_gate))
