"""Replay scikit-learn's handwritten digits into Kafka; print what a topic holds; send mended rejects back.

Delivery: every message is acknowledged by all in-sync replicas and stands in its partition once and in the order of
sending, through retries and restarts of the broker (idempotent producer). A message without an answer when the
process ends may or may not have arrived; the last line counts those.
"""

import base64
import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from itertools import count as natural_numbers
from itertools import islice
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import click
import numpy as np
import orjson
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed
from tqdm import tqdm

from loop.messages import DIGITS, MAX_MESSAGE_BYTES, Format, load_format
from settings import Settings, SettingsError, settings

ONE_PASS = 1797  # samples in the data set
NO_TIME = "0000-00-00 00:00:00"  # stands in a prepared message where the time of sending goes
PATIENCE = 10.0  # seconds that Kafka has to answer, at the start and at the end
BATCH_BYTES = 262_144  # a batch of many small messages stays well below the topic's limit for one message
CHUNK_SECONDS = 0.005  # pacing wakes up at most this often
MAX_WAITING = 50_000  # messages without an answer; the client's queue holds twice as many

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # librdkafka's own messages: not on the terminal, there for who asks logging


class ProducerError(click.ClickException):
    """What stops the command, in one sentence; the exit code is 1."""


def client_config(s: Settings) -> dict[str, Any]:
    """Return the connection settings under the names that confluent-kafka takes."""
    return s.confluent_client()


class Link:
    """What Kafka's client last complained of, and the sentences made of it."""

    def __init__(self, s: Settings) -> None:
        self.address = s.kafka_bootstrap_servers
        self.trouble = ""
        self.refused = False
        self.config: dict[str, Any] = client_config(s) | {"error_cb": self._on_error, "logger": log}

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            return  # always comes with the error that says why
        self.refused = error.code() == KafkaError._AUTHENTICATION
        # "ssl://host:9092/bootstrap: Connect failed: refused (after 1ms in state CONNECT)": the middle is the reason.
        self.trouble = re.sub(r"^\S*/\S+: | \(after \d+ms in state .*\)", "", error.str())

    def open(self, client_type: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> Any:
        """Return a client; raises ``ProducerError`` for a setting that the client can't use."""
        try:
            return client_type(self.config | config)
        except KafkaException as error:
            raise ProducerError(f"The settings for Kafka don't work: {error.args[0].str()}.") from error

    def partitions(self, client: Producer | Consumer, topic: str) -> list[int]:
        """Return the topic's partitions; raises ``ProducerError`` where Kafka, its login or the topic is missing."""
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(KafkaException),
                stop=stop_after_delay(PATIENCE),
                wait=wait_fixed(0.2),
                reraise=True,
            ):
                with attempt:
                    topics = self._topics(client)
        except KafkaException as error:
            raise self.error(error.args[0]) from error
        if topic not in topics:
            raise ProducerError(f"The topic {topic} does not exist on Kafka at {self.address}.")
        return sorted(topics[topic].partitions)

    def _topics(self, client: Producer | Consumer) -> dict[str, Any]:
        try:
            # All topics, not one by its name: a broker may make a topic that is asked for by name.
            return client.list_topics(timeout=2).topics
        except KafkaException as error:
            client.poll(0)  # hands over the reason
            if self.refused:
                raise self.error(error.args[0]) from error
            raise

    def error(self, error: KafkaError) -> ProducerError:
        """Return a Kafka error as a sentence that says where and what to look at."""
        reason = (self.trouble or "it closes the connection, is KAFKA_SECURITY_PROTOCOL right?").rstrip(".")
        if self.refused:
            return ProducerError(f"Kafka at {self.address} refused the login: {reason}. See KAFKA_SASL_USERNAME, "
                                 "KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM.")  # fmt: skip
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return ProducerError(f"The message is too large: Kafka at {self.address} and this producer take at most "
                                 f"{MAX_MESSAGE_BYTES:,} bytes.")  # fmt: skip
        if error.code() in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT):
            return ProducerError(f"Kafka at {self.address} does not answer: {reason}")
        return ProducerError(f"Kafka at {self.address}: {error.str().rstrip('.')}.")


