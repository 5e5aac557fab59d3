"""The model in Redis: one atomic, compare-and-set commit of the model and of how far it has learned.

``Keys`` names the Redis keys. Nothing is unpickled that is not signed with this installation's key.
"""

import hashlib
import hmac
import pickle
import re
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import orjson
import redis
from sklearn.exceptions import InconsistentVersionWarning
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from loop.scores import Scores
from settings import Settings, UserError

# How long a batch waits for Redis before the task fails and Flink's restart strategy takes over.
RETRY_SECONDS = 20
STATE_PAGE = 1024  # bytes; a commit writes only the pages of the state that changed
LIBRARIES = ("scikit-learn", "numpy")
REFUSALS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
)
T = TypeVar("T")
ID_TIME = "%Y%m%dT%H%M%S.%fZ"
# The name of a submission; those of earlier versions have no fraction of a second.
SUBMISSION = re.compile(r"(\d{8})T(\d{6})(?:\.(\d{6})Z)?-[0-9a-f]{8}")

# Writes one commit. Nothing is written unless the store still holds what the task read last and its
# submission owns the lease. The first write is one that Redis refuses when it is out of memory or
# read-only, so that all of the commit happens or nothing.
# ARGV: ten values by name, then n_meta names and values of the meta, then places and bytes of the state.
_COMMIT = """
local model_key, meta_key, state_key, lease_key = unpack(KEYS)
local expected, commit, submission, lease_ms, channel = unpack(ARGV, 1, 5)
local had_model, had_state = tonumber(ARGV[6]), tonumber(ARGV[7])
local model, state_bytes, n_meta = ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10])
local first_meta, first_page = 11, 11 + n_meta

local found = redis.call('HGET', meta_key, 'commit_id') or ''
if found == commit then return 'done' end  -- an answer was lost, and the client asked again

if submission ~= '' then
    local holder = redis.call('GET', lease_key)
    local newest = redis.call('HGET', meta_key, 'submission')
    if holder and holder ~= submission then return 'lease' end
    if newest and newest > submission then return 'lease' end
end
if found ~= expected then return 'conflict' end
if redis.call('EXISTS', model_key) ~= had_model then return 'conflict' end
if redis.call('STRLEN', state_key) ~= had_state then return 'conflict' end

if model ~= '' then redis.call('SET', model_key, model) end
redis.call('HSET', meta_key, unpack(ARGV, first_meta, first_page - 1))
-- The hash holds what is signed and nothing else, such as a field that a later version wrote.
local signed = {}
for i = first_meta, first_page - 1, 2 do signed[ARGV[i]] = true end
for _, name in ipairs(redis.call('HKEYS', meta_key)) do
    if not signed[name] then redis.call('HDEL', meta_key, name) end
end

if redis.call('STRLEN', state_key) ~= state_bytes then redis.call('DEL', state_key) end
for i = first_page, #ARGV, 2 do redis.call('SETRANGE', state_key, ARGV[i], ARGV[i + 1]) end
if submission ~= '' then redis.call('SET', lease_key, submission, 'PX', lease_ms) end
redis.call('PUBLISH', channel, commit)
return 'done'
"""

# Puts a signed mark in the place of a model, whatever type the keys are of. Nothing is deleted
# unless the meta is still the one that was read; the lease of a running job stays.
# ARGV: two values by name, then names and values of the mark.
_CLEAR = """
local model_key, meta_key, state_key, lease_key = unpack(KEYS)
local expected, channel = ARGV[1], ARGV[2]
local existed = redis.call('EXISTS', model_key)
local found = ''
if redis.call('TYPE', meta_key).ok == 'hash' then
    found = redis.call('HGET', meta_key, 'commit_id') or ''
end
if found ~= expected then return -1 end
redis.call('DEL', model_key, meta_key, state_key)
if redis.call('TYPE', lease_key).ok ~= 'string' then redis.call('DEL', lease_key) end
redis.call('HSET', meta_key, unpack(ARGV, 3))
redis.call('PUBLISH', channel, 'cleared')
return existed
"""


