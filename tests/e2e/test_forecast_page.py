"""The forecast's page in a real browser, served by the digits page's app without Kafka."""

import contextlib
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from werkzeug.serving import make_server

from forecast.series import Series
from forecast.store import publish
from server import create_app
from settings import Settings
from tests.e2e.test_page import DESKTOP, FLAGS, PHONE

NOWHERE: dict = {
    "kafka_bootstrap_servers": "127.0.0.1:9",
    "redis_port": 9,
    "model_signing_key": "k" * 32,
}
STATIONS = [("east", "kids", "one"), ("east", "news", "two"), ("west", "news", "a/b & c")]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def serving(run_dir: Path) -> Iterator[str]:
    """Serve the app while the block runs; yields its address."""
    server = make_server(
        "127.0.0.1", 0, create_app(Settings(**NOWHERE, run_dir=run_dir)), threaded=True
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with a forecast: three stations, 60 days, one of them lost."""
    run_dir = tmp_path_factory.mktemp("run")
    keys = pd.DataFrame(
        [(*row, "UTC") for row in STATIONS], columns=["region", "network", "station", "zone"]
    )
    counts = (100 + 40 * np.sin(np.arange(60) * 2 * np.pi / 7))[None, :, None] * np.ones((3, 1, 24))
    series = Series(keys, date(2024, 1, 1), counts.astype(np.float32), np.ones((3, 60, 24), bool))
    series.observed[:, 50] = False
    errors = {bucket: {"model": 9.5, "median": 17.25} for bucket in ("1-7", "8-30", "31-90")}
    expected = (
        np.full((3, 90, 24), 110, np.float32) * np.array([1, 2, 3], np.float32)[:, None, None]
    )
    publish(
        run_dir / "forecast" / "published",
        series,
        [np.zeros(3)],
        expected,
        {"parent": None, "kept": False, "errors": errors},
    )
    with serving(run_dir) as address:
        yield address


@contextlib.contextmanager
def opened(browser: Browser, url: str, **options) -> Iterator[tuple[Page, list[str]]]:
    """Open the page; yields it and its console's messages.

    The page's strict policy writes there what it refuses.
    """
    context = browser.new_context(**{"viewport": DESKTOP} | options)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(url)
    yield tab, said
    context.close()


SCREENS = [
    {"viewport": size, "color_scheme": scheme}
    for size in (PHONE, DESKTOP)
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize("options", SCREENS, ids=["phone", "phone dark", "desktop", "desktop dark"])
def test_a_key_is_picked_and_seen_on_every_screen(browser: Browser, url: str, options):
    with opened(browser, f"{url}/forecast/", **options) as (tab, said):
        expect(tab.locator("#state")).to_have_text("data up to 2024-02-29")
        expect(tab.locator("#days polyline.ours")).to_have_count(1)
        expect(tab.locator("#days polyline.usual")).to_have_count(1)
        expect(tab.locator("#days polyline.history")).to_have_count(2)  # the lost day is a gap
        expect(tab.locator("#sums tr").first).to_contain_text("18,480")
        tab.locator("#region").select_option("west")
        expect(tab.locator("#sums tr").first).to_contain_text("55,440")
        expect(tab.locator("#station")).to_contain_text("a/b & c")
        expect(tab.locator("#errors tr").nth(2)).to_have_text("31-909.517.3")
        tab.locator("#days").focus()
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#reading")).to_contain_text(
            "Fri, Mar 1, 2024, 1 day ahead: forecast 7,920, median "
        )
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found] == []
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert said == []


def test_before_the_first_forecast_the_page_says_what_makes_one(browser: Browser, tmp_path: Path):
    with serving(tmp_path) as url, opened(browser, f"{url}/") as (tab, _):
        tab.get_by_role("link", name="the ad-inventory forecast").click()
        expect(tab.locator("#problem")).to_have_text(
            "No forecast is published yet; make forecast makes one."
        )
        expect(tab.locator("#days")).to_be_hidden()
        assert Axe().run(tab).response["violations"] == []
        tab.get_by_role("link", name="the digits").click()
        expect(tab).to_have_title("Draw a digit · a model that learns while you watch")
        assert Axe().run(tab).response["violations"] == []
