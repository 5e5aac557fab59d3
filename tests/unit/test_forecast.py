"""The forecast without Kafka or Flink: series, features, scores, updates, published folders."""

import dataclasses
import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecast import baselines, calendar_us, daily, scoring, store, v5
from forecast.features import Features, trailing_sum
from forecast.series import InputError, Series, clean, load, local_slots, to_local
from forecast.simulate import Operator, positives, simulate, write_log

NEW_YORK = "America/New_York"


@pytest.fixture(scope="module")
def operator() -> Operator:
    """Twelve keys over 17 months."""
    return simulate(4_000_000, days=520)


@pytest.fixture(scope="module")
def published(operator: Operator, tmp_path_factory: pytest.TempPathFactory):
    """The folders of an operator that was initialised, and the four days after it."""
    where = daily.Folders(tmp_path_factory.mktemp("forecast"))
    later = write_log(operator, where.root / "log", 4)
    daily.initialise(where)
    return where, later


@pytest.fixture
def fresh(published, tmp_path: Path) -> tuple[daily.Folders, list[date]]:
    """A copy of the initialised installation, and its days to come."""
    where, later = published
    first = store.of_day(where.published, later[0] - timedelta(days=1))
    shutil.copytree(where.root / "log", tmp_path / "log")
    shutil.copytree(first.folder, tmp_path / "published" / first.folder.name)
    (tmp_path / "published" / "current").symlink_to(first.folder.name)
    return daily.Folders(tmp_path), later


def table(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["region", "network", "station", "timestamp", "count"])


def hours(day: str, n: int, count: int = 5) -> list[tuple]:
    start = pd.Timestamp(day, tz="UTC")
    return [
        ("east", "news", "one", (start + pd.Timedelta(hours=i)).isoformat(), count)
        for i in range(n)
    ]


# --- the series ---


def test_the_hour_that_spring_skips_is_not_observed_and_the_one_that_autumn_repeats_is_a_mean():
    for start, day_hours in ((date(2024, 3, 10), 23), (date(2024, 11, 3), 25)):
        _, day, _ = local_slots(NEW_YORK, start, 1)
        assert len(day) == day_hours
    _, _, hour = local_slots(NEW_YORK, date(2024, 11, 3), 1)
    counts, seen = to_local(
        np.arange(25.0)[None], np.ones((1, 25), bool), NEW_YORK, date(2024, 11, 3), 1
    )
    assert list(hour[:4]) == [0, 1, 1, 2]
    assert counts[0, 0, 1] == 1.5
    assert seen.all()
    _, seen = to_local(np.ones((1, 23)), np.ones((1, 23), bool), NEW_YORK, date(2024, 3, 10), 1)
    assert list(np.flatnonzero(~seen[0, 0])) == [2]


def test_a_file_gives_back_the_series_that_was_written(operator, tmp_path):
    positives(operator).to_parquet(tmp_path / "log.parquet")
    zones = dict(zip(operator.series.keys["region"], operator.series.keys["zone"], strict=True))
    loaded = load(tmp_path / "log.parquet", zones, operator.outages)
    drop = (loaded.start - operator.series.start).days
    kept = slice(drop, drop + loaded.days)
    assert loaded.days > 510
    assert (loaded.counts == operator.series.counts[:, kept]).all()
    assert (loaded.observed == operator.series.observed[:, kept]).all()


def test_an_outage_is_not_a_zero(tmp_path):
    table(*hours("2024-01-01", 96)).to_csv(tmp_path / "log.csv", index=False)
    outages = pd.DataFrame(
        {"region": ["east"], "from": ["2024-01-02 10:00Z"], "to": ["2024-01-02 12:30Z"]}
    )
    series = load(tmp_path / "log.csv", "UTC", outages)
    assert list(np.flatnonzero(~series.observed[0].ravel())) == [34, 35, 36]
    outages["from"] = outages["to"] = "2020-01-01 00:00Z"
    assert load(tmp_path / "log.csv", "UTC", outages).observed.all()


