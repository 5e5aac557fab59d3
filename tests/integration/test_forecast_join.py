"""The zero fill on a real Flink, in this process's own Java."""

from benchmarks.forecast.join import STRATEGIES, compare
from forecast.simulate import simulate


def test_every_way_fills_the_same_grid(tmp_path):
    operator = simulate(1_000_000, days=40)
    found = compare(operator, tmp_path, days=2)
    assert set(found["ways"]) == set(STRATEGIES)
    counts = operator.series.counts[:, -2:]
    assert {way["rows"] for way in found["ways"].values()} == {
        operator.regions * operator.stations * 48
    }
    assert {way["impressions"] for way in found["ways"].values()} == {int(-(-counts // 1).sum())}
    assert found["rows"]["positive"] == (counts > 0).sum()
    assert found["join_ratio"] > 0
