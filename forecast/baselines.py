"""What a model has to beat: four-week median and mean, seasonal naive, and LightGBM."""

import warnings
from collections.abc import Callable

import numpy as np

from forecast.features import HORIZON, YEAR, Examples, Features, Rows
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
    """Return the last observed same weekdays of each target, NaN where lost, (weeks, keys, days, 24)."""
    values = np.where(series.observed[:, :day], series.counts[:, :day], np.nan)
    ahead = np.arange(days)
    last = day + ahead - 7 * (ahead // 7 + 1)
    return np.stack(
        [
            values[:, last - 7 * week]
            if (last >= 7 * week).all()
            else np.where(
                (last >= 7 * week)[None, :, None], values[:, np.maximum(last - 7 * week, 0)], np.nan
            )
            for week in range(weeks)
        ]
    )


def _filled(forecast: np.ndarray) -> np.ndarray:
    return np.nan_to_num(forecast).astype(np.float32)


def median(series: Series, day: int, days: int = HORIZON) -> np.ndarray:
    """Return the median of the last four same weekdays, float32 (keys, days, 24)."""
    return _filled(_quiet(np.nanmedian, _last_weeks(series, day, days, 4)))


def median_of(
    series: Series, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
) -> np.ndarray:
    """Return the median of the last four same weekdays of single rows, float32 (n, 24); all three int64 (n,)."""
    same = target - 7 * (-(-horizon // 7))
    days = np.stack([same - 7 * week for week in range(4)])
    values = np.where(
        series.observed[key, days] & (days >= 0)[:, :, None], series.counts[key, days], np.nan
    )
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
    """Return one row per cell, float32 (n * 24, columns), of everything that v5 reads."""
    rows = features.rows(key, target, horizon)
    return _cells(np.concatenate([rows.profiles, rows.holiday[:, None]], axis=1), rows)


def usual_inputs(
    features: Features, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
) -> np.ndarray:
    """Return one row per cell, float32 (n * 24, columns), of lags and calendar: what a forecaster starts with.

    The lags are the last four same weekdays and the same weekday a year ago, in units of the key's level.
    """
    rows = features.rows(key, target, horizon)
    same = target - 7 * (-(-horizon // 7))
    days = [same - 7 * week for week in range(4)] + [target - YEAR]
    lags = [
        np.where(
            (day >= 0)[:, None] & features.series.observed[key, np.maximum(day, 0)],
            features.series.counts[key, np.maximum(day, 0)],
            np.nan,
        )
        for day in days
    ]
    scale = np.maximum(rows.level, 1e-3)[:, None]
    return _cells(np.stack([lag / scale for lag in lags], axis=1), rows)


def _cells(by_hour: np.ndarray, rows: Rows) -> np.ndarray:
    n = len(rows.level)
    per_row = np.concatenate([rows.dense, rows.ids], axis=1).astype(np.float32).repeat(24, axis=0)
    hour = np.tile(np.arange(24, dtype=np.float32), n)[:, None]
    return np.concatenate(
        [hour, by_hour.transpose(0, 2, 1).reshape(n * 24, -1), per_row], axis=1, dtype=np.float32
    )


class LightGBM:
    """Gradient-boosted trees, one row per hour, in units of the key's level; the loss is v5's."""

    def __init__(self, inputs=usual_inputs, cells: int = 1_500_000, trees: int = 150) -> None:
        self.inputs, self.cells, self.trees = inputs, cells, trees

    def fit(self, features: Features, examples: Examples, seed: int = 0) -> "LightGBM":
        """Learn from a random choice of the examples."""
        import lightgbm  # a second to import, and only this class needs it

        n = min(len(examples.key), self.cells // 24)
        chosen = np.random.default_rng(seed).choice(len(examples.key), n, replace=False)
        x = self.inputs(
            features, examples.key[chosen], examples.target[chosen], examples.horizon[chosen]
        )
        day = examples.day[chosen].ravel()
        seen = ~np.isnan(day)
        data = lightgbm.Dataset(
            x[seen],
            day[seen],
            weight=examples.weight[chosen].repeat(24)[seen],
            categorical_feature=list(range(x.shape[1] - 5, x.shape[1])),
        )
        self.model = lightgbm.train(TREES, data, self.trees)
        return self

    def forecast(self, features: Features, day: int, days: int = HORIZON) -> np.ndarray:
        """Return counts, float32 (keys, days, 24)."""
        key, target, horizon = features.ahead(day, days)
        shape = np.asarray(self.model.predict(self.inputs(features, key, target, horizon))).reshape(
            len(features.key), days, 24
        )
        level = features.rows(key, target, horizon).level.reshape(-1, days, 1)
        return (shape.clip(0) * level).astype(np.float32)
