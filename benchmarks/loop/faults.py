"""Fifty faults over a stream: kill, stop and put back the real parts, and count what was lost and what was learned twice.

python -m benchmarks.loop.faults --seed 1
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
from tqdm import tqdm

from harness.faults import FAULTS, Trial, strike, trial
from harness.stack import Stack


@click.command(help=__doc__)
@click.option("--seed", type=int, help="Draws faults and moments; a new one each time by default.")
@click.option("--faults", "count", default=50, show_default=True, help="How many; each kind comes at least once.")
@click.option("--samples", default=100_000, show_default=True, help="How many messages stream in at least.")
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
                click.echo(f"{time.strftime('%H:%M:%S')} {name}: {seconds[name][-1]:.1f} s", err=True)
            wait_for(running, samples)
            messages, lost, twice = running.prove()
            print_table(seconds, running, messages, lost, twice)
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


def print_table(seconds: dict[str, list[float]], running: Trial, messages: int, lost: int, twice: int) -> None:
    click.echo("\n| fault | times | recovery, median | recovery, max |\n| --- | --- | --- | --- |")
    for name, took in sorted(seconds.items()):
        row = f"| {name.replace('_', ' ')} | {len(took)} | {statistics.median(took):.1f} s | {max(took):.1f} s |"
        click.echo(row)
    every = [one for took in seconds.values() for one in took]
    click.echo(f"| all | {len(every)} | {statistics.median(every):.1f} s | {max(every):.1f} s |")
    proof = running.proof
    click.echo(
        f"\n{messages} messages, {lost} lost, {twice} learned twice; {len(proof.commits)} commits, of which {proof.compared} "
        "hold bit for bit the model that one process trains on the same batches.\n"
        f"Given up on purpose, after retention or a topic made anew: {len(proof.given_up)}. Outputs that may stand twice, "
        f"after a submission without a checkpoint: {len(proof.again)}."
    )


if __name__ == "__main__":
    main()
