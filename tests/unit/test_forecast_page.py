"""The forecast's page over a published folder."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from flask import Flask

from forecast.page import blueprint
from forecast.series import Series
from forecast.store import publish


@pytest.fixture
def client(tmp_path):
    app = Flask(__name__)
    app.register_blueprint(blueprint(tmp_path))
    return app.test_client(), tmp_path


def published(root):
    keys = pd.DataFrame({"region": ["a"], "network": ["n"], "station": ["s"], "zone": ["UTC"]})
    series = Series(
        keys, date(2024, 1, 1), np.full((1, 60, 24), 2, np.float32), np.ones((1, 60, 24), bool)
    )
    series.observed[0, -1] = False
    facts = {"parent": None, "kept": False, "errors": {"1-7": 12.5}}
    return publish(root, series, [np.zeros(3)], np.full((1, 90, 24), 3, np.float32), facts)


def test_before_the_first_forecast_the_page_says_so(client):
    pages, _ = client
    assert pages.get("/forecast/").status_code == 200
    for path in ("/forecast/keys", "/forecast/data?region=a&network=n&station=s"):
        answer = pages.get(path)
        assert answer.status_code == 503
        assert "No forecast is published yet" in answer.json["error"]


def test_a_keys_history_forecast_and_median_are_days_and_a_lost_day_is_null(client):
    pages, root = client
    made = published(root)
    keys = pages.get("/forecast/keys").json
    assert (keys["keys"], keys["as_of"], keys["errors"]) == (
        [["a", "n", "s"]],
        "2024-02-29",
        {"1-7": 12.5},
    )
    assert keys["model"] == made.manifest["model"]
    data = pages.get("/forecast/data?region=a&network=n&station=s").json
    assert data["history"] == [48.0] * 55 + [None]
    assert data["forecast"] == [72.0] * 90
    assert data["median"] == [48.0] * 90
    assert data["first_day"] == "2024-03-01"


def test_a_key_that_is_not_forecast_is_not_found(client):
    pages, root = client
    published(root)
    answer = pages.get("/forecast/data?region=a&network=n&station=unknown")
    assert answer.status_code == 404
    assert "no key a / n / unknown" in answer.json["error"]
