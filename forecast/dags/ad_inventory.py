"""Two DAGs: ``ad_inventory_initialise`` once, ``ad_inventory_daily`` each morning for the day before.

The tasks call the same commands that a person does, in the project's own environment: Airflow has one of its own. A
day that failed is retried, and a missed one is made up for by a backfill, as ``update --day`` can be run again.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

PROJECT = Path(os.environ.get("FORECAST_PROJECT", Path(__file__).resolve().parents[2]))
PYTHON = PROJECT / ".local" / "venv" / "bin" / "python"
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": True}


def command(arguments: str) -> BashOperator:
    """Return the task that runs one of the forecast's commands."""
    return BashOperator(
        task_id=arguments.split()[0],
        bash_command=f"{PYTHON} -m forecast {arguments}",
        cwd=str(PROJECT),
        append_env=True,
    )


with DAG("ad_inventory_initialise", schedule=None, default_args=RETRIES, tags=["forecast"]):
    command("initialise") >> command("status")

with DAG(
    "ad_inventory_daily",
    schedule="0 5 * * *",
    start_date=datetime(2023, 1, 1),  # before any data: a run before it would do nothing
    catchup=False,
    max_active_runs=1,  # a day builds on the one before
    default_args=RETRIES | {"depends_on_past": True},
    tags=["forecast"],
):
    command("update --day {{ macros.ds_add(ds, -1) }}") >> command("status")
