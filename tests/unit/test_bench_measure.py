"""The benchmarks' judgements: stable rates, runs too short, ages over time, what is stored."""

import numpy as np
import pytest

from benchmarks.loop import __main__ as bench
from benchmarks.loop import freshness, measure, report, results


def counts(*rates: float) -> measure.Counts:
    """Counts every 20 ms, one second at each rate."""
    at, total = 0.0, 0.0
    seen = [(at, 0)]
    for rate in rates:
        for _ in range(50):
            at += 0.02
            total += rate / 50
            seen.append((at, round(total)))
    return seen


def test_a_rate_is_stable_when_two_stretches_are_alike():
    assert measure.is_stable(counts(100, 1000, 1000, 1000, 1000, 1000))
    assert measure.is_stable(counts(1000, 1050, 1000, 1080))


@pytest.mark.parametrize("rates", [(1000, 1000, 1000), (100, 400, 800, 1600), (1000, 1000, 0, 0)])
def test_a_rate_is_not_stable_while_it_changes_or_is_young(rates):
    assert not measure.is_stable(counts(*rates))


def test_outputs_of_less_than_a_second_have_no_rate():
    assert measure.rate_of([(0.0, 0), (0.9, 500_000)]) is None
    assert measure.rate_of([(5.0, 100)]) is None
    assert measure.rate_of([(1.0, 100), (3.0, 500)]) == 200


def test_the_tables_name_a_run_that_was_too_short():
    host = {"stolen_percent": 0.5, "load": 2.0}
    short = {"title": "fast", "guarantee": "none", "host": [host]} | measure.rate_figure([None])
    some = {"title": "slow", "guarantee": "none", "host": [host, host | {"load": 7.5}]}
    some |= {"steady": [True, False]} | measure.rate_figure([None, 20_000.0])
    shown = report.tables({"throughput": {"fast": short, "slow": some}, "ratios": {}})
    assert "| fast | none | too short to measure |  |  |  | 0.5 | 2.0 |" in shown
    assert "| slow | none | 20,000 (not stable) | 20,000 to 20,000 |  |  | 0.5 | 7.5 |" in shown


class Quiet:
    """A job that had one checkpoint and one rewrite of Redis's file."""

    checkpoints = ((9.0, 9.5), (11.0, 11.25))
    rewrites = ((10.5, 10.75), (99.0, 99.5))


def test_the_age_over_time_has_a_bin_for_each_half_second_and_what_delays():
    chunks = [
        freshness.Ages(np.array([10.1, 10.2]), np.array([5.0, 7.0]), np.array([8.0, 9.0])),
        freshness.Ages(np.array([11.3]), np.array([40.0]), np.array([50.0])),
    ]
    found = freshness.over_time(chunks, 10.0, Quiet())
    assert found["stored_ms"] == {"p50": [6.0, None, 40.0], "max": [7.0, None, 40.0]}
    assert found["served_ms"]["max"] == [9.0, None, 50.0]
    assert found["checkpoints_s"] == [[1.0, 1.25]]
    assert found["rewrites_s"] == [[0.5, 0.75]]


def test_the_warm_up_ends_when_two_chunks_have_the_same_age():
    def chunk(age: float) -> freshness.Ages:
        ages = np.full(10, age)
        return freshness.Ages(ages, ages, ages)

    assert not freshness.is_stable([chunk(50)])
    assert not freshness.is_stable([chunk(5000), chunk(50)])
    assert freshness.is_stable([chunk(5000), chunk(55), chunk(50)])


def test_a_plot_of_the_age_over_time_is_drawn_for_each_learner(tmp_path):
    host = {"stolen_percent": None, "load": 1.0}
    ages = {"p50": [5000.0, None, 20.0], "max": [5100.0, None, 40.0]}
    course = {"bin_s": 0.5, "stored_ms": ages, "served_ms": ages, "rate": 1000, "host": host}
    course |= {"finished": "2026-11-25T11:00:00Z"}
    course |= {"checkpoints_s": [[0.2, 0.3]], "rewrites_s": [], "measured_from_s": 1.0}
    report.plots({"freshness_over_time": {"default": course, "sgd": course}}, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"bench-age-default.png", "bench-age-sgd.png"}


def test_a_part_of_a_topic_replaces_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "loop.json")
    results.RESULTS.write_text('{"growth": {"sizes": 1, "memory": 2}, "measured": {"a": 1}}')
    bench.store("growth", {"growth": {"memory": 3}}, {"b": 2}, partly=True)
    assert results.load() == {
        "growth": {"sizes": 1, "memory": 3},
        "measured": {"a": 1, "growth": {"b": 2}},
    }
