"""What is done to a model on purpose: show it, accept another stream, sign a pickle that you trust."""

from pathlib import Path

import click
import redis
from kafka.errors import KafkaError

from local_job import set_restore_points_aside
from model_store import Meta, ModelStore, Stored, StoreError, new_model_id, unpickle
from settings import SettingsError, settings
from source_log import SourceLog, SourceLogError


@click.group(help=__doc__)
def main() -> None:
    """Hold the commands."""


@main.command()
def show() -> None:
    """Print what stands beside the stored model."""
    stored = _stored(ModelStore(settings()))
    for name, value in stored.meta.dumps().items():
        click.echo(f"{name:20} {value.decode()}")
    click.echo(f"{'model':20} {len(stored.model)} bytes")


@main.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
def accept(yes: bool) -> None:
    """Let the stored model go on from what the topic holds now: a gap that retention left, or a topic made anew.

    Stop the job first, and submit it again without -s: the positions in its checkpoints are the old topic's.
    """
    config = settings()
    store, log = ModelStore(config), SourceLog(config)
    meta = _stored(store).meta
    topic_id, bounds = log.topic_id(), log.bounds()
    same = topic_id == meta.topic_id
    progress = {}
    for partition, (first, end) in bounds.items():
        before = meta.progress.get(partition, 0) if same else 0
        progress[partition] = min(max(before, first), end)
        click.echo(f"{config.input_topic} partition {partition}: next sample to learn {meta.progress.get(partition, 0)}"
                   f" -> {progress[partition]}")  # fmt: skip
    if not yes:
        click.confirm("Go on with this model from there?", abort=True)
    stored = _fork(store, topic_id=topic_id, progress=progress)
    set_restore_points_aside(config.run_dir)
    click.echo(f"Accepted: model {stored.meta.model_id} goes on from {stored.meta.parent}. Submit the job without -s.")
    log.close()


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def sign(file: Path) -> None:
    """Sign the pickled estimator in FILE, which you trust, and store it as the model that the job goes on with.

    It counts as having learned what the job's consumer group has read. A pickle runs code when it is opened: sign only what
    you, or somebody you trust, wrote.
    """
    config = settings()
    store, log = ModelStore(config), SourceLog(config)
    model = file.read_bytes()
    unpickle(model, Meta())
    before = store.read() if store.redis.exists(store.keys[1]) else None
    if before is not None and not before.cleared:
        raise click.ClickException(
            f"Redis holds a signed model already; python redis_clear.py {config.model_key} forgets it."
        )
    committed = log.committed()
    bounds = log.bounds()
    progress = {p: committed.get(p, first) for p, (first, _) in bounds.items()}
    samples = sum(progress[p] - first for p, (first, _) in bounds.items())
    meta = Meta(model_id=new_model_id(before.meta.model_id if before else ""), version=1, samples=samples, learner=config.learner,
                topic_id=log.topic_id(), progress=progress, starts=dict(progress))  # fmt: skip
    store.redis.delete(store.keys[0])
    stored = store.commit(before, meta, model, b"")
    click.echo(f"Signed: {file} is model {stored.meta.model_id}, version 1; the job goes on from {progress}.")
    log.close()


def _stored(store: ModelStore) -> Stored:
    stored = store.read(with_state=True)
    if stored is None or stored.cleared:
        raise click.ClickException(f"Redis holds no model under {store.keys[0]}.")
    return stored


def _fork(store: ModelStore, topic_id: str, progress: dict[int, int]) -> Stored:
    """Commit the stored model again, as a new model_id with its parent's name, from another place in the stream."""
    before = _stored(store)
    meta = Meta.loads(before.meta.dumps())
    meta.parent, meta.model_id = f"{meta.model_id}:{meta.version}", new_model_id(meta.model_id)
    meta.version += 1
    meta.topic_id, meta.progress, meta.starts, meta.checksums = topic_id, progress, dict(progress), {}
    return store.commit(before, meta, before.model, before.state)


def run() -> None:
    """Run the command line; a foreseeable error is one sentence and exit code 1."""
    try:
        main()
    except (StoreError, SettingsError, SourceLogError, redis.RedisError, KafkaError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    run()
