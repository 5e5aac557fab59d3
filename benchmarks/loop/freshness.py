"""Freshness: the age of a sample when its model is stored in Redis, and when the page serves it.

A sample's age begins when the producer gets it. "Stored" ends when a subscriber of the commits has
read from Redis that the model has learned the sample. "Served" ends when the page's /model says
so; it is asked every few milliseconds.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import islice
from typing import Any

import numpy as np
import redis
from confluent_kafka import Producer

from benchmarks.loop.measure import Host, samples
from harness.stack import Stack, until
from local.process import port_is_free
from loop.model_store import Keys
from settings import HERE, Settings

ASK_SECONDS = 0.003  # between two requests to the page
WARM_UP_RATE = 1_000  # samples/s; this rate is measured first, right after the warm-up
CHUNK_SECONDS = 5.0  # the warm-up ends when two chunks have nearly the same median age
ALIKE = 0.2  # relative difference of these medians
BIN_SECONDS = 0.5  # of the plot of the age over time
POLL_SECONDS = 0.02  # between two questions to Redis; a rewrite takes longer


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
    """Return the page's JSON answer to a GET."""
    with urllib.request.urlopen(f"http://127.0.0.1:{config.page_port}{path}", timeout=5) as answer:
        return json.load(answer)


class Watch:
    """The next offset to learn over time, noted by a thread.

    ``seen`` is [(monotonic seconds, next offset)], with an entry for each change.
    """

    def __init__(self, watch: Callable[["Watch"], None]) -> None:
        self.seen: list[tuple[float, int]] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=watch, args=(self,), daemon=True)
        self._thread.start()

    def note(self, following: int) -> None:
        """Note an offset if it is larger than the last one."""
        if not self.seen or following > self.seen[-1][1]:
            self.seen.append((time.monotonic(), following))

    def reached(self, following: int) -> bool:
        """Return whether every sample before this offset is learned."""
        return bool(self.seen) and self.seen[-1][1] >= following

    def end(self) -> None:
        """Stop watching."""
        self.stop.set()
        self._thread.join(10)

    def ages_ms(self, sent: np.ndarray, first: int) -> np.ndarray:
        """Return the age of each sample in ms.

        sent: monotonic seconds of each sample. first: the offset of the first one.
        """
        times = np.array([at for at, _ in self.seen])
        following = np.array([offset for _, offset in self.seen])
        offsets = np.arange(first, first + len(sent))
        arrived = times[np.searchsorted(following, offsets, side="right")]
        return (arrived - sent) * 1000


def watch_redis(config: Settings) -> Callable[[Watch], None]:
    """Return a watch that waits for a commit and reads from Redis how far it goes."""

    def watch(to: Watch) -> None:
        client = redis.Redis(**config.redis_client())
        keys = Keys.of(config.model_key)
        with client.pubsub(ignore_subscribe_messages=True) as commits:
            commits.subscribe(keys.updates)
            while not to.stop.is_set():
                if commits.get_message(timeout=1):
                    progress = json.loads(client.hget(keys.meta, "progress") or b"{}")
                    to.note(progress.get("0", 0))

    return watch


def watch_page(config: Settings) -> Callable[[Watch], None]:
    """Return a watch that asks the page, over one connection, how far its model goes."""

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
    """Send samples at a steady rate; returns when the producer got each, in monotonic seconds."""
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
    """Return median, 99th percentile and maximum of ages in ms, and how many there are."""
    p50, p99, most = np.percentile(ages, [50, 99, 100]).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1), "samples": len(ages)}


@dataclass(frozen=True)
class Ages:
    """The ages of samples: when each was sent, in monotonic seconds, and its ages in ms."""

    sent: np.ndarray
    stored_ms: np.ndarray
    served_ms: np.ndarray

    def spreads(self) -> dict[str, dict[str, float]]:
        """Return the spread of both ages."""
        return {"stored_ms": spread(self.stored_ms), "served_ms": spread(self.served_ms)}


def ages_at(config: Settings, first: int, rate: float, seconds: float) -> Ages:
    """Send samples at a rate and return their ages; ``first`` is the offset of the first one."""
    stored = Watch(watch_redis(config))
    served = Watch(watch_page(config))
    try:
        sent = send(config, rate, round(rate * seconds))
        end = first + len(sent)
        until(lambda: stored.reached(end), 60, "every sample is stored")
        until(lambda: served.reached(end), 60, "every sample is served")
    finally:
        stored.end()
        served.end()
    return Ages(sent, stored.ages_ms(sent, first), served.ages_ms(sent, first))


