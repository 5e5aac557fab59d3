import re
from dataclasses import replace
from urllib.parse import urljoin

import numpy as np
import pytest

from harness.page import a_model, drawing
from page.guard import feedback_limit
from page.history import MAX_POINTS, History
from page.live import MAX_CLIENTS, Live, weight_pictures
from server import create_app, prediction
from settings import Settings

SEVEN = {"imgStr": drawing(7)}
LABELLED = SEVEN | {"actual_y": "7"}
NOWHERE: dict = {
    "kafka_bootstrap_servers": "127.0.0.1:9",
    "redis_port": 9,
    "model_signing_key": "k" * 32,
}


def page(model=None, **given):
    """A page whose Redis and Kafka are away, with a model in memory or without one."""
    app = create_app(Settings(**NOWHERE | given))
    app.extensions["parts"].watcher.current = model
    return app.test_client()


@pytest.fixture(scope="module")
def model():
    return a_model(version=3)


def test_a_drawing_is_answered_with_all_that_the_contract_names(model):
    answer = page(model).post("/predict", data=SEVEN)
    assert answer.status_code == 201
    found = answer.json
    assert set(found) == {
        "success",
        "predict_result",
        "probabilities",
        "model_version",
        "samples",
        "x",
    }
    assert found["success"] is True
    assert found["predict_result"] == 7
    assert len(found["probabilities"]) == 10
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert (found["model_version"], found["samples"]) == (3, 3 * 1797)
    assert len(found["x"]) == 64
    assert all(type(v) is int and 0 <= v <= 16 for v in found["x"])


def test_a_model_without_probabilities_still_answers(model):
    estimator = model.estimator()
    stored = type("Stored", (), {"meta": model.meta, "estimator": lambda self: Plain(estimator)})()
    found = prediction(stored, np.zeros(64, np.uint8))
    assert found["probabilities"] is None
    assert 0 <= found["predict_result"] <= 9


class Plain:
    def __init__(self, estimator):
        self.predict = estimator.predict


def test_the_model_is_described_as_the_contract_says(model):
    found = page(model).get("/model").json
    fields = {
        "model_id",
        "version",
        "samples",
        "rejected",
        "progress",
        "accuracy",
        "accuracy_100",
        "accuracy_new",
        "seen_before",
        "saved_at",
    }
    assert set(found) == fields
    assert found["progress"] == {"0": 1797}


@pytest.mark.parametrize(("method", "path"), [("post", "/predict"), ("get", "/model")])
def test_without_a_model_it_is_a_503_that_says_so(method, path):
    answer = getattr(page(), method)(path, data=SEVEN)
    assert answer.status_code == 503
    assert answer.json["success"] is False
    assert "no model yet" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("/predict", {}, "imgStr"),
        ("/predict", {"imgStr": "hello"}, "drawing"),
        ("/feedback", {"imgStr": SEVEN["imgStr"]}, "actual_y"),
        ("/feedback", SEVEN | {"actual_y": "10"}, "digit"),
        ("/feedback", SEVEN | {"actual_y": "٣"}, "digit"),
        ("/feedback", SEVEN | {"actual_y": ""}, "digit"),
    ],
)
def test_bad_input_is_a_400_with_a_sentence(model, path, fields, word):
    answer = page(model).post(path, data=fields)
    assert answer.status_code == 400
    assert word in answer.json["error"]


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Host": "evil.example"},
    {"Host": "evil.example:8066"},
    {"Host": "localhost.evil.example"},
    {"Host": "[::1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/predict", "/feedback"])
def test_another_origin_or_host_is_a_403(model, path, headers):
    answer = page(model).post(path, data=LABELLED, headers=headers)
    assert answer.status_code == 403
    assert answer.json["error"].endswith(".")


@pytest.mark.parametrize("path", ["/", "/model", "/events", "/healthz", "/static/page.js"])
def test_nothing_is_read_under_a_foreign_host(model, path):
    assert page(model).get(path, headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {
            "Host": "127.0.0.1:8066",
            "Origin": "http://127.0.0.1:8066",
            "Sec-Fetch-Site": "same-origin",
        },
        {"Host": "localhost:1234", "Origin": "http://localhost:1234"},
        {"Host": "[::1]:8066", "Origin": "http://[::1]:8066"},
        {},
    ],
)
def test_the_page_itself_and_programs_are_answered(model, headers):
    assert page(model).post("/predict", data=SEVEN, headers=headers).status_code == 201


def test_every_answer_carries_the_strict_headers(model):
    client = page(model)
    for answer in (
        client.get("/"),
        client.get("/static/page.js"),
        client.post("/predict"),
        client.get("/nothing"),
    ):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_feedback_is_off_with_one_setting(model):
    client = page(model, feedback=False)
    answer = client.post("/feedback", data=LABELLED)
    assert answer.status_code == 403
    assert "FEEDBACK" in answer.json["error"]
    assert client.post("/predict", data=SEVEN).status_code == 201


