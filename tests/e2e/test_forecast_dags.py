"""Both DAGs run by a real Airflow, as ``make forecast-dags`` and ``make test-all`` do.

Without its environment they are skipped.
"""

import os
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from local.bootstrap import AIRFLOW_VENV
from settings import HERE

AIRFLOW_PYTHON = AIRFLOW_VENV / "bin" / "python"
WITHOUT_AIRFLOW = "needs .local/venv-airflow: make forecast-dags makes it"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not AIRFLOW_PYTHON.exists(), reason=WITHOUT_AIRFLOW),
]


def run(argv: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        argv, cwd=HERE, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


AIRFLOW = str(AIRFLOW_PYTHON.parent / "airflow")
DAGS = HERE / "forecast" / "dags"


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    """An Airflow of this module, and an operator's log of three days to come."""
    folder = tmp_path_factory.mktemp("airflow")
    env = os.environ | {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "FORECAST_PROJECT": str(HERE),
        "PATH": f"{AIRFLOW_PYTHON.parent}:{os.environ['PATH']}",
        "RUN_DIR": str(folder / "run"),
    }
    shutil.copytree(DAGS, folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    simulate = [sys.executable, "-m", "forecast.simulate"]
    run([*simulate, "--cells", "1500000", "--days", "400", "--later", "3"], env)
    run([AIRFLOW, "db", "migrate"], env)
    return env


def days_of(env: dict[str, str]) -> list[date]:
    files = (Path(env["RUN_DIR"]) / "forecast" / "log").glob("day=*")
    return sorted(date.fromisoformat(file.name[4:14]) for file in files)


def test_both_dags_run_and_publish_their_days(env):
    published = Path(env["RUN_DIR"]) / "forecast" / "published"
    first = days_of(env)[0]
    run([AIRFLOW, "dags", "test", "ad_inventory_initialise"], env)
    assert len(list(published.glob("2*"))) == 1
    said = run([AIRFLOW, "dags", "test", "ad_inventory_daily", str(first + timedelta(days=1))], env)
    assert (published / "current").resolve().name.startswith(str(first)), said[-3000:]


def test_a_day_without_its_file_does_not_hold_the_later_ones(env):
    """The second day's file never comes; the waits are shortened in a copy of the DAGs."""
    dag = Path(env["AIRFLOW__CORE__DAGS_FOLDER"]) / "ad_inventory.py"
    text = dag.read_text()
    assert text.count("timedelta(hours=20)") == text.count("timedelta(minutes=5)") == 1
    short = text.replace("timedelta(hours=20)", "timedelta(seconds=3)")
    dag.write_text(short.replace("timedelta(minutes=5)", "timedelta(seconds=1)"))
    root = Path(env["RUN_DIR"]) / "forecast"
    _, second, third = days_of(env)
    (root / "log" / f"day={second}.parquet").rename(root / "away.parquet")
    for day in (second, third):
        said = run(
            [AIRFLOW, "dags", "test", "ad_inventory_daily", str(day + timedelta(days=1))], env
        )
        assert (root / "published" / "current").resolve().name.startswith(str(day)), said[-3000:]


def test_the_daily_dag_begins_after_midnight_everywhere_and_holds_no_worker(env):
    code = """if True:
        import runpy, sys
        wait = runpy.run_path(sys.argv[1])["wait"]
        dag, short = wait.dag, wait.timeout < 86400
        print(dag.schedule, wait.mode, dag.catchup, wait.depends_on_past, short)
    """
    argv = [str(AIRFLOW_PYTHON), "-c", code, str(DAGS / "ad_inventory.py")]
    assert "0 12 * * * reschedule False False True" in run(argv, env)