def test_each_bad_row_is_rejected_with_its_reason():
    good = hours("2024-01-01", 3)
    rows = [
        *good,
        good[0],
        ("east", "news", "one", good[1][3], 6),
        (None, "news", "one", good[0][3], 1),
        ("east", "news", "one", "yesterday", 1),
        ("east", "news", "one", good[0][3], "many"),
        ("east", "news", "one", good[0][3], -1),
        ("east", "news", "one", good[0][3], 1e12),
    ]
    kept, rejects = clean(table(*rows))
    assert sorted(kept["count"]) == [5, 5, 6]
    assert rejects == {
        "key missing": 1,
        "timestamp unreadable": 1,
        "count unreadable": 1,
        "count negative": 1,
        "count absurd": 1,
        "duplicate": 1,
        "corrected by a later row": 1,
    }


def test_rows_out_of_order_and_of_another_offset_are_the_same_series(tmp_path):
    rows = hours("2024-01-01", 72)
    table(*rows).to_csv(tmp_path / "a.csv", index=False)
    there = [
        (*row[:3], pd.Timestamp(row[3]).tz_convert("Asia/Kolkata").isoformat(), row[4])
        for row in rows
    ]
    table(*there[::-1]).to_csv(tmp_path / "b.csv", index=False)
    a, b = (load(tmp_path / name, NEW_YORK) for name in ("a.csv", "b.csv"))
    assert a.start == b.start
    assert (a.counts == b.counts).all()


@pytest.mark.parametrize(
    ("make", "zones", "sentence"),
    [
        (lambda path: path.write_text("a,b\n1,2\n"), "UTC", "has no column region"),
        (lambda path: None, "UTC", "can't be read"),
        (
            lambda path: table(*hours("2024-01-01", 60)).to_csv(path, index=False),
            "Mars/Olympus",
            "no time zone",
        ),
        (
            lambda path: table(*hours("2024-01-01", 60)).to_csv(path, index=False),
            {"west": "UTC"},
            "'east' has no time",
        ),
        (
            lambda path: table(*hours("2024-01-01", 5)).to_csv(path, index=False),
            "UTC",
            "no complete local day",
        ),
        (
            lambda path: table(*hours("2024-01-01", 5, count=-1)).to_csv(path, index=False),
            "UTC",
            "no row that can be",
        ),
    ],
)
def test_a_file_that_is_no_series_is_one_sentence(make, zones, sentence, tmp_path):
    make(tmp_path / "log.csv")
    with pytest.raises(InputError, match=sentence):
        load(tmp_path / "log.csv", zones)


def test_unknown_keys_are_counted_and_left_out(tmp_path):
    table(*hours("2024-01-01", 48), ("west", "x", "y", "2024-01-01T00:00Z", 1)).to_csv(
        tmp_path / "l.csv", index=False
    )
    known = pd.DataFrame({"region": ["east"], "network": ["news"], "station": ["one"]})
    series = load(tmp_path / "l.csv", "UTC", known=known)
    assert len(series.keys) == 1
    assert series.rejects == {"unknown key": 1}


# --- features, baselines and scores ---


def test_trailing_sums_are_plain_sums():
    values = np.random.default_rng(0).random((2, 60, 3))
    for step, n in ((1, 7), (7, 4), (7, 13)):
        plain = [
            values[:, [d - step * i for i in range(n) if d >= step * i]].sum(axis=1)
            for d in range(60)
        ]
        assert np.allclose(trailing_sum(values, step, n), np.stack(plain, 1), atol=1e-5)


def test_no_row_sees_past_its_origin(operator):
    day = 430
    changed = dataclasses.replace(operator.series, counts=operator.series.counts.copy())
    changed.counts[:, day:] *= 3
    before, after = (Features(series).origin(day).inputs() for series in (operator.series, changed))
    cut = Features(operator.series.until(day)).origin(day).inputs()
    for name, values in before.items():
        assert np.array_equal(values, after[name]), name
        assert np.allclose(values, cut[name], atol=1e-5), name


def test_a_new_station_is_no_growth_of_its_network():
    series = Series(
        pd.DataFrame(
            {
                "region": ["a", "b"],
                "network": ["n", "n"],
                "station": ["s", "s"],
                "zone": ["UTC", "UTC"],
            }
        ),
        date(2024, 1, 1),
        np.full((2, 200, 24), 10, np.float32),
        np.ones((2, 200, 24), bool),
    )
    series.counts[1, :100] = 0
    features = Features(series)
    assert np.abs(features.index[0][1][0, 60:]).max() < 0.01