class Delays:
    """What may delay a commit, noted by threads: Flink's checkpoints and Redis's rewrites.

    Both are lists of (begin, end) in monotonic seconds.
    """

    def __init__(self, view: Stack, job: str) -> None:
        self.view = view
        self.job = job
        self.rewrites: list[tuple[float, float]] = []
        self._checkpoints: dict[int, tuple[float, float]] = {}
        self._stop = threading.Event()
        watches = (self._watch_rewrites, self._watch_checkpoints)
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in watches]
        for thread in self._threads:
            thread.start()

    @property
    def checkpoints(self) -> list[tuple[float, float]]:
        """The completed checkpoints, in the order of their begin."""
        return sorted(self._checkpoints.values())

    def end(self) -> None:
        """Stop watching."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _watch_rewrites(self) -> None:
        """Note when Redis rewrites its append-only file."""
        client = redis.Redis(**self.view.settings.redis_client())
        began = None
        while not self._stop.wait(POLL_SECONDS):
            rewriting = client.info("persistence")["aof_rewrite_in_progress"]
            now = time.monotonic()
            if rewriting and began is None:
                began = now
            if not rewriting and began is not None:
                self.rewrites.append((began, now))
                began = None

    def _watch_checkpoints(self) -> None:
        """Note the job's checkpoints; Flink keeps the last ten, and has one every two seconds."""
        to_monotonic = time.monotonic() - time.time()
        while not self._stop.wait(1):
            try:
                history = self.view.rest(f"/jobs/{self.job}/checkpoints")["history"]
            except OSError:
                continue  # the job is not known yet
            for checkpoint in history:
                if checkpoint["status"] == "COMPLETED":
                    begin = checkpoint["trigger_timestamp"] / 1000 + to_monotonic
                    end = begin + checkpoint["end_to_end_duration"] / 1000
                    self._checkpoints[checkpoint["id"]] = (begin, end)


def warm_up(config: Settings, least: float, most: float) -> list[Ages]:
    """Send at ``WARM_UP_RATE`` until the age is stable; returns the ages of each chunk.

    It takes at least and at most so many seconds of samples.
    """
    chunks: list[Ages] = []
    while True:
        first = sum(len(chunk.sent) for chunk in chunks)
        chunks.append(ages_at(config, first, WARM_UP_RATE, CHUNK_SECONDS))
        sent_s = CHUNK_SECONDS * len(chunks)
        if sent_s >= most or (sent_s >= least and is_stable(chunks)):
            return chunks


def is_stable(chunks: list[Ages]) -> bool:
    """Return whether the median ages of the last two chunks are nearly the same."""
    if len(chunks) < 2:
        return False
    before, now = (float(np.median(chunk.stored_ms)) for chunk in chunks[-2:])
    return abs(now - before) <= ALIKE * now


def over_time(chunks: list[Ages], begin: float, delays: Delays) -> dict[str, Any]:
    """Return median and maximum of the ages by the time of sending, and what may delay a commit.

    begin: time 0, in monotonic seconds. A bin without samples is None.
    """
    sent = np.concatenate([chunk.sent for chunk in chunks]) - begin
    end = float(sent[-1])
    found: dict[str, Any] = {"bin_s": BIN_SECONDS}
    places = (sent / BIN_SECONDS).astype(int)
    for kind in ("stored_ms", "served_ms"):
        ages = np.concatenate([getattr(chunk, kind) for chunk in chunks])
        bins = [ages[places == place] for place in range(places[-1] + 1)]
        found[kind] = {
            "p50": [round(float(np.median(some)), 1) if len(some) else None for some in bins],
            "max": [round(float(some.max()), 1) if len(some) else None for some in bins],
        }
    for name, spans in (("checkpoints", delays.checkpoints), ("rewrites", delays.rewrites)):
        shifted = [[round(at - begin, 2) for at in span] for span in spans]
        found[f"{name}_s"] = [span for span in shifted if 0 <= span[0] <= end]
    return found


def measure(
    stack: Stack,
    seconds: float,
    rates: tuple[int, ...] = (10, 100, 1_000, 10_000),
    learner: str = "sgd",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ages at each rate, and the age over time at ``WARM_UP_RATE`` from the start on.

    The page runs. The warm-up takes at least twice and at most eight times ``seconds``.
    """
    view = stack.named()
    config = view.settings
    job = view.submit_job(LEARNER=learner)
    begin = time.monotonic()
    delays = Delays(view, job)
    table: dict[str, Any] = {}
    course: dict[str, Any] = {}
    try:
        with page(view):
            chunks = warm_up(config, 2 * seconds, 8 * seconds)
            following = sum(len(chunk.sent) for chunk in chunks)
            for rate in sorted(rates, key=lambda rate: rate != WARM_UP_RATE):
                host = Host()
                ages = ages_at(config, following, rate, seconds)
                following += len(ages.sent)
                table[str(rate)] = ages.spreads() | {"host": host.figures()}
                print(f"freshness, {learner}, {rate}/s: {table[str(rate)]}", flush=True)
                if rate == WARM_UP_RATE:
                    course = over_time([*chunks, ages], begin, delays) | {
                        "rate": rate,
                        "measured_from_s": round(float(ages.sent[0]) - begin, 1),
                        "steady": is_stable(chunks),
                        "host": table[str(rate)]["host"],
                        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    }
    finally:
        delays.end()
        view.cancel_job(job)
    return {str(rate): table[str(rate)] for rate in rates}, course
