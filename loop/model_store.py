"""The model in Redis, committed together with its position in the stream.

A commit is one atomic compare-and-set. ``Keys`` names the Redis keys. Only models that are signed
with this installation's key are unpickled.
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
# The id of a submission; those of earlier versions have no fraction of a second.
SUBMISSION = re.compile(r"(\d{8})T(\d{6})(?:\.(\d{6})Z)?-[0-9a-f]{8}")

# Writes one commit. Nothing is written unless the store still holds what the task read last and its
# submission owns the lease. The first write is one that Redis refuses when it is out of memory or
# read-only, so that all of the commit happens or nothing.
# ARGV: ten named values, then n_meta names and values of the meta, then offsets and bytes of the
# state.
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

# Replaces a model by a signed mark, whatever type the keys are of. Nothing is deleted unless the
# meta is still the one that was read. The lease of a running job stays.
# ARGV: two named values, then names and values of the mark.
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
    """The Redis keys of one model, all in one hash slot; the scripts get them in this order.

    ``model``: the pickled estimator. ``meta``: a hash with the fields of ``Meta``. ``state``: what
    only training needs. ``lease``: the submission that owns the model.
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
    """The store can't be used as it is; the text says what is wrong and what to do."""


class IncompleteError(StoreError):
    """A committed model is gone, or one of its keys is missing or of another type."""


class SignatureError(StoreError):
    """The model in Redis has no signature, or none that this installation's key made for it."""


class ModelFormatError(StoreError):
    """A signed model can't be unpickled here, because other versions wrote it."""


class OriginError(StoreError):
    """The model has a good signature, but was learned from another Kafka cluster."""


class ConflictError(StoreError):
    """The model was committed, cleared or put back by another since this task last read it."""


class LeaseError(StoreError):
    """Another submission of the job owns the model."""


class AwayError(StoreError):
    """Redis took no commit in time; nothing is lost, because the batch is not acknowledged."""


@cache
def installed(library: str) -> str:
    """Return a library's version, cached because the look-up costs as much as a small commit."""
    return version(library)


def new_model_id(after: str = "") -> str:
    """Return a model id that sorts after ``after`` and after the ids made earlier.

    The id is the time in UTC and four random hexadecimal digits.
    """
    now = datetime.now(UTC)
    if after:
        earlier = datetime.strptime(after.split("-")[0], ID_TIME).replace(tzinfo=UTC)
        now = max(now, earlier + timedelta(microseconds=1))
    return f"{now.strftime(ID_TIME)}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Meta:
    """The facts about a model: its id, its position in the stream, its counts and its scores.

    ``parent``: "model_id:version" or "". ``samples``, ``rejected``: counts since ``starts``.
    ``progress``: {partition: next offset to learn}.
    ``starts``: {partition: first offset of this model}.
    ``checksums``: {partition: [offset, CRC-32]} of the last payload learned.
    ``saved_at``: seconds since 1970.
    ``libraries``: {library: version} that pickled the model.
    ``submission``: the newest one that has committed the model.
    ``cluster_id``: the id of the Kafka cluster that the model was learned from.
    ``cleared_at``: seconds since 1970 for the mark that ``redis_clear.py`` leaves, 0 for a model.
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
        """Return the sort key that grows from each model to the next."""
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
        """Return the meta that ``dumps`` wrote; the caller has checked the signature."""
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
    """A model from Redis with a checked signature; its pickle is not opened yet.

    ``model``: the pickled estimator, empty for a cleared mark. ``state``: empty unless it was read.
    """

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
    """Return the object in ``model``, whose signature the caller has checked.

    Raises ``ModelFormatError``, which says what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            return pickle.loads(model)  # noqa: S301  its signature was checked
    except Exception as error:  # a pickle runs any code, so it may raise anything
        written = ", ".join(f"{name} {number}" for name, number in meta.libraries.items())
        here = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
        raise ModelFormatError(
            "The stored model can't be read here: it was written with "
            f"{written or 'unknown versions'}, here is {here} ({error}). Install those versions, "
            "or start over with python redis_clear.py online_ml_model."
        ) from error


