"""The administration command for the stored model, the topics and the bad messages."""

from typing import Any

import click

from commands.model import model
from commands.rejects import rejects
from commands.topics import topic
from settings import one_line


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Administer the stored model, the topics and the bad messages."""


def _renamed(name: str) -> click.Command:
    """Return a command of ``model`` under its name before 0.2.0; it prints the new name."""
    command = model.commands[name]

    def call(**arguments: Any) -> None:
        click.echo(f"This command has moved: python admin.py model {name}", err=True)
        click.get_current_context().invoke(command, **arguments)

    return click.Command(name, hidden=True, params=command.params, callback=call, help=command.help)


for group in (model, topic, rejects):
    main.add_command(group)
for name in model.commands:
    main.add_command(_renamed(name))

if __name__ == "__main__":
    with one_line():
        main()
