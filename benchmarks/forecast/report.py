"""The whole forecast on this machine, and its figures against the goals: what ``make forecast`` runs."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.forecast import join, measure, plots, search
from forecast import daily, scoring
from forecast.simulate import Operator, simulate
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
    """What was measured so far; ``save`` writes it after each step, so that a stopped run keeps what it had."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> "Report":
        """Return the report that goes on from the file, where there is one."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def save(self, figures: dict[str, Any]) -> None:
        """Add figures and write the file."""
        self.figures |= figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n")

    def step(self, name: str, measured: Callable[[], dict[str, Any]]) -> None:
        """Measure, and save the figures with the seconds that it took."""
        click.echo(f"{name} ...")
        figures, seconds = measure.timed(measured)
        self.save(
            figures
            | {"step_seconds": self.figures.get("step_seconds", {}) | {name: round(seconds)}}
        )


# --- the figures as text ---

GOALS = (
    (
        "gap to the oracle closed, average MAPE, %",
        ">= 60",
        lambda f: f["gap_closed_avg_mape"]["v5"],
        lambda v: v >= 60,
    ),
    (
        "gap to the oracle closed, WAPE, %",
        ">= 50",
        lambda f: f["gap_closed_wape"]["v5"],
        lambda v: v >= 50,
    ),
    ("average MAPE, %", "< 10", lambda f: f["avg_mape"], lambda v: v < 10),
    ("cold start, s", "<= 30", lambda f: f["cold_start_s"], lambda v: v <= 30),
    ("daily update, forecast and Parquet, s", "<= 3", lambda f: f["daily_s"], lambda v: v <= 3),
    (
        "average MAPE: 30 fine-tunes above the worst of 3 retrainings",
        "<= 0",
        lambda f: above(f, "avg_mape"),
        lambda v: v <= 0,
    ),
    (
        "WAPE: 30 fine-tunes above the worst of 3 retrainings",
        "<= 0",
        lambda f: above(f, "wape"),
        lambda v: v <= 0,
    ),
    (
        "a fine-tune's rows, % of a full training's",
        "<= 2",
        lambda f: f["fine_tune_share_of_rows"],
        lambda v: v <= 2,
    ),
    (
        "a fine-tune's seconds, % of a full training's",
        "<= 2",
        lambda f: f["fine_tune_share_of_seconds"],
        lambda v: v <= 2,
    ),
    ("sort-merge over broadcast", ">= 2.5", lambda f: f["join_ratio"], lambda v: v >= 2.5),
    ("streamed events a second", ">= 100,000", lambda f: f["events_per_s"], lambda v: v >= 100_000),
)


def above(figures: dict[str, Any], figure: str) -> float:
    """Return the fine-tuned model's error minus that of the worst of three retrainings, in percentage points."""
    return round(figures["fine_tunes"]["fine-tuned"][figure] - max(figures["seeds"][figure]), 3)


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
    """Return the figures against the goals as a Markdown table; what was not measured says so."""
    rows = []
    for title, goal, figure, met in GOALS:
        try:
            value = figure(figures)
        except KeyError:
            rows.append([title, goal, "not measured", ""])
        else:
            rows.append([title, goal, f"{value:,}", "met" if met(value) else "missed"])
    for data_set, title in DATA_SETS.items():
        for rival in LIGHTGBMS if data_set in figures else ():
            lost = lost_to(figures[data_set], rival)
            rows.append(
                [
                    f"below {NAMES[rival]}: {title}",
                    "each horizon",
                    f"not at {', '.join(lost)}" if lost else "all",
                    "missed" if lost else "met",
                ]
            )
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
    lines = [
        [NAMES.get(name, name), *(row[figure] for figure in figures)]
        + [row["horizon"][bucket]["avg_mape"] for bucket in buckets if bucket in row["horizon"]]
        for name, row in rows.items()
    ]
    return table(
        f"model | WAPE | average MAPE | region | station | network | {' | '.join(buckets)} days",
        lines,
    )


def of_gaps(figures: dict[str, Any]) -> str:
    """Return how much of the gap between median and oracle each learned model closes, in percent."""
    wape, mape = figures["gap_closed_wape"], figures["gap_closed_avg_mape"]
    rows = [[NAMES.get(name, name), wape[name], mape[name]] for name in wape]
    return table(
        "share of the gap between median and oracle that is closed, % | WAPE | average MAPE", rows
    )


def of_seeds(figures: dict[str, Any]) -> str:
    """Return the three seeds' figures and the later origins' as two Markdown tables."""
    seeds = [
        [f"seed {i}", *pair] for i, pair in enumerate(zip(*figures["seeds"].values(), strict=True))
    ]
    origins = [
        [
            day,
            *(
                row[name][figure]
                for figure in ("avg_mape", "wape")
                for name in ("median", "v5", "oracle")
            ),
        ]
        for day, row in figures["rolling_origins"].items()
    ]
    head = "first day forecast | average MAPE: median | v5 | oracle | WAPE: median | v5 | oracle"
    return f"{table('v5 | average MAPE | WAPE', seeds)}\n\n{table(head, origins)}"


