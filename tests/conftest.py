"""The real parts that tests run against: each starts once a worker, and only when a test asks for it."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from harness.stack import FLINK, Stack
from harness.stack import chromium as find_chromium

# The longest files, longest first: a worker that begins one of them last would keep the other waiting.
LONGEST = (
    "test_forecast_dags.py",
    "test_faults.py",
    "test_make_run.py",
    "test_trust.py",
    "test_submissions.py",
    "test_bad_messages.py",
    "test_input.py",
    "test_loop.py",
    "test_page.py",
)
LAYERS = ("e2e", "integration", "unit")

# How long an example takes depends on what else the machine does: Hypothesis' limits of 200 ms for
# one example and of 1 s for drawing the first ten are no promise of this project.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, then what needs a stack; the short unit tests fill the end.

    Two workers take file by file in this order (``--dist loadfile``).
    """
    items.sort(key=place)


def place(item: pytest.Item) -> tuple[int, int]:
    """Return where a test's file stands in the order."""
    name, layer = item.path.name, item.path.parent.name
    rank = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return rank, LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Hand a test's report to the main process as UTF-8: some tests print what is none."""
    return in_utf8((yield))


def in_utf8(report: Any) -> Any:
    """Return the report with each lone surrogate in its texts escaped."""
    if isinstance(report, str):
        return report.encode(errors="backslashreplace").decode()
    if isinstance(report, dict):
        return {in_utf8(key): in_utf8(value) for key, value in report.items()}
    if isinstance(report, list | tuple):
        return type(report)(map(in_utf8, report))
    return report


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with nothing started yet."""
    stack = Stack(tmp_path_factory.mktemp("run"))
    yield stack
    stack.close()


@pytest.fixture
def kafka(parts: Stack) -> Stack:
    """The stack with Kafka running."""
    return parts.start("kafka")


@pytest.fixture
def redis(parts: Stack) -> Stack:
    """The stack with Redis running."""
    return parts.start("redis")


@pytest.fixture
def flink(parts: Stack) -> Stack:
    """The stack with Flink's JobManager and TaskManager running."""
    return parts.start(*FLINK)


@pytest.fixture
def stack(parts: Stack) -> Stack:
    """The stack with Kafka, Redis and Flink running, and topics, consumer group and model key of this test's own."""
    return parts.start("kafka", "redis", *FLINK).named()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium or Chrome."""
    return find_chromium()
