"""The live line of ``make run``: its content, and how it is written to a terminal or a pipe."""

import errno
import os
import shutil
import sys
import threading
import time

import redis

from loop.model_store import Meta, ModelStore, StoreError
from loop.scores import SamplesPerSecond
from settings import Settings

REPEAT_SECONDS = 10  # between two lines if the output is no terminal


class Meter:
    """The model's figures for the live line, read from Redis once a second."""

    def __init__(self, config: Settings) -> None:
        self.store = ModelStore(config)
        self.meta: Meta | None = None
        self.problem = ""
        self.rate = SamplesPerSecond()

    def run(self, stopping: threading.Event) -> None:
        """Read until asked to stop."""
        while not stopping.wait(1):
            try:
                stored = self.store.read()
            except redis.RedisError as error:
                self.problem = f"the model can't be read ({error})"
            except StoreError as error:
                self.problem = str(error)
            except ValueError as error:  # a field that another program wrote
                self.problem = f"the model can't be read ({error})"
            else:
                self.problem = ""
                self.meta = stored.meta if stored else None
                if self.meta:
                    self.rate.add(time.monotonic(), self.meta.model_id, self.meta.samples)

    def text(self) -> str:
        """Return samples learned, accuracy, model version, samples/s and rejected."""
        if self.meta is None:
            return "no sample learned yet"
        scores = self.meta.scores
        accuracy = "-" if scores.accuracy is None else f"{scores.accuracy:.3f}"
        recent = "-" if scores.accuracy_100 is None else f"{scores.accuracy_100:.2f}"
        new = "-" if scores.accuracy_new is None else f"{scores.accuracy_new:.3f}"
        return (
            f"{self.meta.samples:,} samples learned, accuracy {accuracy} (last 100: {recent}, "
            f"new samples: {new}), "
            f"model version {self.meta.version:,}, {self.rate.value():.1f} samples/s, "
            f"{self.meta.rejected:,} rejected"
        )


class Line:
    """The live line.

    On a terminal it is overwritten; elsewhere it is printed every ten seconds and when the problems
    change. If the output is closed (a closed terminal, ``make run | head``), it sets ``stopping``.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.terminal = sys.stdout.isatty()
        self.printed_at = 0.0
        self.problems: list[str] = []

    def say(self, text: str) -> None:
        """Print lines that are not overwritten."""
        self.write("\r\033[K" * self.terminal + text + "\n")

    def show(self, text: str, problems: list[str]) -> None:
        """Show the current state."""
        text = " | ".join([text, *problems])
        if self.terminal:
            self.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
        elif problems != self.problems or time.monotonic() - self.printed_at >= REPEAT_SECONDS:
            self.write(text + "\n")
            self.printed_at, self.problems = time.monotonic(), problems

    def write(self, text: str) -> None:
        """Write to the output; an output that nobody reads any more sets ``stopping``."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                self.stopping.set()
                # The text stays in the buffer and would fail again, at the exit if not before.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)
