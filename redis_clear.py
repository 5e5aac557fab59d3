"""Forget what Redis holds: the whole database, or the keys that are named; the model key goes with all that belongs to it.

Forgetting the model leaves a signed mark, which allows the job, running or not, to start a new one.
"""

import sys

import click
import redis

from model_store import ModelStore
from settings import SettingsError, settings


@click.command(help=__doc__)
@click.argument("keys", nargs=-1)
@click.option("--yes", is_flag=True, help="Clear the whole database without asking.")
def main(keys: tuple[str, ...], yes: bool) -> None:
    """Delete ``keys``, or everything, and say of each whether it was there; exit code 1 where Redis can't be used."""
    try:
        config = settings()
        where = f"Redis at {config.redis_host}:{config.redis_port}"
        store = ModelStore(config)
        store.redis.ping()
        if not keys:
            everything = f"everything in database {config.redis_db} of {where}"
            if not yes and not (asks() and click.confirm(f"Delete {everything}?")):
                raise SystemExit(f"Nothing was deleted; --yes deletes {everything} without asking.")
            keys = all_keys(store)
        for key, existed in {key: clear(store, key) for key in keys}.items():
            click.echo(f"{key}: {'deleted' if existed else 'did not exist'}")
    except redis.AuthenticationError as error:
        raise SystemExit(f"{where} refuses the password ({error}): set REDIS_PASSWORD.") from None
    except redis.RedisError as error:
        raise SystemExit(f"{where} can't be used: {error}.") from None
    except SettingsError as error:
        raise SystemExit(str(error)) from None


def asks() -> bool:
    """Return whether somebody sits at a terminal who can be asked."""
    return sys.stdin.isatty()


def clear(store: ModelStore, key: str) -> bool:
    """Delete one key and return whether it existed; the model key goes with its meta and state."""
    if key != store.keys[0]:
        return bool(store.redis.delete(key))
    return store.clear()


def all_keys(store: ModelStore) -> tuple[str, ...]:
    """Return the name of every key, the model's parts as its one key; the lease of a running job is left out."""
    model = set(store.keys)
    names = sorted(key.decode(errors="replace") for key in store.redis.scan_iter())
    return (*(name for name in names if name not in model), store.keys[0])


if __name__ == "__main__":
    main()
