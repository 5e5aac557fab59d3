"""What is done to a model on purpose: show it, accept another stream, sign a pickle that you trust, change the key."""

import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from pydantic import SecretStr

from learners.learner import load_learner
from local.job import skip_restore_points
from loop.lease import LEASE_MS, Lease, new_submission
from loop.messages import load_format
from loop.model_store import Meta, ModelStore, SignatureError, Stored, new_model_id, unpickle
from loop.topic_log import TopicLog
from settings import Settings, settings


@click.group()
def model() -> None:
    """Show the stored model; accept another stream; sign; change the signing key."""


@model.command()
def show() -> None:
    """Print what stands beside the stored model."""
    stored = _stored(ModelStore(settings()))
    for name, value in stored.meta.dumps().items():
        click.echo(f"{name:20} {value.decode()}")
    click.echo(f"{'model':20} {len(stored.model)} bytes")


@model.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
def accept(yes: bool) -> None:
    """Let the stored model go on from what the topic holds now: a gap that retention left, or a topic made anew.

    Stop the job first, and submit it again without -s: the positions in its checkpoints are the old topic's.
    """
    config = settings()
    store, log = ModelStore(config), TopicLog(config)
    with closing(log), _lease(store) as lease:
        before = _stored(store)
        old, topic_id = before.meta, log.topic_id()
        progress = _accepted(log, old, _bounds(log, old), topic_id == old.topic_id)
        if not yes:
            click.confirm("Go on with this model from there?", abort=True)
        meta = replace(
            old,
            model_id=new_model_id(old.model_id),
            parent=f"{old.model_id}:{old.version}",
            version=old.version + 1,
            topic_id=topic_id,
            cluster_id=log.cluster_id(),
            progress=progress,
            starts=dict(progress),
            checksums={},
        )
        store.commit(before, meta, before.model, before.state, lease.submission, LEASE_MS)
        skip_restore_points(config.run_dir)
    click.echo(
        f"Accepted: model {meta.model_id} goes on from {meta.parent}. Submit the job without -s."
    )


@model.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def sign(file: Path) -> None:
    """Sign the pickled estimator in FILE, which you trust, and store it as the model that the job goes on with.

    It counts as having learned what the job's consumer group has read. A pickle runs code when it is opened: sign only what
    you, or somebody you trust, wrote.
    """
    config = settings()
    store, log = ModelStore(config), TopicLog(config)
    model = file.read_bytes()
    _try_out(config, file, model)
    with closing(log), _lease(store) as lease:
        before = store.unsigned() or store.read()
        if before is not None and before.meta.commit_id and not before.cleared:
            raise click.ClickException(
                f"Redis holds a signed model already; python redis_clear.py {config.model_key} forgets it."
            )
        old = before.meta if before else Meta()
        topic_id, bounds = log.topic_id(), _bounds(log, Meta())
        read = log.committed() | (old.starts if old.topic_id == topic_id else {})
        progress = {p: min(max(read.get(p, 0), first), end) for p, (first, end) in bounds.items()}
        meta = Meta(
            model_id=new_model_id(old.model_id),
            version=1,
            learner=config.learner,
            topic_id=topic_id,
            cluster_id=log.cluster_id(),
            samples=sum(progress[p] - first for p, (first, _) in bounds.items()),
            progress=progress,
            starts=dict(progress),
        )
        store.commit(before, meta, model, b"", lease.submission, LEASE_MS)
    click.echo(
        f"Signed: {file} is model {meta.model_id}, version 1; the job goes on from {meta.progress}."
    )


