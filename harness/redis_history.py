"""The history of a model in Redis: every commit, read from the append-only file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loop.model_store import Keys, Meta


@dataclass(frozen=True)
class Version:
    """What Redis held after a commit; ``meta`` is None without a model."""

    meta: Meta | None
    model: bytes
    state: bytes


def files(folder: Path) -> list[Path]:
    """Return the append-only files in Redis's folder, in order: one in Redis 6, several in 7."""
    return sorted(folder.glob("appendonly*.aof")) + sorted(folder.glob("appendonlydir/*.incr.aof"))


def versions(texts: list[bytes], key: str) -> Iterator[Version]:
    """Yield what Redis held under the model key after each transaction that touched it.

    ``texts``: the contents of the append-only files, from the empty store on.
    """
    replay = _Replay(key)
    in_transaction, touched = False, False
    for command in _commands(texts):
        word = command[0].upper()
        in_transaction = word == b"MULTI" or (in_transaction and word != b"EXEC")
        touched |= replay.apply(word, command[1:])
        if touched and not in_transaction:
            touched = False
            yield replay.version()


class _Replay:
    """The three keys of a model while Redis's commands are replayed."""

    def __init__(self, key: str) -> None:
        self.names = [name.encode() for name in Keys.of(key).committed]
        self.clear()

    def clear(self) -> None:
        self.model, self.state = b"", bytearray()
        self.fields: dict[str, bytes] = {}

    def version(self) -> Version:
        meta = Meta.loads(self.fields) if self.fields else None
        return Version(meta, self.model, bytes(self.state))

    def apply(self, word: bytes, arguments: list[bytes]) -> bool:
        """Execute a command; return whether it touched one of the keys."""
        if word == b"FLUSHALL":
            self.clear()
            return True
        if word in (b"DEL", b"UNLINK"):
            touched = [self._delete(name) for name in arguments]
            return any(touched)
        if not arguments or arguments[0] not in self.names:
            return False
        self._write(word, *arguments)
        return True

    def _delete(self, name: bytes) -> bool:
        model, meta, state = self.names
        if name == model:
            self.model = b""
        elif name == meta:
            self.fields = {}
        elif name == state:
            self.state = bytearray()
        return name in self.names

    def _write(self, word: bytes, name: bytes, *arguments: bytes) -> None:
        if word == b"SET" and name == self.names[0]:
            self.model = arguments[0]
        elif word == b"SET":
            self.state = bytearray(arguments[0])
        elif word in (b"HSET", b"HMSET"):
            pairs = zip(arguments[::2], arguments[1::2], strict=True)
            self.fields |= {field.decode(): value for field, value in pairs}
        elif word == b"HDEL":
            for field in arguments:
                self.fields.pop(field.decode(), None)
        elif word == b"SETRANGE":
            start, value = int(arguments[0]), arguments[1]
            end = start + len(value)
            self.state.extend(bytes(max(0, end - len(self.state))))
            self.state[start:end] = value


def _commands(texts: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the complete commands in the texts; a killed Redis may have cut the last one off."""
    for text in texts:
        at = 0
        while at < len(text):
            end = text.find(b"\r\n", at)
            if end < 0:
                return
            count = int(text[at + 1 : end])
            at = end + 2
            words = []
            for _ in range(count):
                end = text.find(b"\r\n", at)
                if end < 0:
                    return
                length = int(text[at + 1 : end])
                begin, at = end + 2, end + 4 + length
                if at > len(text):
                    return
                words.append(text[begin : begin + length])
            yield words
