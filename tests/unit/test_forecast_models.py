"""The article's models and the search, on a small operator."""

import numpy as np
import pytest

from benchmarks.forecast import search
from benchmarks.forecast.wide_deep import VERSIONS, WideDeep
from forecast.features import Features
from forecast.simulate import Operator, simulate


@pytest.fixture(scope="module")
def operator() -> Operator:
    return simulate(1_500_000, days=320)


LAST = list(VERSIONS)[-1]  # the one with every part


@pytest.mark.parametrize(
    "version", [*(pytest.param(v, marks=pytest.mark.long) for v in VERSIONS if v != LAST), LAST]
)
def test_every_version_learns_and_forecasts_2160_hours_of_each_key(operator, version):
    day = operator.series.days - 90
    features = Features(operator.series.until(day))
    model = WideDeep(version, units=8, epochs=1, batch=16).fit(features, day, origins=5)
    forecast = model.forecast(features, day)
    assert forecast.shape == (len(operator.series.keys), 90, 24)
    assert np.isfinite(forecast).all()
    assert (forecast >= 0).all()
    assert forecast.std() > 0


def test_als_factors_are_one_row_a_station_and_stay_as_they_are(operator):
    features = Features(operator.series.until(200))
    factors = search.als_factors(features, 8)
    assert factors.shape == (features.stations, 8)
    model = search.trained(features, 8, 1e-3, 256, als=True)
    kept = [
        v
        for v in model.trainer.model.non_trainable_variables
        if v.shape == (features.stations + 1, 8)
    ]
    assert np.allclose(kept[0][:-1], factors)


@pytest.mark.long
def test_the_search_never_ends_worse_than_the_hand_picked_set(operator):
    _, best, hand = search.search(operator.series, trials=2)
    assert best <= hand
