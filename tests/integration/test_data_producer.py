"""The producer's command against a real Kafka."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from data_producer import passes
from harness.stack import Stack, free_port, until
from loop.clients import ClientError, Sender
from loop.messages import DIGITS, MAX_MESSAGE_BYTES, reject
from settings import HERE


@pytest.fixture
def own(kafka: Stack) -> Stack:
    """Kafka with topics of this test's own; the input has two partitions."""
    return kafka.named(partitions=2)


def start(stack: Stack, *arguments: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "data_producer.py", *arguments]
    environment = stack.env | {"PYTHONUNBUFFERED": "1"} | env
    return subprocess.Popen(
        command,
        cwd=HERE,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(stack: Stack, *arguments: str, **env: str) -> tuple[int, str, str]:
    process = start(stack, *arguments, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def in_topic(stack: Stack, topic: str) -> list[bytes]:
    return list(read(stack, topic))


def read(stack: Stack, topic: str) -> Iterator[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": stack.settings.kafka_bootstrap_servers,
            "group.id": "test",
            "enable.partition.eof": True,
        }
    )
    partitions = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    ends = 0
    while ends < len(partitions):
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            ends += 1
        else:
            yield message.value() or b""
    consumer.close()


def count(stack: Stack) -> int:
    return len(in_topic(stack, stack.settings.input_topic))


def acknowledged(out: str) -> int:
    found = re.match(r"([\d,]+) samples? acknowledged", out)
    assert found, out
    return int(found.group(1).replace(",", ""))


def test_one_pass_puts_every_digit_into_the_topic_once(own):
    code, out, err = run(own, "--rate", "5000")
    assert (code, err) == (0, "")
    topic, address = own.settings.input_topic, own.settings.kafka_bootstrap_servers
    assert out == f"1,797 samples acknowledged, topic {topic}, Kafka at {address}.\n"
    sent = in_topic(own, own.settings.input_topic)
    assert DIGITS.parse(sent).good.all()
    whole = {message[message.index(b'"x"') :] for message in passes_once()}
    assert len(sent) == 1797
    assert {message[message.index(b'"x"') :] for message in sent} == whole


def passes_once() -> list[bytes]:
    return [message for message, _ in zip(passes(0), range(1797), strict=False)]


def test_a_high_rate_loses_nothing(own):
    code, out, _ = run(own, "--rate", "50000", "--count", "60000")
    assert code == 0
    assert acknowledged(out) == 60_000 == count(own)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_says_how_many_were_acknowledged(own, number):
    process = start(own, "--endless", "--rate", "200")
    until(lambda: count(own) > 50)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert acknowledged(out) == count(own)


def test_a_topic_is_shown_to_its_last_message_and_followed(own):
    run(own, "--rate", "5000", "--count", "40")
    topic = own.settings.input_topic
    code, out, _ = run(own, "--show", topic)
    assert code == 0
    assert len(out.splitlines()) == 40
    last = run(own, "--show", topic, "--count", "3")[1].splitlines()
    assert [line.rpartition("label ")[2] for line in last] == [
        str(y) for y in DIGITS.parse(passes_once()[37:40]).y
    ]
    follower = start(own, "--show", topic, "--count", "1", "--follow")
    assert follower.stdout
    assert "label" in follower.stdout.readline()
    run(own, "--rate", "5000", "--count", "1")
    assert follower.stdout.readline().rstrip().endswith("label 0")
    follower.send_signal(signal.SIGINT)
    assert follower.wait(10) == 0


def test_only_committed_messages_are_shown_and_markers_do_not_count(own):
    producer = Producer(
        {"bootstrap.servers": own.settings.kafka_bootstrap_servers, "transactional.id": "t"}
    )
    producer.init_transactions()
    topic = own.settings.predict_topic
    for number in range(4):
        producer.begin_transaction()
        producer.produce(topic, b"message %d" % number)
        producer.flush()
        (producer.abort_transaction if number == 3 else producer.commit_transaction)()
    producer.begin_transaction()
    producer.produce(topic, b"not yet")
    producer.flush()
    assert [line.split("  ")[1] for line in run(own, "--show", topic)[1].splitlines()] == [
        f"message {n}" for n in range(3)
    ]
    assert [
        line.split("  ")[1] for line in run(own, "--show", topic, "--count", "2")[1].splitlines()
    ] == [
        "message 1",
        "message 2",
    ]
    producer.abort_transaction()


def put_rejects(stack: Stack, *payloads: bytes | None) -> None:
    producer = Producer({"bootstrap.servers": stack.settings.kafka_bootstrap_servers})
    for offset, payload in enumerate(payloads):
        reason = str(DIGITS.parse([payload]).reasons[0])
        producer.produce(stack.settings.reject_topic, reject(payload, reason, 0, offset))
    producer.flush()


def test_repaired_rejects_are_sent_once_and_the_others_say_why_not(own, tmp_path):
    good = DIGITS.sample([1] * 64, 3)
    put_rejects(own, b"nonsense", good.replace(b'"actual_y":3', b'"actual_y":10'), None)
    path = tmp_path / "rejects.jsonl"
    assert run(own, "--save-rejects", str(path))[0] == 0
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    lines[1]["message"]["actual_y"] = 3
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))

    code, out, err = run(own, "--replay-rejects", str(path))
    assert code == 1
    assert acknowledged(out) == 1
    assert "line 1 (input 0:0) not sent: The message is not JSON" in err
    assert "line 3 (input 0:2) not sent" in err
    assert in_topic(own, own.settings.input_topic) == [good]

    assert acknowledged(run(own, "--replay-rejects", str(path))[1]) == 0
    assert in_topic(own, own.settings.input_topic) == [good]
    again = run(own, "--save-rejects", str(path))
    assert again[0] == 1
    assert "exists already" in again[2]


def test_a_message_over_the_limit_is_refused_and_one_below_it_is_taken(own):
    sender = Sender(own.settings, own.settings.input_topic)
    with pytest.raises(ClientError, match=r"too large: Kafka at .* at most 1,000,000 bytes"):
        sender.send(b"x" * (MAX_MESSAGE_BYTES + 1))
    sender.send(b"x" * (MAX_MESSAGE_BYTES - 100))
    sender.finish()
    assert sender.acknowledged == 1


def test_a_missing_topic_is_one_sentence(own):
    code, out, err = run(own, INPUT_TOPIC="no-such-topic")
    assert (code, out) == (1, "")
    assert (
        err
        == f"Error: The topic no-such-topic does not exist on Kafka at {own.settings.kafka_bootstrap_servers}.\n"
    )


def test_no_broker_is_one_sentence_with_the_address(own):
    address = f"127.0.0.1:{free_port()}"
    code, out, err = run(own, KAFKA_BOOTSTRAP_SERVERS=address)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: Kafka at {address} does not answer: .*Connection refused\n", err)


def test_a_setting_that_can_not_be_is_one_sentence(own):
    code, _, err = run(own, KAFKA_SECURITY_PROTOCOL="TLS")
    assert code == 1
    assert err.startswith("Error: KAFKA_SECURITY_PROTOCOL")
    assert err.count("\n") == 1


def test_the_producer_goes_on_when_kafka_was_away_and_sends_nothing_twice(own):
    process = start(own, "--rate", "100", "--count", "600")
    until(lambda: count(own) > 50)
    own.kill("kafka")
    own.start("kafka")
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    assert acknowledged(out) == 600
    assert count(own) == 600
