"""Measure everything on this machine in one run: ``python -m benchmarks.loop`` writes results.json, tables and plots."""

import contextlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks import pages
from benchmarks.loop import freshness, growth, results, throughput
from benchmarks.loop.measure import environment, figure, fill
from benchmarks.loop.report import plots, tables
from harness.stack import FLINK, Stack
from local.bootstrap import SETS, make_environment
from settings import HERE

TOPICS = ("throughput", "freshness", "growth")


def measure(topic: str, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the results of one topic, measured on parts of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with contextlib.closing(Stack(folder)) as parts:
            parts.start("kafka", "redis", *FLINK)
            return {"throughput": _throughput, "freshness": _freshness, "growth": _growth}[topic](
                parts, quick, rounds, names
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _throughput(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    stack, total = parts.named(), 150_000 if quick else 1_200_000
    fill(stack.settings, total)
    throughput.run_once(
        stack, throughput.ALL[0], total, 10
    )  # Flink's JVMs compile what runs often: nobody pays for it
    found = throughput.measure(stack, total, rounds, 5 if quick else 8, names)
    batch = round(
        found["throughput"]
        .get(throughput.OURS, {})
        .get("samples_per_commit", {})
        .get("median", 5000)
    )
    alone = [throughput.partial_fit_alone(batch) for _ in range(rounds)]
    found["partial_fit_alone"] = {
        "title": f"limit: partial_fit alone, batch {batch}",
        **figure(alone, "samples/s"),
    }
    return found


def _freshness(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    seconds = 5 if quick else 15
    table = {
        name: freshness.measure(parts, seconds, learner=name)
        for name in names or ("default", "sgd")
    }
    at_1000 = next(iter(table.values()))["1000"]
    return {
        "freshness": table,
        "freshness_ms": {
            "stored_p99": at_1000["stored_ms"]["p99"],
            "served_p99": at_1000["served_ms"]["p99"],
        },
    }


def _growth(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    steps = {
        "sizes": lambda: growth.sizes(parts, 1 if quick else 3),
        "batches": lambda: growth.batches(parts, 1 if quick else 3),
        "partitions": lambda: growth.partitions(parts, 100_000 if quick else 400_000, 10),
        "transactions": lambda: growth.transactions(
            parts, 200_000 if quick else 600_000, 1 if quick else 3
        ),
        "catching_up": lambda: growth.catching_up(parts, 100_000 if quick else 1_000_000),
        "recovery": lambda: growth.recovery(parts, 1 if quick else 3),
        "memory": lambda: growth.memory(parts, 0.5 if quick else 30),
    }
    return {"growth": {name: step() for name, step in steps.items() if not names or name in names}}


def stolen(before: Any) -> float | None:
    """Return the share of the cores' time, in %, that the host gave to other machines since; None where it isn't told."""
    spent = {
        name: now - then
        for name, now, then in zip(before._fields, psutil.cpu_times(), before, strict=True)
    }
    return round(100 * spent["steal"] / sum(spent.values()), 1) if "steal" in spent else None


@click.command()
@click.option(
    "--quick",
    is_flag=True,
    help="Fewer samples and seconds: a look in some minutes, no figures of record.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Rounds of throughput.",
)
@click.option(
    "--only",
    type=click.Choice(TOPICS),
    multiple=True,
    help="Measure only this; may be given more than once.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="With --only: only this contender, learner or step of it.",
)
@click.option(
    "--report", is_flag=True, help="Measure nothing: tables and plots of what was measured before."
)
def main(
    quick: bool, rounds: int, only: tuple[str, ...], names: tuple[str, ...], report: bool
) -> None:
    """Measure throughput, freshness and growth; what is measured replaces its part of benchmarks/results/loop.json.

    The tables are printed and written to docs/benchmarks.md, the plots beside it.
    """
    if not report:
        measure_all(quick, rounds, only, names)
    measured = results.load()
    click.echo(tables(measured))
    plots(measured, HERE / "docs")
    pages.main()


def measure_all(quick: bool, rounds: int, only: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Measure the topics one after the other; each is written as soon as it is measured."""
    make_environment(*SETS["--contenders"])
    command = f"python -m benchmarks.loop {shlex.join(sys.argv[1:])}".strip()
    for topic in only or TOPICS:
        before = psutil.cpu_times()
        found = measure(topic, quick, rounds, names)
        known = results.load()
        if names and topic == "growth":
            found["growth"] = known.get("growth", {}) | found["growth"]
        run = environment(command) | {"stolen_percent": stolen(before)}
        results.save(found | {"measured": known.get("measured", {}) | {topic: run}})


if __name__ == "__main__":
    main()
