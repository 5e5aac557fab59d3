"""Airflow DAGs: ``ad_inventory_initialise`` once, ``ad_inventory_daily`` for each day.

The tasks call the forecast's commands in the project's environment; Airflow has another one. The
daily DAG runs at noon UTC, when the day before is over in every time zone, and waits for that
day's file. If none comes, it forecasts without that day, so that later days continue. Learn a file
that comes later with ``update --day``, then each day after it again.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.sdk import DAG

PROJECT = Path(os.environ.get("FORECAST_PROJECT", Path(__file__).resolve().parents[2]))
LOG = PROJECT / os.environ.get("RUN_DIR", ".local") / "forecast" / "log"
PYTHON = PROJECT / ".local" / "venv" / "bin" / "python"
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": True}


def command(arguments: str, task_id: str = "", trigger_rule: str = "all_success") -> BashOperator:
    """Return the task that runs one of the forecast's commands."""
    return BashOperator(
        task_id=task_id or arguments.split()[0],
        bash_command=f"{PYTHON} -m forecast {arguments}",
        cwd=str(PROJECT),
        append_env=True,
        trigger_rule=trigger_rule,
    )


def has_come(day: str) -> bool:
    """Return whether the day's file is there."""
    return (LOG / f"day={day}.parquet").exists()


with DAG("ad_inventory_initialise", schedule=None, default_args=RETRIES, tags=["forecast"]):
    command("initialise") >> command("status")

with DAG(
    "ad_inventory_daily",
    schedule="0 12 * * *",  # midnight of UTC-12, the last zone to end a day
    start_date=datetime(2023, 1, 1),  # before any data; Airflow skips runs before this date
    catchup=False,
    max_active_runs=1,  # each day needs the one before; a failed run does not stop the next
    default_args=RETRIES,
    tags=["forecast"],
):
    day = "{{ macros.ds_add(ds, -1) }}"
    wait = PythonSensor(
        task_id="wait",
        python_callable=has_come,
        op_args=[day],
        mode="reschedule",  # holds no worker between two checks
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=20),  # before the next run begins
        soft_fail=True,
    )
    learn = command(f"update --day {day}")
    without = command(f"update --day {day} --lost", "update_without", "all_skipped")
    wait >> [learn, without] >> command("status", trigger_rule="none_failed_min_one_success")
