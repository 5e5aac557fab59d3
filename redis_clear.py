"""The command that deletes keys from Redis, above all the model."""

import sys
from io import TextIOWrapper

import click

from loop.model_store import ModelStore
from settings import one_line, settings


@click.command()
@click.argument("keys", nargs=-1)
@click.option("--yes", is_flag=True, help="Delete everything without asking.")
@one_line()
def main(keys: tuple[str, ...], yes: bool) -> None:
    """Delete KEYS from Redis, or the whole database if none is given.

    With the model's key, everything that belongs to the model is deleted. A signed mark then allows
    the job to start a new model, whether or not the job runs.
    """
    # The terminal's encoding may lack characters of a key's name.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    config = settings()
    store = ModelStore(config)
    store.redis.ping()
    if not keys:
        where = f"Redis at {config.redis_host}:{config.redis_port}"
        everything = f"everything in database {config.redis_db} of {where}"
        if not yes and not (asks() and click.confirm(f"Delete {everything}?")):
            raise SystemExit(f"Nothing was deleted; --yes deletes {everything} without asking.")
    named = [key.encode(errors="surrogateescape") for key in keys] or all_keys(store)
    for key in dict.fromkeys(named):
        existed = clear(store, key)
        click.echo(f"{shown(key)}: {'deleted' if existed else 'did not exist'}")


def asks() -> bool:
    """Return whether the input is a terminal, so that a person can be asked."""
    return sys.stdin.isatty()


def clear(store: ModelStore, key: bytes) -> bool:
    """Delete a key and return whether it existed; the model's key includes its meta and state."""
    if key != store.keys.model.encode():
        return bool(store.redis.delete(key))
    return store.clear()


def all_keys(store: ModelStore) -> list[bytes]:
    """Return the names of all keys; the model's keys count as one, and its lease is omitted."""
    model = {key.encode() for key in store.keys}
    return [*sorted(set(store.redis.scan_iter()) - model), store.keys.model.encode()]


def shown(key: bytes) -> str:
    """Return a key's name, escaped unless it is printable text."""
    text = key.decode(errors="replace")
    return text if text.isprintable() and text.encode() == key else repr(key)[2:-1]


if __name__ == "__main__":
    main()
