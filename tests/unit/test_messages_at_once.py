"""Messages made to look plain to the batch parser: each gets the verdict that it gets alone."""

import json
import random

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.messages import ADDED, DIGITS, MAX_DEPTH, Format

X = [i % 17 for i in range(64)]
GOOD = DIGITS.sample(X, 3, ts="2026-01-02 03:04:05")
NUMBERS = GOOD[GOOD.index(b"[") + 1 : GOOD.index(b"]")]
EMPTY = GOOD.replace(NUMBERS, b"")
LOOKALIKES = [
    EMPTY.replace(b"2026", b"[%b]" % NUMBERS),
    EMPTY.replace(b'{"ts"', b'{"y":{"x":[%b]},"ts"' % NUMBERS).replace(b'"x":[],', b""),
    GOOD[:-1] + b',"x":[]}',
    GOOD[:-1] + b',"source":"x"}',
    GOOD[:-1] + b',"source":"a","source":"b"}',
    GOOD[:-1] + b',"source":null}',
    GOOD[:-1] + b',"room":"7"}',
    GOOD[:-1] + b',"predict_y":1}',
    GOOD + b" ",
    b" " + GOOD,
    GOOD.replace(b"[0,", b"[00,"),
    GOOD.replace(b"[0,1,", b"[,01,"),
    GOOD.replace(b"[0,1,", b"[0 ,1,"),
    GOOD.replace(b"[0,1,", b"[0.0,1,"),
    GOOD.replace(b"[0,1,", b"[-0,1,"),
    GOOD.replace(b"[0,1,", b"[1e0,1,"),
    GOOD.replace(b"[0,1,", b"[true,1,"),
    GOOD.replace(b"[0,1,", b"[[0],1,"),
    GOOD.replace(b"[0,1,", b"[,,123,"),
    GOOD.replace(b"[0,1,", b"[0,\x001,"),
    GOOD.replace(b",", b", "),
    GOOD.replace(b":", b": ").replace(b",", b", "),
    GOOD.replace(b"]", b"]]"),
    GOOD.replace(b"3}", b"3,}"),
]


@pytest.mark.parametrize("odd", LOOKALIKES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_lookalike_among_good_messages_gets_the_verdict_that_it_gets_alone(odd, place):
    batch = [GOOD] * 3
    batch[place] = odd
    together, alone = DIGITS.parse(batch * 5), DIGITS._parse_one_by_one(batch * 5)
    assert together.good.tolist() == alone.good.tolist()
    assert np.array_equal(together.X, alone.X)
    assert together.sources == alone.sources
    assert together.documents == alone.documents


EXACT = [
    b"18446744073709551616",
    b"-9223372036854775809",
    b"123456789012345678901234567890",
    b"[[18446744073709551617]]",
    b'{"id":99999999999999999999,"id":1}',
    b"1.10",
    b"-0.0",
    b"1E5",
    b"1e-400",
    b"0.1000000000000000055511151231257827",
    b'"\\u00e9\\/\\ud83d\\ude00"',
    b'{"x":[1],"partition":7,"\\u0074s":1}',
    b'"]},{"',
    b'"\\\\"',
    b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1),
]


@pytest.mark.parametrize("value", EXACT)
@pytest.mark.parametrize("added", [b"", b',"predict_y":4', b',"off\\u0073et":[{"x":1}]'])
def test_further_fields_are_carried_along_to_the_byte(value, added):
    message = GOOD[:-1] + b',"more":' + value + b"}"
    parsed = DIGITS.parse(
        [GOOD, message[:-1] + added + b"}", b'{"more":%b%b,%b ' % (value, added, GOOD[1:])]
    )
    assert parsed.good.all()
    assert parsed.documents == [GOOD, message, b'{"more":%b,%b' % (value, GOOD[1:])]


LOSSY = [
    b"1e400",
    b"-1e400",
    b"9" * 400,
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b"01",
]


@pytest.mark.parametrize("value", LOSSY)
def test_what_json_libraries_do_not_agree_on_is_a_reject(value):
    message = GOOD[:-1] + b',"more":' + value + b"}"
    assert [error.code for error in DIGITS.parse([GOOD, message] * 5).reasons.values()] == [
        "not_json"
    ] * 5


