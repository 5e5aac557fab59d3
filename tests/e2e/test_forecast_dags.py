"""Both DAGs run by a real Airflow, as ``make forecast-dags`` does; without its environment they are skipped."""

import os
import subprocess
import sys

import pytest

from forecast.install import AIRFLOW_PYTHON
from settings import HERE

pytestmark = pytest.mark.skipif(
    not AIRFLOW_PYTHON.exists(), reason="needs .local/venv-airflow: python -m forecast.install --airflow makes it"
)


def run(argv: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(argv, cwd=HERE, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_both_dags_run_and_publish_their_days(tmp_path):
    airflow = str(AIRFLOW_PYTHON.parent / "airflow")
    env = os.environ | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "forecast" / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PATH": f"{AIRFLOW_PYTHON.parent}:{os.environ['PATH']}",
        "RUN_DIR": str(tmp_path / "run"),
    }
    simulate = [sys.executable, "-m", "forecast.simulate", "--cells", "1500000", "--days", "400", "--later", "3"]
    run(simulate, env)
    published = tmp_path / "run" / "forecast" / "published"
    first = min((tmp_path / "run" / "forecast" / "log").glob("day=*")).name[4:14]
    run([airflow, "db", "migrate"], env)
    run([airflow, "dags", "test", "ad_inventory_initialise"], env)
    assert len(list(published.glob("2*"))) == 1
    day_after = first[:8] + f"{int(first[8:]) + 1:02d}"
    said = run([airflow, "dags", "test", "ad_inventory_daily", day_after], env)
    assert (published / "current").resolve().name.startswith(first), said[-3000:]
