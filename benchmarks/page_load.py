"""Load on the page, driven by Locust: 100 requests/s of drawings from the benchmark's own stroke set.

Run it with `make bench-page` beside a `make run` whose producer sends 1,000 samples/s (PRODUCER_RATE=1000 make run).
"""

import gevent
import numpy as np
from locust import FastHttpUser, constant_throughput, events, task

from benchmarks.drawings import drawn, pens
from settings import settings

DRAWINGS = 400


def drawings() -> list[str]:
    """Return drawings of pen movements, as a page sends them."""
    rng = np.random.default_rng(0)
    shapes = [shape for hand in pens().values() for shape in hand]
    return [drawn(shapes[rng.integers(len(shapes))], rng) for _ in range(DRAWINGS)]


SENT = drawings()
gevent.get_hub().loop.update_now()  # else the seconds that took count as part of the run


class Person(FastHttpUser):
    """Draws ten times a second."""

    host = f"http://127.0.0.1:{settings().page_port}"
    wait_time = constant_throughput(10)

    @task
    def predict(self) -> None:
        """Ask for one answer; anything but 201 is an error."""
        number = np.random.default_rng().integers(DRAWINGS)
        with self.client.post("/predict", data={"imgStr": SENT[number]}, catch_response=True) as answer:
            if answer.status_code != 201:
                answer.failure(f"{answer.status_code} {answer.text:.200}")


@events.quitting.add_listener
def _summary(environment, **_: object) -> None:
    total = environment.stats.total
    p50, p99 = (total.get_response_time_percentile(share) for share in (0.5, 0.99))
    print(
        f"{total.num_requests} requests, {total.total_rps:.0f}/s, p50 {p50} ms, p99 {p99} ms, errors {total.num_failures}"
    )
