"""The producer: replays scikit-learn's handwritten digits into Kafka."""

import time
from collections.abc import Iterator
from itertools import count as natural_numbers
from itertools import islice
from pathlib import Path
from threading import Event

import click
import numpy as np
from tqdm import tqdm

from commands import rejects, topics
from loop.clients import MAX_WAITING, Reader, Sender, stop_on_signals
from loop.messages import DIGITS, load_format
from loop.seen import digests
from settings import one_line, settings

ONE_PASS = 1797  # samples in the data set
NO_TIME = "0000-00-00 00:00:00"  # placeholder for the time of sending in a prepared message
MAX_SENT = 200_000  # remembered copies; the limit bounds memory, and later repeats are rare
CHUNK_SECONDS = 0.005  # shortest sleep between two chunks


def digits_of_the_data_set() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, pixels float64 (1797, 64) from 0 to 16, and their labels."""
    # Imported here: it takes seconds, and only the replay needs it.
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X, y


def prepared(X: np.ndarray, y: np.ndarray) -> list[tuple[bytes, bytes]]:
    """Return each digit's message, split at its time: (before, after)."""
    found = []
    for pixels, label in zip(X, y, strict=True):
        head, _, tail = DIGITS.sample(pixels, label, ts=NO_TIME).partition(NO_TIME.encode())
        found.append((head, tail))
    return found


def passes(seed: int, vary: bool = False) -> Iterator[bytes]:
    """Yield messages with the present time, endlessly: the digits in order, then pass after pass.

    ``seed`` shuffles the later passes. With ``vary`` they hold distorted copies of the digits, as
    if other people had written them. No copy equals an earlier sample.
    """
    X, y = digits_of_the_data_set()
    messages, sent = prepared(X, y), Sent(X)
    for number in natural_numbers():
        rows = np.arange(len(messages))
        if number:
            draw = np.random.default_rng([seed, number])
            draw.shuffle(rows)
            if vary:
                messages = prepared(sent.new_copies(X, draw), y)
        for row in rows:
            head, tail = messages[row]
            now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            yield head + now.encode() + tail


class Sent:
    """The digits and the newest ``MAX_SENT`` copies of them that were sent."""

    def __init__(self, X: np.ndarray) -> None:
        self.originals = set(digests(X))
        self.copies: dict[int, None] = {}  # the oldest first

    def new_copies(self, X: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Return a distorted copy of each digit, whole numbers, that was not sent before."""
        from learners.digit_learner import distorted

        copies = np.empty_like(X)
        rows = np.arange(len(X))
        while len(rows):
            copies[rows] = np.rint(distorted(X[rows].astype(np.float32), draw))
            drawn = zip(rows, digests(copies[rows]), strict=True)
            rows = np.array([row for row, digest in drawn if not self._add(digest)], np.int64)
        return copies

    def _add(self, digest: int) -> bool:
        """Remember a copy and return whether it is new."""
        if digest in self.originals or digest in self.copies:
            return False
        if len(self.copies) >= MAX_SENT:
            del self.copies[next(iter(self.copies))]
        self.copies[digest] = None
        return True


def replay(
    sender: Sender, messages: Iterator[bytes], rate: float, total: int | None, stop: Event
) -> None:
    """Send ``total`` messages (None: endlessly) at ``rate`` per second, or until ``stop`` is set.

    While Kafka is away, at most the messages of one second wait. The rate does not rise afterwards
    to make up for the outage.
    """
    backlog = min(max(1, int(rate)), MAX_WAITING)
    sent, started, shown = 0, time.monotonic(), ""
    with tqdm(total=total, unit=" samples", disable=None, dynamic_ncols=True) as bar:
        while not stop.is_set() and sent != total:
            now = time.monotonic()
            started = max(started, now - sent / rate - 1)
            due = int((now - started) * rate) + 1 - sent
            left = due if total is None else total - sent
            chunk = max(0, min(due, left, backlog - sender.waiting))
            for message in islice(messages, chunk):
                sender.send(message)
            sent += chunk
            sender.collect()
            bar.update(sender.acknowledged - bar.n)
            trouble = f"waiting for Kafka: {sender.link.trouble}" if sender.link.trouble else ""
            if trouble != shown:
                bar.set_postfix_str(trouble)
                shown = trouble
            stop.wait(min(max(started + sent / rate - now, CHUNK_SECONDS), 0.2))
        sender.finish()
        bar.update(sender.acknowledged - bar.n)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Samples per second.  [default: PRODUCER_RATE, 10]",
)
@click.option(
    "--count", type=click.IntRange(min=1), help="Samples to send.  [default: one pass of 1,797]"
)
@click.option(
    "--endless", is_flag=True, help="Send pass after pass, each in another order, until Ctrl-C."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Order of the later passes.",
)
@click.option(
    "--vary", is_flag=True, help="After the first pass, send distorted copies that are all new."
)
@click.option("--show", "shown", metavar="TOPIC", hidden=True)
@click.option("--follow", is_flag=True, hidden=True)
@click.option("--save-rejects", "saved", type=click.Path(path_type=Path), hidden=True)
@click.option(
    "--replay-rejects",
    "repaired",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    hidden=True,
)
@one_line()
def main(
    rate: float | None,
    count: int | None,
    endless: bool,
    seed: int,
    vary: bool,
    shown: str | None,
    follow: bool,
    saved: Path | None,
    repaired: Path | None,
) -> None:
    """Replay scikit-learn's handwritten digits into Kafka.

    Address, topic and login come from the settings, for example KAFKA_BOOTSTRAP_SERVERS and
    INPUT_TOPIC. To print a topic or to repair bad messages, use admin.py.
    """
    if sum(option is not None for option in (shown, saved, repaired)) > 1:
        raise click.UsageError("Use only one of --show, --save-rejects and --replay-rejects.")
    if count and (endless or repaired):
        raise click.UsageError("--count can't be used with --endless or --replay-rejects.")
    if follow and not shown:
        raise click.UsageError("--follow needs --show.")
    config = settings()
    load_format(config.message_format)
    if shown:
        _name_the_new_command("topic show")
        topics.show(Reader(config, shown), count, follow, stop_on_signals())
    elif saved:
        _name_the_new_command("rejects save")
        rejects.save_to(saved, count)
    elif repaired:
        _name_the_new_command("rejects send")
        rejects.send_from(repaired)
    else:
        sender = Sender(config, config.input_topic)
        rate = rate or config.producer_rate
        total = None if endless else count or ONE_PASS
        _replay_digits(sender, passes(seed, vary), rate, total, stop_on_signals())


def _name_the_new_command(command: str) -> None:
    click.echo(f"This option has become a command: python admin.py {command}", err=True)


def _replay_digits(
    sender: Sender, messages: Iterator[bytes], rate: float, total: int | None, stop: Event
) -> None:
    try:
        replay(sender, messages, rate, total, stop)
    finally:
        click.echo(sender.outcome())
    if sender.waiting:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
