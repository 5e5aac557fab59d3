"""How cost grows: with features, classes, batch size and partitions; memory, catching up and recovery."""

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
from benchmarks.loop.measure import figure, fill, fill_in_transactions, pace
from harness.stack import Stack, until
from loop import messages
from loop.messages import Format
from loop.topic_log import TopicLog
from loop.trainer import Trainer
from settings import Settings
from udf_model import learn_fast

SIZES = ((64, 10), (64, 100), (512, 10), (2_145, 10), (10_000, 10))  # features, classes
TRANSACTION = 20  # samples
WAITING = 100_000  # samples, where some are always to be learned
DRAWING = b"""<svg xmlns="http://www.w3.org/2000/svg" width="280" height="280">
<path d="M140 40 L140 240" stroke="black" stroke-width="20" fill="none"/></svg>"""
PARTS = ("parse", "predict", "learn", "commit", "rest")


def trainer_cost(stack: Stack, form: Format, batch: int, seconds: float) -> dict[str, Any]:
    """Return what a batch costs inside the task, ms by part, on real Kafka and Redis but without Flink."""
    name = f"BENCH_{form.n_features}_{form.n_classes}"
    setattr(messages, name, form)
    view = stack.named(learner="sgd", message_format=f"loop.messages:{name}")
    trainer = Trainer(view.settings, "benchmark")
    trainer.open()
    learn_fast()
    draw = np.random.default_rng(0)
    rows = [
        form.sample(draw.integers(0, 17, form.n_features), draw.integers(form.n_classes))
        for _ in range(batch)
    ]
    spent: dict[str, list[float]] = {part: [] for part in PARTS[:-1]}
    parse, commit = (
        _timed(trainer.format.parse, spent["parse"]),
        _timed(trainer.store.commit, spent["commit"]),
    )
    object.__setattr__(trainer.format, "parse", parse)
    trainer.store.commit = commit  # type: ignore[method-assign]
    trainer.held.learner.predict = _timed(trainer.held.learner.predict, spent["predict"])  # type: ignore[method-assign]
    trainer.held.learner.learn = _timed(trainer.held.learner.learn, spent["learn"])  # type: ignore[method-assign]
    totals: list[float] = []
    learn = _timed(trainer.learn, totals)
    partitions, begin = np.zeros(batch, np.int64), time.monotonic()
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


def _timed(function: Any, times: list[float]) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            times.append(time.perf_counter() - begin)

    return call


