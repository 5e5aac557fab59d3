"""The administration command: the stored model, what is in a topic, bad messages."""

import click
import redis
from kafka.errors import KafkaError

from commands.model import model
from commands.rejects import rejects
from commands.topics import topic
from loop.model_store import StoreError
from loop.topic_log import SourceLogError
from settings import SettingsError


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Hold the commands."""


for command in (model, topic, rejects):
    main.add_command(command)
for name in model.commands:  # as they were called before 0.2.0
    main.add_command(
        click.Command(
            name,
            hidden=True,
            params=model.commands[name].params,
            callback=model.commands[name].callback,
        )
    )


def run() -> None:
    """Run the command line; a foreseeable error is one sentence and exit code 1."""
    try:
        main()
    except (StoreError, SettingsError, SourceLogError, redis.RedisError, KafkaError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    run()
