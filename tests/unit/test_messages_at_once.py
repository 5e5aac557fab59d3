"""Messages made to look plain to the batch parser: each gets the verdict that it gets alone."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messages import DIGITS, Format

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
    assert [*map(orjson.loads, together.documents)] == [*map(orjson.loads, alone.documents)]


def test_numbers_that_move_from_one_message_to_the_next_are_refused_in_both():
    long, short = (GOOD.replace(NUMBERS, b",".join(b"1" for _ in range(n))) for n in (65, 63))
    parsed = DIGITS.parse([long, short] * 5)
    assert {error.code for error in parsed.reasons.values()} == {"wrong_length"}
    assert len(parsed.reasons) == 10


@given(
    st.lists(st.lists(st.floats(-100, 100) | st.integers(-100, 100), min_size=3, max_size=3), min_size=1, max_size=20)
)
def test_a_format_with_fractions_keeps_each_number(rows):
    form = Format(n_features=3, low=-100, high=100, n_classes=2, whole=False)
    parsed = form.parse([form.sample(row, 1) for row in rows])
    assert parsed.good.all()
    assert parsed.X.tolist() == rows
