"""What is in a topic, a message a line."""

import base64
from threading import Event

import click
import orjson
from confluent_kafka import Message

from loop.clients import Reader, stop_on_signals
from settings import settings


@click.group()
def topic() -> None:
    """Look into a topic."""


@topic.command("show")
@click.argument("name", metavar="TOPIC")
@click.option("--count", type=click.IntRange(min=1), help="Only the last this many messages.")
@click.option("--follow", is_flag=True, help="Keep printing what arrives, until Ctrl-C.")
def show_topic(name: str, count: int | None, follow: bool) -> None:
    """Print the committed messages of a topic, a message a line."""
    show(Reader(settings(), name), count, follow, stop_on_signals())


def show(reader: Reader, number: int | None, follow: bool, stop: Event) -> None:
    """Print a topic: all of it, or the last ``number``; then, to follow, what comes."""
    for message in reader.everything(stop) if number is None else reader.last(number, stop):
        click.echo(describe(message))
    if follow:
        for message in reader.new(stop):
            click.echo(describe(message))


def describe(message: Message) -> str:
    """Return a message of any of the job's topics as one readable line."""
    value = message.value()
    text = f"{message.partition()}:{message.offset()}  {_describe_value(value)}"
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )  # no control codes of strangers


def _describe_value(value: bytes | None) -> str:
    fields = json_object(value)
    if fields is not None and {"payload", "reason", "partition", "offset"} <= fields.keys():
        return f"input {fields['partition']}:{fields['offset']}  {fields['reason']}  {_beginning(payload_of(fields))}"
    if fields is None or "x" not in fields:
        return _beginning(value)
    words = [str(fields.get("ts")), f"label {fields.get('actual_y')}"]
    if "source" in fields:
        words.append(f"from {fields['source']}")
    if "predict_y" in fields:
        words.append(_describe_prediction(fields))
    return "  ".join(words)


def _describe_prediction(fields: dict) -> str:
    place = f"input {fields.get('partition')}:{fields.get('offset')}" + (
        "  replayed" if fields.get("replayed") else ""
    )
    predicted = fields["predict_y"]
    if predicted is None:
        return f"no model yet  {place}"
    verdict = "right" if predicted == fields.get("actual_y") else "wrong"
    return f"predicted {predicted} {verdict}  model version {fields.get('model_version')}  {place}"


def payload_of(reject: dict) -> bytes | None:
    return None if reject["payload"] is None else base64.b64decode(reject["payload"])


def json_object(value: bytes | str | None) -> dict | None:
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _beginning(value: bytes | None, length: int = 80) -> str:
    if value is None:
        return "(no value)"
    text = value[: 4 * length].decode(errors="replace")
    return (
        text
        if len(text) <= length and len(value) <= 4 * length
        else f"{text[:length]}... ({len(value):,} bytes)"
    )
