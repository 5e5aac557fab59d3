"""Throughput on real Kafka: samples/s of this project's job and of its contenders in one run.

Every contender reads the same filled topic from its beginning and writes a prediction for each
sample to its own topic. A rate is counted from the end of the warm-up to the last sample or to
the end of the time.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.loop.measure import Pace, figure, pace, rate_figure, shown_rate
from harness.stack import Stack
from local.bootstrap import CONTENDERS_VENV
from loop.model_store import Keys
from settings import HERE

CONTENDERS = HERE / "benchmarks" / "contenders"
BENCH_PYTHON = CONTENDERS_VENV / "bin" / "python"
OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    script: runs as a Flink job if ``flink`` is set, and otherwise as a process of ``python``.
    env: variables that the script gets besides the stack's.
    """

    name: str
    title: str
    script: str
    guarantee: str
    flink: bool = False
    python: Path = BENCH_PYTHON
    env: tuple[tuple[str, str], ...] = ()


HERE_PYTHON = Path(sys.executable)
ALL = (
    Contender(
        OURS,
        "this project",
        "online_learning.py",
        "model and predictions exactly once",
        True,
        env=(("LEARNER", "sgd"),),
    ),
    Contender(
        "confluent_txn",
        "confluent-kafka loop, transactions, batch 1000",
        "confluent_txn.py",
        "predictions exactly once, model at least once",
        python=HERE_PYTHON,
    ),
    Contender(
        "flink_raw",
        "limit: Flink alone, raw bytes, no learning",
        "flink_alone.py",
        "exactly once",
        True,
        env=(("FLINK_FORMAT", "raw"),),
    ),
    Contender(
        "flink_json",
        "limit: Flink alone, typed JSON, no learning",
        "flink_alone.py",
        "exactly once",
        True,
        env=(("FLINK_FORMAT", "json"),),
    ),
    Contender(
        "kafka_python",
        "kafka-python loop with crc32c, batch 1000",
        "kafka_python_loop.py",
        "at least once",
    ),
    Contender("quix", "Quix Streams, batch 1000", "quix_streams.py", "a crash may lose a batch"),
    Contender(
        "bytewax", "Bytewax, batch 1000", "bytewax_flow.py", "none without its recovery store"
    ),
    Contender(
        "river", "River, learn_many of 1000, confluent-kafka", "river_loop.py", "at least once"
    ),
    Contender(
        "row_udf",
        "row-at-a-time ScalarFunction, original design",
        "row_udf.py",
        "predictions at least once, model dumped every 30 s",
        True,
    ),
)


@contextmanager
def running(stack: Stack, contender: Contender) -> Iterator[Stack]:
    """Run a contender with its own consumer group, output topics and model key; gives its view."""
    view = stack.named(input_topic=stack.settings.input_topic)
    # One thread: OpenBLAS's second thread would take half a core while it waits.
    env = {"OMP_NUM_THREADS": "1", **dict(contender.env)}
    with (_as_job if contender.flink else _as_process)(view, contender, env):
        yield view


@contextmanager
def _as_job(view: Stack, contender: Contender, env: dict[str, str]) -> Iterator[None]:
    """Run a contender on the stack's Flink."""
    folder = "" if contender.name == OURS else "benchmarks/contenders/"
    job = view.submit_job(folder + contender.script, PYTHONPATH=str(HERE), **env)
    try:
        yield
    finally:
        view.cancel_job(job)


@contextmanager
def _as_process(view: Stack, contender: Contender, env: dict[str, str]) -> Iterator[None]:
    """Run a contender as a process, with its output in the stack's log folder."""
    log = view.settings.run_dir / "log" / f"{contender.name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [contender.python, "-W", "ignore", CONTENDERS / contender.script],
            env=view.env | env,
            stdout=out,
            stderr=out,
            cwd=view.settings.run_dir,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_once(stack: Stack, contender: Contender, total: int, seconds: float) -> Pace:
    """Return one contender's pace over ``total`` waiting samples, over at most ``seconds``."""
    with running(stack, contender) as view:
        found = pace(view.settings, view.settings.predict_topic, total, seconds, stack)
        if contender.name == OURS:
            client = redis.Redis(**view.settings.redis_client())
            meta = Keys.of(view.settings.model_key).meta
            samples, commits = client.hmget(meta, "samples", "version")
            found.per_commit = round(int(samples) / int(commits))
    return found


def partial_fit_alone(batch: int, seconds: float = 3) -> float:
    """Return samples/s of scikit-learn's partial_fit on arrays in memory."""
    script = CONTENDERS / "partial_fit_alone.py"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", script, str(batch), str(seconds)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return float(ended.stdout)


def measure(
    stack: Stack, total: int, rounds: int, seconds: float, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the table and the ratios; the topic of ``stack`` holds ``total`` samples.

    Every other round runs backwards, so that no contender always follows the same one.
    """
    chosen = [contender for contender in ALL if not names or contender.name in names]
    paces: dict[str, list[Pace]] = {contender.name: [] for contender in chosen}
    for number in range(rounds):
        for contender in chosen if number % 2 == 0 else reversed(chosen):
            began = time.monotonic()
            found = run_once(stack, contender, total, seconds)
            paces[contender.name].append(found)
            print(
                f"round {number + 1}: {contender.title}: {shown_rate(found.rate)} "
                f"({time.monotonic() - began:.0f} s; warm-up {found.warm_up_s} s, "
                f"{found.host}, CPU us/sample {found.cpu_us})",
                flush=True,
            )
    table = {contender.name: _row(contender, paces[contender.name]) for contender in chosen}
    if OURS in table:
        table[OURS]["threads_us_per_sample"] = paces[OURS][-1].threads_us
        table[OURS]["samples_per_commit"] = figure([p.per_commit for p in paces[OURS]], "samples")
    return {"throughput": table, "ratios": _ratios(table)}


def _row(contender: Contender, paces: list[Pace]) -> dict[str, Any]:
    """Return a contender's row of the table; warm-ups and hosts are of each run."""
    return {
        "title": contender.title,
        "guarantee": contender.guarantee,
        **rate_figure([found.rate for found in paces]),
        "cpu_us_per_sample": paces[-1].cpu_us,
        "warm_up_s": [found.warm_up_s for found in paces],
        "steady": [found.steady for found in paces],
        "host": [found.host for found in paces],
    }


def _ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return this project's median rate over each contender's, where both have one."""
    ours = table.get(OURS, {}).get("median")
    return {
        name: round(ours / row["median"], 2)
        for name, row in table.items()
        if name != OURS and ours and "median" in row
    }
