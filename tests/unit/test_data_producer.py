"""What the producer sends, shows and takes back, without Kafka."""

import time
from itertools import islice
from typing import Any, cast

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from commands.rejects import reject_to_edit, repaired_message
from commands.topics import describe
from data_producer import ONE_PASS, main, passes
from loop.messages import DIGITS, reject
from settings import Settings
from tests.unit.outputs import prediction

GOOD = DIGITS.sample([1] * 64, 3, ts="2026-11-21 04:00:00")


class Message:
    """As much of a consumed message as is shown."""

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def value(self) -> bytes | None:
        return self._value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


def bodies(messages):
    return [(message[message.index(b'"x"') :]) for message in messages]


def test_the_first_pass_is_the_data_set_in_its_order():
    from sklearn.datasets import load_digits

    messages = list(islice(passes(0), ONE_PASS))
    parsed = DIGITS.parse(messages)
    assert parsed.good.all()
    assert (load_digits().data == parsed.X).all()
    assert (parsed.y == load_digits().target).all()


def test_later_passes_hold_the_same_digits_in_an_order_that_the_seed_decides():
    first, second = (bodies(part) for part in two_passes(seed=1))
    assert second != first
    assert sorted(second) == sorted(first)
    assert second == bodies(two_passes(seed=1)[1])
    assert second != bodies(two_passes(seed=2)[1])


def two_passes(seed, vary=False):
    messages = list(islice(passes(seed, vary), 2 * ONE_PASS))
    return messages[:ONE_PASS], messages[ONE_PASS:]


def test_varied_passes_hold_digits_that_were_never_sent_before():
    found = [
        DIGITS.parse(list(islice(passes(seed, vary=True), 20 * ONE_PASS))) for seed in (1, 1, 2)
    ]
    assert all(parsed.good.all() for parsed in found)
    one, again, other = (parsed.X for parsed in found)
    assert len(np.unique(one, axis=0)) == 20 * ONE_PASS
    assert (one == again).all()
    assert (one[:ONE_PASS] == other[:ONE_PASS]).all()
    assert (one[ONE_PASS:] != other[ONE_PASS:]).any(axis=1).mean() > 0.99
    assert (
        np.bincount(found[0].y[ONE_PASS : 2 * ONE_PASS]).tolist()
        == np.bincount(found[0].y[:ONE_PASS]).tolist()
    )


def test_a_message_bears_the_time_of_its_sending_in_utc():
    before = time.gmtime()
    stamp = time.strptime(orjson.loads(next(passes(0)))["ts"], "%Y-%m-%d %H:%M:%S")
    assert before[:6] <= stamp[:6] <= time.gmtime()[:6]


def test_every_connection_setting_reaches_the_client():
    s = Settings(
        kafka_bootstrap_servers="a:1,b:2",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="ann",
        kafka_sasl_password="s3cret",
        kafka_ssl_cafile="/ca.pem",
    )
    config = s.confluent_client()
    del config["reconnect.backoff.max.ms"]
    assert config == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "ann",
        "sasl.password": "s3cret",
        "ssl.ca.location": "/ca.pem",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (GOOD, "2026-11-21 04:00:00  label 3"),
        (prediction(GOOD, 3, 12, 1, 5), "label 3  predicted 3 right  model version 12  input 1:5"),
        (
            prediction(GOOD, 4, 12, 1, 5, replayed=True),
            "predicted 4 wrong  model version 12  input 1:5  replayed",
        ),
        (prediction(GOOD, None, None, 1, 5), "no model yet  input 1:5"),
        (DIGITS.sample([1] * 64, 3, source="page"), "label 3  from page"),
        (
            reject(b"no json", "The message is not JSON.", 1, 5),
            "input 1:5  The message is not JSON.  no json",
        ),
        (reject(None, "The message has no value.", 1, 5), "The message has no value.  (no value)"),
        (b"\x1b[31mred\n", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (b"[1, 2]", "[1, 2]"),
        (b"", ""),
        (None, "(no value)"),
        (b"a" * 1000, "a... (1,000 bytes)"),
    ],
)
def test_a_message_is_shown_as_one_readable_line(value, shown):
    line = describe(cast(Any, Message(value)))
    assert line.startswith("0:7  ")
    assert line.endswith(shown)
    assert line.isprintable()


