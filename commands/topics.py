"""The command that prints a topic, one message a line."""

import base64
from threading import Event

import click
import orjson
from confluent_kafka import Message

from loop.clients import Reader, stop_on_signals
from settings import settings


@click.group()
def topic() -> None:
    """Print the messages of a topic."""


@topic.command("show")
@click.argument("name", metavar="TOPIC")
@click.option("--count", type=click.IntRange(min=1), help="Print only the newest COUNT messages.")
@click.option("--follow", is_flag=True, help="Print new messages until Ctrl-C.")
def show_topic(name: str, count: int | None, follow: bool) -> None:
    """Print the committed messages of a topic, one a line."""
    show(Reader(settings(), name), count, follow, stop_on_signals())


def show(reader: Reader, number: int | None, follow: bool, stop: Event) -> None:
    """Print the last ``number`` messages (None: all); with ``follow`` then those that arrive."""
    messages = reader.everything(stop) if number is None else reader.last(number, stop)
    for message in messages:
        click.echo(describe(message))
    if follow:
        for message in reader.new(stop):
            click.echo(describe(message))


def describe(message: Message) -> str:
    """Return a message of any of the job's topics as one readable line."""
    text = f"{message.partition()}:{message.offset()}  {_describe_value(message.value())}"
    # A message must not control the terminal.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _describe_value(value: bytes | None) -> str:
    fields = json_object(value)
    if fields is not None and {"payload", "reason", "partition", "offset"} <= fields.keys():
        place = f"input {fields['partition']}:{fields['offset']}"
        return f"{place}  {fields['reason']}  {_beginning(payload_of(fields))}"
    if fields is None or "x" not in fields:
        return _beginning(value)
    words = [str(fields.get("ts")), f"label {fields.get('actual_y')}"]
    if "source" in fields:
        words.append(f"from {fields['source']}")
    if "predict_y" in fields:
        words.append(_describe_prediction(fields))
    return "  ".join(words)


def _describe_prediction(fields: dict) -> str:
    place = f"input {fields.get('partition')}:{fields.get('offset')}"
    if fields.get("replayed"):
        place += "  replayed"
    predicted = fields["predict_y"]
    if predicted is None:
        return f"no model yet  {place}"
    verdict = "right" if predicted == fields.get("actual_y") else "wrong"
    version = fields.get("model_version")
    return f"predicted {predicted} {verdict}  model version {version}  {place}"


def payload_of(reject: dict) -> bytes | None:
    """Return the rejected message's bytes, None if it had no value."""
    return None if reject["payload"] is None else base64.b64decode(reject["payload"])


def json_object(value: bytes | str | None) -> dict | None:
    """Return the JSON object in a message, None if it holds anything else."""
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _beginning(value: bytes | None, length: int = 80) -> str:
    if value is None:
        return "(no value)"
    text = value[: 4 * length].decode(errors="replace")
    if len(text) <= length and len(value) <= 4 * length:
        return text
    return f"{text[:length]}... ({len(value):,} bytes)"
