"""How old a sample is when the model that learned it is committed in Redis, and when the page answers from that model.

A sample's clock starts when the producer is handed it; "stored" ends when a reader that was told of a commit has read
from Redis that the commit holds the sample; "served" ends when the page's /model says so, asked every few milliseconds.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import islice
from typing import Any

import numpy as np
import redis
from confluent_kafka import Producer

from benchmarks.loop.measure import samples
from harness.stack import Stack, until
from local.process import port_is_free
from loop.model_store import Keys
from settings import HERE, Settings

ASK_SECONDS = 0.003  # between two questions to the page


@contextmanager
def page(view: Stack) -> Iterator[Stack]:
    """Run the page on this view's port."""
    log = view.settings.run_dir / "log" / "page.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, HERE / "server.py"], env=view.env, stdout=out, stderr=out, cwd=HERE
        )
    try:
        until(lambda: not port_is_free(view.settings.page_port), 60, "the page listens")
        yield view
    finally:
        process.terminate()
        process.wait(20)


def ask(config: Settings, path: str) -> dict:
    """Return the page's answer to a GET."""
    with urllib.request.urlopen(f"http://127.0.0.1:{config.page_port}{path}", timeout=5) as answer:
        return json.load(answer)


class Watch:
    """Notes, in a thread, when the next offset to learn has moved on: ``seen`` is [(time, next offset)]."""

    def __init__(self, watch: Callable[["Watch"], None]) -> None:
        self.seen: list[tuple[float, int]] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=watch, args=(self,), daemon=True)
        self._thread.start()

    def note(self, following: int) -> None:
        """Note an offset, if it is a new one."""
        if not self.seen or following > self.seen[-1][1]:
            self.seen.append((time.monotonic(), following))

    def reached(self, following: int) -> bool:
        """Return whether all before this offset is there."""
        return bool(self.seen) and self.seen[-1][1] >= following

    def end(self) -> None:
        """Stop watching."""
        self.stop.set()
        self._thread.join(10)

    def ages_ms(self, sent: np.ndarray, first: int) -> np.ndarray:
        """Return the age in ms of each sample sent at ``sent`` (seconds), the first of which has offset ``first``."""
        times, following = np.array([t for t, _ in self.seen]), np.array([o for _, o in self.seen])
        arrived = times[
            np.searchsorted(following, np.arange(first, first + len(sent)), side="right")
        ]
        return (arrived - sent) * 1000


def watch_redis(config: Settings) -> Callable[[Watch], None]:
    """Return what waits for Redis to tell of a commit and reads how far it goes."""

    def watch(to: Watch) -> None:
        client, keys = redis.Redis(**config.redis_client()), Keys.of(config.model_key)
        with client.pubsub(ignore_subscribe_messages=True) as told:
            told.subscribe(keys.updates)
            while not to.stop.is_set():
                if told.get_message(timeout=1):
                    progress = json.loads(client.hget(keys.meta, "progress") or b"{}")
                    to.note(progress.get("0", 0))

    return watch


def watch_page(config: Settings) -> Callable[[Watch], None]:
    """Return what asks the page, over one connection, how far the model that it answers from goes."""

    def watch(to: Watch) -> None:
        connection = HTTPConnection("127.0.0.1", config.page_port, timeout=10)
        while not to.stop.wait(ASK_SECONDS):
            connection.request("GET", "/model")
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status == 200:
                to.note(found["progress"].get("0", 0))

    return watch


def send(config: Settings, rate: float, count: int) -> np.ndarray:
    """Send samples at a steady rate; returns when each was handed to the producer, seconds on the monotonic clock."""
    producer = Producer(
        {
            "bootstrap.servers": config.kafka_bootstrap_servers,
            "linger.ms": 1,
            "enable.idempotence": True,
        }
    )
    sent = np.empty(count)
    begin = time.monotonic()
    for i, message in enumerate(islice(samples(), count)):
        wait = begin + i / rate - time.monotonic()
        if wait > 0.001:
            time.sleep(wait)
        sent[i] = time.monotonic()
        producer.produce(config.input_topic, message, partition=0)
        producer.poll(0)
    producer.flush()
    return sent


def spread(ages: np.ndarray) -> dict[str, float]:
    """Return the percentiles of ages in ms."""
    p50, p99, most = np.percentile(ages, [50, 99, 100]).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1), "samples": len(ages)}


def at_rate(
    config: Settings, first: int, rate: float, seconds: float
) -> dict[str, dict[str, float]]:
    """Return the ages of ``seconds`` of samples at ``rate``; ``first`` is the offset that the first of them gets."""
    stored, served = Watch(watch_redis(config)), Watch(watch_page(config))
    try:
        sent = send(config, rate, round(rate * seconds))
        for watch in (stored, served):
            until(
                lambda watch=watch: watch.reached(first + len(sent)), 60, "every sample was learned"
            )
    finally:
        stored.end()
        served.end()
    return {
        "stored_ms": spread(stored.ages_ms(sent, first)),
        "served_ms": spread(served.ages_ms(sent, first)),
    }


def measure(
    stack: Stack,
    seconds: float,
    rates: tuple[int, ...] = (10, 100, 1_000, 10_000),
    learner: str = "sgd",
) -> dict[str, Any]:
    """Return the ages at each rate, with the page running, after three times as long a warm-up at 1,000/s."""
    view = stack.named()
    config = view.settings
    job = view.submit_job(LEARNER=learner)
    table: dict[str, Any] = {}
    try:
        with page(view):
            following = len(send(config, 1_000, round(3_000 * seconds)))
            until(
                lambda: ask(config, "/model").get("samples") == following,
                120,
                "the warm-up was learned",
            )
            for rate in rates:
                table[str(rate)] = at_rate(config, following, rate, seconds)
                following += round(rate * seconds)
                print(f"freshness, {learner}, {rate}/s: {table[str(rate)]}", flush=True)
    finally:
        view.cancel_job(job)
    return table
