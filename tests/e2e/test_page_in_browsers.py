"""The page in browsers as people have them: blocked cookies, palms beside pens, lost events, a proxy in front."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright
from sklearn.datasets import load_digits

from harness import page as pages
from harness.page import STROKES, a_model, commit
from harness.stack import Stack
from learners.learner import new_learner
from loop.messages import DIGITS
from loop.model_store import ModelStore, Stored

FLAGS = ["--no-sandbox", "--disable-gpu"]
ONE = [(0.5, 0.1 + 0.08 * i) for i in range(11)]
EVENTS = """(events) => {
  const board = document.querySelector("#board");
  const box = board.getBoundingClientRect();
  for (const [name, id, kind, x, y, more] of events) {
    const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
    const options = { pointerId: id, pointerType: kind, ...place, bubbles: true, cancelable: true, button: 0, ...more };
    board.dispatchEvent(new PointerEvent(name, options));
  }
}"""


@pytest.fixture(scope="module")
def served(parts: Stack) -> Iterator[pages.Page]:
    """The page with a model, and no job."""
    stack = parts.start("kafka", "redis").named()
    with pages.serving(stack) as page:
        commit(ModelStore(stack.settings), None, Stored(learned(), a_model().meta))
        page.ready()
        yield page


def learned() -> bytes:
    """Return the default learner's model after the data set."""
    learner = new_learner("default", DIGITS.classes, DIGITS.n_features)
    X, y = load_digits(return_X_y=True)
    for start in range(0, len(X), 50):
        learner.learn(X[start : start + 50], y[start : start + 50])
    return learner.model_bytes()


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(driver: Playwright, chromium: str) -> Iterator[Browser]:
    started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
    yield started
    started.close()


@pytest.fixture
def tab(browser: Browser, served: pages.Page) -> Iterator[Page]:
    """The page in a tab; fails where its scripts raise."""
    with contextlib.closing(browser.new_context()) as context:
        yield opened(context.new_page(), served.url)


def opened(tab: Page, url: str) -> Page:
    tab.on("pageerror", lambda error: pytest.fail(str(error)))
    tab.goto(url)
    expect(tab.locator("#link")).to_have_text("live", timeout=20_000)
    return tab


def stroke(number: int, kind: str, points, end: str = "pointerup", **more) -> list:
    """Return the events of one stroke; ``end`` "" leaves it open."""
    events = [["pointerdown", number, kind, *points[0], more]]
    events += [["pointermove", number, kind, *point, more] for point in points[1:]]
    return events + ([[end, number, kind, *points[-1], more]] if end else [])


PALM = [(0.9, 0.9), (0.92, 0.93), (0.85, 0.97)]
HOVER = [["pointermove", 1, "pen", 0.2, 0.2, {"buttons": 0}]]
down, up = stroke(7, "touch", PALM)[:1], stroke(7, "touch", PALM)[1:]
DRAWN_AS_ONE = {
    "a palm before and after the pen": down + stroke(1, "pen", ONE) + up,
    "a palm while the pen is down": stroke(1, "pen", ONE, "")
    + stroke(7, "touch", PALM)
    + stroke(1, "pen", ONE)[-1:],
    "a palm after the pen": stroke(1, "pen", ONE) + stroke(7, "touch", PALM),
    "a palm while the pen hovers": HOVER + stroke(7, "touch", PALM) + stroke(1, "pen", ONE),
    "a second finger": stroke(1, "touch", ONE, "", isPrimary=True)
    + stroke(2, "touch", PALM, isPrimary=False)
    + stroke(1, "touch", ONE)[-1:],
    "a lost pointerup": stroke(1, "pen", ONE[:6], "") + stroke(2, "pen", ONE[5:]),
    "a lost pointerup of a finger": stroke(1, "touch", ONE[:6], "", isPrimary=True)
    + stroke(2, "touch", ONE[5:], isPrimary=True),
    "a lost capture": stroke(1, "mouse", ONE, "lostpointercapture"),
    "a cancelled pointer": stroke(1, "touch", ONE, "pointercancel"),
    "a pen's barrel button": stroke(1, "pen", PALM, button=2) + stroke(1, "pen", ONE),
    "a mouse's other buttons": stroke(1, "mouse", PALM, button=2) + stroke(1, "mouse", ONE),
    "what an eraser took away": stroke(1, "pen", PALM)
    + stroke(1, "pen", PALM, button=5)
    + stroke(1, "pen", ONE),
}


