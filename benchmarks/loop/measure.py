"""What the benchmarks share: a filled topic, outputs counted, CPU time by process, figures with their spread."""

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


def environment(command: str) -> dict[str, Any]:
    """Return what the figures were measured on: machine, versions, command and time."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def samples(form: Format = DIGITS) -> Iterator[bytes]:
    """Yield the digits as messages, pass after pass, without end."""
    X, y = load_digits(return_X_y=True)
    prepared = [form.sample(x, label) for x, label in zip(X, y, strict=True)]
    while True:
        yield from prepared


def fill(
    config: Settings, count: int, messages: Iterator[bytes] | None = None, partitions: int = 1
) -> None:
    """Send this many messages to the input topic, one partition after the other in turns."""
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
    """Send this many messages to the input topic in transactions of ``size``, each of which leaves a marker."""
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
    """Give a function that returns how many records the topic's only partition has got, also uncommitted ones."""
    consumer = Consumer(
        {"bootstrap.servers": config.kafka_bootstrap_servers, "group.id": "benchmark"}
    )
    try:
        yield lambda: consumer.get_watermark_offsets(
            TopicPartition(topic, 0), timeout=10, cached=False
        )[1]
    finally:
        consumer.close()


@dataclass
class Pace:
    """A steady run: ``rate`` in samples/s between the warm-up's end and the run's, and the CPU time of that span."""

    rate: float
    samples: int
    cpu_us: dict[str, float] = field(
        default_factory=dict
    )  # process -> microseconds of CPU per sample
    threads_us: dict[str, float] = field(
        default_factory=dict
    )  # the TaskManager's thread -> the same
    per_commit: int = 0  # samples, on average, where the job is ours


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
    """Watch the topic fill up to ``total`` or for ``seconds``; the first half, at most 8 s of it, is warm-up."""
    with counted(config, topic) as count:
        deadline = time.monotonic() + patience
        while count() == 0:
            if time.monotonic() > deadline:
                raise NothingCameError(f"nothing came to {topic} in {patience:.0f} s")
            time.sleep(0.02)
        first = time.monotonic()
        while (
            count() < total / 2 and time.monotonic() - first < 8
        ):  # the JVM compiles, a consumer group forms
            time.sleep(0.02)
        cpu, threads = cpu_times(stack)
        at, begin = count(), time.monotonic()
        now = at
        while now < total and time.monotonic() - begin < seconds:
            time.sleep(0.02)
            now = count()
        spent = time.monotonic() - begin
        cpu_end, threads_end = cpu_times(stack)
    done = max(now - at, 1)
    return Pace(
        done / spent, done, _per_sample(cpu, cpu_end, done), _per_sample(threads, threads_end, done)
    )


def _per_sample(before: dict[str, float], after: dict[str, float], done: int) -> dict[str, float]:
    spent = {name: (after[name] - before.get(name, 0)) / done * 1e6 for name in after}
    return {
        name: round(us, 2)
        for name, us in sorted(spent.items(), key=lambda item: -item[1])
        if us >= 0.05
    }


def cpu_times(stack: Stack | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return CPU seconds so far by process of the stack, and by thread of the TaskManager (named by Linux in 15 letters)."""
    if stack is None:
        return {}, {}
    by_process: dict[str, float] = {}
    for name, part in stack.parts.items():
        if part.alive and part.popen:
            process = psutil.Process(part.popen.pid)
            by_process[name] = sum(process.cpu_times()[:2])
            if name == "taskmanager":
                workers = [
                    sum(w.cpu_times()[:2])
                    for w in process.children(recursive=True)
                    if w.is_running()
                ]
                by_process["python worker"] = sum(workers)
    manager = stack.parts["taskmanager"].popen
    by_thread: dict[str, float] = {}
    for thread in psutil.Process(manager.pid).threads() if manager else ():
        try:
            with open(f"/proc/{manager.pid}/task/{thread.id}/comm") as comm:  # type: ignore[union-attr]
                name = comm.read().strip().rstrip("0123456789-#/ ")
        except FileNotFoundError:
            continue  # the thread has ended
        by_thread[name] = by_thread.get(name, 0) + thread.user_time + thread.system_time
    return by_process, by_thread
