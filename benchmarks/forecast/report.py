"""Report of the whole forecast, with its figures against the goals: ``make forecast``."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import ge, itemgetter, le, lt
from pathlib import Path
from typing import Any

import click

from benchmarks.forecast import join, measure, plots, search
from forecast import daily, scoring
from forecast.simulate import Operator, count_positives, grid_cells, simulate
from forecast.training import cache_compiled
from harness import markdown
from settings import HERE

STEPS = (
    "days",
    "accuracy",
    "seeds",
    "versions",
    "fine_tunes",
    "data_sets",
    "search",
    "join",
    "stream",
)
DATA_SETS = {
    "synthetic": "the synthetic operator",
    "second_operator": "another synthetic operator, seed 1",
    "flights": "flights from New York in 2013",
}
LIGHTGBMS = ("lightgbm", "lightgbm_same_inputs")
NAMES = {
    "median": "four-week median",
    "mean": "four-week mean",
    "naive": "seasonal naive",
    "lightgbm": "LightGBM, lags and calendar",
    "lightgbm_same_inputs": "LightGBM, v5's inputs",
}


@dataclass
class Report:
    """The figures so far; they are written after each step, so that a stopped run keeps them."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> "Report":
        """Return the report that continues the file, if there is one."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def save(self, figures: dict[str, Any]) -> None:
        """Add figures and write the file."""
        self.figures |= figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n")

    def step(self, name: str, measured: Callable[[], dict[str, Any]]) -> None:
        """Run one step and save its figures and seconds."""
        click.echo(f"{name} ...")
        figures, seconds = measure.timed(measured)
        step_seconds = self.figures.get("step_seconds", {}) | {name: round(seconds)}
        self.save(figures | {"step_seconds": step_seconds})


# --- the figures as text ---


@dataclass(frozen=True)
class Goal:
    """A bound that a figure should keep; ``figure`` raises ``KeyError`` before it is measured."""

    title: str
    sign: str  # one of COMPARE
    bound: float
    figure: Callable[[dict[str, Any]], float]

    def is_met(self, value: float) -> bool:
        """Return whether a value keeps the bound."""
        return COMPARE[self.sign](value, self.bound)


COMPARE = {"<": lt, "<=": le, ">=": ge}
GOALS = (
    Goal(
        "gap to the oracle closed, average MAPE, %",
        ">=",
        60,
        lambda figures: figures["gap_closed_avg_mape"]["v5"],
    ),
    Goal(
        "gap to the oracle closed, WAPE, %",
        ">=",
        50,
        lambda figures: figures["gap_closed_wape"]["v5"],
    ),
    Goal("average MAPE, %", "<", 10, itemgetter("avg_mape")),
    Goal("cold start, s", "<=", 30, itemgetter("cold_start_s")),
    Goal("daily update, forecast and Parquet, s", "<=", 3, itemgetter("daily_s")),
    Goal(
        "average MAPE: 30 fine-tunes above the worst of 3 retrainings",
        "<=",
        0,
        lambda figures: above(figures, "avg_mape"),
    ),
    Goal(
        "WAPE: 30 fine-tunes above the worst of 3 retrainings",
        "<=",
        0,
        lambda figures: above(figures, "wape"),
    ),
    Goal(
        "a fine-tune's rows, % of a full training's",
        "<=",
        2,
        itemgetter("fine_tune_share_of_rows"),
    ),
    Goal(
        "a fine-tune's seconds, % of a full training's",
        "<=",
        2,
        itemgetter("fine_tune_share_of_seconds"),
    ),
    Goal("sort-merge over broadcast", ">=", 2.5, itemgetter("join_ratio")),
    Goal("streamed events a second", ">=", 100_000, itemgetter("events_per_s")),
)


def above(figures: dict[str, Any], figure: str) -> float:
    """Return the fine-tuned model's error above the worst of three retrainings.

    The difference is in percentage points.
    """
    worst = max(figures["seeds"][figure])
    return round(figures["fine_tunes"]["fine-tuned"][figure] - worst, 3)


def table(head: str, rows: list[list[Any]]) -> str:
    """Return a Markdown table; floats with two decimals, and the first column to the left."""
    columns = head.split(" | ")
    cells = [[shown(value) for value in row] for row in rows]
    return markdown.table(columns, cells, ["---", *["---:"] * (len(columns) - 1)])


def shown(value: Any) -> str:
    """Return a cell's text: floats with two decimals, whole numbers with separators."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def goals(figures: dict[str, Any]) -> str:
    """Return the figures against the goals as a Markdown table, also those not measured yet."""
    rows = []
    for goal in GOALS:
        bound = f"{goal.sign} {goal.bound:,}"
        try:
            value = goal.figure(figures)
        except KeyError:
            rows.append([goal.title, bound, "not measured", ""])
        else:
            verdict = "met" if goal.is_met(value) else "missed"
            rows.append([goal.title, bound, f"{value:,}", verdict])
    for data_set in [name for name in DATA_SETS if name in figures]:
        for rival in LIGHTGBMS:
            lost = lost_to(figures[data_set], rival)
            reached = f"not at {', '.join(lost)}" if lost else "all"
            what = f"below {NAMES[rival]}: {DATA_SETS[data_set]}"
            rows.append([what, "each horizon", reached, "missed" if lost else "met"])
    return table("what | goal | measured | ", rows)