def test_a_public_page_teaches_only_with_the_token(model):
    public = {"page_public_url": "https://digits.example"}
    address = {"Host": "digits.example", "Origin": "https://digits.example"}
    closed = page(model, **public).post("/feedback", data=LABELLED, headers=address)
    assert (closed.status_code, "FEEDBACK_TOKEN" in closed.json["error"]) == (403, True)
    client = page(model, **public, feedback_token="correct horse")
    for token in ({}, {"X-Feedback-Token": "wrong"}):
        assert client.post("/feedback", data=LABELLED, headers=address | token).status_code == 403
    # With the token it goes on to read the drawing, which is none.
    right = address | {"X-Feedback-Token": "correct horse"}
    assert (
        client.post("/feedback", data={"actual_y": "1", "imgStr": "-"}, headers=right).status_code
        == 400
    )


@pytest.mark.parametrize(
    ("rate", "burst", "window"),
    [
        ("10/second", 50, "50 per 5 second"),
        ("60/minute", 5, "5 per 5 second"),
        ("100/second", 10, "10 per 1 second"),
    ],
)
def test_a_rate_with_bursts_is_one_moving_window(rate, burst, window):
    assert feedback_limit(Settings(feedback_rate=rate, feedback_burst=burst)) == window


def test_labels_over_the_rate_are_a_429_and_predictions_have_no_rate(model):
    client = page(model, feedback_burst=3, feedback_rate="1/minute")
    bad = SEVEN | {"actual_y": "x"}  # refused before Kafka is asked, and counted all the same
    assert [client.post("/feedback", data=bad).status_code for _ in range(4)] == [
        400,
        400,
        400,
        429,
    ]
    assert all(client.post("/predict", data=SEVEN).status_code == 201 for _ in range(60))


def test_strangers_do_not_use_up_the_owners_rate(model):
    client = page(
        model,
        page_host="0.0.0.0",
        feedback_token="correct horse",
        feedback_burst=2,
        feedback_rate="1/minute",
    )
    bad = SEVEN | {"actual_y": "x"}
    assert {client.post("/feedback", data=bad).status_code for _ in range(10)} == {403}
    right = {"X-Feedback-Token": "correct horse"}
    assert [client.post("/feedback", data=bad, headers=right).status_code for _ in range(3)] == [
        400,
        400,
        429,
    ]


@pytest.mark.parametrize(
    ("host", "is_open"),
    [
        ("127.0.0.1", False),
        ("127.8.0.1", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.0.7", True),
        ("digits.example", True),
    ],
)
def test_a_page_that_others_can_reach_needs_a_token(model, host, is_open):
    assert Settings(page_host=host).page_is_open is is_open
    client = page(model, page_host=host)
    answer = client.post("/feedback", data={"actual_y": "1", "imgStr": "-"})
    assert answer.status_code == (403 if is_open else 400)
    assert f'data-needs-token="{str(is_open).lower()}"' in client.get("/").text


def test_no_address_in_a_page_begins_at_the_servers_root(model):
    client = page(model)
    for path in ("/", "/forecast/"):
        text = client.get(path).text
        assert re.findall(r'(?:src|href)="(/[^"]*)"', text) == []
        for found in re.findall(r'(?:src|href)="([^"]+)"', text):
            assert client.get(urljoin(path, found)).status_code == 200, found
    assert client.get("/forecast").headers["Location"] == "forecast/"


def test_a_label_that_kafka_did_not_take_is_not_called_taught(model):
    answer = page(model).post("/feedback", data=LABELLED)
    assert answer.status_code == 503
    assert answer.json["error"].startswith("Not taught: Kafka at 127.0.0.1:9")


def test_health_names_each_part(model):
    answer = page(model).get("/healthz")
    assert answer.status_code == 503
    assert set(answer.json) == {"success", "redis", "kafka", "model"}


def test_only_so_many_pages_watch_at_once(model):
    client = page(model)
    answers = [client.get("/events", buffered=False) for _ in range(MAX_CLIENTS)]
    assert {answer.status_code for answer in answers} == {200}
    assert client.get("/events").status_code == 503
    answers[0].close()
    assert client.get("/events", buffered=False).status_code == 200
    for answer in answers[1:]:
        answer.close()


def test_history_stays_small_and_keeps_its_newest_and_oldest_points():
    history = History(Settings(**NOWHERE))
    for second in range(10 * MAX_POINTS):
        history.add([second, 1, second, None, None, 0.0, None])
    seconds = [point[0] for point in history.points]
    assert len(seconds) <= MAX_POINTS
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert seconds[-100:] == list(range(10 * MAX_POINTS - 100, 10 * MAX_POINTS))


def test_the_weight_pictures_of_a_linear_model_are_its_weights(model):
    estimator = model.estimator()
    pictures = weight_pictures(estimator, np.full((2, 64), 5.0))
    expected = 2 * (estimator.coef_ - estimator.coef_.mean(axis=0))
    assert pictures is not None
    assert np.allclose(pictures, expected)


def test_a_slow_client_misses_what_came_in_between_and_gets_the_newest(model):
    app = create_app(Settings(**NOWHERE))
    live: Live = app.extensions["parts"].live
    live.watcher.current = model
    events = live.events()
    first = b"".join(next(events) for _ in range(2))
    for version in range(4, 5_000):
        live.watcher.current = a_newer(model, version)
        live._wake(model)
    second = next(events)
    assert b'"version":3' in first
    assert b'"version":4999' in second
    assert len(second) < 20_000


def a_newer(model, version):
    return replace(model, meta=replace(model.meta, version=version))