@pytest.mark.parametrize("levels", [MAX_DEPTH, 255, 500, 1021, 1022, 1023, 1024, 5000, 30_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_nesting_that_orjson_reads_and_cannot_write_is_a_reject(levels, pair):
    opened = pair[0] if pair == "[]" else '{"a":'
    value = (opened * levels + "0" + pair[1] * levels).encode()
    for field in (b'"more"', b'"predict_y"', b'"\\u0061"'):
        message = GOOD[:-1] + b"," + field + b":" + value + b"}"
        parsed = DIGITS.parse([GOOD] * 10 + [message] + [GOOD] * 10)
        assert parsed.good.tolist() == [True] * 10 + [False] + [True] * 10
        assert parsed.reasons[10].code == ("not_json" if len(message) <= 65_536 else "too_large")


@pytest.mark.parametrize("flat", [",[[0]]" * 300, "," + '"["' + ',"{[["' * 300])
def test_brackets_beside_each_other_or_in_text_are_no_nesting(flat):
    message = GOOD[:-1] + f',"more":[0{flat}]}}'.encode()
    assert DIGITS.parse([message]).documents == [message]


class Fragile(Format):
    """A parser with a fault of its own, as no one foresaw it."""

    def _judge(self, payload):
        if b"poison" in payload:
            raise RuntimeError("bad luck\ud800")
        return super()._judge(payload)

    def _parse_at_once(self, payloads):
        if any(b"poison" in payload for payload in payloads):
            raise KeyError("together")
        return super()._parse_at_once(payloads)


FRAGILE = Fragile(64, 0, 16, 10)


def test_a_fault_of_the_parser_rejects_the_one_message_it_fails_on(caplog):
    parsed = FRAGILE.parse([GOOD, b"nope", GOOD[:-1] + b',"a":"poison"}', GOOD])
    assert parsed.good.tolist() == [True, False, False, True]
    assert [parsed.reasons[i].code for i in (1, 2)] == ["not_json", "unforeseen"]
    assert "RuntimeError" in str(parsed.reasons[2])
    assert isinstance(parsed.reasons[2].__cause__, RuntimeError)
    assert "KeyError: 'together'" in caplog.text


class Exact:
    """What a further field may hold, written in one of JSON's many ways."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - test data

    def value(self, depth: int = 0) -> bytes:
        pick = self.rng.randrange(9 if depth < 3 else 6)
        if pick < 3:
            return self.rng.choice(EXACT[:3] + EXACT[5:10])
        if pick < 6:
            return json.dumps(self.rng.choice(["", "]", '",', "\\", "\u00e9", "ts"])).encode()
        inner = [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
        if pick < 8:
            return b"[" + self.space() + b",".join(inner) + b"]"
        return b"{" + b",".join(self.name() + b":" + value for value in inner) + b"}"

    def name(self) -> bytes:
        return self.rng.choice([b'"a"', b'"x"', b'"offset"', b'"\\u0061"', b'"b,"', b'"ts"'])

    def space(self) -> bytes:
        return self.rng.choice([b"", b"", b" ", b"\n\t"])


@given(st.integers(0, 10**9), st.booleans())
def test_any_further_field_goes_out_as_it_is_written(seed, has_added):
    exact = Exact(seed)
    fields = [b'"more%d":%b%b' % (i, exact.space(), exact.value()) for i in range(3)]
    own = [b'"ts":"a"', b'"x":[%b]' % NUMBERS, b'"actual_y":3']
    added = [b'"%b":%b' % (name.encode(), exact.value()) for name in ADDED] if has_added else []
    members = fields + own + added
    exact.rng.shuffle(members)
    message, kept = (
        b"{" + b",".join(some) + b"}" for some in (members, [m for m in members if m not in added])
    )
    together, alone = DIGITS.parse([message] * 3), DIGITS._parse_one_by_one([message] * 3)
    assert together.documents == alone.documents == [kept] * 3
    orjson.loads(kept)


def test_numbers_that_move_from_one_message_to_the_next_are_refused_in_both():
    long, short = (GOOD.replace(NUMBERS, b",".join(b"1" for _ in range(n))) for n in (65, 63))
    parsed = DIGITS.parse([long, short] * 5)
    assert {error.code for error in parsed.reasons.values()} == {"wrong_length"}
    assert len(parsed.reasons) == 10


@given(
    st.lists(
        st.lists(st.floats(-100, 100) | st.integers(-100, 100), min_size=3, max_size=3),
        min_size=1,
        max_size=20,
    )
)
def test_a_format_with_fractions_keeps_each_number(rows):
    form = Format(n_features=3, low=-100, high=100, n_classes=2, whole=False)
    parsed = form.parse([form.sample(row, 1) for row in rows])
    assert parsed.good.all()
    assert parsed.X.tolist() == rows