def test_the_median_is_of_the_last_four_observed_same_weekdays():
    series = Series(
        pd.DataFrame({"region": ["a"], "network": ["n"], "station": ["s"], "zone": ["UTC"]}),
        date(2024, 1, 1),
        np.arange(40, dtype=np.float32)[None, :, None].repeat(24, 2),
        np.ones((1, 40, 24), bool),
    )
    assert baselines.median(series, 35, 8)[0, :, 0].tolist() == [
        17.5,
        18.5,
        19.5,
        20.5,
        21.5,
        22.5,
        23.5,
        17.5,
    ]
    series.observed[0, 28] = False
    assert baselines.median(series, 35, 1)[0, 0, 0] == 14
    assert baselines.mean(series, 35, 1)[0, 0, 0] == 14
    assert baselines.naive(series, 36, 1)[0, 0, 0] == 29


def test_a_score_counts_only_observed_cells_and_groups_are_sums():
    keys = pd.DataFrame(
        {"region": ["a", "a"], "network": ["n", "n"], "station": ["s", "t"], "zone": ["UTC"] * 2}
    )
    actual = np.full((2, 1, 24), 10.0)
    series = Series(keys, date(2024, 1, 1), actual.astype(np.float32), np.ones((2, 1, 24), bool))
    forecast = actual + np.array([1.0, -1.0])[:, None, None]
    score = scoring.score(forecast, actual, series.observed, series)
    assert (score.wape, score.mape_region, score.mape_station) == pytest.approx((10, 0, 10))
    lost = series.observed.copy()
    lost[0, 0, :12] = False
    assert scoring.score(forecast, actual, lost, series).mape_region == pytest.approx(5)
    assert scoring.gap_closed(7.0, 10.0, 5.0) == 60


def test_thanksgiving_and_easter_are_where_the_calendar_has_them():
    assert [calendar_us.NAMES[i] for i in calendar_us.holiday_ids(date(2025, 11, 26), 3)] == [
        "thanksgiving_eve",
        "thanksgiving",
        "black_friday",
    ]
    assert [calendar_us.easter(year) for year in (2024, 2025)] == [
        date(2024, 3, 31),
        date(2025, 4, 20),
    ]


# --- the model and its days ---


def test_v5_beats_the_median_on_days_it_has_not_seen(operator):
    day = operator.series.days - 60
    features = Features(operator.series.until(day))
    model = v5.cold_start(features)
    actual, seen = operator.series.counts[:, day:], operator.series.observed[:, day:]
    ours, median = (
        scoring.score(f, actual, seen, operator.series)
        for f in (model.forecast(features, day, 60), baselines.median(operator.series, day, 60))
    )
    assert ours.wape < median.wape


def test_a_day_run_again_gives_the_same_folder(published):
    where, later = published
    first = daily.update(where, later[0])
    inode = first.folder.stat().st_ino
    again = daily.update(where, later[0])
    assert again.folder == first.folder
    assert again.folder.stat().st_ino == inode
    assert store.current(where.published).folder == first.folder


def test_every_hour_of_the_next_90_days_is_forecast_once(published):
    where, later = published
    forecast = daily.update(where, later[0]).forecast()
    assert not forecast.duplicated(["region", "network", "station", "timestamp"]).any()
    assert (forecast["expected"] >= 0).all()
    assert np.isfinite(forecast["expected"]).all()
    per_key = forecast.groupby(["region", "network", "station"], observed=True)["timestamp"].agg(
        ["count", "min", "max"]
    )
    assert (per_key["count"] == 2160).all()  # no clock change in these 90 days
    assert ((per_key["max"] - per_key["min"]) == pd.Timedelta(hours=2159)).all()


def test_a_day_without_its_file_or_without_its_yesterday_is_refused_with_a_sentence(published):
    where, later = published
    with pytest.raises(InputError, match="nothing was published for the day before"):
        daily.update(where, later[3] + timedelta(days=3))
    moved = where.day(later[0]).rename(where.root / "away.parquet")
    try:
        with pytest.raises(InputError, match="--lost"):
            daily.update(where, later[0])
        lost = daily.update(where, later[0], lost=True)
        assert lost.manifest["kept"]
        assert not lost.series().observed[:, -1].any()
    finally:
        moved.rename(where.day(later[0]))


