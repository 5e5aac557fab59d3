"""Fifty faults over a stream: counts of the samples that were lost and learned twice.

python -m benchmarks.loop.faults --seed 1
"""

import random
import statistics
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.loop import report, results
from harness.faults import FAULTS, Trial, strike, trial
from harness.stack import Stack


@click.command(help=__doc__)
@click.option(
    "--seed",
    type=int,
    help="Draws the faults and their times; by default, each run draws another seed.",
)
@click.option(
    "--faults",
    "count",
    default=50,
    show_default=True,
    help="Number of faults; each kind comes at least once.",
)
@click.option("--samples", default=100_000, show_default=True, help="Least number of messages.")
@click.option("--rate", default=200.0, show_default=True, help="Messages a second.")
@click.option("--learner", default="sgd", show_default=True, help="LEARNER of the job.")
def main(seed: int | None, count: int, samples: int, rate: float, learner: str) -> None:
    """Run the faults and print the table; exit with 1 if a message was lost or learned twice."""
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}")
    names = drawn(random.Random(seed), count)  # noqa: S311 - draws faults
    parts = Stack(Path(tempfile.mkdtemp(prefix="faults-")))
    seconds: dict[str, list[float]] = {}
    try:
        with trial(parts, seed, rate=rate, learner=learner) as running:
            for name in tqdm(names, unit="fault", disable=not sys.stderr.isatty()):
                took = strike(running, name)
                seconds.setdefault(name, []).append(took)
                click.echo(f"{time.strftime('%H:%M:%S')} {name}: {took:.1f} s", err=True)
            wait_for(running, samples)
            messages, lost, twice = running.prove()
            command = f'make faults FAULTS="--seed {seed} --learner {learner}"'
            found = result(seconds, running, (messages, lost, twice), command)
            click.echo(report.faults(found))
            if count >= len(FAULTS):
                results.save({"faults": found})
    finally:
        parts.close()
    sys.exit(bool(lost or twice))


def drawn(rng: random.Random, count: int) -> list[str]:
    """Return the faults in their order: each kind at least once, and others at random.

    A new partition comes last: after it, the order inside a batch is unknown.
    """
    late = ["add_a_partition"]
    names = [name for name in FAULTS if name not in late]
    names += rng.choices(names, k=max(0, count - len(FAULTS)))
    rng.shuffle(names)
    return names + late


def wait_for(running: Trial, samples: int) -> None:
    """Return when so many messages were sent, over all incarnations of the topic."""
    kept = running.proof.messages
    topic = running.log.topic_id()
    before = sum(place[0] != topic for place in kept)
    while before + sum(end for _, end in running.log.bounds().values()) < samples:
        time.sleep(5)


def result(
    seconds: dict[str, list[float]], running: Trial, counts: tuple[int, int, int], command: str
) -> dict:
    """Return the run's figures, as benchmarks/results/loop.json holds them.

    seconds: recovery times by fault. counts: messages, lost ones, ones learned twice.
    """
    messages, lost, twice = counts
    proof = running.proof
    every = list(chain.from_iterable(seconds.values()))
    return {
        "command": command,
        "messages": messages,
        "lost": lost,
        "twice": twice,
        "commits": len(proof.commits),
        "compared": proof.compared,
        "skipped": len(proof.given_up),
        "outputs_twice": len(proof.again),
        "recovery_s": {
            name.replace("_", " "): {
                "times": len(took),
                "median": round(statistics.median(took), 1),
                "max": round(max(took), 1),
            }
            for name, took in [*sorted(seconds.items()), ("all", every)]
        },
    }


if __name__ == "__main__":
    main()
