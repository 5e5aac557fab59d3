import base64
import json

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loop.messages import (
    ADDED,
    DIGITS,
    MAX_MESSAGE_BYTES,
    MAX_SAMPLE_BYTES,
    BadMessageError,
    Format,
    load_format,
    reject,
)
from tests.unit.outputs import prediction

X = [i % 17 for i in range(64)]
GOOD = DIGITS.sample(X, 3, ts="2026-01-02 03:04:05")


def with_fields(**changed) -> bytes:
    """Return the good message with these fields instead; ``...`` takes a field out."""
    message = orjson.loads(GOOD) | changed
    return json.dumps({k: v for k, v in message.items() if v is not ...}).encode()


def test_a_sample_goes_over_the_wire_as_the_contract_says():
    assert orjson.loads(GOOD) == {"ts": "2026-01-02 03:04:05", "x": X, "actual_y": 3}
    assert orjson.loads(DIGITS.sample(X, 3, source="page"))["source"] == "page"


def test_a_good_batch_keeps_numbers_labels_and_order():
    batch = [
        DIGITS.sample(np.roll(X, i), i % 10, source="page" if i % 2 else None) for i in range(100)
    ]
    parsed = DIGITS.parse(batch)
    assert parsed.good.all()
    assert not parsed.reasons
    assert parsed.X.tolist() == [np.roll(X, i).tolist() for i in range(100)]
    assert parsed.X.dtype == np.float64
    assert parsed.y.tolist() == [i % 10 for i in range(100)]
    assert parsed.sources == ["page" if i % 2 else None for i in range(100)]


BAD = [
    (None, "empty", "The message has no value (a tombstone)."),
    (b"", "empty", "The message is empty."),
    (b"nope", "not_json", "The message is not JSON: "),
    (GOOD[:-1], "not_json", "The message is not JSON: "),
    (GOOD + GOOD, "not_json", "The message is not JSON: "),
    (GOOD.replace(b"3}", b"NaN}"), "not_json", "The message is not JSON: "),
    (b"[" * 5000 + b"]" * 5000, "not_json", "The message is not JSON: "),
    (
        b'{"z":' + b"[" * 1010 + b"]" * 1010 + b',"\\u0078":1}',
        "not_json",
        "The message is nested too deeply.",
    ),
    (
        GOOD.replace(b"2026", b"\xff\xfe"),
        "not_utf8",
        "The message is not UTF-8: byte 7 can't be decoded.",
    ),
    (b"[1]", "not_an_object", "The message must be a JSON object, not a list."),
    (b"null", "not_an_object", "The message must be a JSON object, not null."),
    (with_fields(x=...), "missing_field", 'The field "x" is missing.'),
    (with_fields(actual_y=...), "missing_field", 'The field "actual_y" is missing.'),
    (with_fields(ts=...), "missing_field", 'The field "ts" is missing.'),
    (with_fields(ts=5), "wrong_type", '"ts" must be text, not a whole number.'),
    (with_fields(source=None), "wrong_type", '"source" must be text, not null.'),
    (with_fields(x="0123"), "wrong_type", '"x" must be a list of 64 numbers, not text.'),
    (with_fields(x=X[:-1]), "wrong_length", '"x" must hold 64 numbers, it holds 63.'),
    (with_fields(x=[*X, 1]), "wrong_length", '"x" must hold 64 numbers, it holds 65.'),
    (with_fields(x=[]), "wrong_length", '"x" must hold 64 numbers, it holds 0.'),
    (with_fields(x=[17, *X[1:]]), "out_of_range", '"x"[0] must be in 0..16, not 17.'),
    (with_fields(x=[*X[:-1], -1]), "out_of_range", '"x"[63] must be in 0..16, not -1.'),
    (
        with_fields(x=[10**30, *X[1:]]),
        "wrong_type",
        '"x"[0] must be a whole number, not a number with a fraction.',
    ),
    (
        with_fields(x=[1.5, *X[1:]]),
        "wrong_type",
        '"x"[0] must be a whole number, not a number with a fraction.',
    ),
    (
        with_fields(x=[1.0, *X[1:]]),
        "wrong_type",
        '"x"[0] must be a whole number, not a number with a fraction.',
    ),
    (
        with_fields(x=[True, *X[1:]]),
        "wrong_type",
        '"x"[0] must be a whole number, not true or false.',
    ),
    (with_fields(x=[None, *X[1:]]), "wrong_type", '"x"[0] must be a whole number, not null.'),
    (with_fields(x=[[1], *X[1:]]), "wrong_type", '"x"[0] must be a whole number, not a list.'),
    (with_fields(actual_y=10), "out_of_range", '"actual_y" must be in 0..9, not 10.'),
    (with_fields(actual_y=-1), "out_of_range", '"actual_y" must be in 0..9, not -1.'),
    (with_fields(actual_y="3"), "wrong_type", '"actual_y" must be a whole number, not text.'),
    (
        with_fields(actual_y=True),
        "wrong_type",
        '"actual_y" must be a whole number, not true or false.',
    ),
    (
        with_fields(actual_y=3.0),
        "wrong_type",
        '"actual_y" must be a whole number, not a number with a fraction.',
    ),
    (
        GOOD[:-1] + b',"actual_y":4}',
        "duplicate_field",
        'The field "actual_y" appears more than once.',
    ),
    (GOOD[:-1] + b',"\\u0078":[]}', "duplicate_field", 'The field "x" appears more than once.'),
    (with_fields(more="a" * MAX_SAMPLE_BYTES), "too_large", "The message has "),
]


