"""The forecast on logs as people have them: odd keys, stray rows, days cut short, damage."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecast import completeness, daily, store, v5
from forecast.features import Features
from forecast.series import KEYS, InputError, Series, clean, load, read_outages, read_table
from forecast.simulate import Operator, simulate, write_log

HOURS = pd.date_range("2026-03-01", periods=24 * 12, freq="h", tz="UTC")
ROWS = pd.DataFrame(
    {"region": "r0", "network": "n0", "station": "s0", "timestamp": HOURS, "count": 5}
)
NAMES = ["7", "007", "7.0", "NA", "None", "null", "nan", " x ", "True", "1e3"]


@pytest.fixture(scope="module")
def operator() -> Operator:
    return simulate(1_000_000, days=150)


@pytest.fixture(scope="module")
def initialised(operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    where = daily.Folders(tmp_path_factory.mktemp("forecast"))
    later = write_log(operator, where.root / "log", 4)
    daily.initialise(where)
    return where, later


@pytest.fixture
def fresh(initialised, tmp_path: Path) -> tuple[daily.Folders, list[date]]:
    """A copy of the initialised installation, and its days to come."""
    where, later = initialised
    shutil.copytree(where.root, tmp_path / "f", symlinks=True)
    return daily.Folders(tmp_path / "f"), later


def rewrite(where: daily.Folders, day: date, change) -> None:
    """Replace a day's file by its changed rows."""
    path = where.day(day)
    change(pd.read_parquet(path)).to_parquet(path, index=False)


# --- keys ---


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_keys_are_text_as_they_stand_in_the_file(suffix, tmp_path):
    path = tmp_path / f"log{suffix}"
    rows = pd.concat([ROWS.assign(**{column: name for column in KEYS}) for name in [*NAMES, ""]])
    rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    series = load(path, "UTC")
    for column in KEYS:
        assert series.keys[column].tolist() == sorted(NAMES)
    assert series.rejects == {"key missing": len(ROWS)}


def test_numbers_as_keys_are_the_same_in_every_column_type(tmp_path):
    columns = [
        pd.Series([7, 8, 9]),
        pd.Series([7, 8, None]),  # a gap turns whole numbers into floats
        pd.Series([7, 8, 9], dtype="Int64"),
        pd.Series(["7", "8", "9"], dtype="category"),
        pd.Series([7, 8, 9]).astype("category"),
    ]
    for values in columns:
        rows = ROWS[:3].assign(region=values)
        rows.to_parquet(tmp_path / "log.parquet")
        assert read_table(tmp_path / "log.parquet")["region"].dropna().tolist()[:2] == ["7", "8"]


