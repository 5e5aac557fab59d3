"""Errors of a forecast: WAPE per cell, and MAPE of the sums that are sold, by region, station and network."""

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
        return {
            name: round(value, 3)
            for name, value in (asdict(self) | {"avg_mape": self.avg_mape}).items()
        }


def score(forecast: np.ndarray, actual: np.ndarray, observed: np.ndarray, series: Series) -> Score:
    """Return the errors over the observed cells; all three (keys, days, 24) of the keys of the series.

    A group's hour counts where something was seen in it: its sum is over the same cells on both sides.
    """
    f, a = (np.where(observed, values, 0).astype(np.float64) for values in (forecast, actual))
    mapes = []
    for columns in GROUPS.values():
        group, n = series.codes(*columns)
        sold, expected = pool(a, group, n), pool(f, group, n)
        some = sold > 0
        mapes.append(
            100 * float(np.mean(np.abs(expected - sold)[some] / sold[some]))
            if some.any()
            else float("nan")
        )
    return Score(100 * float(np.abs(f - a).sum() / max(a.sum(), 1e-9)), *mapes)


def gap_closed(figure: float, median: float, oracle: float) -> float:
    """Return the share of the way from the four-week median to the oracle, in percent."""
    return 100 * (median - figure) / (median - oracle)
