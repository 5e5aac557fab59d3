"""Every kind of bad message through the real job: kept with its reason, counted, and nothing stops or learns it."""

import base64
import contextlib
import random
from collections import Counter

import orjson
import pytest
from confluent_kafka import KafkaException, Producer
from sklearn.datasets import load_digits

from harness.proof import read_committed
from harness.stack import Stack, until
from loop.messages import DIGITS, MAX_RECORD_BYTES, MAX_REJECTED_BYTES, BadMessageError
from loop.model_store import ModelStore, Stored

X, LABELS = load_digits(return_X_y=True)
GOOD = {"ts": "2026-01-01 00:00:00", "x": [0] * 64, "actual_y": 3}


def changed(**fields: object) -> bytes:
    """Return a good message with these fields instead; a field of None is left out."""
    return orjson.dumps({k: v for k, v in (GOOD | fields).items() if v is not None})


BAD: dict[str, tuple[bytes | None, str]] = {
    "not JSON": (b"nope", "not JSON"),
    "half a message": (changed()[:-5], "not JSON"),
    "text for the pixels": (changed(x="0" * 64), '"x" must be a list'),
    "63 values": (changed(x=[0] * 63), "it holds 63"),
    "65 values": (changed(x=[0] * 65), "it holds 65"),
    "a value above 16": (changed(x=[17] + [0] * 63), "must be in 0..16, not 17"),
    "a value below 0": (changed(x=[-1] + [0] * 63), "must be in 0..16, not -1"),
    "NaN": (changed().replace(b"[0,", b"[NaN,"), "not JSON"),
    "a bool for a number": (changed(x=[True] + [0] * 63), "not true or false"),
    "a fraction": (changed(x=[1.5] + [0] * 63), "must be a whole number"),
    "a float": (changed(x=[1.0] + [0] * 63), "must be a whole number"),
    "a label of 10": (changed(actual_y=10), "must be in 0..9, not 10"),
    "a label of text": (changed(actual_y="3"), '"actual_y" must be a whole number, not text'),
    "no time": (changed(ts=None), '"ts" is missing'),
    "no pixels": (changed(x=None), '"x" is missing'),
    "no label": (changed(actual_y=None), '"actual_y" is missing'),
    "a number for the time": (changed(ts=5), '"ts" must be text'),
    "a list": (b"[1,2]", "must be a JSON object"),
    "empty": (b"", "is empty"),
    "a tombstone": (None, "no value"),
    "no UTF-8": (b'{"ts":"\xff\xfe"}', "not UTF-8"),
    "deep nesting": (b"[" * 50_000 + b"]" * 50_000, "has 100000 bytes"),
    "nesting inside the limit": (b'{"ts":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "JSON"),
    "nesting that can be read and not written": (
        changed()[:-1] + b',"a":' + b"[" * 300 + b"]" * 300 + b"}",
        "too deeply",
    ),
    "a field twice": (changed()[:-1] + b',"actual_y":4}', "more than once"),
    "1 MB of text": (b'{"ts":"' + b"a" * 1_000_000 + b'"}', "is cut to its first"),
}


@contextlib.contextmanager
def sending(stack: Stack):
    """Give a function that sends one message; all have arrived when the block ends."""
    options = {
        "linger.ms": 5,
        "message.max.bytes": 2_000_000,
        "queue.buffering.max.kbytes": 2_000_000,
    }
    producer = Producer(stack.settings.confluent_client() | options)
    problems: list = []

    def send(value: bytes | None) -> None:
        producer.produce(
            stack.settings.input_topic, value, on_delivery=lambda error, _: problems.append(error)
        )
        producer.poll(0)

    yield send
    assert producer.flush(120) == 0
    assert not [error for error in problems if error]


def judged(stack: Stack, samples: int, rejected: int, seconds: float = 180) -> Stored:
    """Return what is stored once so many samples are learned and so many messages rejected, and not one more."""
    store = ModelStore(stack.settings)

    def there() -> Stored:
        stored = store.read()
        assert stored
        assert stored.meta.samples + stored.meta.rejected >= samples + rejected
        return stored

    stored = until(there, seconds, f"{samples} samples and {rejected} rejects")
    assert (stored.meta.samples, stored.meta.rejected) == (samples, rejected)
    return stored


def rejects(stack: Stack, wanted: int) -> list[dict]:
    """Return the committed rejects, once there are so many."""

    def there() -> list[dict]:
        found = list(read_committed(stack.settings, stack.settings.reject_topic).values())
        assert len(found) >= wanted
        return [orjson.loads(value or b"") for value in found]

    return until(there, 90, f"{wanted} rejects")


def counters(stack: Stack, job: str) -> dict[str, int]:
    """Return the job's counters of rejects by reason from Flink."""
    vertex = stack.rest(f"/jobs/{job}")["vertices"][0]["id"]
    names = [
        m["id"]
        for m in stack.rest(f"/jobs/{job}/vertices/{vertex}/subtasks/metrics")
        if "online_ml.rejected_" in m["id"]
    ]
    answer = stack.rest(f"/jobs/{job}/vertices/{vertex}/subtasks/metrics?get={','.join(names)}")
    return {m["id"].rpartition("rejected_")[2]: int(m["sum"]) for m in answer}


@pytest.fixture
def job(stack: Stack):
    """The job with the linear learner, cancelled at the end."""
    running = stack.submit_job(LEARNER="sgd")
    yield running
    stack.cancel_job(running)


def test_each_kind_of_bad_message_is_kept_with_its_reason_and_the_model_learns_only_good_ones(
    stack, job
):
    kinds = list(BAD)
    with sending(
        stack
    ) as send:  # bad ones first: a model that has only rejected must still be able to begin
        for kind in kinds[:5]:
            send(BAD[kind][0])
    judged(stack, 0, 5)
    worker_restarted(stack)
    with sending(stack) as send:
        for i, kind in enumerate(kinds[5:]):
            send(DIGITS.sample(X[i], LABELS[i]))
            send(BAD[kind][0])
    stored = judged(stack, len(kinds) - 5, len(kinds))
    found = sorted(rejects(stack, len(kinds)), key=lambda r: r["offset"])
    assert len({(r["partition"], r["offset"]) for r in found}) == len(found) == len(kinds)
    for kind, reject in zip(kinds, found, strict=True):
        payload, reason = BAD[kind]
        assert reason in reject["reason"], (kind, reject["reason"])
        sent = None if reject["payload"] is None else base64.b64decode(reject["payload"])
        assert sent == (payload if payload is None else payload[:MAX_REJECTED_BYTES]), kind
    reasons = Counter(stored.meta.rejected_by_reason)
    assert sum(reasons.values()) == len(kinds)
    since = reasons - Counter(codes(kinds[:5]))
    until(
        lambda: counters(stack, job) == dict(since),
        30,
        "Flink counts the rejects of this task by reason",
    )


def codes(kinds: list[str]) -> list[str]:
    """Return the codes under which these kinds are counted."""
    found = DIGITS.parse([BAD[kind][0] for kind in kinds]).reasons.values()
    assert all(isinstance(error, BadMessageError) for error in found)
    return [error.code for error in found]


def worker_restarted(stack: Stack) -> None:
    """SIGKILL the Python workers; Flink starts them anew."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get("RUN_DIR") == str(stack.settings.run_dir)
            if ours and "pyflink.fn_execution" in " ".join(process.cmdline()):
                process.kill()


def test_ten_thousand_fuzzed_messages_are_judged_as_the_parser_judges_them_one_by_one(stack, job):
    rng = random.Random(7)  # noqa: S311 - test data
    messages = [fuzzed(rng) for _ in range(10_000)]
    verdicts = [bool(DIGITS.parse([message]).good[0]) for message in messages]
    assert 1000 < sum(verdicts) < 9000, "the test needs both kinds"
    with sending(stack) as send:
        for message in messages:
            send(message)
    judged(stack, sum(verdicts), 10_000 - sum(verdicts))
    assert stack.exceptions(job) == ""


def fuzzed(rng: random.Random) -> bytes:
    """Return a good message with, in most cases, one to three random bytes changed, cut out, doubled or put in."""
    i = rng.randrange(len(X))
    message = bytearray(DIGITS.sample(X[i], LABELS[i]))
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        at = rng.randrange(len(message))
        part = rng.choice(
            [
                b"",
                bytes([rng.randrange(256)]),
                b'"',
                b"\n",
                b"\\u0000",
                b"0",
                b"-",
                b"1e5",
                b"null",
                b"{}",
                b"}\n{",
            ]
        )
        message[at : at + rng.randrange(3)] = part
    return bytes(message)


# 400 are more bytes than the TaskManager has outside its heap.
@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.long)])
def test_messages_of_one_megabyte_in_a_row_do_not_kill_the_taskmanager(stack, job, count):
    alive = stack.parts["taskmanager"].popen
    big = b'{"ts":"' + b"a" * 999_990 + b'"}'
    with sending(stack) as send:
        send(DIGITS.sample(X[0], LABELS[0]))
        for _ in range(count):
            send(big)
        send(DIGITS.sample(X[1], LABELS[1]))
    judged(stack, 2, count, 420)
    assert stack.exceptions(job) == ""
    assert stack.parts["taskmanager"].popen is alive
    assert stack.parts["taskmanager"].alive


def test_a_message_above_the_limit_is_refused_by_the_topic(stack):
    with (
        pytest.raises((AssertionError, KafkaException), match="MSG_SIZE_TOO_LARGE"),
        sending(stack) as send,
    ):
        send(b"a" * (MAX_RECORD_BYTES + 1))