def lost_to(rows: dict[str, Any], rival: str) -> list[str]:
    """Return the horizons and figures at which v5 is no better than the rival."""
    names = {"avg_mape": "average MAPE", "wape": "WAPE"}
    return [
        f"{bucket} days ({names[figure]})"
        for bucket, row in rows["v5"]["horizon"].items()
        for figure in names
        if row[figure] >= rows[rival]["horizon"][bucket][figure]
    ]


def of_models(rows: dict[str, Any]) -> str:
    """Return the scores of one data set as a Markdown table, in percent."""
    buckets = list(scoring.BUCKETS)
    figures = ("wape", "avg_mape", "mape_region", "mape_station", "mape_network")
    lines = []
    for name, row in rows.items():
        whole = [row[figure] for figure in figures]
        horizon = row["horizon"]
        by_bucket = [horizon[bucket]["avg_mape"] for bucket in buckets if bucket in horizon]
        lines.append([NAMES.get(name, name), *whole, *by_bucket])
    return table(
        f"model | WAPE | average MAPE | region | station | network | {' | '.join(buckets)} days",
        lines,
    )


def of_gaps(figures: dict[str, Any]) -> str:
    """Return the shares of the gap between median and oracle as a Markdown table, in percent."""
    wape = figures["gap_closed_wape"]
    mape = figures["gap_closed_avg_mape"]
    rows = [[NAMES.get(name, name), wape[name], mape[name]] for name in wape]
    return table(
        "share of the gap between median and oracle that is closed, % | WAPE | average MAPE", rows
    )


def of_seeds(figures: dict[str, Any]) -> str:
    """Return the three seeds' figures and the later origins' as two Markdown tables."""
    pairs = zip(*figures["seeds"].values(), strict=True)
    seeds = [[f"seed {i}", *pair] for i, pair in enumerate(pairs)]
    columns = [(f, name) for f in ("avg_mape", "wape") for name in ("median", "v5", "oracle")]
    origins = [
        [day, *(row[name][figure] for figure, name in columns)]
        for day, row in figures["rolling_origins"].items()
    ]
    head = "first day forecast | average MAPE: median | v5 | oracle | WAPE: median | v5 | oracle"
    return f"{table('v5 | average MAPE | WAPE', seeds)}\n\n{table(head, origins)}"


