"""The real parts that tests run against: each starts once a session, and only when a test asks for it."""

from collections.abc import Iterator

import pytest

from harness.stack import FLINK, Stack
from harness.stack import chromium as find_chromium


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
