"""The lease in Redis with which one submission of the job owns the model.

Two jobs on one consumer group would abort each other's Kafka transactions and learn each sample
twice. A running job renews its lease. A submission that lost its lease while it was suspended does
not get it back after a newer one has committed, not even when both restart at the same time.
"""

import logging
import secrets
import threading
import time

import redis

from loop.model_store import SUBMISSION, LeaseError, ModelStore

LEASE_MS = 6_000  # how long a lease lasts after its last renewal
RENEW_SECONDS = 1.5
STARTING_MS = 60_000  # how long the client's lease lasts until the job's tasks renew it

# Takes the lease if it is free or ours. After a newer submission has committed, older ones never
# get it. A lease without an expiry, from a backup for instance, gets one, because a live holder
# would renew it.
_TAKE = """
local lease_key, meta_key = unpack(KEYS)
local submission, lease_ms, longest_ms = unpack(ARGV)
local newest = redis.call('HGET', meta_key, 'submission')
if newest and newest > submission then return -2 end
local holder = redis.call('GET', lease_key)
if holder and holder ~= submission then
    if redis.call('PTTL', lease_key) < 0 then redis.call('PEXPIRE', lease_key, longest_ms) end
    return redis.call('PTTL', lease_key)
end
redis.call('SET', lease_key, submission, 'PX', lease_ms)
return -1
"""
_GIVE_BACK = """
local lease_key, submission = KEYS[1], ARGV[1]
if redis.call('GET', lease_key) == submission then return redis.call('DEL', lease_key) end
return 0
"""

# Answers of the script; any other is how long another submission's lease lasts, in ms.
TAKEN, SUPERSEDED = -1, -2

log = logging.getLogger(__name__)


def new_submission(store: ModelStore) -> str:
    """Return a new submission id; the client makes it once, and restarts keep it.

    It sorts after the submission that committed last, even if the clock was ahead then.
    """
    seconds, microseconds = store.redis.time()  # from Redis, because clients' clocks differ
    now = int(time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds)) + f"{microseconds:06d}")
    if newest := SUBMISSION.fullmatch(store.newest_submission()):
        day, second, fraction = newest.groups(default="999999")
        now = max(now, int(day + second + fraction) + 1)
    stamp = str(now)
    return f"{stamp[:8]}T{stamp[8:14]}.{stamp[14:]}Z-{secrets.token_hex(4)}"


class Lease:
    """The lease of one submission on one model."""

    def __init__(self, store: ModelStore, submission: str) -> None:
        self.submission = submission
        self.keys = store.keys
        self.redis = store.redis
        self._take = self.redis.register_script(_TAKE)
        self._give_back = self.redis.register_script(_GIVE_BACK)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, lease_ms: int = LEASE_MS) -> None:
        """Take the lease; waits until another's lease has expired that nobody renews.

        Raises ``LeaseError`` if its holder renews it, or if a newer submission has committed.
        """
        last = None
        while (left := self._try(lease_ms)) >= 0:
            if last is not None and left > last:
                holder = self.redis.get(self.keys.lease) or b"?"
                raise LeaseError(
                    f"Another submission of this job ({holder.decode(errors='replace')}) is "
                    f"running on the model {self.keys.model}: stop it first. "
                    "A second pipeline needs its own MODEL_KEY and KAFKA_GROUP."
                )
            last = left
            # Often enough to notice a renewal.
            time.sleep(min(RENEW_SECONDS / 3, left / 1000) + 0.01)
        if left == SUPERSEDED:
            newest = self.redis.hget(self.keys.meta, "submission") or b"?"
            raise LeaseError(
                f"A newer submission of this job ({newest.decode(errors='replace')}) has taken "
                "over the model; this one ends."
            )

    def keep(self) -> None:
        """Renew the lease in the background until ``give_back``."""
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        """Stop renewing, and free the lease if it is still ours.

        If Redis is away, the lease expires without that.
        """
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=RENEW_SECONDS)
        try:
            self._give_back(keys=[self.keys.lease], args=[self.submission])
        except redis.RedisError as error:
            log.warning("lease %s was not given back; it expires: %s", self.submission, error)

    def _try(self, lease_ms: int) -> int:
        """Try to take the lease once.

        Returns ``TAKEN``, ``SUPERSEDED``, or how long another's lease lasts, in ms.
        """
        keys = [self.keys.lease, self.keys.meta]
        try:
            return self._take(keys=keys, args=[self.submission, lease_ms, LEASE_MS])
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise LeaseError(
                f"One of the Redis keys {self.keys.lease} and {self.keys.meta} is of another type "
                f"than the model's: start over with python redis_clear.py {self.keys.model}."
            ) from error

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                if self._try(LEASE_MS) != TAKEN:
                    log.error("lease %s was taken by another submission", self.submission)
                    return  # the next commit is refused and says so
            except LeaseError as error:
                log.error("lease %s can't be renewed: %s", self.submission, error)
                return
            except redis.RedisError as error:
                log.warning("lease %s was not renewed: %s", self.submission, error)
