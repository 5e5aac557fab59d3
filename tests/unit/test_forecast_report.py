"""The report's steps on a small operator, and its text."""

import functools
import json

import pytest
from click.testing import CliRunner

from benchmarks.forecast import measure, report
from forecast import baselines, daily
from settings import HERE

FIGURES = HERE / "benchmarks" / "results" / "forecast.json"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """The figures and the text of a report over twelve keys, with the folder it worked in."""
    folder = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    patch.setenv("RUN_DIR", str(folder))
    patch.setattr(daily, "folders", lambda: daily.Folders(folder / "forecast"))
    patch.setattr(measure, "UPDATES", 2)
    patch.setattr(measure, "FINE_TUNES", 2)
    patch.setattr(baselines, "LightGBM", functools.partial(baselines.LightGBM, trees=10))
    arguments = [
        "--cells",
        "300000",
        "--steps",
        "days,accuracy,fine_tunes",
        "--output",
        str(folder / "figures.json"),
    ]
    done = CliRunner().invoke(
        report.main, [*arguments, "--plots", str(folder)], catch_exceptions=False
    )
    patch.undo()
    assert done.exit_code == 0
    return json.loads((folder / "figures.json").read_text()), done.output, folder


@pytest.mark.long
def test_the_report_holds_every_figure_that_is_asked_of_it(small):
    figures, said, folder = small
    names = {
        f"{model}{figure}"
        for model in ("", "median_", "lightgbm_", "oracle_")
        for figure in ("avg_mape", "wape")
    }
    assert names | {"cold_start_s", "daily_s"} <= set(figures)
    assert len(figures["daily_seconds"]) == 2
    assert "| cold start, s | <= 30 |" in said
    assert "| sort-merge over broadcast | >= 2.5 | not measured |" in said
    assert {path.name for path in folder.glob("*.png")} == {
        "forecast-days.png",
        "forecast-errors.png",
    }


@pytest.mark.long
def test_what_was_published_is_what_the_same_training_forecasts(small):
    figures, _, _ = small
    assert figures["published"]["wape"] == pytest.approx(
        figures["synthetic"]["v5"]["wape"], abs=0.5
    )
    assert figures["wape"] < figures["median_wape"]


@pytest.mark.long
def test_a_fine_tune_learns_from_few_rows_and_every_model_of_the_comparison_is_scored(small):
    figures, _, _ = small
    assert set(figures["fine_tunes"]) == {"retrained", "fine-tuned", "without replay", "untouched"}
    assert figures["fine_tune_share_of_rows"] > 0


def test_a_missed_goal_is_said_with_its_horizon():
    rows = {
        name: {
            "horizon": {"1-7": {"avg_mape": e, "wape": e}, "8-30": {"avg_mape": 5.0, "wape": 5.0}}
        }
        for name, e in (("v5", 4.0), ("lightgbm", 6.0), ("lightgbm_same_inputs", 3.0))
    }
    said = report.goals({"flights": rows, "daily_s": 9.5})
    assert "| daily update, forecast and Parquet, s | <= 3 | 9.5 | missed |" in said
    row = "LightGBM, lags and calendar: flights from New York in 2013"
    assert f"{row} | each horizon | not at 8-30 days" in said
    assert report.lost_to(rows, "lightgbm_same_inputs")[0] == "1-7 days (average MAPE)"


def test_the_flights_are_a_year_of_three_airports(tmp_path):
    series = measure.flights(tmp_path / "flights.parquet")
    assert sorted(series.keys["region"].unique()) == ["EWR", "JFK", "LGA"]
    assert series.days == 364  # the log begins at 5:00 on the first day of the year
    assert series.counts.sum() == 335_934  # 336,776 flights without the 842 of that day


def test_an_unknown_step_is_refused():
    assert "the steps are days" in CliRunner().invoke(report.main, ["--steps", "dayz"]).output


@pytest.mark.skipif(
    not FIGURES.exists(), reason="needs benchmarks/results/forecast.json: make forecast writes it"
)
def test_the_docs_show_the_tables_of_the_measured_figures():
    shown = (HERE / "docs" / "benchmarks.md").read_text()
    for title, part in report.text(json.loads(FIGURES.read_text())).items():
        for table in part.split("\n\n"):
            assert table in shown, title