@pytest.mark.parametrize(("payload", "code", "sentence"), BAD)
def test_a_bad_message_is_told_why_and_the_good_ones_beside_it_are_kept(payload, code, sentence):
    parsed = DIGITS.parse([GOOD] * 20 + [payload] + [GOOD] * 20)
    assert parsed.good.tolist() == [True] * 20 + [False] + [True] * 20
    assert parsed.X.shape == (40, 64)
    assert parsed.reasons[20].code == code
    assert str(parsed.reasons[20]).startswith(sentence)


def test_a_batch_of_only_bad_messages_and_an_empty_batch_have_no_samples():
    parsed = DIGITS.parse([b"nope"] * 100)
    assert parsed.X.shape == (0, 64)
    assert sorted(parsed.reasons) == list(range(100))
    assert DIGITS.parse([]).X.shape == (0, 64)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
# Sixty-four draws a message would be slow: most numbers of a list are the good message's.
digits = st.tuples(st.integers(0, 17), st.integers(60, 67), st.integers(-1, 17)).map(
    lambda t: [t[2], *(X * 2)[t[0] : t[0] + t[1] - 1]]
)
numbers = st.integers(-2, 18) | st.sampled_from([1.0, 2.5, True, None, "3", float("nan"), 10**40])
mutated_messages = st.fixed_dictionaries(
    {},
    optional={
        "ts": st.text(max_size=8) | json_values,
        "x": digits | numbers.map(lambda n: [*X[1:], n]) | json_values,
        "actual_y": numbers | st.integers(0, 9),
        "source": st.text(max_size=4) | st.none() | st.integers(),
        "predict_y": json_values,
        "_index": st.integers(0, 3),
        "more": json_values,
    },
).map(lambda message: json.dumps(message).encode())
spliced = st.tuples(st.binary(max_size=6), st.integers(0, len(GOOD))).map(
    lambda t: GOOD[: t[1]] + t[0] + GOOD[t[1] :]
)
cut = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 4)).map(
    lambda t: GOOD[: t[0]] + GOOD[t[0] + t[1] :]
)
payloads = (
    st.sampled_from([GOOD, GOOD, GOOD + b"\n", b"", None, GOOD + GOOD, b" " + GOOD])
    | mutated_messages
    | spliced
    | cut
)


