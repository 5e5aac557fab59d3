"""Plots of the report: counts and forecasts by day, and each model's error by horizon."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from forecast import scoring
from forecast.features import HORIZON
from forecast.simulate import Operator
from settings import HERE

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = HERE / "docs"


def days(operator: Operator, forecasts: dict[str, np.ndarray], folder: Path) -> None:
    """Draw the daily sums of the last 90 days: the counts and each forecast, (keys, 90, 24)."""
    first = operator.series.days - HORIZON
    seen = operator.series.observed[:, first:]
    ahead = 1 + np.arange(HORIZON)
    figure, axes = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    counts = operator.series.counts[:, first:]
    axes.plot(ahead, (counts * seen).sum(axis=(0, 2)) / 1e6, "k", label="actual")
    for (name, forecast), line in zip(forecasts.items(), ("-", "--", ":"), strict=False):
        axes.plot(ahead, (forecast * seen).sum(axis=(0, 2)) / 1e6, line, label=name)
    axes.set(xlabel="days ahead", ylabel="million impressions a day")
    axes.set(xlim=(1, HORIZON), ylim=(0, None))
    axes.legend()
    _write(figure, folder / "forecast-days.png")


def errors(figures: dict[str, Any], titles: dict[str, str], folder: Path) -> None:
    """Draw average MAPE and WAPE of each model by horizon, with a line for the oracle's."""
    rows = figures["synthetic"] | figures.get("versions", {})
    names = [name for name in rows if name != "oracle"]
    figure, both = pyplot.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    place = np.arange(len(names))
    labels = [titles.get(name, name) for name in names]
    width = 0.8 / len(scoring.BUCKETS)
    for axes, title, error in zip(
        both, ("average MAPE", "WAPE"), ("avg_mape", "wape"), strict=True
    ):
        for i, bucket in enumerate(scoring.BUCKETS):
            values = [rows[name]["horizon"][bucket][error] for name in names]
            axes.barh(place + (i - 1) * width, values, width, label=f"{bucket} days ahead")
        axes.axvline(rows["oracle"][error], color="k", linestyle="--", linewidth=1, label="oracle")
        axes.set(xlabel=f"{title}, %", yticks=place, yticklabels=labels)
    both[0].invert_yaxis()
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _write(figure, folder / "forecast-errors.png")


def _write(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
