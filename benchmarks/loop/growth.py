"""Growth of cost with features, classes, batch size and partitions; memory and recovery."""

import base64
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import psutil

from benchmarks.loop.freshness import Watch, ask, page, send, watch_redis
from benchmarks.loop.measure import (
    figure,
    fill,
    fill_in_transactions,
    pace,
    rate_figure,
    rate_of,
    shown_rate,
)
from harness.stack import Stack, until
from loop import messages
from loop.messages import Format
from loop.topic_log import TopicLog
from loop.trainer import Trainer
from settings import Settings
from udf_model import learn_fast

SIZES = ((64, 10), (64, 100), (512, 10), (2_145, 10), (10_000, 10))  # features, classes
TRANSACTION = 20  # samples
WAITING = 100_000  # samples that always wait while the memory is measured
DRAWING = b"""<svg xmlns="http://www.w3.org/2000/svg" width="280" height="280">
<path d="M140 40 L140 240" stroke="black" stroke-width="20" fill="none"/></svg>"""
PARTS = ("parse", "predict", "learn", "commit", "rest")


def trainer_cost(stack: Stack, form: Format, batch: int, seconds: float) -> dict[str, Any]:
    """Return what a batch costs inside the task, ms by part.

    Kafka and Redis are real, and Flink takes no part.
    """
    name = f"BENCH_{form.n_features}_{form.n_classes}"
    setattr(messages, name, form)
    view = stack.named(learner="sgd", message_format=f"loop.messages:{name}")
    trainer = Trainer(view.settings, "benchmark")
    trainer.open()
    learn_fast()
    spent = _time_parts(trainer)
    totals: list[float] = []
    learn = _timed(trainer.learn, totals)
    rows = _random_samples(form, batch)
    partitions = np.zeros(batch, np.int64)
    begin = time.monotonic()
    try:
        while len(totals) < 6 or time.monotonic() - begin < seconds:
            learn(rows, partitions, np.arange(batch) + len(totals) * batch)
        model = len(trainer.held.stored.model) if trainer.held.stored else 0
    finally:
        trainer.close()
        object.__delattr__(trainer.format, "parse")
        delattr(messages, name)
    spent["rest"] = [
        whole - sum(parts) for whole, *parts in zip(totals, *spent.values(), strict=True)
    ]
    medians = {part: statistics.median(times[1:]) * 1000 for part, times in spent.items()}
    total = statistics.median(totals[1:]) * 1000
    return {
        "batch": batch,
        "samples_per_s": round(batch / total * 1000),
        "model_bytes": model,
        "ms_per_batch": {part: round(ms, 3) for part, ms in medians.items()},
    }


def _random_samples(form: Format, count: int) -> list[bytes]:
    """Return messages with random features and labels, the same ones each time."""
    draw = np.random.default_rng(0)
    return [
        form.sample(draw.integers(0, 17, form.n_features), draw.integers(form.n_classes))
        for _ in range(count)
    ]


def _time_parts(trainer: Trainer) -> dict[str, list[float]]:
    """Put a clock around each part of a batch; returns the lists that get its seconds."""
    spent: dict[str, list[float]] = {part: [] for part in PARTS[:-1]}
    parse = _timed(trainer.format.parse, spent["parse"])
    object.__setattr__(trainer.format, "parse", parse)  # the format is frozen
    trainer.store.commit = _timed(trainer.store.commit, spent["commit"])
    learner: Any = trainer.held.learner
    learner.predict = _timed(learner.predict, spent["predict"])
    learner.learn = _timed(learner.learn, spent["learn"])
    return spent