def test_a_new_station_joins_on_its_day_and_strangers_and_late_rows_are_counted(
    published, tmp_path
):
    where, later = published
    daily.update(where, later[0])
    path = where.day(later[1])
    original = pd.read_parquet(path)
    text = original.astype({"region": str, "network": str, "station": str})
    fresh, stranger, late = (text.iloc[:1].copy() for _ in range(3))
    fresh["station"], stranger["region"] = "news_new", "atlantis"
    late["timestamp"] -= pd.Timedelta(days=2)
    try:
        pd.concat([text, fresh, stranger, late]).to_parquet(path)
        update = daily.update(where, later[1])
        assert update.manifest["rejects"] == {
            "region without a time zone": 1,
            "outside the days": 1,
        }
        forecast = update.forecast()
        assert (forecast["station"] == "news_new").sum() == 2160
        daily.update(where, later[2])
    finally:
        original.to_parquet(path)


def test_a_new_region_joins_on_its_day_once_its_zone_is_known(published):
    where, later = published
    path, zones = where.day(later[0]), where.operator.read_text()
    original = pd.read_parquet(path)
    fresh = (
        original.astype({"region": str, "network": str, "station": str})
        .iloc[:24]
        .assign(region="atlantis")
    )
    try:
        pd.concat([original, fresh]).to_parquet(path)
        assert daily.update(where, later[0]).manifest["rejects"] == {
            "region without a time zone": 24
        }
        where.operator.write_text(
            json.dumps({"zones": where.zones() | {"atlantis": "Atlantic/Azores"}})
        )
        update = daily.update(where, later[0])
        assert (
            sum(update.manifest["rejects"].values()) < 24
        )  # hours that are another day in the Azores
        forecast = update.forecast()
        assert (forecast.loc[forecast["region"] == "atlantis", "expected"] >= 0).all()
        assert (forecast["region"] == "atlantis").sum() >= 2160
    finally:
        original.to_parquet(path)
        where.operator.write_text(zones)
        daily.update(where, later[0])


def test_the_gate_keeps_yesterdays_model_where_todays_is_worse(operator, monkeypatch):
    features = Features(operator.series)
    model = v5.V5.untrained(v5.Vocabulary.of(features))
    model.learn(features, features.sample(v5.FIRST, features.days, 4000, 0), epochs=2)
    before = model.weights()
    monkeypatch.setattr(daily, "RATE", 5.0)
    kept, error = daily.fine_tune(model, features, seed=1)
    assert kept
    assert np.isfinite(error)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights(), strict=True))


def test_a_killed_run_leaves_yesterday_complete(fresh, monkeypatch):
    where, later = fresh
    yesterday = daily.update(where, later[0])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_point", killed)
    with pytest.raises(KeyboardInterrupt):
        daily.update(where, later[1])
    monkeypatch.undo()
    assert store.current(where.published).folder == yesterday.folder
    assert len(store.current(where.published).forecast()) > 0
    assert daily.update(where, later[1]).as_of == later[1]
    assert not list(where.published.glob(".draft-*"))


def test_a_damaged_model_is_never_loaded(published):
    where, later = published
    update = daily.update(where, later[0])
    model = update.folder / "model.npz"
    good = model.read_bytes()
    try:
        model.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
        with pytest.raises(store.StoreError, match="publish that day again"):
            update.arrays("model")
    finally:
        model.write_bytes(good)


def test_the_commands_say_what_is_wrong_in_a_sentence(tmp_path: Path, monkeypatch):
    from click.testing import CliRunner

    from forecast import __main__ as program

    monkeypatch.setattr(daily, "folders", lambda: daily.Folders(tmp_path))
    monkeypatch.setattr(program, "cache_compiled", lambda folder: None)
    runner = CliRunner()
    assert "nothing published" in runner.invoke(program.cli, ["status"]).output
    failed = runner.invoke(program.cli, ["update", "--day", "2024-01-01"])
    assert failed.exit_code == 1
    assert "run initialise first" in failed.output
