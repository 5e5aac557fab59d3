"""Load on the page, driven by Locust: 100 drawings a second from the benchmark's stroke set.

Run `make bench-page` while `PRODUCER_RATE=1000 make run` sends 1,000 samples/s.
"""

import time

import gevent
import numpy as np
from locust import FastHttpUser, events, task

from benchmarks.loop import results
from benchmarks.loop.drawings import drawn, pens
from loop.model_store import ModelStore
from settings import settings

DRAWINGS = 400
RNG = np.random.default_rng()
SAVED: dict[int, float] = {}  # epoch seconds of each version's commit, from Redis
ANSWERED = {0: 0.0}  # epoch seconds of the first answer from each version


def drawings() -> list[str]:
    """Return drawings of pen movements, as the page sends them."""
    rng = np.random.default_rng(0)
    shapes = [shape for hand in pens().values() for shape in hand]
    return [drawn(shapes[rng.integers(len(shapes))], rng) for _ in range(DRAWINGS)]


SENT = drawings()
gevent.get_hub().loop.update_now()  # or the seconds for the drawings would count as the run's


class Person(FastHttpUser):
    """A person who draws once a second on average, independently of the others."""

    host = f"http://127.0.0.1:{settings().page_port}"

    def wait_time(self) -> float:
        """Return the seconds until the next drawing."""
        return RNG.exponential()

    def on_start(self) -> None:
        """Wait for the first drawing, too."""
        gevent.sleep(self.wait_time())

    @task
    def predict(self) -> None:
        """Ask for one answer; anything but 201 is an error."""
        number = RNG.integers(DRAWINGS)
        with self.client.post(
            "/predict", data={"imgStr": SENT[number]}, catch_response=True
        ) as answer:
            if answer.status_code != 201:
                answer.failure(f"{answer.status_code} {answer.text:.200}")
                return
            model = answer.json()
        if model["model_version"] > max(ANSWERED):
            ANSWERED[model["model_version"]] = time.time()


def follow_commits() -> None:
    """Note the time of each version's commit."""
    store = ModelStore(settings())
    with store.redis.pubsub(ignore_subscribe_messages=True) as commits:
        commits.subscribe(store.keys.updates)
        for _ in commits.listen():
            version, saved_at = store.redis.hmget(store.keys.meta, "version", "saved_at")
            SAVED.setdefault(int(version or 0), float(saved_at or 0))


@events.test_start.add_listener
def _start(**_: object) -> None:
    """Follow the commits while the load runs."""
    gevent.spawn(follow_commits)


@events.quitting.add_listener
def _summary(environment, **_: object) -> None:
    """Print the figures and store them."""
    total = environment.stats.get("/predict", "POST")
    p50, p99 = (total.get_response_time_percentile(share) for share in (0.5, 0.99))
    print(
        f"{total.num_requests} requests, {total.total_rps:.0f}/s, p50 {p50} ms, p99 {p99} ms, "
        f"errors {total.num_failures}"
    )
    ages = [1000 * (at - SAVED[version]) for version, at in ANSWERED.items() if version in SAVED]
    if ages:
        young, old, oldest = np.percentile(ages, [50, 99, 100])
        print(
            f"{len(ages)} models, committed to first answer: "
            f"p50 {young:.0f} ms, p99 {old:.0f} ms, max {oldest:.0f} ms"
        )
        found = {
            "command": "make bench-page, while PRODUCER_RATE=1000 make run runs",
            "requests": total.num_requests,
            "errors": total.num_failures,
            "p50_ms": p50,
            "p99_ms": p99,
            "models": len(ages),
            "commit_to_answer_ms": {"p50": round(young), "p99": round(old)},
        }
        results.save({"page": results.load().get("page", {}) | found})
