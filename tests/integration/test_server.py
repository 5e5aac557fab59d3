"""The page beside a real Redis and Kafka, without a job: models are committed here, labels read from the topic."""

import base64
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from urllib.parse import quote_from_bytes

import orjson
import psutil
import pytest
import requests
from confluent_kafka import Consumer, TopicPartition

from harness.page import Page, a_model, commit, drawing, serving
from harness.stack import Stack, free_port, until
from loop.model_store import ModelStore
from page.http import MAX_BODY_BYTES
from page.live import MAX_CLIENTS
from settings import HERE


@pytest.fixture(scope="module")
def page(parts: Stack):
    stack = parts.start("kafka", "redis").named()
    with serving(stack) as running:
        commit(ModelStore(stack.settings), None, a_model())
        running.ready()
        yield running


def test_a_committed_model_answers_at_once_and_versions_never_go_back(page: Page):
    store, waits, before = ModelStore(page.stack.settings), [], 0
    stored = store.read()
    assert stored
    for version in range(2, 32):
        began = time.monotonic()
        stored = commit(store, stored, a_model(version, stored.meta.model_id))
        while before < version:
            answered = page.post("/predict", imgStr=drawing(3))[1]["model_version"]
            assert before <= answered
            before = answered
            assert time.monotonic() - began < 5
        waits.append(time.monotonic() - began)
    assert min(waits) < 0.1, waits  # the others tell how busy the machine is


def test_a_label_reaches_kafka_with_its_source_and_is_answered_with_its_place(page: Page):
    x = page.post("/predict", imgStr=drawing(4))[1]["x"]
    status, answer = page.post("/feedback", imgStr=drawing(4), actual_y=4)
    assert status == 202
    assert answer == {
        "success": True,
        "topic": page.stack.settings.input_topic,
        "partition": 0,
        "offset": 0,
    }
    message = json.loads(read_one(page.stack, answer["offset"]))
    assert (message["x"], message["actual_y"], message["source"]) == (x, 4, "page")


def read_one(stack: Stack, offset: int) -> bytes:
    consumer = Consumer(stack.settings.confluent_client() | {"group.id": "test"})
    consumer.assign([TopicPartition(stack.settings.input_topic, 0, offset)])
    message = consumer.poll(20)
    consumer.close()
    assert message
    return message.value() or b""


