"""The page in a real browser, with the whole loop behind it: Kafka, the job, Redis."""

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from confluent_kafka import Consumer, Producer, TopicPartition
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sklearn.datasets import load_digits

from harness import page as pages
from harness.page import STROKES
from harness.stack import Stack, until
from loop.messages import DIGITS

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def loop(parts: Stack) -> Iterator[pages.Page]:
    """The page with a job that has learned the data set once."""
    stack = parts.start("kafka", "redis", "jobmanager", "taskmanager").named()
    job = stack.submit_job()
    produce(stack)
    with pages.serving(stack) as page:
        until(
            lambda: page.get("/model")[1].get("samples", 0) >= 1797, 120, "the data set is learned"
        )
        yield page
    stack.cancel_job(job)


def produce(stack: Stack) -> None:
    producer = Producer(stack.settings.confluent_client())
    X, labels = load_digits(return_X_y=True)
    for x, y in zip(X, labels, strict=True):
        producer.produce(stack.settings.input_topic, DIGITS.sample(x, y))
    producer.flush(30)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Open the page; yields it and what it put on the console or asked of any other address."""
    context = browser.new_context(**{"viewport": DESKTOP} | options)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    own = (url, "data:", "blob:")
    tab.on("request", lambda asked: None if asked.url.startswith(own) else said.append(asked.url))
    tab.goto(url)
    expect(tab.locator("#link")).to_have_text("live", timeout=20_000)
    yield tab, said
    context.close()


@pytest.fixture
def tab(browser: Browser, loop: pages.Page, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page in a tab; fails where anything is on the console or any other address was asked."""
    with opened(browser, loop.url, **getattr(request, "param", {})) as (page, said):
        yield page
        assert said == []


@pytest.fixture
def troubled_tab(browser: Browser, loop: pages.Page) -> Iterator[Page]:
    """The page in a tab whose requests may fail."""
    with opened(browser, loop.url) as (page, _):
        yield page


def with_mouse(tab: Page, digit: int) -> None:
    for stroke in on_board(tab, digit):
        tab.mouse.move(*stroke[0])
        tab.mouse.down()
        for point in stroke[1:]:
            tab.mouse.move(*point, steps=4)
        tab.mouse.up()


def with_finger(tab: Page, digit: int) -> None:
    touch = tab.context.new_cdp_session(tab)
    for stroke in on_board(tab, digit):
        for i, (x, y) in enumerate(stroke):
            kind = "touchMove" if i else "touchStart"
            touch.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            )
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def on_board(tab: Page, digit: int) -> list[list[tuple[float, float]]]:
    tab.locator("#board").scroll_into_view_if_needed()
    box = tab.locator("#board").bounding_box()
    assert box
    left, top, width, height = box["x"], box["y"], box["width"], box["height"]
    return [
        [(left + x / 100 * width, top + y / 100 * height) for x, y in stroke]
        for stroke in STROKES[digit]
    ]


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize(
    ("tab", "draw"),
    [({}, with_mouse), ({"viewport": PHONE, "has_touch": True, "is_mobile": True}, with_finger)],
    indirect=["tab"],
    ids=["mouse", "finger"],
)
def test_a_drawn_digit_is_read_when_the_pen_is_lifted(tab: Page, draw, digit):
    draw(tab, digit)
    expect(tab.locator("#answer")).to_have_text(str(digit))
    expect(tab.locator("#bars .best span").first).to_have_text(str(digit))
    expect(tab.locator("#by")).to_contain_text("by version")
    tab.locator("#clear").click()
    expect(tab.locator("#answer")).to_have_text("–")


def test_one_tap_teaches_and_the_page_shows_that_the_model_moved(tab: Page, loop: pages.Page):
    with_mouse(tab, 7)
    expect(tab.locator("#answer")).to_have_text("7")
    before, before_shares = loop.get("/model")[1], shares(tab)
    tab.get_by_role("button", name="No, it is 1", exact=True).click()
    expect(tab.locator("#said")).to_contain_text("Learned: version", timeout=20_000)
    after = loop.get("/model")[1]
    assert after["version"] > before["version"]
    assert after["progress"]["0"] == before["progress"]["0"] + 1
    assert shares(tab) != before_shares
    expect(tab.locator("#people")).to_contain_text("of 1", timeout=10_000)
    newest = tab.locator("#strip li").first
    expect(newest).to_have_attribute("class", "wrong from-page", timeout=20_000)
    expect(newest).to_contain_text("7→1")


def shares(tab: Page) -> list[str]:
    """Return how long the ten bars are, to the last digit that the server sends."""
    return tab.locator("#bars i").evaluate_all("bars => bars.map(bar => bar.style.width)")


def test_what_was_taught_goes_on_to_the_predictions_with_its_source(tab: Page, loop: pages.Page):
    with_mouse(tab, 4)
    expect(tab.locator("#answer")).to_have_text("4")
    tab.locator("#labels button").nth(4).click()
    expect(tab.locator("#said")).to_contain_text("Learned", timeout=20_000)
    sample = until(
        lambda: taught_predictions(loop.stack), 30, "a taught sample among the predictions"
    )[-1]
    assert (sample["actual_y"], sample["source"]) == (4, "page")
    assert sample["x"] == loop.post("/predict", imgStr=drawn_on(tab))[1]["x"]


