"""The producer and the page as ``make run`` starts them."""

import http.client
import sys
import urllib.error
import urllib.request

from local.environment import child_environment
from local.process import Process
from settings import Settings


def producer(settings: Settings) -> Process:
    """Return the producer, which replays the digits without end at PRODUCER_RATE."""
    process = Process(
        name="Producer",
        argv=[
            sys.executable,
            "data_producer.py",
            "--endless",
            "--rate",
            str(settings.producer_rate),
        ],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        answers=lambda: process.alive,
    )
    return process


def page(settings: Settings) -> Process:
    """Return the drawing page; it answers before there is a model."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(
                f"http://{settings.page_host}:{settings.page_port}/healthz", timeout=5
            ):
                return True
        except urllib.error.HTTPError:
            return True  # 503: the page is up and says what isn't
        except (OSError, http.client.HTTPException):
            return False

    return Process(
        name="Page",
        argv=[sys.executable, "server.py"],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        answers=answers,
        ports={settings.page_port: "PAGE_PORT"},
    )