class Keys(NamedTuple):
    """The Redis keys of one model, all in one slot; the scripts get them in this order.

    ``model``: the pickled estimator. ``meta``: a hash. ``state``: what only training needs.
    ``lease``: the submission that owns the model.
    """

    model: str
    meta: str
    state: str
    lease: str

    @classmethod
    def of(cls, model_key: str) -> "Keys":
        """Return the keys that belong to ``MODEL_KEY``."""
        slot = f"{{{model_key}}}"
        return cls(model_key, f"{slot}:meta", f"{slot}:state", f"{slot}:lease")

    @property
    def committed(self) -> tuple[str, str, str]:
        """Return the keys that a commit writes together."""
        return self.model, self.meta, self.state

    @property
    def history(self) -> str:
        """Return the key of the page's history, which outlives the model."""
        return f"{{{self.model}}}:history"

    @property
    def updates(self) -> str:
        """Return the channel on which each commit is published."""
        return f"{self.model}:updates"


class StoreError(UserError, RuntimeError):
    """The store can't be used as it is; the text says in a sentence what is wrong and what to do."""


class IncompleteError(StoreError):
    """One key of a model is there without the others, or is no such key, or a model that was committed is gone."""


class SignatureError(StoreError):
    """The model in Redis carries no signature, or not one made with this installation's key over these bytes."""


class ModelFormatError(StoreError):
    """A signed model can't be unpickled here, as it was written by other versions."""


class OriginError(StoreError):
    """The model is signed with this installation's key, but was learned from another Kafka cluster."""


class ConflictError(StoreError):
    """Somebody else committed, cleared or put back the model since this task last read it."""


class LeaseError(StoreError):
    """Another submission of the job owns the model."""


class AwayError(StoreError):
    """Redis did not take a commit in time; nothing is lost, as the batch was not acknowledged."""


@cache
def installed(library: str) -> str:
    """Return a library's version; asking costs as much as a small commit, so each is asked for once."""
    return version(library)