def taught_predictions(stack: Stack) -> list[dict]:
    """Return what the job predicted of taught drawings among its last 50 samples."""
    consumer = Consumer(stack.settings.confluent_client() | {"group.id": "test"})
    topic = stack.settings.predict_topic
    high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)[1]
    consumer.assign([TopicPartition(topic, 0, max(0, high - 50))])
    samples = [json.loads(message.value() or b"{}") for message in consumer.consume(50, timeout=2)]
    consumer.close()
    return [sample for sample in samples if sample.get("source") == "page"]


def drawn_on(tab: Page) -> str:
    """Return the drawing on the page as the page sends it."""
    lines = tab.locator("#ink").inner_html()
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><g fill="none" stroke="#000" stroke-width="18">{lines}</g></svg>'
    return base64.b64encode(svg.encode()).decode()


def test_charts_and_numbers_move_as_the_model_learns(tab: Page, loop: pages.Page):
    learned = tab.locator("#samples").inner_text()
    produce(loop.stack)
    expect(tab.locator("#samples")).not_to_have_text(learned, timeout=20_000)
    expect(tab.locator("#chart polyline.recent")).to_have_count(1, timeout=20_000)
    expect(tab.locator("#strip li")).to_have_count(24, timeout=20_000)
    expect(tab.locator("#confusion tr")).to_have_count(11)
    painted = "c => c.getContext('2d').getImageData(0, 0, 8, 8).data.some(v => v)"
    until(lambda: tab.locator("#weights canvas").first.evaluate(painted), 30, "weight pictures")
    tab.reload()
    expect(tab.locator("#chart polyline.recent")).to_have_count(1, timeout=20_000)


def test_a_digit_is_drawn_by_keyboard(tab: Page):
    tab.locator("#board").focus()
    for key in ["Space", *["ArrowDown"] * 10, "Space"]:
        tab.keyboard.press(key)
    expect(tab.locator("#answer")).to_have_text("1")
    tab.keyboard.press("Escape")
    expect(tab.locator("#answer")).to_have_text("–")


@pytest.mark.parametrize(("paper", "ink"), [("white", "black"), ("black", "white")])
def test_an_image_is_read_as_a_drawing(tab: Page, paper, ink, tmp_path):
    image = Image.new("RGB", (260, 260), paper)
    for stroke in STROKES[7]:
        ImageDraw.Draw(image).line(
            [(2.6 * x, 2.6 * y) for x, y in stroke], fill=ink, width=18, joint="curve"
        )
    image.save(tmp_path / "seven.png")
    tab.locator("#image").set_input_files(tmp_path / "seven.png")
    expect(tab.locator("#answer")).to_have_text("7")


def test_the_page_says_what_is_wrong_keeps_the_drawing_and_recovers(
    troubled_tab: Page, loop: pages.Page
):
    tab = troubled_tab
    with_mouse(tab, 3)
    expect(tab.locator("#answer")).to_have_text("3")
    loop.stop()
    expect(tab.locator("#link")).to_contain_text("does not answer", timeout=20_000)
    tab.locator("#labels button").nth(3).click()
    expect(tab.locator("#problem")).to_contain_text("does not answer")
    loop.start()
    expect(tab.locator("#link")).to_have_text("live", timeout=30_000)
    tab.locator("#labels button").nth(3).click()
    expect(tab.locator("#said")).to_contain_text("Learned", timeout=20_000)


SIZES = [
    {"viewport": size, "color_scheme": scheme, "reduced_motion": "reduce"}
    for size in (PHONE, DESKTOP)
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize(
    "tab", SIZES, indirect=True, ids=["phone", "phone dark", "desktop", "desktop dark"]
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(tab: Page):
    with_mouse(tab, 5)
    expect(tab.locator("#answer")).to_have_text("5")
    expect(tab.locator("#strip li").first).to_be_visible()
    found = Axe().run(tab).response["violations"]
    assert [(v["id"], v["impact"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_nothing_can_be_loaded_from_elsewhere(troubled_tab: Page):
    refused = troubled_tab.evaluate(
        """() => new Promise(answer => {
            document.addEventListener('securitypolicyviolation', event => answer(event.blockedURI));
            fetch('http://127.0.0.1:9/').catch(() => {});
            setTimeout(() => answer(''), 3000);
        })"""
    )
    assert refused.startswith("http://127.0.0.1:9")


def test_the_model_moves_on_the_page_within_200_ms_of_its_commit(tab: Page, loop: pages.Page):
    """Measured from the commit's own time to the number on the page."""
    tab.evaluate(
        """() => {
            const number = document.querySelector('#version');
            window.shown = [];
            new MutationObserver(() => shown.push([Number(number.textContent.replaceAll(',', '')), Date.now()]))
                .observe(number, { childList: true });
        }"""
    )
    waits = []
    for _ in range(5):
        version = loop.get("/model")[1]["version"]
        loop.post("/feedback", imgStr=pages.drawing(2), actual_y=2)
        until(lambda version=version: loop.get("/model")[1]["version"] > version, 20)  # type: ignore[misc]
        moved = loop.get("/model")[1]
        until(lambda moved=moved: tab.evaluate("shown.at(-1)?.[0] ?? 0") >= moved["version"], 20)  # type: ignore[misc]
        shown = [at for version, at in tab.evaluate("shown") if version >= moved["version"]]
        waits.append(shown[0] / 1000 - moved["saved_at"])
    assert sorted(waits)[len(waits) // 2] < 0.2, waits
