"""The newest model in memory, kept up to date for the page in a separate thread."""

import logging
import threading
from collections.abc import Callable

import redis

from loop.model_store import ModelStore, OriginError, Stored, StoreError
from settings import Settings, SettingsError

log = logging.getLogger(__name__)


class ModelWatcher:
    """Keeps the newest signed model in memory: reads it at each commit and once a second anyway.

    ``current`` only moves forward by (model_id, version). ``error`` is None or a sentence on why
    the store can't be read. Only models of one Kafka cluster are taken: the one that ``pin`` named
    first, and before that the first model's. A model of an earlier version names no cluster; it is
    taken until a model with a cluster was.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.current: Stored | None = None
        self.error: str | None = "The model store has not been read yet."
        self.cluster_id = ""
        self._named_by_kafka = False
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Stored], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-watcher", daemon=True)

    def on_change(self, callback: Callable[[Stored], None]) -> None:
        """Call ``callback`` with each newer model, in the watcher's thread."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """Start watching in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns when the thread has ended."""
        self._stop.set()
        self._thread.join(timeout=5)

    def pin(self, cluster_id: str) -> None:
        """Take models of this cluster only, which Kafka has named; only the first call counts."""
        with self._lock:
            if self._named_by_kafka:
                return
            self._named_by_kafka = True
            self.cluster_id = cluster_id
            if self.current and self.current.meta.cluster_id not in ("", cluster_id):
                self.current = None

    def _watch(self) -> None:
        where = f"{self.settings.redis_host}:{self.settings.redis_port}"
        while not self._stop.is_set():
            try:
                self._follow(ModelStore(self.settings))
            except redis.RedisError as error:
                self.error = f"Redis at {where} can't be read ({error})."
            except SettingsError as error:
                self.error = str(error)
            except Exception as error:
                cause = f"{type(error).__name__}: {error}"
                sentence = f"The model in Redis at {where} can't be read ({cause})."
                if self.error != sentence:
                    log.exception("the model could not be read; retrying")
                self.error = sentence
            self._stop.wait(0.5)

    def _follow(self, store: ModelStore) -> None:
        """Take each newer model until the end."""
        with store.redis.pubsub(ignore_subscribe_messages=True) as messages:
            messages.subscribe(store.keys.updates)
            while not self._stop.is_set():
                self._take(store)
                if messages.get_message(timeout=1):
                    while messages.get_message(timeout=0):
                        pass  # one read is enough for all commits that came meanwhile

    def _take(self, store: ModelStore) -> None:
        try:
            stored = store.read()
            if stored is not None and not stored.cleared:
                self._consider(stored)
            self.error = None
        except StoreError as error:
            self.error = str(error)

    def _consider(self, stored: Stored) -> None:
        """Make a newer model of this installation the current one; raises ``StoreError``."""
        with self._lock:
            self._check_origin(stored.meta.cluster_id)
            if self.current is not None and stored.meta.order <= self.current.meta.order:
                return
            stored.estimator()
            self.current = stored
            self.cluster_id = self.cluster_id or stored.meta.cluster_id
        for callback in self._callbacks:
            callback(stored)

    def _check_origin(self, found: str) -> None:
        if found == self.cluster_id or (found and not self.cluster_id):
            return
        known = self.current is not None and bool(self.current.meta.cluster_id)
        if not found and not known:
            return
        origin = f"Kafka cluster {found}" if found else "an unnamed Kafka cluster"
        raise OriginError(
            f"The model in Redis was learned from {origin}, this page belongs to "
            f"{self.cluster_id}; it is not used. If Kafka was replaced, start the page again."
        )