def sizes(stack: Stack, seconds: float) -> dict[str, Any]:
    """Return the task's cost by features and classes; batches are as large as a batch of a flood, at most 16 MB."""
    table = {}
    for features, classes in SIZES:
        form = Format(n_features=features, low=0, high=16, n_classes=classes)
        table[f"{features} features, {classes} classes"] = trainer_cost(
            stack, form, min(5_000, 6_000_000 // features), seconds
        )
        print(
            f"growth: {features} features, {classes} classes: {[*table.values()][-1]}", flush=True
        )
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
        table[str(count)] = figure([found.rate], "samples/s")
        print(f"growth: {count} partitions: {found.rate:,.0f}/s", flush=True)
    return table


def transactions(stack: Stack, total: int, rounds: int) -> dict[str, Any]:
    """Return the job's samples/s on plain input and on transactions of ``TRANSACTION`` samples, and the ratio of times.

    A round before the first lets Flink's JVMs compile what runs often.
    """
    plain, marked = stack.named(), stack.named()
    fill(plain.settings, total)
    fill_in_transactions(marked.settings, total, TRANSACTION)
    rates: dict[str, list[float]] = {"plain": [], "transactional": []}
    for number in range(rounds + 1):
        views = [("plain", plain), ("transactional", marked)]
        for name, filled in views if number % 2 == 0 else reversed(views):
            rate = learning_rate(stack.named(input_topic=filled.settings.input_topic), total)
            if number:
                rates[name].append(rate)
                print(f"growth: round {number}: {name} input: {rate:,.0f}/s", flush=True)
    ratio = statistics.median(rates["plain"]) / statistics.median(rates["transactional"])
    found = {name: figure(values, "samples/s") for name, values in rates.items()}
    print(
        f"growth: transactions of {TRANSACTION}: {ratio:.2f} times the time of plain input",
        flush=True,
    )
    return found | {"size": TRANSACTION, "times_the_time": round(ratio, 2)}


def learning_rate(view: Stack, total: int) -> float:
    """Return samples/s over the last three quarters of the ``total`` samples that wait, by the model's commits."""
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
    began, first = next((at, offset) for at, offset in watch.seen if offset >= end / 4)
    last, _ = next((at, offset) for at, offset in watch.seen if offset >= end)
    return (end - first) / end * total / (last - began)


def memory(stack: Stack, minutes: float) -> dict[str, Any]:
    """Return resident MiB over time of worker, TaskManager, Redis and page, and of Redis's append-only files on disk.

    Samples wait at all times, so that the job learns as fast as it can.
    """
    view = stack.named()
    job = view.submit_job(LEARNER="sgd")
    watch, stop, series = (
        Watch(watch_redis(view.settings)),
        threading.Event(),
        dict[str, list[float]](),
    )
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
        if sender.is_alive():  # not where the page didn't start
            sender.join()
        watch.end()
        view.cancel_job(job)
    result = {}
    for name, values in series.items():
        part = max(1, len(values) // 6)
        change = (
            statistics.fmean(values[-part:]) / max(statistics.fmean(values[part : 2 * part]), 0.1)
            - 1
        )
        result[name] = {
            "unit": "MiB",
            "first": values[0],
            "last": values[-1],
            "max": max(values),
            "last_sixth_against_second": round(change, 3),
            "series": values,
        }
        print(
            f"growth: memory of {name}: {values[0]} to {values[-1]} MiB, {100 * change:+.1f} %",
            flush=True,
        )
    print(f"growth: memory: {rate:,.0f} samples/s", flush=True)
    return {"minutes": minutes, "samples_per_s": round(rate), "parts": result}


def keep_waiting(config: Settings, watch: Watch, stop: threading.Event) -> None:
    """Send samples so that at least ``WAITING`` are still to be learned."""
    sent = 0
    while not stop.wait(0.05):
        learned = watch.seen[-1][1] if watch.seen else 0
        if sent < learned + WAITING:
            fill(config, WAITING)
            sent += WAITING


def _resident(view: Stack) -> dict[str, float]:
    def mib(process: psutil.Process) -> float:
        return process.memory_info().rss / 2**20

    manager = psutil.Process(view.parts["taskmanager"].popen.pid)
    pages = [
        p
        for p in psutil.Process().children(recursive=True)
        if p.is_running() and "server.py" in " ".join(p.cmdline())
    ]
    files = Path(view.settings.run_dir, "redis").rglob("*")
    return {
        "TaskManager": mib(manager),
        "Python worker": sum(mib(worker) for worker in manager.children(recursive=True)),
        "Redis": mib(psutil.Process(view.parts["redis"].popen.pid)),
        "page": sum(mib(p) for p in pages),
        "Redis's files": sum(path.stat().st_size for path in files if path.is_file()) / 2**20,
    }


def catching_up(stack: Stack, waiting: int) -> dict[str, Any]:
    """Return how long ``waiting`` samples take while 100/s arrive, and how long the page takes to answer meanwhile."""
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
                    raise TimeoutError(
                        f"still {waiting - watch.seen[-1][1]} samples behind after 300 s"
                    )
            seconds = watch.seen[-1][0] - watch.seen[0][0]
            sender.join()
    finally:
        watch.end()
        view.cancel_job(job)
    ages = np.array(times or [0.0]) * 1000
    found = {
        "waiting": waiting,
        "seconds": round(seconds, 2),
        "page_ms_p50": round(float(np.median(ages)), 1),
        "page_ms_p99": round(float(np.percentile(ages, 99)), 1),
    }
    print(f"growth: catching up: {found}", flush=True)
    return found


def predict(config: Settings) -> dict:
    """Return the page's answer to a drawing."""
    form = urlencode({"imgStr": base64.b64encode(DRAWING)}).encode()
    with urlopen(f"http://127.0.0.1:{config.page_port}/predict", form, timeout=10) as answer:
        return json.load(answer)


def recovery(stack: Stack, times: int) -> dict[str, Any]:
    """Return seconds from SIGKILL to the first new commit, while 200 samples/s arrive, by what was killed."""
    view = stack.named()
    job = view.submit_job(LEARNER="sgd")
    watch, stop = Watch(watch_redis(view.settings)), threading.Event()

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
    """Kill when commits flow and return how long none came, from the kill on."""
    commits = len(watch.seen)
    until(lambda: len(watch.seen) > commits + 20, 120, "commits flow")
    begin = time.monotonic()
    kill()

    def first_after_pause() -> float:
        # What was on its way to Redis at the kill is no sign of life: a new commit comes after a pause.
        times = [at for at, _ in watch.seen]
        later = (at for before, at in pairwise(times) if at > begin and at - before > 0.5)
        return next(later, 0.0)

    return until(first_after_pause, 120, "a commit after the kill") - begin