class Sender:
    """Sends to one topic and counts what Kafka acknowledged; raises ``ProducerError`` where it can't."""

    def __init__(self, s: Settings, topic: str) -> None:
        self.topic = topic
        self.acknowledged = 0
        self.link = Link(s)
        self._failure: KafkaError | None = None
        self._producer: Producer = self.link.open(
            Producer,
            {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "batch.size": BATCH_BYTES,
             "message.max.bytes": MAX_MESSAGE_BYTES},
        )  # fmt: skip
        self.link.partitions(self._producer, topic)

    @property
    def waiting(self) -> int:
        """Return how many messages have no answer yet."""
        return len(self._producer)

    def send(self, value: bytes, acknowledged: Callable[[Message], None] | None = None) -> None:
        """Hand one message to the client's queue; ``acknowledged`` is called with it once Kafka has it."""

        def answer(error: KafkaError | None, message: Message) -> None:
            self._answer(error, message)
            if error is None and acknowledged is not None:
                acknowledged(message)

        try:
            self._producer.produce(self.topic, value, on_delivery=answer if acknowledged else self._answer)
        except KafkaException as error:
            raise self.link.error(error.args[0]) from error

    def _answer(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
            self.link.trouble = ""
        elif self._failure is None:
            self._failure = error

    def collect(self) -> None:
        """Take in the answers that have come; raises ``ProducerError`` where Kafka refused a message for good."""
        self._producer.poll(0)
        if self._failure is not None:
            raise self.link.error(self._failure)

    def finish(self) -> None:
        """Wait until every message is answered, at most ``PATIENCE`` seconds."""
        self._producer.flush(PATIENCE)
        self.collect()


def prepared_digits() -> list[tuple[bytes, bytes]]:
    """Return each digit's message as what stands before and after its time, in the data set's order."""
    from sklearn.datasets import load_digits  # takes seconds to import, and only the replay needs it

    digits = load_digits()
    messages = (DIGITS.sample(x, y, ts=NO_TIME) for x, y in zip(digits.data, digits.target, strict=True))
    return [(head, tail) for head, _, tail in (message.partition(NO_TIME.encode()) for message in messages)]


def passes(prepared: list[tuple[bytes, bytes]], seed: int) -> Iterator[bytes]:
    """Yield stamped messages without end: the digits in order, then pass after pass as ``seed`` shuffles them."""
    for number in natural_numbers():
        rows = np.arange(len(prepared))
        if number:
            np.random.default_rng([seed, number]).shuffle(rows)
        for row in rows:
            head, tail = prepared[row]
            yield head + time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()).encode() + tail


def replay(sender: Sender, messages: Iterator[bytes], rate: float, total: int | None, stop: Event) -> None:
    """Send ``total`` messages (None: without end) at ``rate`` a second, until done or ``stop``.

    While Kafka is away nothing piles up beyond a second's worth, and what was missed is not caught up on.
    """
    backlog = min(max(1, int(rate)), MAX_WAITING)
    sent, started, told = 0, time.monotonic(), ""
    with tqdm(total=total, unit=" samples", disable=None, dynamic_ncols=True) as bar:
        while not stop.is_set() and sent != total:
            now = time.monotonic()
            started = max(started, now - sent / rate - 1)
            due = int((now - started) * rate) + 1 - sent
            left = due if total is None else total - sent
            chunk = max(0, min(due, left, backlog - sender.waiting))
            for message in islice(messages, chunk):
                sender.send(message)
            sent += chunk
            sender.collect()
            bar.update(sender.acknowledged - bar.n)
            trouble = f"waiting for Kafka: {sender.link.trouble}" if sender.link.trouble else ""
            if trouble != told:
                bar.set_postfix_str(trouble)
                told = trouble
            stop.wait(min(max(started + sent / rate - now, CHUNK_SECONDS), 0.2))
        sender.finish()
        bar.update(sender.acknowledged - bar.n)