def rejected(payload: bytes | None) -> bytes:
    parsed = DIGITS.parse([payload])
    return reject(payload, str(parsed.reasons[0]), 1, 5)


WRONG_LABEL = GOOD.replace(b'"actual_y":3', b'"actual_y":10')
TWICE = GOOD.replace(b'"actual_y":3', b'"actual_y":5,"actual_y":3')


@pytest.mark.parametrize(
    ("payload", "saved"),
    [
        (WRONG_LABEL, {"message": orjson.loads(WRONG_LABEL)}),
        (b"no json", {"message": "no json"}),
        (None, {"message": None}),
        (b"\xff", {"base64": "/w=="}),
        (TWICE, {"message": TWICE.decode()}),
    ],
    ids=["an object", "a text", "a tombstone", "no text", "what only a person may decide"],
)
def test_a_reject_is_saved_so_it_can_be_repaired_and_saving_repairs_nothing(payload, saved):
    line = reject_to_edit(rejected(payload), DIGITS)
    assert (line.pop("partition"), line.pop("offset")) == (1, 5)
    assert line.pop("reason") == str(DIGITS.parse([payload]).reasons[0])
    assert line == saved
    with pytest.raises(ValueError, match=r".+\.$"):
        repaired_message(orjson.dumps({"partition": 1, "offset": 5} | line), DIGITS)


@pytest.mark.parametrize(
    "more",
    [
        "18446744073709551616",
        "[" * 252 + "]" * 252,
        "[" * 300 + "]" * 300,
        "0.1000000000000000055",
        "1e-99999999999999999999",
    ],
    ids=[
        "beyond 64 bits",
        "deep",
        "too deep",
        "more digits than a float",
        "smaller than any number",
    ],
)
def test_saving_a_reject_keeps_each_number_or_leaves_it_text(more):
    payload = WRONG_LABEL.replace(b"{", b'{"more":%b,' % more.encode())
    line = orjson.loads(orjson.dumps(reject_to_edit(rejected(payload), DIGITS)))
    if isinstance(line["message"], str):
        line["message"] = line["message"].replace('"actual_y":10', '"actual_y":3')
    else:
        line["message"]["actual_y"] = 3
    if more.startswith("[" * 300):
        with pytest.raises(ValueError, match="nested too deeply"):
            repaired_message(orjson.dumps(line), DIGITS)
    else:
        assert f'"more":{more}'.encode() in repaired_message(orjson.dumps(line), DIGITS)


def test_an_edited_object_that_sending_would_change_is_not_sent():
    line = b'{"partition":1,"offset":5,"message":%b}' % GOOD.replace(
        b"{", b'{"more":99999999999999999999,'
    )
    with pytest.raises(ValueError, match="write it as text"):
        repaired_message(line, DIGITS)


def test_a_repaired_reject_is_sent_as_the_object_or_text_that_it_is():
    line = reject_to_edit(rejected(WRONG_LABEL), DIGITS)
    line["message"]["actual_y"] = 3
    assert repaired_message(orjson.dumps(line), DIGITS) == GOOD
    line["message"] = GOOD.decode()
    assert repaired_message(orjson.dumps(line), DIGITS) == GOOD


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (orjson.dumps({"message": GOOD.decode()}), "partition and offset"),
        (b'{"partition":1,"offset":5}', 'no "message"'),
        (b'{"partition":1,"offset":5,"message":{"x":1}}', '"ts" is missing'),
        (b'{"partition":1,"offset":5,"message":7}', "must be a JSON object"),
        (
            orjson.dumps({"partition": 1, "offset": 5, "message": "x" * 1_100_000}),
            "has 1100000 bytes",
        ),
    ],
)
def test_what_is_not_good_yet_is_not_sent_and_says_why(line, reason):
    with pytest.raises(ValueError, match=reason):
        repaired_message(line, DIGITS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--count", "5", "--endless"], "--count can't be used with"),
        (["--follow"], "--follow needs --show"),
        (["--show", "t", "--save-rejects", "f"], "Use only one of"),
        (["--rate", "0"], "--rate"),
        (["--count", "0"], "--count"),
        (["--replay-rejects", "no-such-file"], "does not exist"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, sentence):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert sentence in result.output