def of_search(figures: dict[str, Any]) -> str:
    """Return the errors with search and ALS embeddings, the mean of the seeds with its range."""
    lines = [
        [name, with_range(row["wape"]), with_range(row["avg_mape"])]
        for name, row in figures["search"]["test"].items()
    ]
    return table("hyper-parameters and embeddings | WAPE | average MAPE", lines)


def with_range(values: list[float]) -> str:
    """Return the mean of the values with their range."""
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def of_days(figures: dict[str, Any]) -> str:
    """Return the seconds of the first training, of the daily updates and of the whole report."""
    rows = [
        ["cold start: load, features, training, forecast, publication", figures["cold_start_s"]],
        ["daily update, median of seven", figures["daily_s"]],
        ["the first of them, which compiles", figures["daily_seconds"][0]],
        ["as a command, with Python's start and imports", figures["daily_command_s"]],
        ["every step of the report together", sum(figures["step_seconds"].values())],
    ]
    return table("what | seconds", rows)


def of_fine_tunes(figures: dict[str, Any]) -> str:
    """Return the scores after thirty days by kind of learning, and the cost of a fine-tune."""
    costs = [
        ["fine-tune with its gate", figures["fine_tune_s"]],
        ["full training", figures["retraining_s"]],
    ]
    return f"{of_models(figures['fine_tunes'])}\n\n{table('what | seconds', costs)}"


def of_stream(figures: dict[str, Any]) -> str:
    """Return the stream's rate with the job's start and end, and whether its result is right."""
    row = figures["stream"]
    equal = "to the last cell" if row["equal_to_batch"] else "no"
    return table(
        "events | seconds | events a second | equal to the batch result",
        [[row["events"], row["seconds"], row["events_per_s"], equal]],
    )


def of_joins(figures: dict[str, Any]) -> str:
    """Return the join table: rows in and out and seconds of each way."""
    joined = figures["join"]
    rows_in = joined["rows"]["positive"]
    lines = [
        [name.replace("_", " "), rows_in, way["rows"], way["seconds"]]
        for name, way in joined["ways"].items()
    ]
    scatter = f"{joined['numpy_scatter_s']:.4f}"
    lines.append(["numpy scatter", rows_in, joined["rows"]["grid"], scatter])
    return table("way | positive rows in | rows out | seconds", lines)


def text(figures: dict[str, Any]) -> dict[str, str]:
    """Return the report's parts by title, as Markdown, of the figures so far."""
    parts = {"Goals": goals(figures)}
    for name, title in DATA_SETS.items():
        if name in figures:
            parts[f"Scores: {title}"] = of_models(figures[name])
    if "synthetic" in figures:
        parts[f"Scores: {DATA_SETS['synthetic']}"] += f"\n\n{of_gaps(figures)}"
    for title, (needed, write) in PARTS.items():
        if needed in figures:
            parts[title] = write(figures)
    return parts


PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "The article's models": ("versions", lambda figures: of_models(figures["versions"])),
    "Spread": ("seeds", of_seeds),
    "Days": ("daily_s", of_days),
    "Thirty days": ("fine_tunes", of_fine_tunes),
    "Negative results": ("search", of_search),
    "Zero fill": ("join", of_joins),
    "Stream": ("stream", of_stream),
}


# --- the steps ---


def accuracy(operator: Operator, drawn: Path) -> dict[str, Any]:
    """Score the contenders on the operator's last 90 days and draw the plot of them."""
    found, forecasts = measure.compared(operator.series, operator.intensity)
    shown = {NAMES.get(name, name): forecasts[name] for name in ("v5", "median")}
    plots.days(operator, shown, drawn)
    flat = {
        f"{name}_{figure}": found[name][figure]
        for name in ("median", "lightgbm", "oracle")
        for figure in ("avg_mape", "wape")
    }
    ours = {figure: found["v5"][figure] for figure in ("avg_mape", "wape")}
    return flat | ours | measure.gaps(found) | {"synthetic": found}


