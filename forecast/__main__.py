"""Commands of the forecast, for people, make and the scheduler."""

import logging
from datetime import date

import click

from forecast import daily
from forecast.store import current
from forecast.training import cache_compiled
from settings import one_line


@click.group(help=__doc__)
def cli() -> None:
    """Silence JAX's warnings, which concern its developers."""
    logging.getLogger("jax").setLevel(logging.ERROR)


@cli.command()
@click.option("--seed", default=0, show_default=True, help="random seed of the training")
@click.option("--force", is_flag=True, help="accept a last day that looks cut short")
@one_line()
def initialise(seed: int, force: bool) -> None:
    """Train on the whole history, forecast 90 days and publish."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")
    published = daily.initialise(where, seed, force)
    click.echo(f"published {published.folder.name}")


@cli.command()
@click.option(
    "--day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="the day to learn; default: the one after the newest",
)
@click.option("--lost", is_flag=True, help="forecast without that day; it was never recorded")
@click.option("--force", is_flag=True, help="accept a file that looks cut short")
@one_line()
def update(day: date | None, lost: bool, force: bool) -> None:
    """Learn one day, forecast the 90 days after it and publish; a day can be run again."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")
    chosen = daily.next_day(where) if day is None else date(day.year, day.month, day.day)
    published = daily.update(where, chosen, lost, force)
    rejects = published.manifest["rejects"].items()
    rejected = ", ".join(f"{n} {reason}" for reason, n in rejects) or "none"
    kept = published.manifest["kept"]
    click.echo(
        f"published {published.folder.name}; yesterday's model kept: {kept}; "
        f"rejected rows: {rejected}"
    )


@cli.command()
@one_line()
def status() -> None:
    """Print what is published."""
    published = current(daily.folders().published)
    if published is None:
        click.echo("nothing published")
    else:
        click.echo(f"{published.folder.name}, model {published.manifest['model']}")


if __name__ == "__main__":
    cli()