@given(st.lists(payloads, max_size=12))
@example([GOOD + b"\n" + GOOD, b"{}"])
@example([b'{"_index":0,"ts":"a"', b'"x":[1],"actual_y":1}'])
@example([GOOD[:-1] + b',"source":null}'])
@example([GOOD[:-1] + b',"source":"a"}', GOOD[:-1] + b',"source":null}'])
def test_the_whole_batch_and_one_by_one_give_the_same_verdict(batch):
    together, alone = DIGITS.parse(batch), DIGITS._parse_one_by_one(batch)
    assert together.good.tolist() == alone.good.tolist()
    assert together.X.tolist() == alone.X.tolist()
    assert together.y.tolist() == alone.y.tolist()
    assert together.sources == alone.sources
    assert {i: str(e) for i, e in together.reasons.items()} == {
        i: str(e) for i, e in alone.reasons.items()
    }
    assert together.documents == alone.documents


@given(st.lists(payloads, max_size=6))
def test_what_goes_out_is_json_that_the_job_wrote_its_own_fields_to(batch):
    parsed = DIGITS.parse(batch)
    for document in parsed.documents:
        out = orjson.loads(prediction(document, 7, 12, 1, 99, True))
        assert {name: out[name] for name in ADDED} == {
            "predict_y": 7,
            "model_version": 12,
            "partition": 1,
            "offset": 99,
            "replayed": True,
        }
        # A field that the message brought itself would stand twice.
        assert prediction(document, 7, 12, 1, 99).count(b'"predict_y":') == 1 + document.count(
            b'"predict_y":'
        )
        assert (
            b'"predict_y":' not in document or b"\\" in document or "more" in orjson.loads(document)
        )


def test_a_prediction_before_there_is_a_model_is_null_and_not_marked_as_replayed():
    out = orjson.loads(prediction(GOOD, None, None, 0, 5))
    assert (out["predict_y"], out["model_version"], out["offset"]) == (None, None, 5)
    assert "replayed" not in out


def test_a_reject_keeps_payload_reason_partition_and_offset():
    out = orjson.loads(reject(b"\xffno", "Why.", 2, 7))
    assert base64.b64decode(out["payload"]) == b"\xffno"
    assert (out["reason"], out["partition"], out["offset"]) == ("Why.", 2, 7)
    assert orjson.loads(reject(None, "Why.", 0, 0))["payload"] is None


def test_a_reject_too_large_for_its_topic_is_cut_and_says_so():
    out = reject(b"a" * MAX_MESSAGE_BYTES, "Why.", 0, 0)
    assert len(out) < MAX_MESSAGE_BYTES
    assert (
        orjson.loads(out)["reason"]
        == "Why. The payload of 1000000 bytes is cut to its first 700000."
    )


def test_the_largest_good_sample_still_fits_where_it_goes_out():
    largest = with_fields(more="a" * (MAX_SAMPLE_BYTES - len(with_fields(more=""))))
    parsed = DIGITS.parse([largest])
    assert len(largest) == MAX_SAMPLE_BYTES
    assert parsed.good.all()
    assert len(prediction(parsed.documents[0], 1, 10**9, 99, 10**12, True)) < MAX_MESSAGE_BYTES


def test_a_format_of_fractions_takes_whole_and_broken_numbers():
    wine = Format(n_features=3, low=0, high=2000, n_classes=3, whole=False)
    batch = [
        wine.sample([1, 2.5, 3], 2),
        b'{"ts":"a","x":[1,NaN,2],"actual_y":1}',
        b'{"ts":"a","x":[1,2,3],"actual_y":1}',
    ]
    parsed = wine.parse(batch)
    assert parsed.good.tolist() == [True, False, True]
    assert parsed.X.tolist() == [[1, 2.5, 3], [1, 2, 3]]


def test_a_format_is_found_by_name_and_a_wrong_name_is_said():
    assert load_format("loop.messages:DIGITS") is DIGITS
    assert load_format("messages:DIGITS") is DIGITS  # as it was called before 0.2.0
    for name in ("loop.messages", "loop.messages:NONE", "no_such_module:X", ""):
        with pytest.raises(ValueError, match="MESSAGE_FORMAT"):
            load_format(name)


def test_a_bad_message_error_carries_its_code():
    assert BadMessageError("empty", "The message is empty.").code == "empty"