def _timed(function: Any, times: list[float]) -> Any:
    """Return the function with a clock that appends the seconds of each call."""

    def call(*args: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            times.append(time.perf_counter() - begin)

    return call


def sizes(stack: Stack, seconds: float) -> dict[str, Any]:
    """Return the task's cost by features and classes.

    A batch is as large as one at full rate: 5,000 samples or at most 16 MB.
    """
    table = {}
    for features, classes in SIZES:
        form = Format(n_features=features, low=0, high=16, n_classes=classes)
        batch = min(5_000, 6_000_000 // features)
        size = f"{features} features, {classes} classes"
        table[size] = trainer_cost(stack, form, batch, seconds)
        print(f"growth: {size}: {table[size]}", flush=True)
    return table


def batches(stack: Stack, seconds: float) -> dict[str, Any]:
    """Return the task's cost by batch size."""
    table = {
        str(n): trainer_cost(stack, messages.DIGITS, n, seconds) for n in (1, 10, 100, 1_000, 5_000)
    }
    for batch, row in table.items():
        print(f"growth: batch {batch}: {row}", flush=True)
    return table


def partitions(stack: Stack, total: int, seconds: float) -> dict[str, Any]:
    """Return the job's samples/s by the number of partitions of its topic."""
    table = {}
    for count in (1, 4, 16):
        view = stack.named(count)
        fill(view.settings, total, partitions=count)
        job = view.submit_job(LEARNER="sgd")
        try:
            found = pace(view.settings, view.settings.predict_topic, total, seconds)
        finally:
            view.cancel_job(job)
        table[str(count)] = rate_figure([found.rate])
        print(f"growth: {count} partitions: {shown_rate(found.rate)}", flush=True)
    return table


def transactions(stack: Stack, total: int, rounds: int) -> dict[str, Any]:
    """Return samples/s on plain input and on transactions, and the ratio of the times.

    A transaction has ``TRANSACTION`` samples. A round before the first one lets Flink's JVMs
    compile what runs often.
    """
    plain, marked = stack.named(), stack.named()
    fill(plain.settings, total)
    fill_in_transactions(marked.settings, total, TRANSACTION)
    topics = [("plain", plain), ("transactional", marked)]
    rates: dict[str, list[float | None]] = {name: [] for name, _ in topics}
    for number in range(rounds + 1):
        for name, filled in topics if number % 2 == 0 else reversed(topics):
            view = stack.named(input_topic=filled.settings.input_topic)
            rate = learning_rate(view, total)
            if number:
                rates[name].append(rate)
                print(f"growth: round {number}: {name} input: {shown_rate(rate)}", flush=True)
    found: dict[str, Any] = {name: rate_figure(values) for name, values in rates.items()}
    medians = [found[name].get("median") for name, _ in topics]
    ratio = round(medians[0] / medians[1], 2) if all(medians) else None
    print(f"growth: transactions of {TRANSACTION}: {ratio} times the time of plain input")
    return found | {"size": TRANSACTION, "times_the_time": ratio}


def learning_rate(view: Stack, total: int) -> float | None:
    """Return samples/s over the last three quarters of the waiting samples, by the commits.

    It is None if they took too little time to be measured.
    """
    log = TopicLog(view.settings)
    end = log.bounds()[0][1] - 1  # the last offset may be a marker
    log.close()
    watch = Watch(watch_redis(view.settings))
    job = view.submit_job(LEARNER="sgd")
    try:
        until(lambda: watch.reached(end), 300, f"{total} samples are learned")
    finally:
        watch.end()
        view.cancel_job(job)
    samples_per_offset = total / end
    learned = [
        (at, round(offset * samples_per_offset)) for at, offset in watch.seen if offset >= end / 4
    ]
    return rate_of(learned)


def memory(stack: Stack, minutes: float) -> dict[str, Any]:
    """Return the resident MiB over time of each process, and of Redis's append-only files.

    Samples always wait, so that the job learns as fast as it can.
    """
    view = stack.named()
    job = view.submit_job(LEARNER="sgd")
    watch = Watch(watch_redis(view.settings))
    stop = threading.Event()
    series: dict[str, list[float]] = {}
    sender = threading.Thread(target=keep_waiting, args=(view.settings, watch, stop), daemon=True)
    try:
        with page(view):
            sender.start()
            begin = time.monotonic()
            while time.monotonic() < begin + 60 * minutes:
                for name, mib in _resident(view).items():
                    series.setdefault(name, []).append(round(mib, 1))
                time.sleep(min(5, minutes * 6))
            rate = watch.seen[-1][1] / (time.monotonic() - begin)
    finally:
        stop.set()
        if sender.is_alive():  # it never started if the page did not
            sender.join()
        watch.end()
        view.cancel_job(job)
    print(f"growth: memory: {rate:,.0f} samples/s", flush=True)
    parts = {name: _course(name, values) for name, values in series.items()}
    return {"minutes": minutes, "samples_per_s": round(rate), "parts": parts}


def _course(name: str, values: list[float]) -> dict[str, Any]:
    """Return a process's memory over time, and how its last sixth compares with its second."""
    sixth = max(1, len(values) // 6)
    second = statistics.fmean(values[sixth : 2 * sixth])
    change = statistics.fmean(values[-sixth:]) / max(second, 0.1) - 1
    first, last = values[0], values[-1]
    print(f"growth: memory of {name}: {first} to {last} MiB, {100 * change:+.1f} %", flush=True)
    return {
        "unit": "MiB",
        "first": first,
        "last": last,
        "max": max(values),
        "last_sixth_against_second": round(change, 3),
        "series": values,
    }


def keep_waiting(config: Settings, watch: Watch, stop: threading.Event) -> None:
    """Send samples so that at least ``WAITING`` always wait."""
    sent = 0
    while not stop.wait(0.05):
        learned = watch.seen[-1][1] if watch.seen else 0
        if sent < learned + WAITING:
            fill(config, WAITING)
            sent += WAITING


def _resident(view: Stack) -> dict[str, float]:
    """Return MiB: resident memory by process, and the size of Redis's files on disk."""

    def mib(process: psutil.Process) -> float:
        return process.memory_info().rss / 2**20

    manager = psutil.Process(view.parts["taskmanager"].popen.pid)
    pages = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.is_running() and "server.py" in " ".join(process.cmdline())
    ]
    files = Path(view.settings.run_dir, "redis").rglob("*")
    return {
        "TaskManager": mib(manager),
        "Python worker": sum(mib(worker) for worker in manager.children(recursive=True)),
        "Redis": mib(psutil.Process(view.parts["redis"].popen.pid)),
        "page": sum(mib(process) for process in pages),
        "Redis's files": sum(path.stat().st_size for path in files if path.is_file()) / 2**20,
    }


def catching_up(stack: Stack, waiting: int) -> dict[str, Any]:
    """Return how long the waiting samples take while 100/s arrive, and the page's answer times."""
    view = stack.named()
    config = view.settings
    fill(config, waiting)
    watch = Watch(watch_redis(config))
    job = view.submit_job(LEARNER="sgd")
    try:
        with page(view):
            begin = time.monotonic()
            sender = threading.Thread(target=send, args=(config, 100, 100 * 20), daemon=True)
            sender.start()
            until(lambda: watch.seen, 120, "the first commit")
            until(lambda: ask(config, "/model"), 60, "the page has a model")
            times: list[float] = []
            while not watch.reached(waiting):
                _timed(lambda: predict(config), times)()
                if time.monotonic() - begin > 300:
                    behind = waiting - watch.seen[-1][1]
                    raise TimeoutError(f"still {behind} samples behind after 300 s")
            seconds = watch.seen[-1][0] - watch.seen[0][0]
            sender.join()
    finally:
        watch.end()
        view.cancel_job(job)
    found = {
        "waiting": waiting,
        "seconds": round(seconds, 2),
        "page_ms_p50": _percentile_ms(times, 50),
        "page_ms_p99": _percentile_ms(times, 99),
    }
    print(f"growth: catching up: {found}", flush=True)
    return found


def _percentile_ms(times: list[float], percent: float) -> float | None:
    """Return a percentile of seconds in ms, or None where the page had no time to answer."""
    return round(1000 * float(np.percentile(times, percent)), 1) if times else None


def predict(config: Settings) -> dict:
    """Return the page's answer to a drawing."""
    form = urlencode({"imgStr": base64.b64encode(DRAWING)}).encode()
    with urlopen(f"http://127.0.0.1:{config.page_port}/predict", form, timeout=10) as answer:
        return json.load(answer)


def recovery(stack: Stack, times: int) -> dict[str, Any]:
    """Return the seconds from SIGKILL to the first new commit, by the process that was killed.

    200 samples/s arrive.
    """
    view = stack.named()
    job = view.submit_job(LEARNER="sgd")
    watch = Watch(watch_redis(view.settings))
    stop = threading.Event()

    def keep_sending() -> None:
        while not stop.is_set():
            send(view.settings, 200, 100)

    def kill_worker() -> None:
        for worker in psutil.Process(view.parts["taskmanager"].popen.pid).children(recursive=True):
            os.kill(worker.pid, signal.SIGKILL)

    sender = threading.Thread(target=keep_sending, daemon=True)
    sender.start()
    kills = {
        "Python worker": kill_worker,
        "TaskManager, restarted at once": lambda: view.restart("taskmanager"),
    }
    found = {}
    try:
        for name, kill in kills.items():
            seconds = [_seconds_to_commit(watch, kill) for _ in range(times)]
            found[name] = figure(seconds, "s")
            print(f"growth: recovery: {name}: {found[name]}", flush=True)
    finally:
        stop.set()
        sender.join(10)
        watch.end()
        view.cancel_job(job)
    return found


def _seconds_to_commit(watch: Watch, kill: Callable[[], object]) -> float:
    """Kill while commits come; returns the seconds until the first one after the pause."""
    commits = len(watch.seen)
    until(lambda: len(watch.seen) > commits + 20, 120, "commits flow")
    begin = time.monotonic()
    kill()

    def first_after_pause() -> float:
        # A commit may have been on its way to Redis at the kill; a new one comes after a pause.
        times = [at for at, _ in watch.seen]
        later = (at for before, at in pairwise(times) if at > begin and at - before > 0.5)
        return next(later, 0.0)

    return until(first_after_pause, 120, "a commit after the kill") - begin
