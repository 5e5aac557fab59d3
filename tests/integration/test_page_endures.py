"""The page beside a real Redis and Kafka that hold what they should not, and clients that are slow."""

import contextlib
import pickle
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
import requests
from confluent_kafka import Producer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier

from harness.page import Page, a_model, commit, drawing, serving
from harness.stack import Stack, until
from loop.messages import DIGITS
from loop.model_store import Meta, ModelStore, Stored, new_model_id
from loop.topic_log import TopicLog
from page.http import REQUEST_SECONDS, THREADS


@pytest.fixture(scope="module")
def alone(parts: Stack) -> Iterator[Page]:
    """A page with a model, and no job."""
    stack = parts.start("kafka", "redis").named()
    with serving(stack) as running:
        yield running


@pytest.fixture
def page(alone: Page) -> Page:
    """The page with a new model; whatever the test before did to it, it has recovered."""
    store = ModelStore(alone.stack.settings)
    store.redis.delete(*store.keys)
    serves(alone, commit(store, None, a_model()))
    until(lambda: alone.get("/healthz")[0] == 200, 20, "all is well")
    return alone


def serves(page: Page, stored: Stored) -> None:
    """Return when the page answers with this model."""
    order = stored.meta.model_id, stored.meta.version
    until(
        lambda: (page.get("/model")[1]["model_id"], page.get("/model")[1]["version"]) == order,
        20,
        "it is served",
    )


HOST = "Host: 127.0.0.1\r\n"
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"
SLOW = {
    "nothing": "",
    "half a header": f"POST /predict HTTP/1.1\r\n{HOST}Content-Le",
    "half a body": f"POST /predict HTTP/1.1\r\n{HOST}{FORM}Content-Length: 1000\r\n\r\nimgStr=a",
    "half a chunked body": f"POST /predict HTTP/1.1\r\n{HOST}{FORM}Transfer-Encoding: chunked\r\n\r\n5\r\nimg",
    "a label of which half came": f"POST /feedback HTTP/1.1\r\n{HOST}{FORM}Content-Length: 50\r\n\r\nactual_y=1",
    "answers that nobody reads": f"GET /static/board.js HTTP/1.1\r\n{HOST}\r\n" * 200,
}


def test_slow_clients_hold_no_thread_and_are_let_go(page: Page):
    with contextlib.ExitStack() as opened:
        slow = {
            kind: [opened.enter_context(connected(page, kind)) for _ in range(THREADS + 8)]
            for kind in SLOW
        }
        began = time.monotonic()
        while time.monotonic() < began + REQUEST_SECONDS - 3:
            for connection in slow["half a body"]:
                connection.send(b"a")  # a body that drips is as slow
            asked = time.monotonic()
            assert requests.get(page.url + "/healthz", timeout=20).status_code == 200
            assert page.post("/predict", imgStr=drawing(3))[0] == 201
            assert time.monotonic() - asked < 1
            time.sleep(0.2)
        for kind in (
            "half a header",
            "half a body",
            "half a chunked body",
            "a label of which half came",
        ):
            for connection in slow[kind]:
                connection.settimeout(REQUEST_SECONDS + 5)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b"", kind
        assert time.monotonic() - began < REQUEST_SECONDS + 5


def connected(page: Page, kind: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", page.port), timeout=5)
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):  # nobody reads the answers, so not all may fit
        connection.sendall(SLOW[kind].encode())
    return connection


