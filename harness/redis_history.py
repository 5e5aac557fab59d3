"""Every commit that Redis ever took, read from its append-only file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loop.model_store import Keys, Meta


@dataclass(frozen=True)
class Version:
    """What Redis held after a commit; ``meta`` is None where there is none, ``model`` and ``state`` are as bytes."""

    meta: Meta | None
    model: bytes
    state: bytes


def files(folder: Path) -> list[Path]:
    """Return the append-only files below Redis's folder: one up to Redis 6, several from Redis 7 on."""
    return sorted(folder.glob("appendonly*.aof")) + sorted(folder.glob("appendonlydir/*.incr.aof"))


def versions(texts: list[bytes], key: str) -> Iterator[Version]:
    """Yield what Redis held under the model key after each transaction that touched it.

    ``texts``: the contents of the append-only files, from the empty store on.
    """
    names = [name.encode() for name in Keys.of(key).committed]
    model, fields, state = b"", {}, bytearray()  # type: tuple[bytes, dict[str, bytes], bytearray]
    in_transaction, touched = False, False
    for command in _commands(texts):
        word = command[0].upper()
        in_transaction = word == b"MULTI" or (in_transaction and word != b"EXEC")
        if word == b"FLUSHALL":
            model, fields, state, touched = b"", {}, bytearray(), True
        elif word in (b"DEL", b"UNLINK"):
            for name in command[1:]:
                touched |= name in names
                model = b"" if name == names[0] else model
                fields = {} if name == names[1] else fields
                state = bytearray() if name == names[2] else state
        elif len(command) > 1 and command[1] in names:
            touched = True
            if word == b"SET":
                if command[1] == names[0]:
                    model = command[2]
                else:
                    state = bytearray(command[2])
            elif word in (b"HSET", b"HMSET"):
                fields = fields | {
                    k.decode(): v for k, v in zip(command[2::2], command[3::2], strict=True)
                }
            elif word == b"HDEL":
                fields = {k: v for k, v in fields.items() if k.encode() not in command[2:]}
            elif word == b"SETRANGE":
                start = int(command[2])
                state.extend(bytes(max(0, start + len(command[3]) - len(state))))
                state[start : start + len(command[3])] = command[3]
        if touched and not in_transaction:
            touched = False
            yield Version(Meta.loads(fields) if fields else None, model, bytes(state))


def _commands(texts: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the whole commands in the texts; the last one may be cut off, as after a kill."""
    for text in texts:
        at = 0
        while at < len(text):
            end = text.find(b"\r\n", at)
            if end < 0:
                return
            count, at = int(text[at + 1 : end]), end + 2
            words = []
            for _ in range(count):
                end = text.find(b"\r\n", at)
                if end < 0 or end + 4 + int(text[at + 1 : end]) > len(text):
                    return
                length = int(text[at + 1 : end])
                words.append(text[end + 2 : end + 2 + length])
                at = end + 4 + length
            yield words
