import pickle
import threading
from dataclasses import replace

import pytest
import redis as redis_py
from sklearn.linear_model import SGDClassifier

from harness.stack import Stack, until
from loop.lease import Lease, new_submission
from loop.model_store import (
    ConflictError,
    IncompleteError,
    LeaseError,
    Meta,
    ModelFormatError,
    ModelStore,
    SignatureError,
    StoreError,
    new_model_id,
)
from loop.scores import Scores
from page.watcher import ModelWatcher
from settings import Settings

MODEL = pickle.dumps(SGDClassifier())


class Opened:
    """A pickle of this fails the test when it is opened."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened that must not be",)


@pytest.fixture
def store(redis: Stack) -> ModelStore:
    return ModelStore(redis.named().settings)


def meta(version: int = 1, **fields) -> Meta:
    return Meta(
        model_id="20260101T000000.000000Z-aaaa", version=version, progress={0: 5, 1: 7}, **fields
    )


def test_a_plain_client_unpickles_what_was_committed(store):
    store.commit(None, meta(), MODEL, b"")
    assert isinstance(pickle.loads(store.redis.get(store.settings.model_key)), SGDClassifier)


def test_what_was_committed_is_read_again_to_the_bit(store):
    scores = Scores(3, 2, "101", [[1, 2]], {"page": [1, 1]})
    given = meta(
        samples=3,
        rejected=2,
        rejected_by_reason={"empty": 2},
        scores=scores,
        checksums={0: [4, 77]},
        topic_id="t",
    )
    written = store.commit(None, given, MODEL, b"state")
    assert store.read(with_state=True) == written
    assert (written.model, written.state) == (MODEL, b"state")
    filled = ("commit_id", "saved_at", "libraries", "state_sha256")
    assert all(getattr(written.meta, name) for name in filled)
    assert replace(written.meta, **{name: getattr(given, name) for name in filled}) == given


def test_nothing_stored_reads_as_none(store):
    assert store.read() is None


def test_a_commit_on_what_somebody_else_changed_is_refused_and_writes_nothing(store):
    first = store.commit(None, meta(1), MODEL, b"a")
    second = store.commit(first, meta(2), MODEL + b"2", b"b")
    for stale in (None, first):
        with pytest.raises(ConflictError):
            store.commit(stale, meta(3), MODEL + b"3", b"c")
    assert store.read(with_state=True) == second


def test_a_commit_on_a_model_that_was_cleared_is_refused(store):
    first = store.commit(None, meta(1), MODEL, b"")
    store.clear()
    with pytest.raises(ConflictError):
        store.commit(first, meta(2), MODEL, b"")


def test_only_the_changed_pages_of_the_state_are_written(store):
    state = bytearray(100_000)
    before = store.commit(None, meta(1), MODEL, bytes(state))
    state[50_000] = 1
    sent = int(store.redis.info("stats")["total_net_input_bytes"])
    after = store.commit(before, meta(2), MODEL, bytes(state))
    assert int(store.redis.info("stats")["total_net_input_bytes"]) - sent < 20_000
    assert store.read(with_state=True) == after
    shorter = store.commit(after, meta(3), MODEL, b"short")
    assert store.read(with_state=True) == shorter


def test_a_commit_whose_answer_was_lost_recognises_itself(store, monkeypatch):
    real, lost = store._commit, []

    def lose_the_first_answer(**call):
        answer = real(**call)
        if not lost:
            lost.append(answer)
            raise redis_py.ConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(store, "_commit", lose_the_first_answer)
    stored = store.commit(None, meta(1), MODEL, b"")
    assert lost == [b"done"]
    assert store.read() == replace(stored, state=b"")


def test_a_commit_without_the_lease_is_refused(store):
    store.redis.set(store.keys.lease, "another")
    with pytest.raises(LeaseError):
        store.commit(None, meta(), MODEL, b"", submission="mine", lease_ms=1000)
    assert store.read() is None


@pytest.mark.parametrize("missing", [0, 2])
def test_a_key_that_goes_missing_is_noticed_at_the_next_commit(store, missing):
    stored = store.commit(None, meta(1), MODEL, b"state")
    store.redis.delete(store.keys[missing])
    with pytest.raises(ConflictError):
        store.commit(stored, meta(2), MODEL, b"state")
    with pytest.raises(StoreError):
        store.read(with_state=True)


def test_one_key_without_the_others_is_reported(store):
    store.commit(None, meta(), MODEL, b"")
    store.redis.delete(store.keys.model)
    with pytest.raises(IncompleteError, match=r"is gone while .* is still there"):
        store.read()


def test_an_unsigned_pickle_is_not_opened(store):
    store.redis.set(store.keys.model, pickle.dumps(Opened()))
    with pytest.raises(SignatureError, match="unsigned model"):
        store.read()


def test_a_changed_model_is_not_opened(store):
    store.commit(None, meta(), MODEL, b"")
    store.redis.set(store.keys.model, pickle.dumps(Opened()))
    with pytest.raises(SignatureError):
        store.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [("samples", "7"), ("progress", '{"0":9}'), ("model_id", "z"), ("extra", "1")],
)
def test_a_changed_field_is_noticed(store, name, value):
    store.commit(None, meta(), MODEL, b"")
    store.redis.hset(store.keys.meta, name, value)
    with pytest.raises(SignatureError):
        store.read()


def test_a_changed_state_is_noticed(store):
    store.commit(None, meta(), MODEL, b"state")
    store.redis.set(store.keys.state, b"stale")
    with pytest.raises(SignatureError):
        store.read(with_state=True)


def test_a_meta_swapped_with_an_older_one_of_the_same_key_is_noticed(store):
    first = store.commit(None, meta(1), MODEL, b"")
    old = store.redis.hgetall(store.keys.meta)
    store.commit(first, meta(2), MODEL + b"2", b"")
    store.redis.hset(store.keys.meta, mapping=old)
    with pytest.raises(SignatureError):
        store.read()


def test_a_model_of_another_key_in_the_same_redis_is_noticed(store, redis):
    store.commit(None, meta(), MODEL, b"")
    other = ModelStore(redis.named().settings)
    other.redis.set(other.keys.model, store.redis.get(store.keys.model))
    other.redis.hset(other.keys.meta, mapping=store.redis.hgetall(store.keys.meta))
    with pytest.raises(SignatureError):
        other.read()


def test_a_model_signed_with_another_key_is_not_opened(store, redis):
    store.commit(None, meta(), pickle.dumps(Opened()), b"")
    foreign = ModelStore(
        Settings(**(store.settings.model_dump() | {"model_signing_key": "x" * 32}))
    )
    with pytest.raises(SignatureError, match="not signed with this installation's key"):
        foreign.read()


def test_a_pickle_of_another_scikit_learn_says_what_to_do(store):
    model = MODEL.replace(b"1.9.1", b"1.0.0")
    assert model != MODEL
    store.commit(None, meta(), model, b"")
    with pytest.raises(ModelFormatError, match=r"Install those versions, or start over"):
        store.read().estimator()


def test_clearing_leaves_a_signed_mark_and_returns_whether_there_was_a_model(store):
    assert not store.clear()
    stored = store.commit(store.read(), meta(), MODEL, b"state")
    assert not stored.cleared
    assert store.clear()
    mark = store.read(with_state=True)
    assert mark.cleared
    assert mark.meta.starts == {0: 5, 1: 7}
    assert store.redis.exists(*store.keys) == 1
    fresh = store.commit(mark, meta(1), MODEL, b"")
    assert not store.read().cleared
    assert fresh.meta.cleared_at == 0


def test_clearing_works_on_what_can_not_be_read(store):
    store.redis.set(store.keys.model, b"unsigned")
    assert store.clear()
    assert store.read().cleared


def test_a_field_of_a_later_version_is_gone_after_the_next_commit(store):
    first = store.commit(None, meta(1), MODEL, b"")
    fields = {
        k.decode(): v for k, v in store.redis.hgetall(store.keys.meta).items() if k != b"signature"
    }
    fields["of_a_later_version"] = b"1"
    store.redis.hset(store.keys.meta, mapping=fields | {"signature": store.sign(MODEL, fields)})
    assert store.read() == first
    second = store.commit(store.read(), meta(2), MODEL, b"")
    assert store.read() == second


@pytest.mark.parametrize("key", [0, 1, 2])
def test_a_key_of_another_type_is_reported_in_a_sentence(store, key):
    stored = store.commit(None, meta(), MODEL, b"state")
    store.redis.delete(store.keys[key])
    store.redis.rpush(store.keys[key], "x")
    sentence = r"of another type than the model's.*python redis_clear.py"
    with pytest.raises(StoreError, match=sentence):
        store.read(with_state=True)
    if key:  # a commit writes over the model
        with pytest.raises(StoreError, match=sentence):
            store.commit(stored, meta(2), MODEL, b"state")


def test_a_field_whose_name_is_not_utf_8_is_a_sentence_and_can_be_cleared(store):
    store.commit(None, meta(), MODEL, b"")
    store.redis.hset(store.keys.meta, b"\xff", 1)
    with pytest.raises(SignatureError):
        store.read()
    assert store.clear()
    assert store.read().cleared


@pytest.mark.parametrize(
    "newest",
    ["20991231T235959-ffffffff", "99991231T235959-ffffffff", "20991231T235959.999999Z-ffffffff"],
)
def test_submissions_sort_by_their_order_also_when_the_clock_goes_back(store, newest):
    stored = store.commit(None, meta(submission=newest), MODEL, b"")
    first = new_submission(store)
    assert first > newest
    store.commit(stored, meta(2), MODEL, b"", submission=first, lease_ms=1000)
    store.redis.delete(store.keys.lease)
    assert new_submission(store) > first
    store.clear()
    after = new_submission(store)
    assert after > first
    Lease(store, after).take()


def test_submissions_of_one_moment_differ_and_sort(store):
    stored, newest = store.commit(None, meta(), MODEL, b""), ""
    for version in range(2, 20):
        assert new_submission(store) > newest
        newest = new_submission(store)
        stored = store.commit(stored, meta(version), MODEL, b"", submission=newest, lease_ms=1000)
        store.redis.delete(store.keys.lease)


def test_a_lease_without_an_end_runs_out(store, monkeypatch):
    monkeypatch.setattr("loop.lease.LEASE_MS", 200)
    store.redis.set(store.keys.lease, "out of a backup")
    Lease(store, new_submission(store)).take(1000)


@pytest.mark.parametrize("key", [1, 3])
def test_a_lease_of_another_type_is_reported_in_a_sentence(store, key):
    submission = new_submission(store)
    store.redis.rpush(store.keys[key], "x")
    with pytest.raises(LeaseError, match=r"of another type.*python redis_clear.py"):
        Lease(store, submission).take()


def test_a_redis_out_of_memory_takes_nothing_of_a_commit(store, redis, monkeypatch):
    monkeypatch.setattr("loop.model_store.RETRY_SECONDS", 0.5)
    first = store.commit(None, meta(1), MODEL, b"state")
    redis.redis_admin().config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreError, match="has taken no commit"):
            store.commit(first, meta(2), MODEL + b"2", b"other")
    finally:
        redis.redis_admin().config_set("maxmemory", 0)
    assert store.read(with_state=True) == first
    store.commit(first, meta(2), MODEL + b"2", b"other")


def test_model_ids_sort_by_when_they_were_made_also_when_the_clock_goes_back():
    ids = [new_model_id()]
    ids += [new_model_id(ids[-1]) for _ in range(5)]
    assert new_model_id("20990101T000000.000000Z-ffff") > "20990101T000000.000000Z-ffff"
    assert ids == sorted(ids)


def test_a_watcher_sees_each_newer_model_soon_and_never_goes_back(store):
    watcher = ModelWatcher(store.settings)
    seen, moved = [], threading.Event()
    watcher.on_change(lambda stored: (seen.append(stored.meta.order), moved.set()))
    watcher.start()
    try:
        until(lambda: watcher.error is None, 30)
        first = store.commit(None, meta(5), MODEL, b"")
        assert moved.wait(5)
        older = store.commit(first, meta(3), MODEL, b"")
        newer = store.commit(older, meta(6), MODEL, b"")
        until(lambda: watcher.current == newer, 30)
        store.clear()
        cleared = store.read()
        again = store.commit(cleared, replace(meta(1), model_id=new_model_id()), MODEL, b"")
        until(lambda: watcher.current.meta.model_id == again.meta.model_id, 30)
        assert seen == sorted(seen)
        store.redis.set(store.keys.model, b"unsigned")
        until(lambda: watcher.error, 30)
        assert watcher.current.meta == again.meta
    finally:
        watcher.stop()