@pytest.mark.parametrize(
    ("request_text", "status"),
    [("nonsense\r\n\r\n", 400), (f"GET / HTTP/1.1\r\n{HOST}X: {'a' * 300_000}\r\n\r\n", 431)],
)
def test_what_is_no_request_is_answered_in_the_apis_form(page: Page, request_text, status):
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as connection:
        connection.sendall(request_text.encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # the rest of a large header is not read
            while piece := connection.recv(4096):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f" {status} ".encode() in head.split(b"\r\n")[0]
    assert orjson.loads(body)["error"].endswith(".")


FOREIGN = [
    b"",
    None,
    b"\xff",
    b"null",
    b"[]",
    b"{}",
    b'{"x": 5, "actual_y": 1}',
    b'{"x": [0, 1], "actual_y": 1}',
    orjson.dumps({"x": [[0]] * 64, "actual_y": 1}),
    orjson.dumps({"x": [0.5] * 64, "actual_y": 1}),
    orjson.dumps({"x": [17] * 64, "actual_y": 1}),
    orjson.dumps({"x": [1] * 64, "actual_y": "1"}),
    orjson.dumps({"x": [1] * 64, "actual_y": True}),
    orjson.dumps({"x": [1] * 64, "actual_y": 1, "predict_y": {}}),
    orjson.dumps({"x": [1] * 30, "actual_y": 0, "predict_y": 1}),
    b"[" * 1000,
    b'{"x": [' + b"1," * 200_000,
]


def test_foreign_predictions_are_told_of_and_newer_ones_shown(page: Page):
    producer = Producer(page.stack.settings.confluent_client())
    for record in FOREIGN:
        producer.produce(page.stack.settings.predict_topic, record)
    producer.flush(10)
    said = until(lambda: page.get("/healthz")[1].get("samples"), 20, "it says so")
    assert f"Topic {page.stack.settings.predict_topic} partition 0 offset " in said
    assert page.get("/healthz")[0] == 503
    producer.produce(page.stack.settings.predict_topic, DIGITS.sample([7] * 64, 4, "page"))
    producer.flush(10)
    assert (
        event(page, "samples")[-1].items()
        >= {"x": [7] * 64, "y": 4, "predicted": None, "source": "page"}.items()
    )
    until(lambda: page.get("/healthz")[0] == 200, 20, "all is well again")


def event(page: Page, kind: str) -> list:
    """Return the data of the first event of a kind, listening as a browser does."""
    with requests.get(page.url + "/events", stream=True, timeout=20) as events:
        found = False
        for line in events.iter_lines():
            if found:
                return orjson.loads(line.removeprefix(b"data: "))
            found = line == f"event: {kind}".encode()
    raise AssertionError(f"no event {kind}")


def broken_field(store: ModelStore) -> None:
    store.redis.hset(store.keys.meta, b"\xff\xfe", "1")


def other_type(store: ModelStore) -> None:
    store.redis.delete(store.keys.meta)
    store.redis.rpush(store.keys.meta, "1")


def signed_nonsense(store: ModelStore) -> None:
    found = {name.decode(): value for name, value in store.redis.hgetall(store.keys.meta).items()}
    found |= {"progress": b"[1]", "scores": b'{"unknown": 1}'}
    del found["signature"]
    signature = store.sign(store.redis.get(store.keys.model), found)
    store.redis.hset(store.keys.meta, mapping=found | {"signature": signature})


class Raises:
    """A served model whose pickle was made where it could be opened."""

    def __reduce__(self):
        return eval, ("{}['missing']",)


def signed_broken_pickle(store: ModelStore) -> None:
    meta = Meta(model_id=new_model_id(), version=1)
    store.commit(store.read(), meta, pickle.dumps(Raises()), b"")


@pytest.mark.parametrize(
    "breaks", [broken_field, other_type, signed_nonsense, signed_broken_pickle]
)
def test_a_broken_model_is_told_of_and_the_next_good_one_taken(page: Page, breaks):
    store = ModelStore(page.stack.settings)
    breaks(store)
    until(lambda: page.get("/healthz")[1]["redis"] != "up", 30, "it says so")
    assert page.post("/predict", imgStr=drawing(3))[0] == 201
    store.redis.delete(*store.keys)
    serves(page, commit(store, None, a_model()))
    until(lambda: page.get("/healthz")[0] == 200, 30, "all is well again")


BROKEN_POINTS = [
    b"\xff",
    b"{}",
    b"[]",
    b"[1,2,3,4,5,6,null,8]",
    b'["a",1,1,null,null,1,null]',
    b"[null,1,1,1,1,1,1]",
]


def test_broken_points_of_history_are_left_out_and_it_goes_on(page: Page):
    store = ModelStore(page.stack.settings)
    key = store.keys.history
    page.stop()
    good = [1.5, 1, 10, 0.5, None, 3.0, None]
    store.redis.delete(key)
    store.redis.rpush(key, *BROKEN_POINTS, orjson.dumps(good))
    page.start()
    until(lambda: "history" in page.get("/healthz")[1], 30, "it says so")
    until(lambda: event(page, "whole_history")[:1] == [good], 30, "the good one is shown")
    until(lambda: store.redis.llen(key) == 2, 30, "a new point is saved, without the broken ones")
    until(lambda: page.get("/healthz")[0] == 200, 20, "all is well again")


def test_a_model_of_other_than_drawings_leaves_the_page_alive(page: Page):
    """The second example of the README learns 30 measurements and 2 classes."""
    X, y = load_breast_cancer(return_X_y=True)
    other = Stored(
        pickle.dumps(SGDClassifier().fit(X, y)),
        Meta(model_id=new_model_id(), version=5, samples=569),
    )
    store = ModelStore(page.stack.settings)
    producer = Producer(page.stack.settings.confluent_client())
    producer.produce(page.stack.settings.predict_topic, DIGITS.sample([7] * 64, 4))
    producer.flush(10)
    assert event(page, "samples")
    with requests.get(
        page.url + "/events", stream=True, timeout=20
    ):  # weight pictures are made for who watches
        serves(page, commit(store, store.read(), other))
        status, answer = page.post("/predict", imgStr=drawing(3))
        assert status == 503
        assert "can't read a drawing" in answer["error"]
        stored = commit(
            store,
            store.read(),
            Stored(other.model, Meta(other.meta.model_id, version=6, samples=569)),
        )
        until(lambda: event(page, "whole_history")[-1][1] == 6, 30, "history goes on")
    commit(store, stored, a_model(version=7))
    until(lambda: page.post("/predict", imgStr=drawing(3))[0] == 201, 30, "it answers again")


def of_cluster(cluster: str, version: int) -> Stored:
    model = a_model(version)
    return replace(model, meta=replace(model.meta, cluster_id=cluster))


def test_only_models_of_this_pages_kafka_are_served(page: Page):
    store = ModelStore(page.stack.settings)
    log = TopicLog(page.stack.settings)
    serves(page, commit(store, store.read(), of_cluster(log.cluster_id(), 2)))
    page.stack.pause("kafka")
    try:
        for cluster in ("another-cluster", ""):
            stored = commit(store, store.read(), of_cluster(cluster, 3))
            until(lambda: "cluster" in page.get("/healthz")[1]["redis"], 30, "it says so")
            assert page.get("/model")[1]["version"] == 2
            assert page.post("/predict", imgStr=drawing(3))[0] == 201
    finally:
        page.stack.resume("kafka")
    serves(page, commit(store, stored, of_cluster(log.cluster_id(), 4)))


def test_kafkas_word_counts_more_than_the_first_model(parts: Stack):
    stack = parts.start("kafka", "redis").named()
    store = ModelStore(stack.settings)
    stack.pause("kafka")
    try:
        commit(store, None, of_cluster("another-cluster", 1))
        with serving(stack) as page:
            page.ready(1)
            stack.resume("kafka")
            until(lambda: page.get("/model")[0] == 503, 30, "it is let go")
            until(lambda: "another-cluster" in page.get("/healthz")[1]["redis"], 30, "it says why")
    finally:
        stack.resume("kafka")