def data_sets(second_cells: int, where: daily.Folders) -> dict[str, Any]:
    """Score the contenders on another operator and on a real series."""
    other = simulate(second_cells, seed=1)
    flights = measure.flights(where.root / "flights.parquet")
    return {
        "second_operator": measure.compared(other.series, other.intensity)[0],
        "flights": measure.compared(flights)[0],
    }


def joins(operator: Operator, where: daily.Folders, days: int) -> dict[str, Any]:
    """Time the zero fill each way."""
    compared = join.compare(operator, where.root / "join", days)
    return {"join": compared, "join_ratio": compared["join_ratio"]}


@click.command()
@click.option("--cells", default=250_000_000, show_default=True, help="cells of the simulated grid")
@click.option(
    "--small-cells", default=search.CELLS, show_default=True, help="cells of the search's operator"
)
@click.option(
    "--trials",
    default=search.TRIALS,
    show_default=True,
    help="hyper-parameter sets that the search tries",
)
@click.option(
    "--join-days", default=45, show_default=True, help="days of the grid that the joins fill"
)
@click.option(
    "--events", default=2_000_000, show_default=True, help="events that the stream is timed with"
)
@click.option(
    "--steps", default=",".join(STEPS), show_default=True, help="steps to run, separated by commas"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=HERE / "benchmarks" / "results" / "forecast.json",
    show_default=False,
    help="file of the figures; default: benchmarks/results/forecast.json",
)
@click.option(
    "--plots",
    "drawn",
    type=click.Path(path_type=Path),
    default=plots.DOCS,
    show_default=False,
    help="folder of the plots; default: docs",
)
def main(
    cells: int,
    small_cells: int,
    trials: int,
    join_days: int,
    events: int,
    steps: str,
    output: Path,
    drawn: Path,
) -> None:
    """Simulate an operator, run the steps, and report their figures.

    The steps train once, update seven days, score against every baseline and time the joins.
    """
    began = time.perf_counter()
    where = daily.folders()
    report = Report.of(output)
    chosen = steps.split(",")
    if unknown := set(chosen) - set(STEPS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: the steps are {', '.join(STEPS)}")
    compiled = where.root / "compiled"
    if "days" in chosen:  # the cold start includes compiling
        shutil.rmtree(compiled, ignore_errors=True)
    cache_compiled(compiled)
    click.echo("simulating ...")
    operator = simulate(cells)
    keys = len(operator.series.keys)
    cells, positives = grid_cells(operator), count_positives(operator)
    report.save({"keys": keys, "cells": cells, "positives": positives})
    acts: dict[str, Callable[[], dict[str, Any]]] = {
        "days": lambda: measure.days_of(operator, where),
        "accuracy": lambda: accuracy(operator, drawn),
        "seeds": lambda: measure.seeds_and_origins(operator),
        "versions": lambda: measure.versions(operator),
        "fine_tunes": lambda: measure.fine_tunes(operator),
        "data_sets": lambda: data_sets(small_cells, where),
        "search": lambda: {"search": search.compared(simulate(small_cells).series, trials)},
        "join": lambda: joins(operator, where, join_days),
        "stream": lambda: measure.stream_speed(operator, where.root, events),
    }
    for name, act in acts.items():
        if name in chosen:
            report.step(name, act)
    parts = written(report, where, drawn)
    seconds = time.perf_counter() - began
    click.echo(
        f"\n{parts}\n\n{seconds:.0f} s; figures in {output}, report and forecasts in {where.root}"
    )


def written(report: Report, where: daily.Folders, drawn: Path) -> str:
    """Draw the errors and write the report's file; returns its text without the title."""
    if "synthetic" in report.figures:
        plots.errors(report.figures, NAMES, drawn)
    parts = "\n\n".join(f"## {title}\n\n{part}" for title, part in text(report.figures).items())
    where.root.mkdir(parents=True, exist_ok=True)
    (where.root / "report.md").write_text(f"# Forecast\n\n{parts}\n")
    return parts


if __name__ == "__main__":
    main()
