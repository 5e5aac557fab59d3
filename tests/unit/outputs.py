"""What the job sends out, one message at a time."""

from loop.messages import predictions


def prediction(
    document: bytes,
    predicted: float | None,
    version: int | None,
    partition: int,
    offset: int,
    replayed: bool = False,
) -> bytes:
    """Return one good message as it stands in the predict topic."""
    return predictions([document], [predicted], version, [partition], [offset], [replayed])[0]
