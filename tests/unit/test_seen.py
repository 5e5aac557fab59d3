import numpy as np

from loop.seen import CAPACITY, Seen

DRAW = np.random.default_rng(0)


def restarted(seen: Seen) -> Seen:
    again, rest = Seen.split(seen.dumps() + b"the learner's")
    assert rest == b"the learner's"
    assert again.dumps() == seen.dumps()
    return again


def test_a_sample_is_known_once_it_was_added():
    seen, X = Seen(), DRAW.random((30, 64))
    assert not seen.knows(X).any()
    seen.add(X[:10])
    assert seen.knows(X).tolist() == [True] * 10 + [False] * 20
    again = restarted(seen)
    assert again.knows(X).tolist() == [True] * 10 + [False] * 20
    again.add(X)
    assert again.knows(X).all()


def test_the_smallest_change_makes_another_sample():
    seen, X = Seen(), DRAW.random((1, 64))
    seen.add(X)
    assert not seen.knows(np.nextafter(X, 1)).any()


def test_the_memory_is_bounded_and_forgets_the_oldest():
    seen, X = Seen(), np.arange(CAPACITY + 100.0)[:, None]
    seen.add(X[:5000])
    seen = restarted(seen)
    seen.add(X[4000:])
    known = restarted(seen).knows(X)
    assert not known[:100].any()
    assert known[100:].all()
    assert len(seen.dumps()) == len(Seen().dumps()) == Seen.size


def test_a_repeated_sample_changes_no_byte():
    seen, X = Seen(), DRAW.random((25, 64))
    seen.add(X)
    before = seen.dumps()
    seen.add(X[::-1])
    assert seen.dumps() == before


def test_a_signed_pickle_brings_no_memory():
    seen, rest = Seen.split(b"")
    assert (seen.added, rest) == (0, b"")