def test_index_labels_may_repeat_or_hold_a_key(tmp_path):
    rows = pd.concat([ROWS, ROWS.assign(station="s1")])
    rows.to_parquet(tmp_path / "a.parquet")
    rows.set_index(KEYS).to_parquet(tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        assert load(tmp_path / name, "UTC").counts.sum() == 2 * 5 * len(ROWS)
    assert len(clean(rows)[0]) == len(rows)


def test_a_folder_of_parquet_files_is_a_log_with_its_keys_as_text(tmp_path):
    rows = pd.concat([ROWS.assign(region="007"), ROWS.assign(region="7")])
    rows.to_parquet(tmp_path / "log.parquet", partition_cols=["region"])
    (tmp_path / "log.parquet" / "_SUCCESS").touch()
    assert load(tmp_path / "log.parquet", "UTC").keys["region"].tolist() == ["007", "7"]


def test_a_day_has_the_keys_of_its_history(fresh):
    where, later = fresh
    history = pd.read_parquet(where.history)
    zones = where.zones()
    number = {region: str(i) for i, region in enumerate(sorted(zones))}
    where.operator.write_text(
        '{"zones": {' + ", ".join(f'"{number[r]}": "{zones[r]}"' for r in zones) + "}}"
    )
    shutil.rmtree(where.published)
    where.outages.unlink()
    history["region"] = history["region"].astype(str).map(number)
    history.to_parquet(where.history)
    daily.initialise(where, force=True)
    rewrite(
        where,
        later[0],
        lambda t: t.assign(region=t["region"].astype(str).map(number).astype(float)),
    )
    published = daily.update(where, later[0], force=True)
    assert set(published.manifest["keys"]["region"]) == set(number.values())
    assert not published.manifest["rejects"]


def test_an_outage_knows_its_region_whatever_type_it_has(tmp_path):
    at = pd.Timestamp("2026-03-02", tz="UTC")
    outages = pd.DataFrame({"region": [7.0, None], "from": at, "to": at + pd.Timedelta(hours=2)})
    outages.to_parquet(tmp_path / "outages.parquet")
    ROWS.assign(region=7).to_parquet(tmp_path / "log.parquet")
    known = read_outages(tmp_path / "outages.parquet")
    for rows in (known[:1], known[1:]):
        assert (~load(tmp_path / "log.parquet", "UTC", rows).observed).sum() == 2
    ROWS.to_parquet(tmp_path / "outages.parquet")
    with pytest.raises(InputError, match="holds no outages"):
        read_outages(tmp_path / "outages.parquet")


# --- rows ---


@pytest.mark.parametrize("stray", ["1900-01-01", "1970-01-01", "2026-03-20", "2062-05-01"])
def test_a_row_far_outside_the_rest_is_a_reject(stray, tmp_path):
    rows = pd.concat([ROWS, ROWS[:1].assign(timestamp=pd.Timestamp(stray, tz="UTC"))])
    rows.to_parquet(tmp_path / "log.parquet")
    series = load(tmp_path / "log.parquet", "America/New_York")
    assert series.days == 11
    assert series.rejects["far outside the other days"] == 1


def test_many_stray_rows_and_on_both_sides_are_rejects(tmp_path):
    early = ROWS[:100].assign(
        timestamp=pd.Timestamp("1970-01-01", tz="UTC"), station=[*map(str, range(100))]
    )
    late = ROWS[:30].assign(timestamp=ROWS["timestamp"][:30] + pd.Timedelta(days=365))
    rows = pd.concat([early, ROWS, late])
    rows.to_parquet(tmp_path / "log.parquet")
    series = load(tmp_path / "log.parquet", "UTC")
    assert (series.days, len(series.keys)) == (12, 1)
    assert series.rejects["far outside the other days"] == 130


def test_days_after_a_real_gap_and_a_sparse_log_are_kept(tmp_path):
    after = ROWS[:48].assign(timestamp=ROWS["timestamp"][:48] + pd.Timedelta(days=24))
    sundays = (
        ROWS[:1]
        .assign(timestamp=[pd.date_range("2026-01-04", periods=20, freq="7D", tz="UTC")])
        .explode("timestamp")
    )
    for rows, days in ((pd.concat([ROWS, after]), 26), (sundays, 133)):
        rows.astype({"timestamp": "datetime64[s, UTC]"}).to_parquet(tmp_path / "log.parquet")
        series = load(tmp_path / "log.parquet", "UTC")
        assert series.days >= days - 1
        assert "far outside the other days" not in series.rejects


def test_a_gap_of_days_in_a_history_is_not_observed(tmp_path):
    weeks = pd.date_range("2026-01-05", periods=24 * 70, freq="h", tz="UTC")
    rows = pd.concat([ROWS[:1].assign(timestamp=[weeks]).explode("timestamp")] * 2)
    rows["region"] = np.repeat(["a", "b"], len(weeks))
    rows["timestamp"] = rows["timestamp"].astype("datetime64[s, UTC]")
    day = (rows["timestamp"] - weeks[0]).dt.days
    lost = (rows["region"] == "a") & day.between(30, 39)
    sundays = (rows["region"] == "b") & (rows["timestamp"].dt.weekday == 6)
    rows[~lost & ~sundays].to_parquet(tmp_path / "log.parquet")
    series = load(tmp_path / "log.parquet", "UTC")
    assert np.flatnonzero(~series.observed[0].any(axis=1)).tolist() == [*range(30, 40)]
    assert series.observed[1].all()  # a region that has no Sundays


def test_a_stray_row_in_a_days_file_is_a_reject(fresh):
    where, later = fresh
    for year in (1900, 2062):
        stray = pd.Timestamp(year, 1, 1, tz="UTC").as_unit("ms")
        rewrite(where, later[0], lambda t, at=stray: pd.concat([t, t[:1].assign(timestamp=at)]))
    assert daily.update(where, later[0]).manifest["rejects"] == {"outside the days": 2}


def test_the_last_of_several_rows_counts_also_when_it_goes_back():
    rows = pd.concat([ROWS[:1].assign(count=n) for n in (5, 7, 5)])
    kept, rejects = clean(rows)
    assert kept["count"].tolist() == [5]
    assert rejects == {"duplicate": 1, "corrected by a later row": 1}
    kept, _ = clean(pd.concat([ROWS[:1].assign(count=n) for n in (5, 7, 5, 7)]))
    assert kept["count"].tolist() == [7]


def test_a_number_as_a_timestamp_and_an_endless_count_are_rejects():
    assert clean(ROWS[:2].assign(timestamp=[1, 2]))[1] == {"timestamp unreadable": 2}
    _, rejects = clean(ROWS[:3].assign(count=[np.inf, np.nan, -np.inf]))
    assert rejects == {"count unreadable": 1, "count negative": 1, "count absurd": 1}


# --- days ---


CUTS = {
    "no row": lambda t: t[:0],
    "only rejects": lambda t: t.assign(count=-1),
    "another day": lambda t: t.assign(timestamp=t["timestamp"] - pd.Timedelta(days=3)),
    "until 15:00 UTC": lambda t: t[t["timestamp"].dt.hour.between(5, 15)],
    "two of five rows": lambda t: t[np.arange(len(t)) % 5 < 2],
    "a region is missing": lambda t: t[t["region"] != t["region"].iloc[-1]],
    "a region ends early": lambda t: t[
        (t["region"] != t["region"].iloc[-1]) | (t["timestamp"].rank(pct=True) < 0.7)
    ],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_day_cut_short_is_refused_unless_lost_or_forced(cut, fresh):
    where, later = fresh
    before = store.current(where.published).folder
    rewrite(where, later[0], CUTS[cut])
    with pytest.raises(InputError, match=r"looks cut short.*--force.*--lost"):
        daily.update(where, later[0])
    assert store.current(where.published).folder == before
    if cut in ("no row", "until 15:00 UTC"):
        assert not daily.update(where, later[0], lost=True).series().observed[:, -1].any()
        assert daily.update(where, later[0], force=True).series().observed[:, -1].any()


def test_whole_days_are_never_taken_for_cut_ones(operator):
    for day in range(40, operator.series.days + 1):
        assert completeness.lack(operator.series.until(day)) == ""


def test_hours_of_an_outage_are_not_missed(operator):
    series = operator.series
    counts, observed = series.counts.copy(), series.observed.copy()
    counts[:, -1, 12:], observed[:, -1, 12:] = 0, False
    assert not completeness.lack(dataclasses.replace(series, counts=counts, observed=observed))
    observed[:, -1, 12:] = True
    assert "from 12:00" in completeness.lack(
        dataclasses.replace(series, counts=counts, observed=observed)
    )


def test_a_history_whose_last_day_is_cut_short_is_refused(fresh):
    where, later = fresh
    history = pd.read_parquet(where.history)
    region = history["region"].iloc[0]
    cut = pd.Timestamp(later[0], tz="UTC") - pd.Timedelta(hours=12)
    history[(history["region"] != region) | (history["timestamp"] < cut)].to_parquet(where.history)
    with pytest.raises(InputError, match="cut short on its last day: region"):
        daily.initialise(where)


@pytest.mark.parametrize("days", [5, 60, 119, 120])
def test_a_history_too_short_to_learn_from_is_one_sentence(days, fresh):
    where, later = fresh
    history = pd.read_parquet(where.history)
    from_ = pd.Timestamp(later[0], tz="UTC") - pd.Timedelta(days=days)
    history[history["timestamp"] >= from_].to_parquet(where.history)
    with pytest.raises(InputError, match="a first training needs more than 120"):
        daily.initialise(where)


def test_the_gates_key_days_stay_the_same_when_a_station_joins(operator):
    series = operator.series
    first = {**dict.fromkeys(KEYS, " first"), "zone": "UTC"}
    more = Series(
        pd.concat([pd.DataFrame([first]), series.keys[[*KEYS, "zone"]]], ignore_index=True),
        series.start,
        np.concatenate([series.counts[:1], series.counts]),
        np.concatenate([series.observed[:1], series.observed]),
    )
    shorter = dataclasses.replace(
        series,
        start=series.start + timedelta(days=3),
        counts=series.counts[:, 3:],
        observed=series.observed[:, 3:],
    )

    def slices(of: Series) -> set:
        features = Features(of)
        examples = features.examples(of.days - 14, of.days, copies=9)
        chosen = daily.held_out(features, examples, True)
        names = of.keys["region"] + of.keys["station"]
        return {(names[k], d) for k, d in zip(chosen.key, chosen.day_number, strict=True)}

    kept = slices(series)
    assert 0.1 < len(kept) / (14 * len(series.keys)) < 0.3
    assert {pair for pair in slices(more) if pair[0] != " first first"} == kept
    assert slices(shorter) == kept


# --- what is published ---


@pytest.mark.parametrize("name", ["model.npz", "manifest.json", "forecast"])
def test_publishing_a_damaged_day_again_repairs_it(name, fresh):
    where, later = fresh
    first = daily.update(where, later[0])
    whole = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    damaged = first.folder / name
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.write_bytes(b"half")
    again = daily.update(where, later[0])
    assert again.folder == first.folder
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == whole
    assert daily.update(where, later[1]).as_of == later[1]


def test_an_older_day_learned_again_never_moves_current_back(fresh):
    where, later = fresh
    daily.update(where, later[0])
    newest = daily.update(where, later[1])
    older = daily.update(where, later[0])
    assert older.as_of == later[0]
    assert store.current(where.published).folder == newest.folder
    corrected = daily.update(where, later[1], lost=True)
    assert store.current(where.published).folder == corrected.folder


def test_two_runs_at_once_are_refused_with_who_holds_the_lock(fresh):
    where, later = fresh
    code = (
        "import sys; from pathlib import Path; from forecast import store\n"
        "with store.locked(Path(sys.argv[1]), 'update'): print('held', flush=True); input()"
    )
    argv = [sys.executable, "-c", code, str(where.published)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(store.StoreError, match=rf"held by process {other.pid} \(update\)"):
            daily.update(where, later[0])
        other.kill()
    assert daily.update(where, later[0]).as_of == later[0]  # a killed run holds nothing


def test_anothers_draft_is_kept_and_a_killed_runs_is_dropped(fresh):
    where, later = fresh
    dead, alive = (where.published / f".draft-{name}" for name in ("dead", "alive"))
    dead.mkdir()
    alive.mkdir()
    with store._owned(alive):
        daily.update(where, later[0])
    assert alive.exists()
    assert not dead.exists()


def test_a_full_disk_publishes_nothing_and_is_one_sentence(fresh, monkeypatch):
    where, later = fresh
    before = store.current(where.published).folder

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.pq, "write_table", full)
    with pytest.raises(store.StoreError, match=r"Nothing was published.*No space left"):
        daily.update(where, later[0])
    assert store.current(where.published).folder == before
    assert not list(where.published.glob(".draft-*"))


def test_a_missing_or_broken_list_of_zones_is_one_sentence(fresh):
    where, _ = fresh
    for text in ("", "{}", "[]"):
        where.operator.write_text(text)
        with pytest.raises(InputError, match="holds no time zones"):
            daily.initialise(where)


def test_a_fine_tune_without_held_out_days_keeps_yesterdays_model(operator):
    series, verdicts = operator.series.until(122), []
    for row in range(6):
        one = dataclasses.replace(
            series,
            keys=series.keys.iloc[[row]].reset_index(drop=True),
            counts=series.counts[[row]],
            observed=series.observed[[row]],
        )
        features = Features(one)
        if len(daily.held_out(features, features.examples(v5.FIRST, 122), True).key) == 0:
            model = v5.V5.untrained(v5.Vocabulary.of(features))
            verdicts.append(daily.fine_tune(model, features, seed=1))
            break
    assert verdicts == [(True, None)]


def test_the_shortest_history_that_can_be_learned_is_learned(fresh):
    where, later = fresh
    history = pd.read_parquet(where.history)
    first = pd.Timestamp(later[0], tz="UTC") - pd.Timedelta(days=122)
    history[history["timestamp"] >= first].to_parquet(where.history)
    assert daily.initialise(where).series().days in (121, 122)
    assert daily.update(where, later[0]).as_of == later[0]