@model.command()
@click.argument("old_key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def resign(old_key: Path) -> None:
    """Sign the stored model with this installation's key in place of the one in the file OLD_KEY.

    Stop the job first. The model, its training state and its place in the stream stay as they are.
    """
    config = settings()
    replaced = {"model_signing_key": SecretStr(""), "model_signing_key_file": old_key}
    store, old_store = ModelStore(config), ModelStore(config.model_copy(update=replaced))
    if store.signing_key == old_store.signing_key:
        raise click.ClickException(
            f"{old_key} holds this installation's key; set the new one, then run this again."
        )
    with _lease(store) as lease:
        try:
            before = old_store.read(with_state=True)
        except SignatureError as error:
            raise click.ClickException(f"Not with the key in {old_key}: {error}") from None
        if before is None:
            raise click.ClickException(f"Redis holds no model under {store.keys.model}.")
        meta = before.meta
        store.commit(before, meta, before.model, before.state, lease.submission, LEASE_MS)
    click.echo(
        f"Signed again: model {meta.model_id}, version {meta.version}. Start the job and the page with the new key."
    )


@contextmanager
def _lease(store: ModelStore) -> Iterator[Lease]:
    """Hold the model's lease, so that no job commits meanwhile; raises ``LeaseError`` while one runs."""
    lease = Lease(store, new_submission(store))
    lease.take()
    lease.keep()  # a person may take a while to answer
    try:
        yield lease
    finally:
        lease.give_back()


def _stored(store: ModelStore) -> Stored:
    stored = store.read(with_state=True)
    if stored is None or stored.cleared:
        raise click.ClickException(f"Redis holds no model under {store.keys.model}.")
    return stored


def _bounds(log: TopicLog, meta: Meta) -> dict[int, tuple[int, int]]:
    """Return the topic's bounds, refusing a topic that lacks a partition which the model has learned from."""
    bounds = log.bounds()
    missing = sorted(meta.progress.keys() - bounds.keys())
    if missing or not bounds:
        which = (
            f"partition {missing[0]}, which the model has learned from" if missing else "partition"
        )
        raise click.ClickException(
            f"Topic {log.topic} has no {which}: set INPUT_TOPIC to the model's topic, or add the partition."
        )
    return bounds


def _accepted(
    log: TopicLog, meta: Meta, bounds: dict[int, tuple[int, int]], same_topic: bool
) -> dict[int, int]:
    """Return {partition: next offset to learn}, and print each with what is skipped."""
    progress = {}
    for partition, (first, end) in bounds.items():
        learned = meta.progress.get(partition, 0)
        before = learned if same_topic else 0
        progress[partition] = min(max(before, first), end)
        skipped = _skipped(log, meta, partition, before, first, end) if same_topic else ""
        click.echo(
            f"{log.topic} partition {partition}: next sample to learn {learned} -> {progress[partition]}{skipped}"
        )
    return progress


def _skipped(log: TopicLog, meta: Meta, partition: int, before: int, first: int, end: int) -> str:
    """Return what is not learned of a partition, as the end of a line; "" where that is nothing."""
    if first > before:
        return f"; {first - before} messages that were deleted unread are skipped"
    offset, checksum = meta.checksums.get(partition, (-1, 0))
    rewritten = end < before
    if not rewritten and offset >= first:
        found = log.read(partition, offset, offset + 1)
        rewritten = any(zlib.crc32(payload or b"") != checksum for _, payload in found)
    if not rewritten:
        return ""
    return (
        f"; the log lost its end and may hold other messages now than those learned, so up to "
        f"{min(before, end) - first} that were not learned are skipped"
    )


def _try_out(config: Settings, file: Path, model: bytes) -> None:
    """Refuse a pickle that the job could not go on with; raises ``ModelFormatError`` or ``ClickException``."""
    if config.learner == "default":
        raise click.ClickException(
            "LEARNER=default goes on with its training state, which a pickle does not hold: set LEARNER to sgd, or to "
            "module:factory of your own. To change the key of the stored model, run python admin.py model resign."
        )
    served: Any = unpickle(model, Meta())
    message = load_format(config.message_format)
    classes = getattr(served, "classes_", message.classes)
    if not np.array_equal(classes, message.classes):
        raise click.ClickException(
            f"{file} tells the classes {list(classes)} apart, not {list(message.classes)}."
        )
    X = np.arange(message.n_classes * message.n_features, dtype=float).reshape(
        message.n_classes, -1
    )
    X = message.low + X % (message.high - message.low + 1.0)
    try:
        learner = load_learner(config.learner, message.classes, message.n_features, model, b"")
        learner.predict(X)
        learner.learn(X, message.classes)
        learner.learn(X[:1], message.classes[:1])  # a batch seldom holds every class
        told = learner.predict(X)
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise click.ClickException(
            f"The job can't go on with the model in {file}: {error}"
        ) from None
    if not np.isin(np.asarray(told), message.classes).all():
        raise click.ClickException(
            f"The job can't go on with the model in {file}: it predicts no labels."
        )