class Reader:
    """Reads a topic as far as its transactions are committed; it belongs to no group and commits nothing."""

    def __init__(self, s: Settings, topic: str) -> None:
        self.topic = topic
        self.link = Link(s)
        self._consumer: Consumer = self.link.open(
            Consumer,
            {"group.id": "data_producer", "enable.auto.commit": False, "auto.offset.reset": "earliest",
             "isolation.level": "read_committed", "enable.partition.eof": True},
        )  # fmt: skip
        self._partitions = self.link.partitions(self._consumer, topic)

    def everything(self, stop: Event) -> Iterator[Message]:
        """Yield what is in the topic now, each partition in its order."""
        yield from self._until_the_end({p: OFFSET_BEGINNING for p in self._partitions}, stop)

    def last(self, number: int, stop: Event) -> list[Message]:
        """Return the last ``number`` messages by their time, from all partitions together."""
        span = number
        while True:
            bounds = {p: self._bounds(p) for p in self._partitions}
            starts = {p: max(low, high - span) for p, (low, high) in bounds.items()}
            found = list(self._until_the_end(starts, stop))
            # Offsets also count transaction markers and aborted messages: look further back until there are enough.
            if len(found) >= number or all(starts[p] == low for p, (low, _) in bounds.items()) or stop.is_set():
                return sorted(found, key=lambda message: message.timestamp()[1])[-number:]
            span *= 4

    def new(self, stop: Event) -> Iterator[Message]:
        """Yield what comes after the messages read so far, until ``stop``."""
        while not stop.is_set():
            message = self._poll(0.2)
            if message is not None and message.error() is None:
                yield message

    def _bounds(self, partition: int) -> tuple[int, int]:
        try:
            return self._consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=PATIENCE)
        except KafkaException as error:
            raise self.link.error(error.args[0]) from error

    def _until_the_end(self, starts: dict[int, int], stop: Event) -> Iterator[Message]:
        ends = {p: self._bounds(p)[1] for p in starts}
        self._consumer.assign([TopicPartition(self.topic, p, start) for p, start in starts.items()])
        heard = time.monotonic()
        while ends and not stop.is_set():
            message = self._poll(0.2)
            if message is None:
                if time.monotonic() - heard > PATIENCE:
                    raise self.link.error(KafkaError(KafkaError._TIMED_OUT))
                continue
            heard = time.monotonic()
            partition, offset, at_the_end = message.partition() or 0, message.offset() or 0, message.error() is not None
            if not at_the_end:
                yield message
            # Where the messages stop being committed, or the end as it was at the start: a busy topic has no other.
            if at_the_end or offset + 1 >= ends.get(partition, 0):
                ends.pop(partition, None)

    def _poll(self, seconds: float) -> Message | None:
        """Return a message, a mark that a partition's end is reached (its ``error()`` is set), or None."""
        message = self._consumer.poll(seconds)
        error = message.error() if message is not None else None
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise self.link.error(error)
        return message


def describe(message: Message) -> str:
    """Return a message of any of the job's topics as one readable line."""
    value = message.value()
    text = f"{message.partition()}:{message.offset()}  {_describe_value(value)}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)  # no control codes of strangers


def _describe_value(value: bytes | None) -> str:
    fields = _object(value)
    if fields is not None and {"payload", "reason", "partition", "offset"} <= fields.keys():
        return f"input {fields['partition']}:{fields['offset']}  {fields['reason']}  {_beginning(_payload(fields))}"
    if fields is None or "x" not in fields:
        return _beginning(value)
    words = [str(fields.get("ts")), f"label {fields.get('actual_y')}"]
    if "source" in fields:
        words.append(f"from {fields['source']}")
    if "predict_y" in fields:
        words.append(_describe_prediction(fields))
    return "  ".join(words)


def _describe_prediction(fields: dict) -> str:
    place = f"input {fields.get('partition')}:{fields.get('offset')}" + ("  replayed" if fields.get("replayed") else "")
    predicted = fields["predict_y"]
    if predicted is None:
        return f"no model yet  {place}"
    verdict = "right" if predicted == fields.get("actual_y") else "wrong"
    return f"predicted {predicted} {verdict}  model version {fields.get('model_version')}  {place}"


def _payload(reject: dict) -> bytes | None:
    return None if reject["payload"] is None else base64.b64decode(reject["payload"])


def _object(value: bytes | str | None) -> dict | None:
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _beginning(value: bytes | None, length: int = 80) -> str:
    if value is None:
        return "(no value)"
    text = value[: 4 * length].decode(errors="replace")
    return text if len(text) <= length and len(value) <= 4 * length else f"{text[:length]}... ({len(value):,} bytes)"


