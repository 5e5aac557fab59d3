"""The message format: a sample as one JSON object, parsed and checked a batch at a time.

A batch whose messages are all plain is parsed at once. Any other batch is halved until at most
eight messages remain, and those are judged one by one, with a reason. Both ways give the same
verdict.
"""

import base64
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from itertools import chain
from operator import itemgetter
from typing import Any, TypeGuard

import numpy as np
import orjson

from settings import SettingsError

MAX_MESSAGE_BYTES = 1_000_000  # the longest message that the project's own senders send
# Broker and topics limit what a message becomes in Kafka: with its headers and its batch's.
# The sum is Kafka's own default.
MAX_RECORD_BYTES = MAX_MESSAGE_BYTES + 48_588
MAX_SAMPLE_BYTES = 65_536  # a good sample: it goes out again with more fields, and must fit there
MAX_REJECTED_BYTES = 700_000  # base64 of this, with a reason, stays below MAX_MESSAGE_BYTES
# Fields that the job writes itself.
ADDED = ("predict_y", "model_version", "partition", "offset", "replayed")
MAX_DEPTH = 254  # levels of lists and objects in a message; orjson reads more than it can write
ONE_BY_ONE = 8  # messages that are no longer halved
UNFORESEEN = "unforeseen"  # the code of a message on which the parser itself fails

MOVED = {"messages:DIGITS": "loop.messages:DIGITS"}  # the name before 0.2.0

_REQUIRED = itemgetter("ts", "x", "actual_y")
_READ = ("ts", "x", "actual_y", "source")  # fields that the job reads
_READ_QUOTED = [b'"%b"' % name.encode() for name in _READ]
_ADDED_QUOTED = [b'"%b"' % name.encode() for name in ADDED]
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
# A list of numbers is one mark, to be fast.
_MARK = re.compile(_STRING + rb'|\[[^][{}"]*\]|[][{},]')
_NAME = re.compile(rb"\s*(" + _STRING + rb")")

log = logging.getLogger(__name__)


