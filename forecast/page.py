"""The forecast's page: history and the next 90 days of one region and station, with the median beside them.

A Flask blueprint under ``/forecast``; it reads only what is published, and knows neither Keras nor JAX.
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
    """Return the page over the published folders under this root; nothing is read before a request."""
    pages = Blueprint(
        "forecast",
        __name__,
        url_prefix="/forecast",
        template_folder="templates",
        static_folder="static",
    )

    @pages.get("")
    def with_slash() -> BaseResponse:
        # Relative, as a proxy may serve this at a path that only the browser knows.
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
        names = zip(*(published.manifest["keys"][name] for name in KEYS), strict=True)
        facts = {
            name: published.manifest[name]
            for name in ("as_of", "model", "kept", "parent", "errors")
        }
        return jsonify(success=True, keys=[list(name) for name in names], **facts), 200

    @pages.get("/data")
    def data() -> tuple[Response, int]:
        try:
            published = newest(root)
            key = [request.args.get(name, "") for name in KEYS]
            return jsonify(success=True, **of_key(published, key)), 200
        except KeyError:
            return jsonify(
                success=False, error=f"There is no key {' / '.join(key)} in this forecast."
            ), 404
        except StoreError as error:
            return jsonify(success=False, error=str(error)), 503

    return pages


def newest(root: Path) -> Published:
    """Return what is published now; raises ``StoreError`` before the first."""
    published = current(root)
    if published is None:
        raise StoreError("No forecast is published yet; make forecast makes one.")
    return published


@lru_cache(maxsize=1)
def _series(folder: Path) -> Series:
    return opened(folder).series()


def of_key(published: Published, key: list[str]) -> dict[str, Any]:
    """Return one key's days: history (null where nothing was observed), forecast and median, impressions a day.

    Raises ``KeyError`` for a key that is not in the forecast.
    """
    rows = list(zip(*(published.manifest["keys"][name] for name in KEYS), strict=True))
    if tuple(key) not in rows:
        raise KeyError(key)
    at = rows.index(tuple(key))
    series = _series(published.folder)
    filters = [(name, "=", value) for name, value in zip(KEYS, key, strict=True)]
    table = pq.read_table(
        published.folder / "forecast", filters=filters, columns=["day", "expected"]
    )
    by_day = table.to_pandas().astype({"day": str}).groupby("day")["expected"].sum()
    counts, seen = series.counts[at, -HISTORY:], series.observed[at, -HISTORY:]
    history = [
        float(day.sum()) if known.any() else None for day, known in zip(counts, seen, strict=True)
    ]
    one = Series(series.keys.iloc[[at]], series.start, series.counts[[at]], series.observed[[at]])
    usual = median(one, series.days).sum(axis=2)[0]
    return {
        "history": history,
        "forecast": by_day.astype(float).round(1).tolist(),
        "median": np.round(usual.astype(float), 1).tolist(),
        "first_day": str(series.end),
    }
