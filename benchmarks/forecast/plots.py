"""The report's plots, in docs/: what happened beside what was expected, and each model's error by horizon."""

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
    """Draw the daily sums of the last 90 days: what happened and each forecast, (keys, 90, 24)."""
    day = operator.series.days - HORIZON
    seen = operator.series.observed[:, day:]
    figure, axes = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    axes.plot(
        1 + np.arange(HORIZON),
        (operator.series.counts[:, day:] * seen).sum(axis=(0, 2)) / 1e6,
        "k",
        label="actual",
    )
    for (name, forecast), style in zip(forecasts.items(), ("-", "--", ":"), strict=False):
        axes.plot(
            1 + np.arange(HORIZON), (forecast * seen).sum(axis=(0, 2)) / 1e6, style, label=name
        )
    axes.set(
        xlabel="days ahead", ylabel="million impressions a day", ylim=(0, None), xlim=(1, HORIZON)
    )
    axes.legend()
    _write(figure, folder / "forecast-days.png")


def errors(figures: dict[str, Any], titles: dict[str, str], folder: Path) -> None:
    """Draw average MAPE and WAPE of each model by horizon, the oracle's as the floor."""
    rows = figures["synthetic"] | figures.get("versions", {})
    names = [name for name in rows if name != "oracle"]
    figure, both = pyplot.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    place, width = np.arange(len(names)), 0.8 / len(scoring.BUCKETS)
    for axes, (title, key) in zip(
        both, (("average MAPE, %", "avg_mape"), ("WAPE, %", "wape")), strict=True
    ):
        for i, bucket in enumerate(scoring.BUCKETS):
            values = [rows[name]["horizon"][bucket][key] for name in names]
            axes.barh(place + (i - 1) * width, values, width, label=f"{bucket} days ahead")
        axes.axvline(rows["oracle"][key], color="k", linestyle="--", linewidth=1, label="oracle")
        axes.set(xlabel=title, yticks=place, yticklabels=[titles.get(name, name) for name in names])
    both[0].invert_yaxis()
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _write(figure, folder / "forecast-errors.png")


def _write(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
