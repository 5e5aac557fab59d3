"""Forget what Redis holds: the whole database, or the keys that are named; the model key goes with all that belongs to it.

Forgetting the model leaves a signed mark, which allows the job, running or not, to start a new one.
"""

import sys
from io import TextIOWrapper

import click

from loop.model_store import ModelStore
from settings import one_line, settings


@click.command(help=__doc__)
@click.argument("keys", nargs=-1)
@click.option("--yes", is_flag=True, help="Clear the whole database without asking.")
@one_line()
def main(keys: tuple[str, ...], yes: bool) -> None:
    """Delete ``keys``, or everything, and say of each whether it was there; exit code 1 where Redis can't be used."""
    if isinstance(
        sys.stdout, TextIOWrapper
    ):  # a terminal may not know every letter of a key's name
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
    """Return whether somebody sits at a terminal who can be asked."""
    return sys.stdin.isatty()


def clear(store: ModelStore, key: bytes) -> bool:
    """Delete one key and return whether it existed; the model key goes with its meta and state."""
    if key != store.keys.model.encode():
        return bool(store.redis.delete(key))
    return store.clear()


def all_keys(store: ModelStore) -> list[bytes]:
    """Return the name of every key, the model's parts as its one key; the lease of a running job is left out."""
    model = {key.encode() for key in store.keys}
    return [*sorted(set(store.redis.scan_iter()) - model), store.keys.model.encode()]


def shown(key: bytes) -> str:
    """Return a key's name as it is, or escaped where it is no printable text."""
    text = key.decode(errors="replace")
    return text if text.isprintable() and text.encode() == key else repr(key)[2:-1]


if __name__ == "__main__":
    main()