class ModelStore:
    """Reads and commits one model; every method may raise redis-py's errors when Redis is away."""

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
        """Return the key of this installation; raises ``SettingsError`` if there is none."""
        return self.settings.signing_key()

    def sign(self, model: bytes, values: dict[str, bytes]) -> str:
        """Return the HMAC-SHA256 over key name, fields and model, each preceded by its length."""
        parts = [self.keys.model.encode()]
        for name in sorted(values):
            parts += [name.encode(), values[name]]
        parts.append(model)
        mac = hmac.new(self.signing_key, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest()

    def progress(self) -> dict[int, int]:
        """Return {partition: next offset to learn} from Redis without checking the signature.

        The job checks it when it loads the model.
        """
        found = self.redis.hmget(self.keys.meta, "progress", "starts")
        try:
            progress, starts = [orjson.loads(text or b"{}") for text in found]
            offsets = progress or starts  # a cleared mark has only starts
            return {int(partition): int(offset) for partition, offset in offsets.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def read(self, with_state: bool = False) -> Stored | None:
        """Return what is stored, or None for nothing.

        Raises ``IncompleteError`` or ``SignatureError``.
        """
        with self.redis.pipeline(transaction=True) as reads:
            reads.get(self.keys.model)
            reads.hgetall(self.keys.meta)
            if with_state:
                reads.get(self.keys.state)
            try:
                answers = reads.execute()
            except redis.ResponseError as error:
                raise self._wrong_type(error) from error
        model = answers[0] or b""
        found = {name.decode(errors="replace"): value for name, value in answers[1].items()}
        if not model and not found:
            return None
        self._check(model, found)
        state = (answers[2] or b"") if with_state else b""
        stored = Stored(model, Meta.loads(found), state)
        if with_state and hashlib.sha256(stored.state).hexdigest() != stored.meta.state_sha256:
            raise SignatureError(
                f"Redis key {self.keys.state} is not the state that was committed with the model: "
                "put the three keys back together, or start over with python redis_clear.py "
                f"{self.keys.model}."
            )
        return stored

    def _wrong_type(self, error: redis.ResponseError) -> Exception:
        """Return an ``IncompleteError`` for a key of another type, any other error unchanged."""
        if "WRONGTYPE" not in str(error):
            return error
        return IncompleteError(
            f"One of the Redis keys {', '.join(self.keys)} is of another type than the model's: "
            "put the model back from a backup, or start over with python redis_clear.py "
            f"{self.keys.model}."
        )

    def _check(self, model: bytes, found: dict[str, bytes]) -> None:
        """Raise unless ``found`` is a complete, signed meta of ``model``."""
        name = self.keys.model
        if not found:
            raise SignatureError(
                f"Redis key {name} holds an unsigned model, which is not opened. If you trust it, "
                "sign it with python admin.py model sign. If not, clear it with "
                f"python redis_clear.py {name}."
            )
        if not model and "cleared_at" not in found:
            raise IncompleteError(
                f"Redis key {name} is gone while {self.keys.meta} is still there: put it back "
                f"from a backup, or start over with python redis_clear.py {name}."
            )
        signature = found.pop("signature", b"").decode("ascii", "replace")
        if not hmac.compare_digest(signature.encode(), self.sign(model, found).encode()):
            raise SignatureError(
                f"The model in Redis key {name} is not signed with this installation's key, or was "
                "changed after it was signed, so it is not opened. Set the key that signed it, "
                "sign it again with python admin.py model resign, or start over with "
                f"python redis_clear.py {name}."
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
        """Write the model and its meta atomically if the store still holds ``before``; return both.

        ``before``: what this task stored or read last, None for nothing. Only what changed is sent.
        ``meta``: the stored meta gets its commit id, time, libraries and the state's digest here.
        ``submission``: if given, its lease is checked and renewed for ``lease_ms`` milliseconds.
        Waits while Redis is away. Raises ``ConflictError``, ``LeaseError`` or ``AwayError``.
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
        """Return what the call returns; retries it while Redis is away.

        Raises ``AwayError`` after ``RETRY_SECONDS``.
        """
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
                f"Redis at {where} has taken no commit for {RETRY_SECONDS} s ({error}). "
                "No sample is lost: the job repeats the batch when Redis is back."
            ) from error

    def clear(self) -> bool:
        """Delete the model and return whether there was one.

        A signed mark replaces it and allows a new model. This works on any content, even if it is
        unsigned, broken or of another type. The lease of a running job stays.
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
        """Return what is stored without a meta, for ``commit`` to replace; None if there is a meta.

        It must not be unpickled.
        """
        try:
            with self.redis.pipeline(transaction=True) as reads:
                reads.get(self.keys.model)
                reads.exists(self.keys.meta)
                reads.get(self.keys.state)
                model, meta, state = reads.execute()
        except redis.ResponseError as error:
            raise self._wrong_type(error) from error
        return None if meta else Stored(model or b"", Meta(), state or b"")

    def newest_submission(self) -> str:
        """Return the submission that committed last, or "" if none has.

        Raises ``SignatureError`` if the field holds no submission id.
        """
        found = self._field("submission").decode(errors="replace")
        if found and not SUBMISSION.fullmatch(found):
            raise SignatureError(
                f"Redis key {self.keys.meta} was changed after it was signed: {found!r:.80} is no "
                "submission. Put the model back from a backup, or start over with "
                f"python redis_clear.py {self.keys.model}."
            )
        return found

    def _field(self, name: str) -> bytes:
        """Return one field of the meta without checking the signature, b"" if there is none."""
        try:
            return self.redis.hget(self.keys.meta, name) or b""
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return b""


def is_away(error: BaseException) -> bool:
    """Return whether Redis may take the same command later.

    That is so while it is unreachable, loading, out of memory, read-only or unable to save.
    """
    if isinstance(error, redis.AuthenticationError):
        return False
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return True
    if isinstance(error, REFUSALS):  # their texts lack the code word, which redis-py removes
        return True
    refusals = ("OOM ", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "LOADING")
    return isinstance(error, redis.ResponseError) and any(word in str(error) for word in refusals)


def _changed_pages(before: bytes, after: bytes) -> list[int | bytes]:
    """Return [offset, bytes, …] that turn ``before`` into ``after``.

    If both have one length, these are the pages that differ. If not, this is all of ``after``.
    """
    if len(before) != len(after):
        return [0, after] if after else []
    patches: list[int | bytes] = []
    for start in range(0, len(after), STATE_PAGE):
        page = after[start : start + STATE_PAGE]
        if page != before[start : start + STATE_PAGE]:
            patches += [start, page]
    return patches
