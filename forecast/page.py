"""Page of the forecast: history, median and the next 90 days of one region and station.

A Flask blueprint under ``/forecast``. It reads only published folders and imports neither Keras
nor JAX.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from flask import Blueprint, Response, jsonify, redirect, render_template, request
from werkzeug.wrappers import Response as BaseResponse

from forecast.baselines import median
from forecast.series import KEYS, Series
from forecast.store import Published, StoreError, current, opened

HISTORY = 56  # days shown before the forecast


def blueprint(root: Path) -> Blueprint:
    """Return the page over the published folders under this root; it reads at a request only."""
    pages = Blueprint(
        "forecast",
        __name__,
        url_prefix="/forecast",
        template_folder="templates",
        static_folder="static",
    )

    @pages.get("")
    def with_slash() -> BaseResponse:
        # Relative: a proxy may serve this at a path that only the browser knows.
        return redirect("forecast/", 308)

    @pages.get("/")
    def show() -> str:
        return render_template("forecast.html")

    @pages.get("/keys")
    def keys() -> tuple[Response, int]:
        try:
            published = newest(root)
        except StoreError as error:
            return jsonify(success=False, error=str(error)), 503
        shown = ("as_of", "model", "kept", "parent", "errors")
        facts = {name: published.manifest[name] for name in shown}
        return jsonify(success=True, keys=keys_of(published), **facts), 200

    @pages.get("/data")
    def data() -> tuple[Response, int]:
        key = [request.args.get(name, "") for name in KEYS]
        try:
            return jsonify(success=True, **of_key(newest(root), key)), 200
        except KeyError:
            missing = f"There is no key {' / '.join(key)} in this forecast."
            return jsonify(success=False, error=missing), 404
        except StoreError as error:
            return jsonify(success=False, error=str(error)), 503

    return pages


def newest(root: Path) -> Published:
    """Return the current published folder; raises ``StoreError`` before the first."""
    published = current(root)
    if published is None:
        raise StoreError("No forecast is published yet; make forecast makes one.")
    return published


def keys_of(published: Published) -> list[list[str]]:
    """Return region, network and station of each key of a forecast."""
    columns = [published.manifest["keys"][name] for name in KEYS]
    return [list(key) for key in zip(*columns, strict=True)]


@lru_cache(maxsize=1)
def _series(folder: Path) -> Series:
    """Return a folder's series, from memory while the folder is the last one asked for."""
    return opened(folder).series()


def of_key(published: Published, key: list[str]) -> dict[str, Any]:
    """Return one key's impressions a day: history, forecast and median.

    A day of the history is None where nothing was observed.
    Raises ``KeyError`` for a key that is not in the forecast.
    """
    keys = keys_of(published)
    if key not in keys:
        raise KeyError(key)
    at = keys.index(key)
    series = _series(published.folder)
    one = Series(series.keys.iloc[[at]], series.start, series.counts[[at]], series.observed[[at]])
    usual = median(one, series.days).sum(axis=2)[0]
    counts = one.counts[0, -HISTORY:].sum(axis=1)
    seen = one.observed[0, -HISTORY:].any(axis=1)
    history = [float(count) if known else None for count, known in zip(counts, seen, strict=True)]
    return {
        "history": history,
        "forecast": _daily_forecast(published, key),
        "median": np.round(usual.astype(float), 1).tolist(),
        "first_day": str(series.end),
    }


def _daily_forecast(published: Published, key: list[str]) -> list[float]:
    """Return one key's expected impressions of each day ahead, from its Parquet files."""
    filters = [(name, "=", value) for name, value in zip(KEYS, key, strict=True)]
    folder = published.folder / "forecast"
    table = pq.read_table(folder, filters=filters, columns=["day", "expected"])
    by_day = table.to_pandas().astype({"day": str}).groupby("day")["expected"].sum()
    return by_day.astype(float).round(1).tolist()
