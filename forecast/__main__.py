"""The forecast's commands: what a person, make and the scheduler call."""

import logging
from datetime import date

import click

from forecast import daily
from forecast.series import BadInput
from forecast.store import Published, StoreError, current
from forecast.training import cache_compiled


@click.group(help=__doc__)
def cli() -> None:
    """Quieten what is no news to a person."""
    logging.getLogger("jax").setLevel(logging.ERROR)


@cli.command()
@click.option("--seed", default=0, show_default=True, help="random seed of the training")
@click.option("--force", is_flag=True, help="take a last day that looks cut short as it is")
def initialise(seed: int, force: bool) -> None:
    """Train on the whole history, forecast 90 days and publish."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")
    published = said(lambda: daily.initialise(where, seed, force))
    click.echo(f"published {published.folder.name}")


@cli.command()
@click.option(
    "--day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="the day to learn; default: the one after the newest",
)
@click.option("--lost", is_flag=True, help="that day was never recorded: forecast on without it")
@click.option("--force", is_flag=True, help="take a file that looks cut short as it is")
def update(day: date | None, lost: bool, force: bool) -> None:
    """Learn one day, forecast the 90 after it and publish; a day can be run again."""
    where = daily.folders()
    cache_compiled(where.root / "compiled")

    def learn() -> Published:
        chosen = daily.next_day(where) if day is None else date(day.year, day.month, day.day)
        return daily.update(where, chosen, lost, force)

    published = said(learn)
    rejected = (
        ", ".join(f"{n} {reason}" for reason, n in published.manifest["rejects"].items()) or "none"
    )
    click.echo(
        f"published {published.folder.name}; yesterday's model kept: {published.manifest['kept']}; "
        f"rejected rows: {rejected}"
    )


@cli.command()
def status() -> None:
    """Say what is published."""
    published = said(lambda: current(daily.folders().published))
    click.echo(
        f"{published.folder.name}, model {published.manifest['model']}"
        if published
        else "nothing published"
    )


def said(act):
    """Run one act; what a person can mend becomes one sentence instead of a traceback."""
    try:
        return act()
    except (BadInput, StoreError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    cli()
