"""Shared parts of the loop's benchmarks: topics, stable rates, CPU times, the host's load."""

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from sklearn.datasets import load_digits

from harness.stack import Stack
from loop.messages import DIGITS, Format
from settings import Settings

LIBRARIES = (
    "apache-flink",
    "numpy",
    "scikit-learn",
    "pyarrow",
    "kafka-python",
    "confluent-kafka",
    "redis",
)
STRETCH = 2.0  # seconds; a rate is stable when two stretches one after the other are alike
ALIKE = 0.1  # relative difference of two stretches
LONGEST_WARM_UP = 30.0  # seconds
SHORTEST = 1.0  # seconds that a rate needs; below it, one burst of outputs decides the figure
COUNTED = 0.95  # share of the total; producers hold the last outputs back until a checkpoint
Counts = list[tuple[float, int]]  # monotonic seconds and the number of outputs at that time


def figure(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Return one result: its unit, min, median, max and every run."""
    rounded = [float(f"{value:.4g}") for value in values]
    return {
        "unit": unit,
        "min": min(rounded),
        "median": statistics.median(rounded),
        "max": max(rounded),
        "runs": rounded,
    }


def rate_figure(rates: Sequence[float | None]) -> dict[str, Any]:
    """Return the figure of the runs that were long enough, and the number of those that were not.

    If no run was long enough, the figure has no rate at all.
    """
    long_enough = [rate for rate in rates if rate is not None]
    found = figure(long_enough, "samples/s") if long_enough else {}
    too_short = len(rates) - len(long_enough)
    return found | ({"too_short": too_short} if too_short else {})


def shown_rate(rate: float | None) -> str:
    """Return a rate for a line of the terminal."""
    return "too short to measure" if rate is None else f"{rate:,.0f}/s"


class Host:
    """The machine's load and the time that its host gave to other machines, from now on."""

    def __init__(self) -> None:
        self.before = psutil.cpu_times()

    def figures(self) -> dict[str, float | None]:
        """Return stolen time in % of the cores' time, and the load average of the last minute.

        The stolen time is None where the system does not count it.
        """
        return {"stolen_percent": self.stolen_percent(), "load": round(os.getloadavg()[0], 1)}

    def stolen_percent(self) -> float | None:
        """Return the stolen time in % of the cores' time, or None where it is not counted."""
        now = psutil.cpu_times()
        if not hasattr(now, "steal"):
            return None
        spent = sum(now) - sum(self.before)
        return round(100 * (now.steal - self.before.steal) / max(spent, 1e-9), 1)


def environment(command: str) -> dict[str, Any]:
    """Return what the figures were measured on: machine, versions, command and time."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    python = {"python": platform.python_version()}
    return {
        "machine": {
            "cpu": next(names, "unknown"),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": python | {name: version(name) for name in LIBRARIES},
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# --- topics ---


def samples(form: Format = DIGITS) -> Iterator[bytes]:
    """Yield the digits as messages, pass after pass, without end."""
    X, y = load_digits(return_X_y=True)
    prepared = [form.sample(x, label) for x, label in zip(X, y, strict=True)]
    while True:
        yield from prepared


def fill(
    config: Settings, count: int, messages: Iterator[bytes] | None = None, partitions: int = 1
) -> None:
    """Send this many messages to the input topic, to its partitions in turn."""
    producer = Producer(
        {
            "bootstrap.servers": config.kafka_bootstrap_servers,
            "linger.ms": 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    for number, message in enumerate(islice(messages or samples(), count)):
        while True:
            try:
                producer.produce(config.input_topic, message, partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush()


def fill_in_transactions(config: Settings, count: int, size: int) -> None:
    """Send this many messages to the input topic in transactions of ``size``.

    Each transaction adds a marker, which takes an offset.
    """
    producer = Producer(
        {
            "bootstrap.servers": config.kafka_bootstrap_servers,
            "linger.ms": 20,
            "transactional.id": config.input_topic,
        }
    )
    producer.init_transactions(30)
    messages = islice(samples(), count)
    while some := list(islice(messages, size)):
        producer.begin_transaction()
        for message in some:
            producer.produce(config.input_topic, message)
        producer.commit_transaction(30)


@contextmanager
def counted(config: Settings, topic: str) -> Iterator[Any]:
    """Give a function that returns the number of records in the topic's only partition.

    Records of open transactions count, too.
    """
    consumer = Consumer(
        {"bootstrap.servers": config.kafka_bootstrap_servers, "group.id": "benchmark"}
    )
    partition = TopicPartition(topic, 0)
    try:
        yield lambda: consumer.get_watermark_offsets(partition, timeout=10, cached=False)[1]
    finally:
        consumer.close()


# --- rates ---


@dataclass
class Pace:
    """A run between the end of its warm-up and its own end.

    rate: samples/s, or None where the run was too short to be measured.
    steady: whether the warm-up ended because the rate was stable.
    cpu_us: microseconds of CPU per sample by process. threads_us: by thread of the TaskManager.
    per_commit: samples of a commit on average, where the job is this project's.
    """

    rate: float | None
    samples: int
    warm_up_s: float = 0.0
    steady: bool = False
    host: dict[str, float | None] = field(default_factory=dict)
    cpu_us: dict[str, float] = field(default_factory=dict)
    threads_us: dict[str, float] = field(default_factory=dict)
    per_commit: int = 0


class NothingCameError(RuntimeError):
    """A contender gave no output in time."""


def pace(
    config: Settings,
    topic: str,
    total: int,
    seconds: float,
    stack: Stack | None = None,
    patience: float = 90,
) -> Pace:
    """Watch the topic fill up nearly to ``total``, for at most ``seconds`` after the warm-up.

    The warm-up ends when the rate is stable: the JVM has compiled, a consumer group has formed.
    Half of the total or ``LONGEST_WARM_UP`` end it in any case.
    """
    with counted(config, topic) as count:
        _wait_for_the_first(count, topic, patience)
        warm_up = _watch(count, total / 2, LONGEST_WARM_UP, is_stable)
        host = Host()
        cpu, threads = cpu_times(stack)
        run = _watch(count, COUNTED * total, seconds, lambda _: False)
        cpu_end, threads_end = cpu_times(stack)
    done = max(run[-1][1] - run[0][1], 1)
    return Pace(
        rate=rate_of(run),
        samples=done,
        warm_up_s=round(warm_up[-1][0] - warm_up[0][0], 1),
        steady=is_stable(warm_up),
        host=host.figures(),
        cpu_us=_per_sample(cpu, cpu_end, done),
        threads_us=_per_sample(threads, threads_end, done),
    )


def _wait_for_the_first(count: Any, topic: str, patience: float) -> None:
    """Return when the topic has a record; raises ``NothingCameError`` after ``patience`` s."""
    deadline = time.monotonic() + patience
    while count() == 0:
        if time.monotonic() > deadline:
            raise NothingCameError(f"nothing came to {topic} in {patience:.0f} s")
        time.sleep(0.02)


def _watch(count: Any, total: float, seconds: float, enough: Any) -> Counts:
    """Note the count every 20 ms up to a total, for a time, or until the notes are enough."""
    seen = [(time.monotonic(), count())]
    while seen[-1][1] < total and seen[-1][0] - seen[0][0] < seconds and not enough(seen):
        time.sleep(0.02)
        seen.append((time.monotonic(), count()))
    return seen


def is_stable(seen: Counts) -> bool:
    """Return whether the last two stretches of ``STRETCH`` seconds brought as many outputs."""
    times, counts = zip(*seen, strict=True)
    if times[-1] - times[0] < 2 * STRETCH:
        return False
    ends = times[-1] - STRETCH * np.array([2, 1, 0])
    earlier, later = np.diff(np.interp(ends, times, counts))
    return bool(later > 0 and abs(later - earlier) <= ALIKE * later)


def rate_of(seen: Counts) -> float | None:
    """Return outputs a second, or None where they came in less than ``SHORTEST`` seconds."""
    spent = seen[-1][0] - seen[0][0]
    return (seen[-1][1] - seen[0][1]) / spent if spent >= SHORTEST else None


# --- CPU time ---


def _per_sample(before: dict[str, float], after: dict[str, float], done: int) -> dict[str, float]:
    """Return microseconds per sample by name, the largest first, without those near zero."""
    spent = {name: (after[name] - before.get(name, 0)) / done * 1e6 for name in after}
    largest_first = sorted(spent.items(), key=lambda item: -item[1])
    return {name: round(us, 2) for name, us in largest_first if us >= 0.05}


def cpu_times(stack: Stack | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return CPU seconds so far by process of the stack, and by thread of the TaskManager.

    Linux cuts the threads' names to 15 letters.
    """
    if stack is None:
        return {}, {}
    by_process: dict[str, float] = {}
    for name, part in stack.parts.items():
        if part.alive and part.popen:
            process = psutil.Process(part.popen.pid)
            by_process[name] = _cpu_seconds(process)
            if name == "taskmanager":
                workers = process.children(recursive=True)
                running = [worker for worker in workers if worker.is_running()]
                by_process["python worker"] = sum(map(_cpu_seconds, running))
    manager = stack.parts["taskmanager"].popen
    return by_process, _thread_times(manager.pid) if manager else {}


def _cpu_seconds(process: psutil.Process) -> float:
    """Return a process's user and system time in seconds."""
    return sum(process.cpu_times()[:2])


def _thread_times(pid: int) -> dict[str, float]:
    """Return CPU seconds of a process by its threads' names, without their numbers."""
    by_thread: dict[str, float] = {}
    for thread in psutil.Process(pid).threads():
        try:
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text().strip()
        except FileNotFoundError:
            continue  # the thread has ended
        name = name.rstrip("0123456789-#/ ")
        by_thread[name] = by_thread.get(name, 0) + thread.user_time + thread.system_time
    return by_thread
