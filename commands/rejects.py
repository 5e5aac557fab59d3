"""Bad messages, saved to a file to repair them in, and sent again."""

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

PAUSE_SECONDS = 0.005  # between looks at Kafka's answers


@click.group()
def rejects() -> None:
    """Save bad messages, repair them, and send them again."""


@rejects.command("save")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), help="Only the last this many rejects.")
def save(file: Path, count: int | None) -> None:
    """Write the rejected messages, each with its reason, to a new FILE of JSON lines."""
    save_to(file, count)


def save_to(file: Path, count: int | None) -> None:
    """Save the rejects and print how many there were."""
    config = settings()
    form = load_format(config.message_format)
    saved = save_rejects(Reader(config, config.reject_topic), count, file, form, stop_on_signals())
    click.echo(
        f"{saved:,} rejects written to {file}. Repair them there, then run: python admin.py rejects send {file}"
    )


@rejects.command("send")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def send(file: Path) -> None:
    """Send those messages of FILE that are good now, and mark them there as sent."""
    send_from(file)


def send_from(file: Path) -> None:
    """Send the repaired messages and print what became of them; exit code 1 while some are left."""
    config = settings()
    form = load_format(config.message_format)
    sender = Sender(config, config.input_topic)
    try:
        kept = send_repaired(sender, file, form, stop_on_signals())
    finally:
        click.echo(sender.outcome())
    if kept or sender.waiting:
        raise click.exceptions.Exit(1)


def reject_to_edit(value: bytes, form: Format) -> dict:
    """Return a reject as a person can repair it: ``partition``, ``offset``, ``reason``, and ``message`` or ``base64``.

    ``message`` is an object to edit where the payload is one, else its text, or None for a message without a value.
    ``base64`` stands for bytes that are no text.
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
    # What an object does not hold as it was written stays text, and so does what writing it again would repair.
    in_a_line = f'{{"message":{text}}}'
    if (
        fields is None
        or not _is_kept(in_a_line, {"message": fields})
        or form.parse([orjson.dumps(fields)]).good[0]
    ):
        return line | {"message": text}
    return line | {"message": fields}


def _is_kept(text: bytes | str, fields: dict) -> bool:
    """Return whether ``fields``, written again, say what ``text`` says: each number and each field."""
    exactly = partial(json.loads, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=list)
    try:
        return exactly(orjson.dumps(fields)) == exactly(text)
    except (
        orjson.JSONEncodeError,
        RecursionError,
        ArithmeticError,
    ):  # too deep for one of them, or too small a number
        return False


def repaired_message(line: bytes, form: Format) -> bytes:
    """Return the message of an edited line if it is a good sample now; raises ``ValueError`` saying why not."""
    fields = json_object(line)
    if fields is None:
        raise ValueError("The line is no JSON object.")
    if type(fields.get("partition")) is not int or type(fields.get("offset")) is not int:
        raise ValueError("The line has lost its partition and offset.")
    message = fields.get("message")
    if message is None:
        raise ValueError('There is no "message" to send.')
    if not isinstance(message, str) and not _is_kept(line, fields):
        raise ValueError(
            "Sending this object would change a number or a field: write it as text, in quotes."
        )
    payload = message.encode() if isinstance(message, str) else orjson.dumps(message)
    parsed = form.parse([payload])
    if not parsed.good[0]:
        raise ValueError(str(parsed.reasons[0]))
    return payload


def send_repaired(sender: Sender, path: Path, form: Format, stop: Event) -> int:
    """Send the repaired messages of a file and mark them there as sent; return how many were not fit to send.

    The mark keeps a second run from teaching them twice.
    """
    lines = path.read_bytes().splitlines()
    kept = 0
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
                kept += 1
                click.echo(
                    f"{path.name} line {number + 1}{_name_of(line)} not sent: {error}", err=True
                )
                continue
            sender.send(message, partial(_note_place, places, number))
            while sender.waiting >= MAX_WAITING and not stop.wait(PAUSE_SECONDS):
                sender.collect()
        sender.finish()
    finally:
        _mark_sent(path, lines, places)
    return kept


def _note_place(places: dict[int, str], number: int, message: Message) -> None:
    places[number] = f"{message.topic()} {message.partition()}:{message.offset()}"


def _name_of(line: bytes) -> str:
    fields = json_object(line) or {}
    return (
        f" (input {fields['partition']}:{fields['offset']})"
        if "partition" in fields and "offset" in fields
        else ""
    )


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
        raise ClientError(
            f"{len(places)} messages were sent, but {path} can't be marked ({error.strerror}): "
            "sending it again would teach them twice."
        ) from error


def save_rejects(reader: Reader, number: int | None, path: Path, form: Format, stop: Event) -> int:
    """Write the rejects of a topic (the last ``number``; None: all) as JSON lines to repair; return how many."""
    saved = 0
    try:
        with path.open("xb") as file:
            for message in reader.everything(stop) if number is None else reader.last(number, stop):
                file.write(orjson.dumps(reject_to_edit(message.value() or b"", form)) + b"\n")
                saved += 1
    except FileExistsError as error:
        raise ClientError(
            f"{path} exists already; what was repaired in it would be lost."
        ) from error
    except OSError as error:
        raise ClientError(f"{path} can't be written: {error.strerror}.") from error
    return saved