@pytest.mark.parametrize("case", DRAWN_AS_ONE)
def test_only_what_was_meant_is_ink_and_the_answer_comes(tab: Page, case):
    tab.evaluate(EVENTS, DRAWN_AS_ONE[case])
    expect(tab.locator("#answer")).to_have_text("1")
    assert all(
        "0.9" not in (line.get_attribute("points") or "")
        for line in tab.locator("#ink polyline").all()
    )
    tab.evaluate(EVENTS, stroke(9, "pen", ONE))
    expect(tab.locator("#answer")).to_have_text("1")


def test_with_cookies_blocked_it_answers_and_teaches(
    driver: Playwright, chromium: str, served: pages.Page, tmp_path: Path
):
    (tmp_path / "Default").mkdir()
    blocked = {"profile": {"default_content_setting_values": {"cookies": 2}}}
    (tmp_path / "Default" / "Preferences").write_text(json.dumps(blocked))
    options = {"executable_path": chromium, "headless": True, "args": FLAGS}
    with contextlib.closing(
        driver.chromium.launch_persistent_context(str(tmp_path), **options)
    ) as context:
        tab = opened(context.new_page(), f"{served.url}/#token=abc")
        tab.evaluate(EVENTS, stroke(1, "mouse", ONE))
        expect(tab.locator("#answer")).to_have_text("1")
        assert tab.evaluate("location.hash") == ""
        with tab.expect_request("**/feedback") as sent:
            tab.locator("#labels button").nth(1).click()
        assert sent.value.headers["x-feedback-token"] == "abc"
        expect(tab.locator("#said")).to_contain_text("Learned")


def test_behind_a_proxy_at_a_path_all_is_found(browser: Browser, served: pages.Page):
    with proxied(served.port) as url, contextlib.closing(browser.new_context()) as context:
        tab = context.new_page()
        bad: list[str] = []
        tab.on("response", lambda answer: bad.append(answer.url) if answer.status == 404 else None)
        opened(tab, url)
        tab.evaluate(EVENTS, stroke(1, "mouse", ONE))
        expect(tab.locator("#answer")).to_have_text("1")
        tab.goto(f"{url}forecast")
        assert tab.url == f"{url}forecast/"
        expect(tab.locator("#problem")).to_contain_text("No forecast is published yet")
        tab.get_by_role("link", name="the digits").click()
        expect(tab.locator("#link")).to_have_text("live", timeout=20_000)
        assert tab.url == url
        assert bad == []


@contextlib.contextmanager
def proxied(port: int) -> Iterator[str]:
    """Pass what is asked under /digits/ on to the page, as a reverse proxy at a path does; yields its address."""

    class Proxy(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not self.path.startswith("/digits/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            ) as page:
                page.request(
                    self.command, self.path.removeprefix("/digits"), body, dict(self.headers)
                )
                found = page.getresponse()
                self.send_response(found.status)
                for name, value in found.getheaders():
                    if name not in ("Transfer-Encoding", "Connection", "Date"):
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    while piece := found.read1(65_536):
                        self.wfile.write(piece)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/digits/"
    server.shutdown()
    server.server_close()


def test_a_hidden_page_gives_its_place_away_and_comes_back(tab: Page, served: pages.Page):
    hide = """hidden => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    with tab.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        tab.evaluate(hide, True)
    with tab.expect_response("**/events"):
        tab.evaluate(hide, False)
    expect(tab.locator("#link")).to_have_text("live")


def test_a_connection_that_fell_silent_is_opened_again(browser: Browser, served: pages.Page):
    with contextlib.closing(browser.new_context()) as context:
        tab = context.new_page()
        tab.clock.install()
        opened(tab, served.url)
        served.process and served.process.send_signal(19)  # it is there and says nothing
        try:
            with tab.expect_request("**/events", timeout=20_000):
                tab.clock.run_for(40_000)
        finally:
            served.process and served.process.send_signal(18)
        expect(tab.locator("#link")).to_have_text("live", timeout=20_000)


@pytest.mark.parametrize("digit", [3, 8])
def test_digits_of_several_strokes_are_still_drawn(tab: Page, digit):
    strokes = [[(x / 100, y / 100) for x, y in points] for points in STROKES[digit]]
    tab.evaluate(EVENTS, [event for points in strokes for event in stroke(1, "pen", points)])
    expect(tab.locator("#answer")).to_have_text(str(digit))