def reject_to_edit(value: bytes, form: Format) -> dict:
    """Return a reject as a person can mend it: ``partition``, ``offset``, ``reason``, and ``message`` or ``base64``.

    ``message`` is an object to edit where the payload is one, else its text, or None for a message without a value.
    ``base64`` stands for bytes that are no text.
    """
    reject = orjson.loads(value)
    line = {name: reject[name] for name in ("partition", "offset", "reason")}
    payload = _payload(reject)
    if payload is None:
        return line | {"message": None}
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return line | {"base64": reject["payload"]}
    fields = _object(text)
    # What an object does not hold as it was written stays text, and so does what writing it again would mend.
    in_a_line = f'{{"message":{text}}}'
    if fields is None or not _is_kept(in_a_line, {"message": fields}) or form.parse([orjson.dumps(fields)]).good[0]:
        return line | {"message": text}
    return line | {"message": fields}


def _is_kept(text: bytes | str, fields: dict) -> bool:
    """Return whether ``fields``, written again, say what ``text`` says: each number and each field."""
    exactly = partial(json.loads, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=list)
    try:
        return exactly(orjson.dumps(fields)) == exactly(text)
    except (orjson.JSONEncodeError, RecursionError, ArithmeticError):  # too deep for one of them, or too small a number
        return False


def mended_message(line: bytes, form: Format) -> bytes:
    """Return the message of an edited line if it is a good sample now; raises ``ValueError`` saying why not."""
    fields = _object(line)
    if fields is None:
        raise ValueError("The line is no JSON object.")
    if type(fields.get("partition")) is not int or type(fields.get("offset")) is not int:
        raise ValueError("The line has lost its partition and offset.")
    message = fields.get("message")
    if message is None:
        raise ValueError('There is no "message" to send.')
    if not isinstance(message, str) and not _is_kept(line, fields):
        raise ValueError("Sending this object would change a number or a field: write it as text, in quotes.")
    payload = message.encode() if isinstance(message, str) else orjson.dumps(message)
    parsed = form.parse([payload])
    if not parsed.good[0]:
        raise ValueError(str(parsed.reasons[0]))
    return payload


def replay_rejects(sender: Sender, path: Path, form: Format, stop: Event) -> int:
    """Send the mended messages of a file and mark them there as sent; return how many were not fit to send.

    The mark keeps a second run from teaching them twice.
    """
    lines = path.read_bytes().splitlines()
    kept = 0
    places: dict[int, str] = {}
    try:
        for number, line in enumerate(lines):
            if stop.is_set():
                break
            if not line.strip() or (_object(line) or {}).get("sent"):
                continue
            try:
                message = mended_message(line, form)
            except ValueError as error:
                kept += 1
                click.echo(f"{path.name} line {number + 1}{_name_of(line)} not sent: {error}", err=True)
                continue
            sender.send(message, partial(_note_place, places, number))
            while sender.waiting >= MAX_WAITING and not stop.wait(CHUNK_SECONDS):
                sender.collect()
        sender.finish()
    finally:
        _mark_sent(path, lines, places)
    return kept


def _note_place(places: dict[int, str], number: int, message: Message) -> None:
    places[number] = f"{message.topic()} {message.partition()}:{message.offset()}"


def _name_of(line: bytes) -> str:
    fields = _object(line) or {}
    return f" (input {fields['partition']}:{fields['offset']})" if "partition" in fields and "offset" in fields else ""


def _mark_sent(path: Path, lines: list[bytes], places: dict[int, str]) -> None:
    if not places:
        return
    for number, place in places.items():
        lines[number] = orjson.dumps(orjson.loads(lines[number]) | {"sent": place})
    whole = path.with_name(path.name + ".new")
    try:
        whole.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(whole, path)
    except OSError as error:
        raise ProducerError(f"{len(places)} messages were sent, but {path} can't be marked ({error.strerror}): "
                            "sending it again would teach them twice.") from error  # fmt: skip