class BadMessageError(ValueError):
    """A message that is not a sample; ``code`` groups it in metrics, the text is a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass
class Parsed:
    """A batch after parsing; rows of ``X`` belong, in order, to the places where ``good`` is true.

    ``X``: float64 (samples, n_features). ``y``: int64 (samples,). ``good``: bool (messages,).
    ``documents``: each good message as it was written, without ``ADDED``: one JSON object in bytes,
    which ends in its own brace. ``sources``: its ``source`` field or None. ``reasons``: the error
    of each bad message by its place in the batch.
    """

    X: np.ndarray
    y: np.ndarray
    good: np.ndarray
    documents: list[bytes]
    sources: list[str | None]
    reasons: dict[int, BadMessageError] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """The format ``{"ts": text, "x": [numbers], "actual_y": number}`` of one stream's messages.

    ``x`` holds ``n_features`` numbers in ``low``..``high``; ``whole`` numbers must be written
    without a decimal point. ``actual_y`` is in 0..``n_classes`` - 1. ``source`` (text) is optional.
    Other fields go out byte for byte as they came in.
    """

    n_features: int
    low: float
    high: float
    n_classes: int
    whole: bool = True

    @cached_property
    def classes(self) -> np.ndarray:
        """Return the labels, int64 (n_classes,)."""
        return np.arange(self.n_classes, dtype=np.int64)

    def sample(
        self, x: Sequence[float], y: int, source: str | None = None, ts: str | None = None
    ) -> bytes:
        """Return one message as it goes on the wire; ``ts`` defaults to now in UTC."""
        message: dict = {"ts": ts or datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")}
        message |= {"x": [int(v) if self.whole else float(v) for v in x], "actual_y": int(y)}
        if source is not None:
            message["source"] = source
        return orjson.dumps(message)

    def parse(self, payloads: Sequence[bytes | None]) -> Parsed:
        """Parse a batch of raw messages; never raises for what a message holds."""
        try:
            return self._parse(payloads)
        except MemoryError:  # no message is to blame
            raise
        except Exception:
            log.exception(
                "%d messages can't be parsed together; each is judged alone", len(payloads)
            )
            return self._parse_one_by_one(payloads)

    def _parse(self, payloads: Sequence[bytes | None]) -> Parsed:
        if not payloads:
            return _join([], self.n_features)
        if _are_short(payloads):
            parsed = self._parse_at_once(payloads)
            if parsed is not None:
                return parsed
        if len(payloads) <= ONE_BY_ONE:
            return self._parse_one_by_one(payloads)
        half = len(payloads) // 2
        return _join([self._parse(payloads[:half]), self._parse(payloads[half:])], self.n_features)

    def _parse_at_once(self, payloads: Sequence[bytes]) -> Parsed | None:
        """Return the batch if every message is proven to be a good sample of known fields.

        Each check that passes proves for every message what ``_judge`` would find, so a batch that
        is returned has no bad message in it. A check that can't prove this for the whole batch
        returns None, which rejects nothing: ``_judge`` then decides.
        """
        text = b"\n".join(payloads)
        if not _names_appear_once(text, len(payloads)) or not _end_in_braces(payloads):
            return None
        try:
            messages = list(map(orjson.loads, payloads))
            times, lists, labels = zip(*map(_REQUIRED, messages), strict=True)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        if not _all_are(str, times):
            return None
        sources = _sources(messages, text)
        X = self._numbers(lists, text)
        y = self._labels(labels)
        if sources is None or X is None or y is None:
            return None
        good = np.ones(len(payloads), bool)
        return Parsed(X, y, good, list(payloads), sources)

    def _numbers(self, lists: Sequence[Any], text: bytes) -> np.ndarray | None:
        """Return the lists as float64 (messages, n_features), or None for any other values.

        ``text`` holds the messages as they were written.
        """
        if not _all_are(list, lists) or {*map(len, lists)} != {self.n_features}:
            return None
        has_bools = b"true" in text or b"false" in text
        in_bytes = self._fits_in_bytes() and not has_bools
        X = _bytes_of(lists) if in_bytes else self._floats_of(lists)
        if X is None or not (X.min() >= self.low and X.max() <= self.high):
            return None
        return X.reshape(-1, self.n_features).astype(np.float64, copy=False)

    def _fits_in_bytes(self) -> bool:
        return self.whole and self.low >= 0 and self.high <= 255

    def _floats_of(self, lists: Sequence[list]) -> np.ndarray | None:
        """Return all values as float64 if each is a number of the right kind."""
        allowed = {int} if self.whole else {int, float}
        kinds = set(map(type, chain.from_iterable(lists)))
        return np.array(lists, dtype=np.float64) if kinds <= allowed else None

    def _labels(self, labels: Sequence[Any]) -> np.ndarray | None:
        """Return the labels as int64 (messages,), or None for any other values."""
        if not _all_are(int, labels):
            return None
        if not (min(labels) >= 0 and max(labels) < self.n_classes):
            return None
        return np.array(labels, dtype=np.int64)

    def _parse_one_by_one(self, payloads: Sequence[bytes | None]) -> Parsed:
        good = np.zeros(len(payloads), bool)
        rows, labels, documents, sources, reasons = [], [], [], [], {}
        for i, payload in enumerate(payloads):
            try:
                message, document = self._judge(payload)
            except BadMessageError as error:
                reasons[i] = error
                continue
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - as in parse()
                reasons[i] = _unforeseen(error)
                continue
            good[i] = True
            rows.append(message["x"])
            labels.append(message["actual_y"])
            sources.append(message.get("source"))
            documents.append(document)
        X = np.array(rows, dtype=np.float64).reshape(-1, self.n_features)
        return Parsed(X, np.array(labels, dtype=np.int64), good, documents, sources, reasons)

    def _judge(self, payload: bytes | None) -> tuple[dict, bytes]:
        """Return the message as a dict and as a document; raises ``BadMessageError``."""
        message, document = _json_object(payload)
        for name in ("ts", "x", "actual_y"):
            if name not in message:
                raise BadMessageError("missing_field", f'The field "{name}" is missing.')
        for name in ("ts", "source"):
            if not isinstance(message.get(name, ""), str):
                kind = _kind(message[name])
                raise BadMessageError("wrong_type", f'"{name}" must be text, not {kind}.')
        self._judge_numbers(message["x"])
        self._judge_label(message["actual_y"])
        return message, document

    def _judge_numbers(self, x: object) -> None:
        n = self.n_features
        if not isinstance(x, list):
            sentence = f'"x" must be a list of {n} numbers, not {_kind(x)}.'
            raise BadMessageError("wrong_type", sentence)
        if len(x) != n:
            sentence = f'"x" must hold {n} numbers, it holds {len(x)}.'
            raise BadMessageError("wrong_length", sentence)
        allowed = (int,) if self.whole else (int, float)
        number = "a whole number" if self.whole else "a number"
        for i, value in enumerate(x):
            if type(value) not in allowed:  # a bool is an int to isinstance
                sentence = f'"x"[{i}] must be {number}, not {_kind(value)}.'
                raise BadMessageError("wrong_type", sentence)
            if not self.low <= value <= self.high:
                sentence = f'"x"[{i}] must be in {self.low}..{self.high}, not {value!r:.40}.'
                raise BadMessageError("out_of_range", sentence)

    def _judge_label(self, y: object) -> None:
        if type(y) is not int:
            sentence = f'"actual_y" must be a whole number, not {_kind(y)}.'
            raise BadMessageError("wrong_type", sentence)
        if not 0 <= y < self.n_classes:
            sentence = f'"actual_y" must be in 0..{self.n_classes - 1}, not {y!r:.40}.'
            raise BadMessageError("out_of_range", sentence)


DIGITS = Format(n_features=64, low=0, high=16, n_classes=10)


def load_format(name: str) -> Format:
    """Return the format that ``module:name`` names; raises ``SettingsError`` if there is none."""
    module, _, attribute = MOVED.get(name, name).partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise SettingsError(
            f"MESSAGE_FORMAT {name!r} must be module:name of a message format: {error}."
        ) from error
    if not isinstance(found, Format):
        raise SettingsError(
            f"MESSAGE_FORMAT {name!r} is a {type(found).__name__}; it must be a messages.Format."
        )
    return found


def predictions(
    documents: Sequence[bytes],
    predicted: Sequence[float | None],
    version: int | None,
    partitions: Sequence[int],
    offsets: Sequence[int],
    replayed: Sequence[bool],
) -> list[bytes]:
    """Return good messages, each with the job's fields added at its end.

    ``version`` is the model's that made all the predictions, None before there is a model.
    """
    number = b"null" if version is None else b"%d" % version
    guesses = {
        guess: b',"predict_y":%b,"model_version":%b'
        % (b"null" if guess is None else b"%r" % guess, number)
        for guess in set(predicted)
    }
    marks = {False: b"}", True: b',"replayed":true}'}
    return [
        b'%b%b,"partition":%d,"offset":%d%b'
        % (document[:-1], guesses[guess], partition, offset, marks[again])
        for document, guess, partition, offset, again in zip(
            documents, predicted, partitions, offsets, replayed, strict=True
        )
    ]


def reject(payload: bytes | None, reason: str, partition: int, offset: int) -> bytes:
    """Return the record for the reject topic.

    A payload over ``MAX_REJECTED_BYTES`` is cut, and the reason says so.
    """
    if payload is not None and len(payload) > MAX_REJECTED_BYTES:
        reason += f" The payload of {len(payload)} bytes is cut to its first {MAX_REJECTED_BYTES}."
        payload = payload[:MAX_REJECTED_BYTES]
    encoded = None if payload is None else base64.b64encode(payload).decode()
    return orjson.dumps(
        {"payload": encoded, "reason": reason, "partition": partition, "offset": offset}
    )


def _are_short(payloads: Sequence[bytes | None]) -> TypeGuard[Sequence[bytes]]:
    """Return whether each message has a value that is short enough for a sample."""
    return None not in payloads and max(map(len, payloads)) <= MAX_SAMPLE_BYTES  # type: ignore[arg-type]


def _names_appear_once(text: bytes, n_messages: int) -> bool:
    """Return whether each required name is written as often as there are messages.

    Without escapes a name can be written in one way only. As each message is known to have each
    field, none has one twice.
    """
    if b"\\" in text:
        return False
    return all(text.count(name) == n_messages for name in (b'"ts"', b'"x"', b'"actual_y"'))


def _end_in_braces(payloads: Sequence[bytes]) -> bool:
    """Return whether nothing follows the object, so that fields can be added at its end."""
    return {payload[-1:] for payload in payloads} == {b"}"}


def _all_are(kind: type, values: Sequence[object]) -> bool:
    """Return whether all values have exactly this type; a bool is not an int here."""
    return {*map(type, values)} == {kind}


def _sources(messages: list[dict], text: bytes) -> list[str | None] | None:
    """Return each message's source, or None unless it is the only further field and a text.

    ``text`` holds the messages as they were written. It must name each source once.
    """
    further = sum(map(len, messages)) - 3 * len(messages)
    if not further:
        return [None] * len(messages)
    sources = [message.get("source") for message in messages]
    given = [source for source in sources if source is not None]
    if not _all_are(str, given):
        return None
    return sources if len(given) == further == text.count(b'"source"') else None


def _bytes_of(lists: Sequence[list]) -> np.ndarray | None:
    """Return all values as uint8, or None unless they are whole numbers in 0..255.

    This is four times as fast as ``np.array``. It takes bools for numbers.
    """
    try:
        return np.frombuffer(b"".join(map(bytes, lists)), np.uint8)
    except (TypeError, ValueError):
        return None


def _json_object(payload: bytes | None) -> tuple[dict, bytes]:
    if payload is None:
        raise BadMessageError("empty", "The message has no value (a tombstone).")
    if not payload:
        raise BadMessageError("empty", "The message is empty.")
    if len(payload) > MAX_SAMPLE_BYTES:
        raise BadMessageError(
            "too_large",
            f"The message has {len(payload)} bytes; a sample has at most {MAX_SAMPLE_BYTES}.",
        )
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise BadMessageError(
            "not_utf8", f"The message is not UTF-8: byte {error.start} can't be decoded."
        ) from error
    try:
        message = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadMessageError("not_json", f"The message is not JSON: {error}.") from error
    if not isinstance(message, dict):
        raise BadMessageError(
            "not_an_object", f"The message must be a JSON object, not {_kind(message)}."
        )
    return message, _document(payload)


def _document(payload: bytes) -> bytes:
    """Return an object as it is written, without ``ADDED``.

    Raises ``BadMessageError`` if a field that the job reads appears twice, or for deep nesting.
    """
    levels = payload.count(b"[") + payload.count(b"{")
    twice = any(payload.count(name) > 1 for name in _READ_QUOTED)
    added = any(name in payload for name in _ADDED_QUOTED)
    if not (b"\\" in payload or twice or added or levels > MAX_DEPTH):
        return payload.rstrip()
    members = _members(payload)
    names = [orjson.loads(_NAME.match(member)[1]) for member in members]  # type: ignore[index]
    for name in _READ:  # orjson silently keeps the last of two fields of one name
        if names.count(name) > 1:
            raise BadMessageError("duplicate_field", f'The field "{name}" appears more than once.')
    kept = [member for name, member in zip(names, members, strict=True) if name not in ADDED]
    return payload.rstrip() if len(kept) == len(members) else b"{" + b",".join(kept) + b"}"


def _members(text: bytes) -> list[bytes]:
    """Return the outermost members of a valid JSON object as they are written."""
    members = []
    depth = 0
    start = 0  # of the member that is read
    for mark in _MARK.finditer(text):
        kind = mark[0]
        if kind[:1] in b"{[":
            depth += 1
            start = mark.end() if depth == 1 else start
        if depth > MAX_DEPTH:
            raise BadMessageError("not_json", "The message is nested too deeply.")
        if depth == 1 and kind in (b",", b"}"):
            members.append(text[start : mark.start()])
            start = mark.end()
        if kind[-1:] in b"}]":
            depth -= 1
    return members


def _unforeseen(error: Exception) -> BadMessageError:
    """Return the reject of a message on which the parser itself failed.

    Its cause keeps the stack trace.
    """
    bad = BadMessageError(UNFORESEEN, f"The parser fails on this message: {error!a:.200}.")
    bad.__cause__ = error
    return bad


def _kind(value: object) -> str:
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number with a fraction",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


def _join(parts: list[Parsed], n_features: int) -> Parsed:
    """Return the parts of one batch as one, places counted from its beginning."""
    joined = Parsed(np.empty((0, n_features)), np.empty(0, np.int64), np.empty(0, bool), [], [])
    if not parts:
        return joined
    start = 0
    for part in parts:
        joined.documents += part.documents
        joined.sources += part.sources
        joined.reasons |= {start + i: error for i, error in part.reasons.items()}
        start += len(part.good)
    joined.X = np.concatenate([part.X for part in parts])
    joined.y = np.concatenate([part.y for part in parts])
    joined.good = np.concatenate([part.good for part in parts])
    return joined
