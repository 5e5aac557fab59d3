"""Store of the loop's figures: benchmarks/results/loop.json."""

import json
from typing import Any

from settings import HERE

RESULTS = HERE / "benchmarks" / "results" / "loop.json"


def load() -> dict[str, Any]:
    """Return all stored figures; empty before the first benchmark."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(found: dict[str, Any]) -> None:
    """Replace these keys of the file and keep the others."""
    RESULTS.write_text(json.dumps(load() | found, indent=1) + "\n")
