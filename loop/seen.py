"""Remembers which samples a model has learned, so that a repeated sample is counted apart.

A stream that repeats makes a model look better than it is: what it has learned before, it may know
by heart. The memory is part of each commit and follows from the commits alone.
"""

from hashlib import blake2b

import numpy as np

CAPACITY = 8192  # samples; the digits are 1,797
DIGEST_BYTES = 8


class Seen:
    """The newest 8,192 different samples that a model has learned, as digests of their features.

    ``digests``: uint64 (CAPACITY,). The oldest is overwritten first, so that a commit changes few
    bytes.
    ``added``: how many were ever added.
    """

    size = 8 * (1 + CAPACITY)  # bytes of ``dumps``

    def __init__(self) -> None:
        self.digests = np.zeros(CAPACITY, np.uint64)
        self.added = 0
        self._known: set[int] = set()

    @classmethod
    def split(cls, state: bytes) -> tuple["Seen", bytes]:
        """Return the memory and the learner's state out of what a commit holds.

        A signed pickle comes without either: both are empty then.
        """
        seen = cls()
        if state:
            numbers = np.frombuffer(state[: cls.size], np.uint64)
            seen.added = int(numbers[0])
            seen.digests[:] = numbers[1:]
            seen._known = set(seen.digests[: min(seen.added, CAPACITY)].tolist())
        return seen, state[cls.size :]

    def knows(self, X: np.ndarray) -> np.ndarray:
        """Return which rows of X, float64 (n, features), were learned before, bool (n,)."""
        known = self._known
        return np.array([digest in known for digest in digests(X)], dtype=bool)

    def add(self, X: np.ndarray) -> np.ndarray:
        """Remember the rows of X, float64 (n, features), and return which were new, bool (n,).

        A row that X holds twice is new both times.
        """
        found = digests(X)
        new = np.array([digest not in self._known for digest in found], dtype=bool)
        for digest in found:
            if digest in self._known:
                continue
            slot = self.added % CAPACITY
            if self.added >= CAPACITY:
                self._known.discard(int(self.digests[slot]))
            self.digests[slot] = digest
            self._known.add(digest)
            self.added += 1
        return new

    def dumps(self) -> bytes:
        """Return the memory as ``size`` bytes."""
        return self.added.to_bytes(8, "little") + self.digests.tobytes()


def digests(X: np.ndarray) -> list[int]:
    """Return one number per row of X, float64 (n, features): equal rows have equal numbers."""
    rows = np.ascontiguousarray(X)
    return [
        int.from_bytes(blake2b(row, digest_size=DIGEST_BYTES).digest(), "little") for row in rows
    ]