def save_rejects(reader: Reader, number: int | None, path: Path, form: Format, stop: Event) -> int:
    """Write the rejects of a topic (the last ``number``; None: all) as JSON lines to mend; return how many."""
    saved = 0
    try:
        with path.open("xb") as file:
            for message in reader.everything(stop) if number is None else reader.last(number, stop):
                file.write(orjson.dumps(reject_to_edit(message.value() or b"", form)) + b"\n")
                saved += 1
    except FileExistsError as error:
        raise ProducerError(f"{path} exists already; what was mended in it would be lost.") from error
    except OSError as error:
        raise ProducerError(f"{path} can't be written: {error.strerror}.") from error
    return saved


def show(reader: Reader, number: int | None, follow: bool, stop: Event) -> None:
    """Print a topic: all of it, or the last ``number``; then, to follow, what comes."""
    for message in reader.everything(stop) if number is None else reader.last(number, stop):
        click.echo(describe(message))
    if follow:
        for message in reader.new(stop):
            click.echo(describe(message))


def _stop_on_signals() -> Event:
    """Return an event that SIGINT and SIGTERM set; the second one ends the process at once."""
    stop = Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Samples a second.  [default: PRODUCER_RATE, 10]"
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Samples to send.  [default: one pass of 1,797]  With --show or --save-rejects: only the last this many.",
)
@click.option("--endless", is_flag=True, help="Send pass after pass, each in another order, until Ctrl-C.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Order of the later passes.")
@click.option("--show", "shown", metavar="TOPIC", help="Print what is in a topic, a message a line.")
@click.option("--follow", is_flag=True, help="With --show: go on with what comes, until Ctrl-C.")
@click.option(
    "--save-rejects",
    "saved",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the rejected messages, each with its reason, to a new file of JSON lines to mend them in.",
)
@click.option(
    "--replay-rejects",
    "mended",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Send those messages of such a file that are good now, and mark them there as sent.",
)
def main(
    rate: float | None,
    count: int | None,
    endless: bool,
    seed: int,
    shown: str | None,
    follow: bool,
    saved: Path | None,
    mended: Path | None,
) -> None:
    """Replay scikit-learn's handwritten digits into Kafka.

    Addresses, topics and logins come from the settings, as KAFKA_BOOTSTRAP_SERVERS and INPUT_TOPIC.
    """
    if sum(option is not None for option in (shown, saved, mended)) > 1:
        raise click.UsageError("Of --show, --save-rejects and --replay-rejects one at a time.")
    if count and (endless or mended):
        raise click.UsageError("--count goes with neither --endless nor --replay-rejects.")
    if follow and not shown:
        raise click.UsageError("--follow goes with --show.")
    stop = _stop_on_signals()
    try:
        s = settings()
        form = load_format(s.message_format)
    except (SettingsError, ValueError) as error:
        raise ProducerError(str(error)) from error
    if shown:
        show(Reader(s, shown), count, follow, stop)
    elif saved:
        number = save_rejects(Reader(s, s.reject_topic), count, saved, form, stop)
        click.echo(f"{number:,} rejects written to {saved}. Mend them there, then: --replay-rejects {saved}")
    elif mended:
        _replay_rejects(Sender(s, s.input_topic), mended, form, stop)
    else:
        total = None if endless else count or ONE_PASS
        _replay_digits(Sender(s, s.input_topic), seed, rate or s.producer_rate, total, stop)


def _replay_digits(sender: Sender, seed: int, rate: float, total: int | None, stop: Event) -> None:
    try:
        replay(sender, passes(prepared_digits(), seed), rate, total, stop)
    finally:
        click.echo(_outcome(sender))
    if sender.waiting:
        raise click.exceptions.Exit(1)


def _replay_rejects(sender: Sender, path: Path, form: Format, stop: Event) -> None:
    try:
        kept = replay_rejects(sender, path, form, stop)
    finally:
        click.echo(_outcome(sender))
    if kept or sender.waiting:
        raise click.exceptions.Exit(1)


def _outcome(sender: Sender) -> str:
    many = "" if sender.acknowledged == 1 else "s"
    text = f"{sender.acknowledged:,} sample{many} acknowledged, topic {sender.topic}, Kafka at {sender.link.address}."
    return f"{text} {sender.waiting:,} more were sent without an answer." if sender.waiting else text


if __name__ == "__main__":
    main()
