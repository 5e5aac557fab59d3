"""What goes over the wire: a sample as one JSON object, parsed and checked a batch at a time.

A batch whose messages are all plain is parsed at once; what can't be proven good so is halved until the bad messages
stand alone, and those are judged one by one, with a reason. Both ways give the same verdict.
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

import numpy as np
import orjson

from settings import SettingsError

MAX_MESSAGE_BYTES = 1_000_000  # the longest message that the project's own senders send
# Broker and topics limit what a message becomes in Kafka: with its headers and its batch's.
# The sum is Kafka's own default.
MAX_RECORD_BYTES = MAX_MESSAGE_BYTES + 48_588
MAX_SAMPLE_BYTES = 65_536  # a good sample: it goes out again with more fields, and must fit there
MAX_REJECTED_BYTES = 700_000  # base64 of this, with a reason, stays below MAX_MESSAGE_BYTES
ADDED = (
    "predict_y",
    "model_version",
    "partition",
    "offset",
    "replayed",
)  # fields that the job writes itself
MAX_DEPTH = 254  # levels of lists and objects in a message; orjson reads more than it can write
UNFORESEEN = "unforeseen"  # the code of a message on which the parser itself fails

MOVED = {"messages:DIGITS": "loop.messages:DIGITS"}  # the name before 0.2.0

_REQUIRED = itemgetter("ts", "x", "actual_y")
_READ = ("ts", "x", "actual_y", "source")  # fields that the job reads
_READ_QUOTED, _ADDED_QUOTED = (
    [b'"%b"' % name.encode() for name in names] for names in (_READ, ADDED)
)
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MARK = re.compile(
    _STRING + rb'|\[[^][{}"]*\]|[][{},]'
)  # a list of numbers is one mark, to be fast
_NAME = re.compile(rb"\s*(" + _STRING + rb")")

log = logging.getLogger(__name__)


class BadMessageError(ValueError):
    """A message that is no sample: ``code`` groups it in metrics, the text says why in a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass
class Parsed:
    """A batch after parsing; rows of ``X`` belong, in order, to the places where ``good`` is true.

    ``X``: float64 (samples, n_features). ``y``: int64 (samples,). ``good``: bool (messages,). ``documents``: each good
    message as it was written, one JSON object in bytes that ends in its own brace, without ``ADDED``. ``sources``: its
    ``source`` field or None. ``reasons``: the error of each bad message by its place in the batch.
    """

    X: np.ndarray
    y: np.ndarray
    good: np.ndarray
    documents: list[bytes]
    sources: list[str | None]
    reasons: dict[int, BadMessageError] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A message of the form ``{"ts": text, "x": [n_features numbers in low..high], "actual_y": 0..n_classes-1}``.

    ``whole`` numbers must be written without a decimal point. ``source`` (text) is optional; other fields are carried
    along as they are written, to the byte.
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
        except MemoryError:  # is no message's fault
            raise
        except Exception:
            log.exception(
                "%d messages can't be parsed together; each is judged alone", len(payloads)
            )
            return self._parse_one_by_one(payloads)

    def _parse(self, payloads: Sequence[bytes | None]) -> Parsed:
        if not payloads:
            return _join([], self.n_features)
        plain = None not in payloads and max(map(len, payloads)) <= MAX_SAMPLE_BYTES  # type: ignore[arg-type]
        parsed = self._parse_at_once(payloads) if plain else None  # type: ignore[arg-type]
        if parsed is not None:
            return parsed
        if len(payloads) <= 8:
            return self._parse_one_by_one(payloads)
        half = len(payloads) // 2
        return _join([self._parse(payloads[:half]), self._parse(payloads[half:])], self.n_features)

    def _parse_at_once(self, payloads: Sequence[bytes]) -> Parsed | None:
        """Return the batch if each message is proven to be one good sample of known fields only, else None."""
        text = b"\n".join(payloads)
        if b"\\" in text or any(
            text.count(b'"%b"' % name) != len(payloads) for name in (b"ts", b"x", b"actual_y")
        ):
            return None  # only with escapes can a name be written otherwise, and none stands twice
        try:
            messages = list(map(orjson.loads, payloads))
            ts, lists, labels = zip(*map(_REQUIRED, messages), strict=True)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        types = [{*map(type, values)} for values in (ts, lists, labels)]
        if types != [{str}, {list}, {int}] or {payload[-1:] for payload in payloads} != {b"}"}:
            return None
        if {*map(len, lists)} != {self.n_features} or not (
            min(labels) >= 0 and max(labels) < self.n_classes
        ):
            return None
        sources: list[str | None] | None = (
            [None] * len(payloads)
            if {*map(len, messages)} == {3}
            else _sources(messages, text.count(b'"source"'))
        )
        X = self._numbers(lists, b"true" in text or b"false" in text)
        if X is None or sources is None or not (X.min() >= self.low and X.max() <= self.high):
            return None
        y = np.array(labels, dtype=np.int64)
        return Parsed(
            X.astype(np.float64), y, np.ones(len(payloads), bool), list(payloads), sources
        )

    def _numbers(self, lists: Sequence[list], maybe_bools: bool) -> np.ndarray | None:
        """Return the lists as (messages, n_features), if all they hold is numbers of the right kind."""
        if self.whole and self.low >= 0 and self.high <= 255 and not maybe_bools:
            try:  # bytes of whole numbers 0..255 are read four times as fast as np.array reads their lists
                return np.frombuffer(b"".join(map(bytes, lists)), np.uint8).reshape(
                    -1, self.n_features
                )
            except (TypeError, ValueError):
                return None
        if {*map(type, chain.from_iterable(lists))} <= ({int} if self.whole else {int, float}):
            return np.array(lists, dtype=np.float64)
        return None

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
        """Return the message as a dict and as a document, or raise ``BadMessageError``."""
        message, document = _json_object(payload)
        for name in ("ts", "x", "actual_y"):
            if name not in message:
                raise BadMessageError("missing_field", f'The field "{name}" is missing.')
        for name in ("ts", "source"):
            if not isinstance(message.get(name, ""), str):
                raise BadMessageError(
                    "wrong_type", f'"{name}" must be text, not {_kind(message[name])}.'
                )
        x, y = message["x"], message["actual_y"]
        if not isinstance(x, list):
            raise BadMessageError(
                "wrong_type", f'"x" must be a list of {self.n_features} numbers, not {_kind(x)}.'
            )
        if len(x) != self.n_features:
            raise BadMessageError(
                "wrong_length", f'"x" must hold {self.n_features} numbers, it holds {len(x)}.'
            )
        allowed = (int,) if self.whole else (int, float)
        for i, value in enumerate(x):
            if type(value) not in allowed:  # a bool is an int to isinstance
                wanted = "a whole number" if self.whole else "a number"
                raise BadMessageError(
                    "wrong_type", f'"x"[{i}] must be {wanted}, not {_kind(value)}.'
                )
            if not self.low <= value <= self.high:
                raise BadMessageError(
                    "out_of_range",
                    f'"x"[{i}] must be in {self.low}..{self.high}, not {value!r:.40}.',
                )
        if type(y) is not int:
            raise BadMessageError(
                "wrong_type", f'"actual_y" must be a whole number, not {_kind(y)}.'
            )
        if not 0 <= y < self.n_classes:
            raise BadMessageError(
                "out_of_range", f'"actual_y" must be in 0..{self.n_classes - 1}, not {y!r:.40}.'
            )
        return message, document


