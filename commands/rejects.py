"""The commands that save bad messages to a file and send them again once they are repaired."""

import json
import os
from decimal import Decimal
from functools import partial
from pathlib import Path
from threading import Event

import click
import orjson
from confluent_kafka import Message

from commands.topics import json_object, payload_of
from loop.clients import MAX_WAITING, ClientError, Reader, Sender, stop_on_signals
from loop.messages import Format, load_format
from settings import settings

PAUSE_SECONDS = 0.005  # between two polls of Kafka's answers


@click.group()
def rejects() -> None:
    """Save bad messages to a file, and send them again once they are repaired."""


@rejects.command("save")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), help="Save only the newest COUNT rejects.")
def save(file: Path, count: int | None) -> None:
    """Write the rejected messages with their reasons to a new FILE, one JSON object a line."""
    save_to(file, count)


def save_to(file: Path, count: int | None) -> None:
    """Save the last ``count`` rejects (None: all) and print their number."""
    config = settings()
    form = load_format(config.message_format)
    reader = Reader(config, config.reject_topic)
    saved = save_rejects(reader, count, file, form, stop_on_signals())
    click.echo(
        f"{saved:,} rejects written to {file}. Repair them there, then run: "
        f"python admin.py rejects send {file}"
    )


@rejects.command("send")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def send(file: Path) -> None:
    """Send the repaired messages of FILE and mark them there as sent."""
    send_from(file)


def send_from(file: Path) -> None:
    """Send the repaired messages and print the result; exit code 1 if a line was not sent."""
    config = settings()
    form = load_format(config.message_format)
    sender = Sender(config, config.input_topic)
    try:
        bad = send_repaired(sender, file, form, stop_on_signals())
    finally:
        click.echo(sender.outcome())
    if bad or sender.waiting:
        raise click.exceptions.Exit(1)


def reject_to_edit(value: bytes, form: Format) -> dict:
    """Return a reject in a form that a person can repair.

    The fields are ``partition``, ``offset``, ``reason``, and ``message`` or ``base64``. ``message``
    is an object if the payload is a JSON object, None if there is no payload, otherwise its text.
    ``base64`` holds a payload that is not text.
    """
    reject = orjson.loads(value)
    line = {name: reject[name] for name in ("partition", "offset", "reason")}
    payload = payload_of(reject)
    if payload is None:
        return line | {"message": None}
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return line | {"base64": reject["payload"]}
    fields = json_object(text)
    # The payload stays text if an object would change it, or if serialising it would repair it.
    if (
        fields is None
        or not _is_unchanged(f'{{"message":{text}}}', {"message": fields})
        or form.parse([orjson.dumps(fields)]).good[0]
    ):
        return line | {"message": text}
    return line | {"message": fields}


def _is_unchanged(text: bytes | str, fields: dict) -> bool:
    """Return whether ``fields``, as JSON, hold every number and every field of ``text``."""
    exactly = partial(json.loads, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=list)
    try:
        return exactly(orjson.dumps(fields)) == exactly(text)
    except (orjson.JSONEncodeError, RecursionError, ArithmeticError):
        return False  # nested too deeply, or a number that is too small


def repaired_message(line: bytes, form: Format) -> bytes:
    """Return the message of an edited line; raises ``ValueError`` if it is not a good sample."""
    fields = json_object(line)
    if fields is None:
        raise ValueError("The line is not a JSON object.")
    if type(fields.get("partition")) is not int or type(fields.get("offset")) is not int:
        raise ValueError("The line has no partition and offset.")
    message = fields.get("message")
    if message is None:
        raise ValueError('There is no "message" to send.')
    if not isinstance(message, str) and not _is_unchanged(line, fields):
        raise ValueError(
            "Sending this object would change a number or a field: write it as text, in quotes."
        )
    payload = message.encode() if isinstance(message, str) else orjson.dumps(message)
    parsed = form.parse([payload])
    if not parsed.good[0]:
        raise ValueError(str(parsed.reasons[0]))
    return payload


def send_repaired(sender: Sender, path: Path, form: Format, stop: Event) -> int:
    """Send the repaired messages of a file and mark them there as sent; return how many are bad.

    Because of the marks, a second run does not send them again.
    """
    lines = path.read_bytes().splitlines()
    bad = 0
    places: dict[int, str] = {}
    try:
        for number, line in enumerate(lines):
            if stop.is_set():
                break
            if not line.strip() or (json_object(line) or {}).get("sent"):
                continue
            try:
                message = repaired_message(line, form)
            except ValueError as error:
                bad += 1
                where = f"{path.name} line {number + 1}{_place_of(line)}"
                click.echo(f"{where} not sent: {error}", err=True)
                continue
            sender.send(message, partial(_note_place, places, number))
            while sender.waiting >= MAX_WAITING and not stop.wait(PAUSE_SECONDS):
                sender.collect()
        sender.finish()
    finally:
        _mark_sent(path, lines, places)
    return bad


def _note_place(places: dict[int, str], number: int, message: Message) -> None:
    places[number] = f"{message.topic()} {message.partition()}:{message.offset()}"


def _place_of(line: bytes) -> str:
    fields = json_object(line) or {}
    if "partition" not in fields or "offset" not in fields:
        return ""
    return f" (input {fields['partition']}:{fields['offset']})"


def _mark_sent(path: Path, lines: list[bytes], places: dict[int, str]) -> None:
    """Add its new place to each sent line; ``places``: {line index: "topic partition:offset"}."""
    if not places:
        return
    for number, place in places.items():
        lines[number] = orjson.dumps(orjson.loads(lines[number]) | {"sent": place})
    whole = path.with_name(path.name + ".new")
    try:
        whole.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(whole, path)
    except OSError as error:
        raise ClientError(
            f"{len(places)} messages were sent, but {path} can't be written ({error.strerror}): "
            "if you send it again, they are learned twice."
        ) from error


def save_rejects(reader: Reader, number: int | None, path: Path, form: Format, stop: Event) -> int:
    """Write the last ``number`` rejects (None: all) to a new file; return how many there were.

    Raises ``ClientError`` if the file exists or can't be written.
    """
    saved = 0
    try:
        with path.open("xb") as file:
            messages = reader.everything(stop) if number is None else reader.last(number, stop)
            for message in messages:
                file.write(orjson.dumps(reject_to_edit(message.value() or b"", form)) + b"\n")
                saved += 1
    except FileExistsError as error:
        raise ClientError(f"{path} exists already: choose another file.") from error
    except OSError as error:
        raise ClientError(f"{path} can't be written: {error.strerror}.") from error
    return saved