def test_fuzzed_bodies_never_break_the_page_and_leave_nothing_in_memory(page: Page):
    """A few hundred here; `make fuzz-page` sends 10,000."""
    count = int(os.environ.get("FUZZED_BODIES", "400"))
    rng, answered = random.Random(0), Counter[int]()  # noqa: S311 - not a secret
    assert page.process
    worker = psutil.Process(page.process.pid)
    memory = []
    for i in range(count):
        body, kind = fuzzed(rng)
        began = time.monotonic()
        answer = requests.post(
            page.url + "/predict", data=body, headers={"Content-Type": kind}, timeout=20
        )
        assert time.monotonic() - began < 5
        answered[answer.status_code] += 1
        assert answer.status_code in (201, 400, 413, 415), (answer.status_code, body)
        assert answer.json()["success"] is (answer.status_code == 201)
        if i % (count // 20) == 0:
            memory.append(worker.memory_info().rss)
    print(
        f"{count} fuzzed bodies: {dict(answered)}, memory {memory[5] >> 20} MiB, then {memory[-1] >> 20} MiB"
    )
    assert answered[201]
    assert answered[400]
    assert memory[-1] < memory[5] + (20 << 20)


def fuzzed(rng: random.Random) -> tuple[bytes, str]:
    """Return a drawing with something wrong in it, at one layer or another, and its content type."""
    svg = bytearray(base64.b64decode(drawing(rng.randrange(10))))
    for _ in range(rng.choice([0, 1, 1, 2, 5, 30])):
        at = rng.randrange(len(svg) + 1)
        words = [b"", b"NaN", b"1e400", b"<g>", b"</svg>", b"&a;", b"<!DOCTYPE a [", b'"', b"\xff"]
        spliced = rng.choice([*words, bytes([rng.randrange(256)])])
        svg[at : at + rng.choice([0, 1, 1, 8])] = spliced
    text = base64.b64encode(bytes(svg))
    if rng.random() < 0.2:
        text = bytes(rng.choices(range(256), k=rng.randrange(3_000)))
    body = b"imgStr=" + (quote_from_bytes(text).encode() if rng.random() < 0.8 else text)
    if rng.random() < 0.1:
        body = body * rng.choice([2, 500])
    form = "application/x-www-form-urlencoded"
    return body, rng.choice(
        [form] * 8 + ["multipart/form-data; boundary=a", "application/json", "x" * 2_000]
    )


def test_without_redis_or_kafka_the_page_stays_up_says_so_and_recovers(page: Page):
    stack = page.stack
    until(lambda: page.get("/healthz")[0] == 200, 20, "all is well")
    stack.pause("redis", "kafka")
    try:
        until(
            lambda: "up" not in [page.get("/healthz")[1][part] for part in ("redis", "kafka")],
            40,
            "both away",
        )
        assert page.get("/healthz")[0] == 503
        assert page.post("/predict", imgStr=drawing(3))[0] == 201
        status, answer = page.post("/feedback", imgStr=drawing(3), actual_y=3)
        assert (status, answer["success"]) == (503, False)
        assert "Kafka" in answer["error"]
    finally:
        stack.resume("redis", "kafka")
    until(lambda: page.get("/healthz")[0] == 200, 60, "all is well again")
    until(
        lambda: page.post("/feedback", imgStr=drawing(3), actual_y=3)[0] == 202, 30, "taught again"
    )


def test_history_survives_a_restart_of_the_page(page: Page):
    points = until(lambda: history(page), 10, "a point of history")
    page.stop()
    page.start()
    until(lambda: history(page)[0] == points[0], 10, "history is there again")


def test_a_page_that_was_closed_gives_its_place_to_the_next(page: Page):
    for n in range(3 * MAX_CLIENTS):
        answer = requests.get(page.url + "/events", stream=True, timeout=10)
        assert answer.status_code == 200, n
        next(answer.iter_lines())
        answer.close()
        time.sleep(0.2)


def history(page: Page) -> list:
    with requests.get(page.url + "/events", stream=True, timeout=10) as events:
        whole = False
        for line in events.iter_lines():
            if whole:
                return orjson.loads(line.removeprefix(b"data: "))
            whole = line == b"event: whole_history"
    return []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_a_413_after_at_most_the_limit(page: Page, chunked):
    coding = "Transfer-Encoding: chunked" if chunked else "Content-Length: 500000000"
    form = "Content-Type: application/x-www-form-urlencoded"
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n{form}\r\n{coding}\r\n\r\n"
    piece = b"10000\r\n" + b"a" * 65_536 + b"\r\n" if chunked else b"a" * 65_538
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(head.encode())
        connection.setblocking(False)
        answer, sent = b"", 0
        while not answer and sent < 100_000_000:
            readable, writable, _ = select.select([connection], [connection], [], 10)
            if readable:
                answer = connection.recv(4096)
            elif writable:
                at = sent % len(piece)
                sent += connection.send(piece[at:])
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert sent < MAX_BODY_BYTES + 8_000_000  # what the sockets between hold


def test_an_unsigned_model_is_not_opened_and_the_last_one_goes_on(page: Page):
    store = ModelStore(page.stack.settings)
    store.redis.set(store.keys.model, b"cos\nsystem\n(S'false'\ntR.")
    store.redis.hset(store.keys.meta, "commit_id", "another")
    until(lambda: "signed" in page.get("/healthz")[1]["redis"], 10, "it says so")
    assert page.post("/predict", imgStr=drawing(3))[0] == 201


def test_ctrl_c_ends_it_at_once_and_without_a_word_too_much(page: Page):
    with requests.get(page.url + "/events", stream=True, timeout=10):
        began = time.monotonic()
        printed = page.stop()
    assert time.monotonic() - began < 20
    assert page.process
    assert page.process.returncode == 0
    assert printed == f"The page is at {page.url}; Ctrl-C ends it.\n"


def test_a_taken_port_is_one_sentence(parts: Stack):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        ended = subprocess.run(
            [sys.executable, str(HERE / "server.py")],
            env=parts.env | {"PAGE_PORT": str(port), "MODEL_SIGNING_KEY": "k" * 32},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: The page can't listen on 127.0.0.1:{port} (")
    assert ended.stderr.count("\n") == 1