DIGITS = Format(n_features=64, low=0, high=16, n_classes=10)


def load_format(name: str) -> Format:
    """Return the format that ``module:name`` names; raises ``SettingsError`` naming what can't be found."""
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
    """Return good messages, each with the job's fields added to its end; ``version`` made all the predictions."""
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
    """Return what goes to the reject topic; a payload over ``MAX_REJECTED_BYTES`` is cut, and the reason says so."""
    if payload is not None and len(payload) > MAX_REJECTED_BYTES:
        reason += f" The payload of {len(payload)} bytes is cut to its first {MAX_REJECTED_BYTES}."
        payload = payload[:MAX_REJECTED_BYTES]
    encoded = None if payload is None else base64.b64encode(payload).decode()
    return orjson.dumps(
        {"payload": encoded, "reason": reason, "partition": partition, "offset": offset}
    )


def _sources(messages: list[dict], named: int) -> list[str | None] | None:
    """Return each message's source, None for all unless it is the only further field, a text, and stands once."""
    sources = [message.get("source") for message in messages]
    further = sum(map(len, messages)) - 3 * len(messages)
    if further != named or {type(s) for s in sources if s is not None} != {str}:
        return None
    return sources if sum(s is not None for s in sources) == named else None


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
            "not_utf8", f"The message is not UTF-8: byte {error.start} can't be read."
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
    """Return an object as it is written, without ``ADDED``; raises for a field of ours that stands twice, or nesting."""
    levels = payload.count(b"[") + payload.count(b"{")
    twice = any(payload.count(name) > 1 for name in _READ_QUOTED)
    added = any(name in payload for name in _ADDED_QUOTED)
    if not (b"\\" in payload or twice or added or levels > MAX_DEPTH):
        return payload.rstrip()
    members = _members(payload)
    names = [orjson.loads(_NAME.match(member)[1]) for member in members]  # type: ignore[index]
    for name in _READ:  # orjson keeps the last of two fields of one name without a word
        if names.count(name) > 1:
            raise BadMessageError("duplicate_field", f'The field "{name}" stands more than once.')
    kept = [member for name, member in zip(names, members, strict=True) if name not in ADDED]
    return payload.rstrip() if len(kept) == len(members) else b"{" + b",".join(kept) + b"}"


def _members(text: bytes) -> list[bytes]:
    """Return the outermost members of a JSON object, known to be valid, as they are written."""
    depth, start, members = 0, 0, []
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
    """Return the reject of a message on which the parser itself failed; its cause keeps the stack trace."""
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
