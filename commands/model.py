"""The commands for the stored model: show, accept a changed topic, sign, change the signing key."""

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
from loop.messages import Format, load_format
from loop.model_store import Meta, ModelStore, SignatureError, Stored, new_model_id, unpickle
from loop.topic_log import TopicLog
from settings import Settings, UserError, settings


@click.group()
def model() -> None:
    """Show the stored model, accept a changed topic, sign a pickle, change the signing key."""


@model.command()
def show() -> None:
    """Print version, samples, scores, position and the other fields of the stored model."""
    stored = _read(ModelStore(settings()))
    for name, value in stored.meta.dumps().items():
        click.echo(f"{name:20} {value.decode()}")
    click.echo(f"{'model':20} {len(stored.model)} bytes")


@model.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
def accept(yes: bool) -> None:
    """Let the stored model continue with what the topic holds now.

    Use this after retention deleted samples that were not learned, or after the topic was
    recreated. Stop the job first. Then submit it without -s, because its checkpoints hold the old
    positions.
    """
    config = settings()
    store, log = ModelStore(config), TopicLog(config)
    with closing(log), _lease(store) as lease:
        before = _read(store)
        old, topic_id = before.meta, log.topic_id()
        progress = _accepted(log, old, _bounds(log, old), topic_id == old.topic_id)
        if not yes:
            click.confirm("Continue with this model from there?", abort=True)
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
        f"Accepted: model {meta.model_id} continues {meta.parent}. Submit the job without -s."
    )


@model.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def sign(file: Path) -> None:
    """Sign the pickled estimator in FILE and store it as the model that the job continues with.

    It counts as having learned what the job's consumer group has read. A pickle runs code when it
    is opened, so sign only a file that you or somebody you trust wrote.
    """
    config = settings()
    store, log = ModelStore(config), TopicLog(config)
    model = file.read_bytes()
    _try_out(config, file, model)
    with closing(log), _lease(store) as lease:
        before = store.unsigned() or store.read()
        if before is not None and before.meta.commit_id and not before.cleared:
            raise UserError(
                "Redis holds a signed model already. "
                f"To delete it, run: python redis_clear.py {config.model_key}"
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
        f"Signed: {file} is model {meta.model_id}, version 1; "
        f"the job continues from {meta.progress}."
    )


@model.command()
@click.argument("old_key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def resign(old_key: Path) -> None:
    """Sign the stored model with this installation's key; the file OLD_KEY holds the old one.

    Stop the job first. The model, its training state and its position in the stream do not change.
    """
    config = settings()
    replaced = {"model_signing_key": SecretStr(""), "model_signing_key_file": old_key}
    store, old_store = ModelStore(config), ModelStore(config.model_copy(update=replaced))
    if store.signing_key == old_store.signing_key:
        raise UserError(
            f"{old_key} holds this installation's key; set the new one, then run this again."
        )
    with _lease(store) as lease:
        try:
            before = old_store.read(with_state=True)
        except SignatureError as error:
            raise UserError(
                f"The model was not signed with the key in {old_key}: {error}"
            ) from None
        if before is None:
            raise UserError(f"Redis holds no model under {store.keys.model}.")
        meta = before.meta
        store.commit(before, meta, before.model, before.state, lease.submission, LEASE_MS)
    click.echo(
        f"Signed again: model {meta.model_id}, version {meta.version}. "
        "Start the job and the page with the new key."
    )


@contextmanager
def _lease(store: ModelStore) -> Iterator[Lease]:
    """Hold the model's lease, so that no job can commit; raises ``LeaseError`` if one runs."""
    lease = Lease(store, new_submission(store))
    lease.take()
    lease.keep()  # a person may take a while to answer
    try:
        yield lease
    finally:
        lease.give_back()


def _read(store: ModelStore) -> Stored:
    """Return the stored model; raises ``UserError`` if there is none."""
    stored = store.read(with_state=True)
    if stored is None or stored.cleared:
        raise UserError(f"Redis holds no model under {store.keys.model}.")
    return stored


def _bounds(log: TopicLog, meta: Meta) -> dict[int, tuple[int, int]]:
    """Return {partition: (first offset, end)} of the topic.

    Raises ``UserError`` if the topic lacks a partition that the model has learned from.
    """
    bounds = log.bounds()
    missing = sorted(meta.progress.keys() - bounds.keys())
    if bounds and not missing:
        return bounds
    which = "partition"
    if missing:
        which = f"partition {missing[0]}, which the model has learned from"
    raise UserError(
        f"Topic {log.topic} has no {which}: "
        "set INPUT_TOPIC to the model's topic, or add the partition."
    )


def _accepted(
    log: TopicLog, meta: Meta, bounds: dict[int, tuple[int, int]], same_topic: bool
) -> dict[int, int]:
    """Return {partition: next offset to learn} and print what is skipped in each partition."""
    progress = {}
    for partition, (first, end) in bounds.items():
        learned = meta.progress.get(partition, 0)
        before = learned if same_topic else 0
        following = min(max(before, first), end)
        skipped = _skipped(log, meta, partition, before, first, end) if same_topic else ""
        click.echo(
            f"{log.topic} partition {partition}: "
            f"next sample to learn {learned} -> {following}{skipped}"
        )
        progress[partition] = following
    return progress


def _skipped(log: TopicLog, meta: Meta, partition: int, before: int, first: int, end: int) -> str:
    """Return how many messages of a partition are skipped, as the end of a line; "" if none are.

    ``before``: the next offset to learn so far. ``first`` and ``end``: the partition's bounds now.
    """
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
        "; the log lost its end and may now hold other messages than those learned, so up to "
        f"{min(before, end) - first} that were not learned are skipped"
    )


def _try_out(config: Settings, file: Path, model: bytes) -> None:
    """Raise ``UserError`` or ``ModelFormatError`` if the job could not continue with a pickle."""
    if config.learner == "default":
        raise UserError(
            "LEARNER=default needs its training state, which a pickle does not hold: "
            "set LEARNER to sgd or to module:factory. "
            "To change the key of the stored model, run: python admin.py model resign"
        )
    served: Any = unpickle(model, Meta())
    message = load_format(config.message_format)
    classes = getattr(served, "classes_", message.classes)
    if not np.array_equal(classes, message.classes):
        raise UserError(
            f"The model in {file} knows the classes {list(classes)}, "
            f"but the messages have {list(message.classes)}."
        )
    X = _made_up_samples(message)
    try:
        learner = load_learner(config.learner, message.classes, message.n_features, model, b"")
        learner.predict(X)
        learner.learn(X, message.classes)
        learner.learn(X[:1], message.classes[:1])  # a batch seldom holds every class
        predicted = learner.predict(X)
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(f"The job can't continue with the model in {file}: {error}") from None
    if not np.isin(np.asarray(predicted), message.classes).all():
        raise UserError(
            f"The job can't continue with the model in {file}: it does not predict labels."
        )


def _made_up_samples(message: Format) -> np.ndarray:
    """Return one sample for each class, of shape (classes, features), within the allowed values."""
    shape = message.n_classes, message.n_features
    numbers = np.arange(message.n_classes * message.n_features, dtype=float).reshape(shape)
    return message.low + numbers % (message.high - message.low + 1.0)