def new_model_id(after: str = "") -> str:
    """Return an id that sorts after ``after`` and after every id made earlier: its time in UTC and four random digits."""
    now = datetime.now(UTC)
    if after:
        now = max(
            now,
            datetime.strptime(after.split("-")[0], ID_TIME).replace(tzinfo=UTC)
            + timedelta(microseconds=1),
        )
    return f"{now.strftime(ID_TIME)}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Meta:
    """What is known about a model: its name, its place in the stream, its counts and its scores.

    ``parent``: "model_id:version" or "". ``samples``, ``rejected``: counts since the recorded start.
    ``progress``: {partition: next offset to learn}. ``starts``: {partition: first offset of this model}.
    ``checksums``: {partition: [offset, CRC-32]} of the last payload learned. ``saved_at``: seconds
    since 1970. ``libraries``: versions that pickled the model. ``submission``: the newest one that has
    learned it. ``cluster_id``: of the Kafka that it was learned from. ``cleared_at``: seconds since
    1970, 0 for a model, more for the mark that ``redis_clear.py`` leaves.
    """

    model_id: str = ""
    parent: str = ""
    version: int = 0
    commit_id: str = ""
    samples: int = 0
    rejected: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    topic_id: str = ""
    progress: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    checksums: dict[int, list[int]] = field(default_factory=dict)
    saved_at: float = 0.0
    learner: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    state_sha256: str = ""
    submission: str = ""
    cluster_id: str = ""
    cleared_at: float = 0.0

    @property
    def order(self) -> tuple[str, int]:
        """Return what newer models compare greater by."""
        return self.model_id, self.version

    def dumps(self) -> dict[str, bytes]:
        """Return the fields of the Redis hash, without the signature."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.cleared_at:
            del found["cleared_at"]
        options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS
        return {
            name: value.encode() if isinstance(value, str) else orjson.dumps(value, option=options)
            for name, value in found.items()
        }

    @classmethod
    def loads(cls, found: dict[str, bytes]) -> "Meta":
        """Return the meta that ``dumps`` wrote; call it only with fields whose signature was checked."""
        values: dict = {}
        for f in fields(cls):
            if f.name not in found:
                continue
            text = found[f.name]
            if f.type is str:
                values[f.name] = text.decode()
            elif f.type is Scores:
                values[f.name] = Scores.loads(text)
            else:
                values[f.name] = orjson.loads(text)
        for name in ("progress", "starts", "checksums"):
            values[name] = {int(k): v for k, v in values.get(name, {}).items()}
        return cls(**values)


@dataclass(frozen=True)
class Stored:
    """A model as it stands in Redis, its signature checked, its pickle not yet opened; a cleared mark has no model."""

    model: bytes
    meta: Meta
    state: bytes = b""

    @property
    def cleared(self) -> bool:
        """Return whether this is the mark that ``redis_clear.py`` leaves."""
        return bool(self.meta.cleared_at)

    @cached_property
    def _estimator(self) -> object:
        return unpickle(self.model, self.meta)

    def estimator(self) -> object:
        """Return the serving estimator, unpickled once; raises ``ModelFormatError``."""
        return self._estimator


def unpickle(model: bytes, meta: Meta) -> object:
    """Return the object in ``model``, whose signature was checked; raises ``ModelFormatError`` with what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            return pickle.loads(model)  # noqa: S301  its signature was checked
    except Exception as error:  # a pickle runs any code, so it may raise anything
        written = (
            ", ".join(f"{name} {v}" for name, v in meta.libraries.items()) or "unknown versions"
        )
        here = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
        raise ModelFormatError(
            f"The stored model can't be read here: it was written with {written}, here is {here} ({error}). Install those "
            "versions, or start over with python redis_clear.py online_ml_model."
        ) from error


