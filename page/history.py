"""The history of accuracy that the page shows, kept in Redis so that it survives the page."""

import time
from typing import cast

import orjson
import redis

from loop.model_store import Keys, Stored
from page.newest import SAID_FOR
from settings import Settings

MAX_POINTS = 720  # beyond that, every second point of the older half is dropped


class History:
    """Accuracy over time, one point a second while samples come.

    It is one Redis list, under a key derived from the model's: a page in a container has no disk of
    its own. A point is [epoch s, version, samples, accuracy, accuracy_100, samples/s, people's
    accuracy]; a share is None before its first sample.
    """

    def __init__(self, settings: Settings) -> None:
        self.key = Keys.of(settings.model_key).history
        self.points: list[list] = []
        self._redis = redis.Redis(
            **settings.redis_client(), socket_timeout=2, socket_connect_timeout=2
        )
        self.loaded = False
        self.error: str | None = None
        self._said_until = 0.0
        self._unsaved = 0

    def add(self, point: list) -> None:
        """Add one point, and thin out when there are too many."""
        self.points.append(point)
        self._unsaved += 1
        if len(self.points) > MAX_POINTS:
            half = MAX_POINTS // 2
            self.points = self.points[:half:2] + self.points[half:]
            self._unsaved = len(self.points)

    def sync(self) -> None:
        """Load an earlier page's points, once, then save the new ones; skip both without Redis."""
        try:
            if not self.loaded:
                self._load()
            if self._unsaved:
                self._save()
        except (redis.ConnectionError, redis.TimeoutError):
            return  # the watcher reports it; the next second tries again
        except redis.RedisError as error:
            self.error = f"Redis key {self.key} can't be used for the history ({error})."
            return
        if time.monotonic() > self._said_until:
            self.error = None

    def _load(self) -> None:
        found = cast(list[bytes], self._redis.lrange(self.key, -MAX_POINTS, -1))
        earlier = [good for good in map(read_point, found) if good]
        self.points = earlier + self.points
        self.loaded = True
        if len(earlier) < len(found):
            self._unsaved = len(self.points)  # this rewrites the list, without the broken points
            self._said_until = time.monotonic() + SAID_FOR
            broken = len(found) - len(earlier)
            self.error = (
                f"{broken} broken points of the history in Redis key {self.key} were left out."
            )

    def _save(self) -> None:
        with self._redis.pipeline(transaction=True) as writes:
            if self._unsaved >= len(self.points):
                writes.delete(self.key)
            writes.rpush(
                self.key, *[orjson.dumps(point) for point in self.points[-self._unsaved :]]
            )
            writes.ltrim(self.key, -MAX_POINTS, -1)
            writes.execute()
        self._unsaved = 0


def read_point(text: bytes) -> list | None:
    """Return one point of history as it was saved, or None for anything else."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, list) or len(found) != 7:
        return None
    numbers = [found[i] for i in (0, 1, 2, 5)]
    shares = [found[i] for i in (3, 4, 6)]
    numbers += [share for share in shares if share is not None]
    return found if all(type(number) in (int, float) for number in numbers) else None


def point(stored: Stored, now: float, rate: float) -> list:
    """Return one point of history, as ``History`` describes it."""
    meta = stored.meta
    people, right = meta.scores.by_source.get("page", [0, 0])
    return [
        round(now, 1),
        meta.version,
        meta.samples,
        _rounded(meta.scores.accuracy),
        _rounded(meta.scores.accuracy_100),
        round(rate, 1),
        _rounded(right / people if people else None),
    ]


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
