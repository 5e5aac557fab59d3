"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], align: Sequence[str] = ()) -> str:
    """Return a Markdown table; ``align`` holds the mark of each column, ``---`` or ``---:``."""
    lines = [head, align or ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