class ModelStore:
    """Reads and commits one model; every method may raise redis-py's errors where Redis is away."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys.of(settings.model_key)
        # redis-py's types say that any answer may be an awaitable.
        self.redis: Any = redis.Redis(
            **settings.redis_client(), socket_timeout=5, socket_connect_timeout=2
        )
        self._commit = self.redis.register_script(_COMMIT)
        self._clear = self.redis.register_script(_CLEAR)

    @cached_property
    def signing_key(self) -> bytes:
        """Return the key of this installation; raises ``SettingsError`` where there is none."""
        return self.settings.signing_key()

    def sign(self, model: bytes, values: dict[str, bytes]) -> str:
        """Return the HMAC-SHA256 over key name, fields and model, each preceded by its length."""
        parts = [
            self.keys.model.encode(),
            *(part for name in sorted(values) for part in (name.encode(), values[name])),
            model,
        ]
        mac = hmac.new(self.signing_key, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest()

    def progress(self) -> dict[int, int]:
        """Return {partition: next offset to learn} as it stands there, unchecked: whether it may be used, the job says."""
        found = self.redis.hmget(
            self.keys.meta, "progress", "starts"
        )  # a cleared mark has starts alone
        try:
            texts = [orjson.loads(text or b"{}") for text in found]
            return {
                int(partition): int(offset) for partition, offset in (texts[0] or texts[1]).items()
            }
        except (ValueError, TypeError, AttributeError):
            return {}

    def read(self, with_state: bool = False) -> Stored | None:
        """Return what is stored, None where there is nothing; raises ``IncompleteError`` or ``SignatureError``."""
        with self.redis.pipeline(transaction=True) as reads:
            reads.get(self.keys.model)
            reads.hgetall(self.keys.meta)
            if with_state:
                reads.get(self.keys.state)
            try:
                answers = reads.execute()
            except redis.ResponseError as error:
                raise self._wrong_type(error) from error
        model, found = (
            answers[0] or b"",
            {k.decode(errors="replace"): v for k, v in answers[1].items()},
        )
        if not model and not found:
            return None
        self._check(model, found)
        stored = Stored(model, Meta.loads(found), (answers[2] or b"") if with_state else b"")
        if with_state and hashlib.sha256(stored.state).hexdigest() != stored.meta.state_sha256:
            raise SignatureError(
                f"Redis key {self.keys.state} is not the state that was committed with the model; put the "
                "three keys back together or run python redis_clear.py."
            )
        return stored

    def _wrong_type(self, error: redis.ResponseError) -> Exception:
        """Return a sentence for a key of another type than the model's, and any other error as it is."""
        if "WRONGTYPE" not in str(error):
            return error
        name = self.keys.model
        return IncompleteError(
            f"One of the Redis keys {', '.join(self.keys)} is of another type than the model's: put the "
            f"model back from a backup, or start over with python redis_clear.py {name}."
        )

    def _check(self, model: bytes, found: dict[str, bytes]) -> None:
        """Raise unless ``found`` is a whole, signed meta of ``model``."""
        name = self.keys.model
        if not found:
            raise SignatureError(
                f"Redis key {name} holds an unsigned model, which is not opened. If you trust it, sign it with "
                f"python admin.py model sign; else forget it with python redis_clear.py {name}."
            )
        if not model and "cleared_at" not in found:
            raise IncompleteError(
                f"Redis key {name} is gone while {self.keys.meta} is still there: put it back from a "
                f"backup, or start over with python redis_clear.py {name}."
            )
        signature = found.pop("signature", b"").decode("ascii", "replace")
        if not hmac.compare_digest(signature.encode(), self.sign(model, found).encode()):
            raise SignatureError(
                f"The model in Redis key {name} is not signed with this installation's key, or was changed after it was "
                "signed; it is not opened. Set the key that signed it, sign it again with python admin.py model resign, or "
                f"start over with python redis_clear.py {name}."
            )

    def commit(
        self,
        before: Stored | None,
        meta: Meta,
        model: bytes,
        state: bytes,
        submission: str = "",
        lease_ms: int = 0,
    ) -> Stored:
        """Write the model and its meta in one piece if the store still holds ``before``.

        ``before``: what this task stored or read last, None for nothing; only what changed is sent.
        The meta that is stored gets its commit id, time, libraries and the state's digest here.
        ``submission``: the lease to check and renew for ``lease_ms`` milliseconds, if any. Waits while
        Redis is away. Raises ``ConflictError``, ``LeaseError`` or ``AwayError``.
        """
        meta = replace(
            meta,
            submission=submission or meta.submission,
            commit_id=secrets.token_hex(16),
            saved_at=time.time(),
            libraries={name: installed(name) for name in LIBRARIES},
            state_sha256=hashlib.sha256(state).hexdigest(),
        )
        old = before or Stored(b"", Meta())
        signed = self._signed(model, meta)
        arguments = [
            old.meta.commit_id,
            meta.commit_id,
            submission,
            lease_ms,
            self.keys.updates,
            int(bool(old.model)),
            len(old.state),
            b"" if model == old.model else model,
            len(state),
            len(signed),
            *signed,
            *_changed_pages(old.state, state),
        ]
        try:
            answer = self.patiently(lambda: self._commit(keys=self.keys, args=arguments))
        except redis.ResponseError as error:
            raise self._wrong_type(error) from error
        if answer == b"conflict":
            raise ConflictError("The model in Redis is not the one that this task read last.")
        if answer == b"lease":
            raise LeaseError(
                "Another submission of this job has taken over the model; this one ends."
            )
        return Stored(model, meta, state)

    def _signed(self, model: bytes, meta: Meta) -> list[str | bytes]:
        """Return names and values of the meta's fields and of its signature, one after another."""
        values = meta.dumps()
        values["signature"] = self.sign(model, values).encode()
        return [part for item in values.items() for part in item]

    def patiently(self, call: Callable[[], T]) -> T:
        """Return what the call returns, asking again while Redis is away; raises ``AwayError`` after a while."""
        retrying = Retrying(
            retry=retry_if_exception(is_away),
            wait=wait_exponential(multiplier=0.05, max=1),
            stop=stop_after_delay(RETRY_SECONDS),
            reraise=True,
        )
        try:
            return retrying(call)
        except redis.RedisError as error:
            if not is_away(error):
                raise
            where = f"{self.settings.redis_host}:{self.settings.redis_port}"
            raise AwayError(
                f"Redis at {where} has taken no commit for {RETRY_SECONDS} s ({error}); no sample is lost, "
                "the batch is done again when it does."
            ) from error

    def clear(self) -> bool:
        """Forget the model, leave a signed mark that allows a new one, and return whether there was a model.

        Works on any content, also on an unsigned or broken one or one of another type; the lease of a running job stays.
        """
        while True:
            try:
                stored = self.read()
            except StoreError:
                stored = None
            old = stored.meta if stored else Meta()
            mark = Meta(
                model_id=old.model_id,
                version=old.version,
                topic_id=old.topic_id,
                commit_id=secrets.token_hex(16),
                starts=old.progress or old.starts,
                submission=old.submission,
                state_sha256=hashlib.sha256(b"").hexdigest(),
                cleared_at=time.time(),
            )
            expected = old.commit_id or self._field("commit_id")
            arguments = [expected, self.keys.updates, *self._signed(b"", mark)]
            existed = self._clear(keys=self.keys, args=arguments)
            if existed >= 0:
                return bool(existed)

    def unsigned(self) -> Stored | None:
        """Return what stands there without a meta, never to be opened, for ``commit`` to replace; None if nothing does."""
        try:
            with self.redis.pipeline(transaction=True) as reads:
                model, meta, state = (
                    reads.get(self.keys.model).exists(self.keys.meta).get(self.keys.state).execute()
                )
        except redis.ResponseError as error:
            raise self._wrong_type(error) from error
        return None if meta else Stored(model or b"", Meta(), state or b"")

    def newest_submission(self) -> str:
        """Return the submission that committed last, "" where none has; raises ``SignatureError`` for what is none."""
        found = self._field("submission").decode(errors="replace")
        if found and not SUBMISSION.fullmatch(found):
            name = self.keys.model
            raise SignatureError(
                f"Redis key {self.keys.meta} was changed after it was signed: {found!r:.80} is no submission. Put the "
                f"model back from a backup, or start over with python redis_clear.py {name}."
            )
        return found

    def _field(self, name: str) -> bytes:
        """Return one field of a meta whose signature is not checked, b"" where there is none."""
        try:
            return self.redis.hget(self.keys.meta, name) or b""
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return b""


def is_away(error: BaseException) -> bool:
    """Return whether Redis may take the same command later: it is away, loading, out of memory, read-only or can't save."""
    if isinstance(error, redis.AuthenticationError):
        return False
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    if isinstance(error, REFUSALS):  # redis-py takes the word off these errors' texts
        return True
    refusals = ("OOM ", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "LOADING")
    return isinstance(error, redis.ResponseError) and any(word in str(error) for word in refusals)


def _changed_pages(before: bytes, after: bytes) -> list[int | bytes]:
    """Return [offset, bytes, …] that turn ``before`` into ``after``.

    That is the pages that differ where both have one length, and all of ``after`` where they have not.
    """
    if len(before) != len(after):
        return [0, after] if after else []
    patches: list[int | bytes] = []
    for start in range(0, len(after), STATE_PAGE):
        page = after[start : start + STATE_PAGE]
        if page != before[start : start + STATE_PAGE]:
            patches += [start, page]
    return patches
