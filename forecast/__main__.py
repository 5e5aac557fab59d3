"""The forecast's commands: what a person, make and the scheduler call."""

import logging
from datetime import date

import click

from forecast import daily
from forecast.store import current
from forecast.training import cache_compiled
from settings import one_line


@click.group(help=__doc__)
def cli() -> None:
    """Quieten what is no news to a person."""
    logging.getLogger("jax").setLevel(logging.ERROR)


@cli.command()
@click.option("--seed", default=0, show_default=True, help="random seed of the training")
@click.option("--force", is_flag=True, help="take a last day that looks cut short as it is")
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
@click.option("--lost", is_flag=True, help="that day was never recorded: forecast on without it")
@click.option("--force", is_flag=True, help="take a file that looks cut short as it is")
@one_line()
def update(day: date | None, lost: bool, force: bool) -> None:
    """Learn one day, forecast the 90 after it and publish; a day can be run again."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")
    chosen = daily.next_day(where) if day is None else date(day.year, day.month, day.day)
    published = daily.update(where, chosen, lost, force)
    rejected = (
        ", ".join(f"{n} {reason}" for reason, n in published.manifest["rejects"].items()) or "none"
    )
    click.echo(
        f"published {published.folder.name}; yesterday's model kept: {published.manifest['kept']}; "
        f"rejected rows: {rejected}"
    )


@cli.command()
@one_line()
def status() -> None:
    """Say what is published."""
    published = current(daily.folders().published)
    click.echo(
        f"{published.folder.name}, model {published.manifest['model']}"
        if published
        else "nothing published"
    )


if __name__ == "__main__":
    cli()
