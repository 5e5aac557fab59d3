"""The producer and the page as ``make run`` starts them."""

import sys
import urllib.error
import urllib.request

from local.environment import child_environment
from local.process import Process
from settings import Settings


def producer(settings: Settings) -> Process:
    """Return the producer, which replays the digits at PRODUCER_RATE until it is stopped."""
    rate = str(settings.producer_rate)
    process = Process(
        name="Producer",
        argv=[sys.executable, "data_producer.py", "--endless", "--rate", rate],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        check=lambda: process.alive,
    )
    return process


def page(settings: Settings) -> Process:
    """Return the drawing page, which answers even while there is no model."""
    address = f"http://{settings.page_host}:{settings.page_port}/healthz"

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except urllib.error.HTTPError:
            return True  # 503: the page is up and reports what is not

    return Process(
        name="Page",
        argv=[sys.executable, "server.py"],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        check=is_up,
        ports={settings.page_port: "PAGE_PORT"},
    )
