"""Throughput, freshness and growth in one run: ``make bench``.

The figures go to benchmarks/results/loop.json, the tables to docs/benchmarks.md, the plots to docs.
"""

import contextlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import pages
from benchmarks.loop import freshness, growth, results, throughput
from benchmarks.loop.measure import Host, environment, figure, fill
from benchmarks.loop.report import plots, tables
from harness.stack import FLINK, Stack
from local.bootstrap import SETS, make_environment
from settings import HERE

TOPICS = ("throughput", "freshness", "growth")
TOTAL = 4_800_000  # samples that wait; Kafka keeps 1 GiB of a partition, which is a little more
QUICK_TOTAL = 150_000
PARTLY = (  # tables of which a run may measure a part
    "throughput",
    "ratios",
    "freshness",
    "freshness_over_time",
    "growth",
    "growth_hosts",
)


def measure(topic: str, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the results of one topic, measured on its own Kafka, Redis and Flink."""
    measures = {"throughput": _throughput, "freshness": _freshness, "growth": _growth}
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with contextlib.closing(Stack(folder)) as parts:
            parts.start("kafka", "redis", *FLINK)
            return measures[topic](parts, quick, rounds, names)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _throughput(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return each contender's samples/s, and those of partial_fit alone in batches as large."""
    stack = parts.named()
    total = QUICK_TOTAL if quick else TOTAL
    fill(stack.settings, total)
    # Flink's JVMs compile what runs often, and no contender should pay for that.
    throughput.run_once(stack, throughput.ALL[0], total, 10)
    found = throughput.measure(stack, total, rounds, 5 if quick else 8, names)
    ours = found["throughput"].get(throughput.OURS, {})
    batch = round(ours.get("samples_per_commit", {}).get("median", 5000))
    host = Host()
    alone = [throughput.partial_fit_alone(batch) for _ in range(rounds)]
    found["partial_fit_alone"] = {
        "title": f"limit: partial_fit alone, batch {batch}",
        **figure(alone, "samples/s"),
        "host": [host.figures()],
    }
    return found


def _freshness(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the ages by learner and rate, and the age over time by learner."""
    seconds = 5 if quick else 15
    table, courses = {}, {}
    for name in names or ("default", "sgd"):
        table[name], courses[name] = freshness.measure(parts, seconds, learner=name)
    found: dict[str, Any] = {"freshness": table, "freshness_over_time": courses}
    if "default" in table:
        at_1000 = table["default"]["1000"]
        found["freshness_ms"] = {
            "stored_p99": at_1000["stored_ms"]["p99"],
            "served_p99": at_1000["served_ms"]["p99"],
        }
    return found


def _growth(parts: Stack, quick: bool, rounds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of each step, with the host's stolen time and load during the step."""
    seconds = 1 if quick else 3
    times = 1 if quick else 3
    steps = {
        "sizes": lambda: growth.sizes(parts, seconds),
        "batches": lambda: growth.batches(parts, seconds),
        "partitions": lambda: growth.partitions(parts, 150_000 if quick else 600_000, 10),
        "transactions": lambda: growth.transactions(parts, 200_000 if quick else 600_000, times),
        "catching_up": lambda: growth.catching_up(parts, 100_000 if quick else 1_000_000),
        "recovery": lambda: growth.recovery(parts, times),
        "memory": lambda: growth.memory(parts, 0.5 if quick else 30),
    }
    found: dict[str, Any] = {}
    hosts: dict[str, Any] = {}
    for name in [step for step in steps if not names or step in names]:
        host = Host()
        found[name] = steps[name]()
        hosts[name] = host.figures()
    return {"growth": found, "growth_hosts": hosts}


@click.command()
@click.option(
    "--quick",
    is_flag=True,
    help="Fewer samples and seconds: prints tables in a few minutes and stores nothing.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Rounds of the throughput.",
)
@click.option(
    "--only",
    type=click.Choice(TOPICS),
    multiple=True,
    help="Measure only this topic; may be given more than once.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="With --only: measure only this contender, learner or step.",
)
@click.option(
    "--report",
    is_flag=True,
    help="Write tables and plots of the stored figures, without measuring.",
)
def main(
    quick: bool, rounds: int, only: tuple[str, ...], names: tuple[str, ...], report: bool
) -> None:
    """Measure throughput, freshness and growth, and replace their figures in the results.

    The results are in benchmarks/results/loop.json. The tables are printed and written to
    docs/benchmarks.md, the plots to docs.
    """
    if quick:
        click.echo(tables(measure_all(quick, rounds, only, names)))
        return
    if not report:
        measure_all(quick, rounds, only, names)
    measured = results.load()
    click.echo(tables(measured))
    plots(measured, HERE / "docs")
    pages.main()


def measure_all(
    quick: bool, rounds: int, only: tuple[str, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    """Measure the topics one after the other and return their figures.

    Unless the run is quick, each topic is stored as soon as it is measured.
    """
    make_environment(*SETS["--contenders"])
    command = f"python -m benchmarks.loop {shlex.join(sys.argv[1:])}".strip()
    everything: dict[str, Any] = {}
    for topic in only or TOPICS:
        host = Host()
        found = measure(topic, quick, rounds, names)
        everything |= found
        if not quick:
            run = environment(command) | {"stolen_percent": host.stolen_percent()}
            store(topic, found, run, bool(names))
    return everything


def store(topic: str, found: dict[str, Any], run: dict[str, Any], partly: bool) -> None:
    """Replace a topic's figures; a part of a topic replaces only itself."""
    known = results.load()
    if partly:
        for name in set(PARTLY) & set(found):
            found[name] = known.get(name, {}) | found[name]
    results.save(found | {"measured": known.get("measured", {}) | {topic: run}})


if __name__ == "__main__":
    main()
