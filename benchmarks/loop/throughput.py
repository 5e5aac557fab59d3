"""Samples a second through real Kafka: this project's job and what people would use instead, in one run.

Everybody reads the same filled topic from its beginning and writes a prediction for every sample to a topic of its own;
a rate is what comes out between the end of the warm-up and the last sample or the end of the time given.
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

from benchmarks.loop.measure import Pace, figure, pace
from harness.stack import Stack
from local.bootstrap import CONTENDERS_VENV
from loop.model_store import Keys
from settings import HERE

CONTENDERS = HERE / "benchmarks" / "contenders"
BENCH_PYTHON = CONTENDERS_VENV / "bin" / "python"
OURS = "ours"


@dataclass(frozen=True)
class Contender:
    """One way to do the work; ``script`` runs on Flink where ``flink``, else as a process of ``python``."""

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
    """Run a contender with a consumer group, output topics and model key of its own; gives the view it has."""
    view = stack.named(input_topic=stack.settings.input_topic)
    env = {
        "OMP_NUM_THREADS": "1",
        **dict(contender.env),
    }  # else OpenBLAS's second thread takes half a core, waiting
    if contender.flink:
        script = (
            contender.script
            if contender.name == OURS
            else f"benchmarks/contenders/{contender.script}"
        )
        job = view.submit_job(script, PYTHONPATH=str(HERE), **env)
        try:
            yield view
        finally:
            view.cancel_job(job)
        return
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
        yield view
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_once(stack: Stack, contender: Contender, total: int, seconds: float) -> Pace:
    """Return one contender's pace over ``total`` waiting samples, watched for at most ``seconds``."""
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
    """Return the table and the ratios; the topic of ``stack`` holds ``total`` samples. Every other round runs backwards."""
    chosen = [c for c in ALL if not names or c.name in names]
    paces: dict[str, list[Pace]] = {c.name: [] for c in chosen}
    for number in range(rounds):
        for contender in chosen if number % 2 == 0 else reversed(chosen):
            began = time.monotonic()
            found = run_once(stack, contender, total, seconds)
            paces[contender.name].append(found)
            print(
                f"round {number + 1}: {contender.title}: {found.rate:,.0f}/s "
                f"({time.monotonic() - began:.0f} s; CPU us/sample {found.cpu_us})",
                flush=True,
            )
    table = {
        c.name: {
            "title": c.title,
            "guarantee": c.guarantee,
            **figure([p.rate for p in paces[c.name]], "samples/s"),
            "cpu_us_per_sample": paces[c.name][-1].cpu_us,
        }
        for c in chosen
    }
    ratios = {}
    if OURS in table:
        ratios = {
            n: round(table[OURS]["median"] / row["median"], 2)
            for n, row in table.items()
            if n != OURS
        }
        table[OURS]["threads_us_per_sample"] = paces[OURS][-1].threads_us
        table[OURS]["samples_per_commit"] = figure([p.per_commit for p in paces[OURS]], "samples")
    return {"throughput": table, "ratios": ratios}
