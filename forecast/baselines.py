"""Baselines: four-week median and mean, seasonal naive, and LightGBM."""

import warnings
from collections.abc import Callable

import numpy as np

from forecast.features import HORIZON, YEAR, Examples, Features, Rows, last_same_weekday
from forecast.series import Series

TREES = {
    "objective": "l1",
    "learning_rate": 0.1,
    "num_leaves": 63,
    "min_data_in_leaf": 50,
    "verbose": -1,
    "num_threads": 2,
    "feature_fraction": 0.8,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
}


def _last_weeks(series: Series, day: int, days: int, weeks: int) -> np.ndarray:
    """Return the last same weekdays before each day ahead, (weeks, keys, days, 24).

    A cell is NaN where it was not observed or lies before the series.
    """
    values = np.where(series.observed[:, :day], series.counts[:, :day], np.nan)
    ahead = np.arange(days)
    last = last_same_weekday(day + ahead, 1 + ahead)
    stack = []
    for week in range(weeks):
        at = last - 7 * week
        inside = (at >= 0)[None, :, None]
        stack.append(np.where(inside, values[:, np.maximum(at, 0)], np.nan))
    return np.stack(stack)


def _filled(forecast: np.ndarray) -> np.ndarray:
    """Return a forecast as float32, 0 where it is NaN."""
    return np.nan_to_num(forecast).astype(np.float32)


def median(series: Series, day: int, days: int = HORIZON) -> np.ndarray:
    """Return the median of the last four same weekdays, float32 (keys, days, 24)."""
    return _filled(_quiet(np.nanmedian, _last_weeks(series, day, days, 4)))


def median_of(
    series: Series, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
) -> np.ndarray:
    """Return the median of the last four same weekdays of single rows, float32 (n, 24).

    key, target and horizon are int64 (n,).
    """
    same = last_same_weekday(target, horizon)
    days = np.stack([same - 7 * week for week in range(4)])
    known = series.observed[key, days] & (days >= 0)[:, :, None]
    values = np.where(known, series.counts[key, days], np.nan)
    return _filled(_quiet(np.nanmedian, values))


def mean(series: Series, day: int, days: int = HORIZON) -> np.ndarray:
    """Return the mean of the last four same weekdays, float32 (keys, days, 24)."""
    return _filled(_quiet(np.nanmean, _last_weeks(series, day, days, 4)))


def naive(series: Series, day: int, days: int = HORIZON) -> np.ndarray:
    """Return the last same weekday, float32 (keys, days, 24)."""
    return _filled(_last_weeks(series, day, days, 1)[0])


def _quiet(reduce: Callable, stack: np.ndarray) -> np.ndarray:
    """Reduce over axis 0; a cell that was never observed stays NaN without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return reduce(stack, axis=0)


def same_inputs(
    features: Features, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
) -> np.ndarray:
    """Return all inputs of v5, one row per hour, float32 (n * 24, columns)."""
    rows = features.rows(key, target, horizon)
    return _by_hour(np.concatenate([rows.profiles, rows.holiday[:, None]], axis=1), rows)


def usual_inputs(
    features: Features, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
) -> np.ndarray:
    """Return lags and calendar, one row per hour, float32 (n * 24, columns).

    The lags are the last four same weekdays and the same weekday a year ago, in units of the
    key's level: the inputs that a forecaster starts with.
    """
    rows = features.rows(key, target, horizon)
    same = last_same_weekday(target, horizon)
    scale = np.maximum(rows.level, 1e-3)[:, None]
    lags = []
    for day in [same, same - 7, same - 14, same - 21, target - YEAR]:
        at = np.maximum(day, 0)
        known = (day >= 0)[:, None] & features.series.observed[key, at]
        lags.append(np.where(known, features.series.counts[key, at], np.nan) / scale)
    return _by_hour(np.stack(lags, axis=1), rows)


def _by_hour(hourly: np.ndarray, rows: Rows) -> np.ndarray:
    """Return one row per hour: the hour, its columns of hourly (n, columns, 24), dense and ids."""
    n = len(rows.level)
    hour = np.tile(np.arange(24, dtype=np.float32), n)[:, None]
    own = hourly.transpose(0, 2, 1).reshape(n * 24, -1)
    shared = np.concatenate([rows.dense, rows.ids], axis=1).astype(np.float32)
    columns = [hour, own, shared.repeat(24, axis=0)]
    return np.concatenate(columns, axis=1, dtype=np.float32)


class LightGBM:
    """Gradient-boosted trees with one row per hour, in units of the key's level; v5's loss."""

    def __init__(self, inputs=usual_inputs, cells: int = 1_500_000, trees: int = 150) -> None:
        self.inputs = inputs
        self.cells = cells
        self.trees = trees

    def fit(self, features: Features, examples: Examples, seed: int = 0) -> "LightGBM":
        """Learn from a random choice of the examples, at most ``cells`` hours of them."""
        import lightgbm  # takes a second to import, and only this class needs it

        n = min(len(examples.key), self.cells // 24)
        chosen = examples.take(
            np.random.default_rng(seed).choice(len(examples.key), n, replace=False)
        )
        x = self.inputs(features, chosen.key, chosen.target, chosen.horizon)
        day = chosen.day.ravel()
        seen = ~np.isnan(day)
        ids = list(range(x.shape[1] - 5, x.shape[1]))
        weight = chosen.weight.repeat(24)[seen]
        data = lightgbm.Dataset(x[seen], day[seen], weight=weight, categorical_feature=ids)
        self.model = lightgbm.train(TREES, data, self.trees)
        return self

    def forecast(self, features: Features, day: int, days: int = HORIZON) -> np.ndarray:
        """Return counts, float32 (keys, days, 24)."""
        key, target, horizon = features.ahead(day, days)
        x = self.inputs(features, key, target, horizon)
        shape = np.asarray(self.model.predict(x)).reshape(len(features.key), days, 24)
        level = features.rows(key, target, horizon).level.reshape(-1, days, 1)
        return (shape.clip(0) * level).astype(np.float32)
