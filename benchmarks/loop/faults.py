"""Fifty faults over a stream: kill, stop and put back the real parts, and count what was lost and what was learned twice.

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
@click.option("--seed", type=int, help="Draws faults and moments; a new one each time by default.")
@click.option(
    "--faults",
    "count",
    default=50,
    show_default=True,
    help="How many; each kind comes at least once.",
)
@click.option(
    "--samples", default=100_000, show_default=True, help="How many messages stream in at least."
)
@click.option("--rate", default=200.0, show_default=True, help="Messages a second.")
@click.option("--learner", default="sgd", show_default=True, help="LEARNER of the job.")
def main(seed: int | None, count: int, samples: int, rate: float, learner: str) -> None:
    """Run and print the table; exit code 1 where a message was lost or learned twice."""
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}")
    names = drawn(random.Random(seed), count)  # noqa: S311 - draws faults
    parts = Stack(Path(tempfile.mkdtemp(prefix="faults-")))
    seconds: dict[str, list[float]] = {}
    try:
        with trial(parts, seed, rate=rate, learner=learner) as running:
            for name in tqdm(names, unit="fault", disable=not sys.stderr.isatty()):
                seconds.setdefault(name, []).append(strike(running, name))
                click.echo(
                    f"{time.strftime('%H:%M:%S')} {name}: {seconds[name][-1]:.1f} s", err=True
                )
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
    """Return the faults in their order: each kind at least once, the others drawn from all but the last.

    A partition that is added makes the order inside a batch unknown, so that comes late.
    """
    late = ["add_a_partition"]
    names = [name for name in FAULTS if name not in late]
    names += rng.choices(names, k=max(0, count - len(FAULTS)))
    rng.shuffle(names)
    return names + late


def wait_for(running: Trial, samples: int) -> None:
    """Return when so many messages were sent, over all topics that there were."""
    kept = running.proof.messages
    topic = running.log.topic_id()
    before = sum(place[0] != topic for place in kept)
    while before + sum(end for _, end in running.log.bounds().values()) < samples:
        time.sleep(5)


def result(
    seconds: dict[str, list[float]], running: Trial, counts: tuple[int, int, int], command: str
) -> dict:
    """Return what the run showed, as it stands in benchmarks/results/loop.json."""
    messages, lost, twice = counts
    proof = running.proof
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
            for name, took in [
                *sorted(seconds.items()),
                ("all", list(chain.from_iterable(seconds.values()))),
            ]
        },
    }


if __name__ == "__main__":
    main()