def of_search(figures: dict[str, Any]) -> str:
    """Return what search and ALS embeddings brought, the mean of the seeds with their range."""
    lines = [
        [
            name,
            *(
                f"{sum(v) / len(v):.2f} ({min(v):.2f} to {max(v):.2f})"
                for v in (row["wape"], row["avg_mape"])
            ),
        ]
        for name, row in figures["search"]["test"].items()
    ]
    return table("hyper-parameters and embeddings | WAPE | average MAPE", lines)


def of_days(figures: dict[str, Any]) -> str:
    """Return the seconds of the first training and of the days after it, and of the whole report."""
    rows = [
        ["cold start: load, features, training, forecast, publication", figures["cold_start_s"]],
        ["daily update, median of seven", figures["daily_s"]],
        ["the first of them, which compiles", figures["daily_seconds"][0]],
        ["as a command of its own, with Python's start and imports", figures["daily_command_s"]],
        ["every step of the report together", sum(figures["step_seconds"].values())],
    ]
    return table("what | seconds", rows)


def of_fine_tunes(figures: dict[str, Any]) -> str:
    """Return the scores of a fine-tuned, a retrained and an untouched model, and what a fine-tune costs."""
    costs = [
        ["fine-tune with its gate", figures["fine_tune_s"]],
        ["full training", figures["retraining_s"]],
    ]
    return f"{of_models(figures['fine_tunes'])}\n\n{table('what | seconds', costs)}"


def of_stream(figures: dict[str, Any]) -> str:
    """Return how fast the stream went, the job's start and end included, and whether it is the batch result."""
    row = figures["stream"]
    equal = "to the last cell" if row["equal_to_batch"] else "no"
    return table(
        "events | seconds | events a second | equal to the batch result",
        [[row["events"], row["seconds"], row["events_per_s"], equal]],
    )


def of_joins(figures: dict[str, Any]) -> str:
    """Return the join table: rows in and out and seconds of each way."""
    rows, seen = figures["join"]["ways"], figures["join"]["rows"]
    lines = [
        [name.replace("_", " "), seen["positive"], way["rows"], way["seconds"]]
        for name, way in rows.items()
    ]
    lines.append(
        [
            "numpy scatter",
            seen["positive"],
            seen["grid"],
            f"{figures['join']['numpy_scatter_s']:.4f}",
        ]
    )
    return table("way | positive rows in | rows out | seconds", lines)


def text(figures: dict[str, Any]) -> dict[str, str]:
    """Return the report's parts, title to Markdown, of what was measured so far."""
    parts = {"Goals": goals(figures)}
    for name, title in DATA_SETS.items():
        if name in figures:
            parts[f"Scores: {title}"] = of_models(figures[name])
    if "synthetic" in figures:
        parts[f"Scores: {DATA_SETS['synthetic']}"] += f"\n\n{of_gaps(figures)}"
    for title, needed, write in (
        ("The article's models", "versions", lambda f: of_models(f["versions"])),
        ("Spread", "seeds", of_seeds),
        ("Days", "daily_s", of_days),
        ("Thirty days", "fine_tunes", of_fine_tunes),
        ("Negative results", "search", of_search),
        ("Zero fill", "join", of_joins),
        ("Stream", "stream", of_stream),
    ):
        if needed in figures:
            parts[title] = write(figures)
    return parts


# --- the steps ---


def accuracy(operator: Operator, drawn: Path) -> dict[str, Any]:
    """Score the contenders on the operator's last 90 days and draw the plot of them."""
    found, forecasts = measure.compared(operator.series, operator.intensity)
    plots.days(
        operator, {NAMES.get(name, name): forecasts[name] for name in ("v5", "median")}, drawn
    )
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
    found = {"second_operator": measure.compared(other.series, other.intensity)[0]}
    return found | {"flights": measure.compared(measure.flights(where.root / "flights.parquet"))[0]}


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
@click.option("--steps", default=",".join(STEPS), show_default=True, help="what to do, with commas")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=HERE / "benchmarks" / "results" / "forecast.json",
    show_default=False,
    help="the figures; default: benchmarks/results/forecast.json",
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
    """Simulate, train once, update seven days, score against every baseline, time the joins, and report."""
    began, where, report = time.perf_counter(), daily.folders(), Report.of(output)
    wanted = steps.split(",")
    if unknown := set(wanted) - set(STEPS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: the steps are {', '.join(STEPS)}")
    if "days" in wanted:
        shutil.rmtree(where.root / "compiled", ignore_errors=True)  # a cold start compiles too
    cache_compiled(where.root / "compiled")
    click.echo("simulating ...")
    operator = simulate(cells)
    positive = sum(int((counts > 0).sum()) for counts in operator.hourly)
    grid = operator.regions * operator.stations * operator.series.days * 24
    report.save({"keys": len(operator.series.keys), "cells": grid, "positives": positive})
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
        if name in wanted:
            report.step(name, act)
    if "synthetic" in report.figures:
        plots.errors(report.figures, NAMES, drawn)
    parts = "\n\n".join(f"## {title}\n\n{part}" for title, part in text(report.figures).items())
    (where.root / "report.md").write_text(f"# Forecast\n\n{parts}\n")
    click.echo(
        f"\n{parts}\n\n{time.perf_counter() - began:.0f} s; figures in {output}, report and forecasts in {where.root}"
    )


if __name__ == "__main__":
    main()
