"""A batch: messages of the input topic with their partitions and offsets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Messages in the order in which they are learned; the offsets of one partition grow.

    ``payloads``: bytes, or None for a tombstone. ``partitions``, ``offsets``: int64 (messages,).
    """

    payloads: Sequence[bytes | None]
    partitions: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_partition(cls, partition: int, records: Sequence[tuple[int, bytes | None]]) -> "Batch":
        """Return the batch of one partition's records, each an offset and a payload."""
        payloads = [payload for _, payload in records]
        offsets = np.array([offset for offset, _ in records], dtype=np.int64)
        return cls(payloads, np.full(len(offsets), partition), offsets)

    @cached_property
    def by_partition(self) -> dict[int, np.ndarray]:
        """Return {partition: its offsets, int64}."""
        return {
            partition: self.offsets[self.partitions == partition]
            for partition in np.unique(self.partitions).tolist()
        }

    def fresh(self, progress: Mapping[int, int]) -> np.ndarray:
        """Return which messages are not learned yet, bool (messages,).

        ``progress``: {partition: next offset to learn}.
        """
        if len(self.by_partition) == 1:
            [partition] = self.by_partition
            return self.offsets >= progress.get(partition, 0)
        partitions, indices = np.unique(self.partitions, return_inverse=True)
        following = np.array([progress.get(p, 0) for p in partitions.tolist()], dtype=np.int64)
        return self.offsets >= following[indices]

    def newest(self, which: np.ndarray) -> dict[int, int]:
        """Return {partition: index in the batch of its last message among ``which``}.

        ``which``: bool (messages,).
        """
        last = {}
        for partition in self.by_partition:
            indices = np.flatnonzero(which & (self.partitions == partition))
            if len(indices):
                last[partition] = int(indices[-1])
        return last

    def place(self, i: int) -> str:
        """Return partition and offset of message ``i`` as words."""
        return f"partition {self.partitions[i]} offset {self.offsets[i]}"
