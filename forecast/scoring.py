"""Errors of a forecast: WAPE per cell, and MAPE of sums by region, station and network."""

from dataclasses import asdict, dataclass

import numpy as np

from forecast.features import pool
from forecast.series import Series

BUCKETS = {"1-7": (0, 7), "8-30": (7, 30), "31-90": (30, 90)}
GROUPS = {"region": ("region",), "station": ("network", "station"), "network": ("network",)}


@dataclass(frozen=True)
class Score:
    """Errors in percent; ``avg_mape`` is the mean of the three MAPEs."""

    wape: float
    mape_region: float
    mape_station: float
    mape_network: float

    @property
    def avg_mape(self) -> float:
        """The mean of the MAPEs by region x hour, station x hour and network x hour."""
        return (self.mape_region + self.mape_station + self.mape_network) / 3

    def table(self) -> dict[str, float]:
        """Return every figure by name, rounded to a thousandth."""
        figures = asdict(self) | {"avg_mape": self.avg_mape}
        return {name: round(value, 3) for name, value in figures.items()}


def score(forecast: np.ndarray, actual: np.ndarray, observed: np.ndarray, series: Series) -> Score:
    """Return the errors over the observed cells.

    forecast, actual, observed: (keys, days, 24), of the keys of the series. A sum over a group
    takes the same cells of forecast and actual. Hours of a group without counts have no MAPE.
    """
    expected = np.where(observed, forecast, 0).astype(np.float64)
    counted = np.where(observed, actual, 0).astype(np.float64)
    mapes = [_mape(expected, counted, *series.codes(*columns)) for columns in GROUPS.values()]
    wape = np.abs(expected - counted).sum() / max(counted.sum(), 1e-9)
    return Score(100 * float(wape), *mapes)


def _mape(expected: np.ndarray, counted: np.ndarray, group: np.ndarray, n: int) -> float:
    """Return the mean relative error of the groups' hourly sums, in percent."""
    expected_sum = pool(expected, group, n)
    counted_sum = pool(counted, group, n)
    some = counted_sum > 0
    if not some.any():
        return float("nan")
    error = np.abs(expected_sum - counted_sum)[some] / counted_sum[some]
    return 100 * float(np.mean(error))


def gap_closed(figure: float, median: float, oracle: float) -> float:
    """Return the share of the way from the four-week median to the oracle, in percent."""
    return 100 * (median - figure) / (median - oracle)
