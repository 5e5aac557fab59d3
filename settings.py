"""Settings: every name, address and secret that the programs share, one environment variable each.

The variable has the field's name in capitals: ``redis_port`` is ``REDIS_PORT``. Two processes with
the same environment read the same settings; nothing is configured elsewhere.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from paths import why_unusable

HERE = Path(__file__).resolve().parent
FILES = ("run_dir", "kafka_ssl_cafile", "redis_ca_file", "model_signing_key_file")


class Settings(BaseSettings):
    """The settings of one installation; raises pydantic's ``ValidationError`` if invalid."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    run_dir: Path = Field(HERE / ".local", description="folder of everything that make run creates")

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="host:port, several separated by commas"
    )
    kafka_security_protocol: str = Field(
        "PLAINTEXT",
        pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    )
    kafka_sasl_mechanism: str = Field(
        "PLAIN",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    )
    kafka_sasl_username: str = Field("", description="user for SASL")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="password for SASL")
    kafka_ssl_cafile: str = Field(
        "", description="certificate authority (PEM file) for SSL; empty: the system's"
    )
    kafka_group: str = Field("group0", description="consumer group of the job")
    input_topic: str = Field("handwritten_digit", description="topic of the samples")
    predict_topic: str = Field("digit_predict", description="topic of the predictions")
    reject_topic: str = Field(
        "digit_reject", description="topic of the bad messages with their reasons"
    )

    redis_host: str = Field("127.0.0.1", description="address of Redis")
    redis_port: int = Field(6379, ge=1, le=65535, description="port of Redis")
    redis_db: int = Field(0, ge=0, description="number of the Redis database")
    redis_username: str = Field("", description="user for Redis; empty: the default user")
    redis_password: SecretStr = Field(
        SecretStr("redis_password"), description="password for Redis; empty: none"
    )
    redis_tls: bool = Field(False, description="whether to use TLS to Redis")
    redis_ca_file: str = Field(
        "", description="certificate authority (PEM file) for Redis; empty: the system's"
    )
    model_key: str = Field("online_ml_model", min_length=1, description="Redis key of the model")
    model_signing_key: SecretStr = Field(
        SecretStr(""),
        description="signs and checks models, at least 32 characters; "
        "empty: read from MODEL_SIGNING_KEY_FILE",
    )
    model_signing_key_file: Path = Field(
        HERE / ".local" / "signing.key",
        description="file with the signing key, created by the first make run",
    )

    flink_host: str = Field("127.0.0.1", description="address of Flink's REST API")
    flink_port: int = Field(8081, ge=1, le=65535, description="port of Flink's REST API")
    flink_python: str = Field(
        "", description="Python of Flink's workers; empty: the one that submits the job"
    )
    kafka_connector_jar: str = Field(
        "",
        description="connector and zstd jars to send with the job, separated by commas; "
        "empty: the cluster has them",
    )

    learner: str = Field("default", description="default, sgd, or your own module:factory")
    message_format: str = Field(
        "loop.messages:DIGITS", description="module:name of the message format"
    )

    page_host: str = Field(
        "127.0.0.1",
        description="address that the page listens on; beyond loopback, teaching needs a token",
    )
    page_port: int = Field(8066, ge=1, le=65535, description="port that the page listens on")
    page_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1", "localhost", "[::1]"),
        description="host names that the page answers to, separated by commas",
    )
    page_public_url: str = Field(
        "", description="URL at which others reach the page; if set, teaching needs a token"
    )
    feedback: bool = Field(True, description="whether people may teach on the page")
    feedback_rate: str = Field(
        "10/second", description="taught samples that are allowed on average"
    )
    feedback_burst: int = Field(50, ge=1, description="taught samples that are allowed at once")
    feedback_token: SecretStr = Field(
        SecretStr(""), description="token that teaching needs if others can reach the page"
    )

    kafka_controller_port: int = Field(
        9093, ge=1, le=65535, description="port of Kafka's controller in make run"
    )
    flink_rpc_port: int = Field(
        6123, ge=1, le=65535, description="port of Flink's internal RPC in make run"
    )
    producer_rate: float = Field(
        10.0, gt=0, description="samples per second that make run produces"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_password(cls, values: dict) -> dict:
        """Let an empty REDIS_PASSWORD mean no password; any other empty variable is not set."""
        return {"redis_password": ""} | values if os.environ.get("REDIS_PASSWORD") == "" else values

    @field_validator("run_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            folder = Path(os.path.abspath(value.expanduser()))
        except RuntimeError as error:  # ~name of an unknown user
            raise ValueError(str(error)) from error
        if problem := why_unusable(str(folder)):
            raise ValueError(problem)
        return folder

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        for server in servers:
            found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", server)
            if not found or not 1 <= int(found.group(1)) <= 65535:
                raise ValueError(f"{server!r} is not host:port with a port from 1 to 65535")
        return ",".join(servers)

    @field_validator("page_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @property
    def page_is_open(self) -> bool:
        """Return whether other machines can reach the page, so that teaching needs a token."""
        return bool(self.page_public_url) or not _is_loopback(self.page_host)

    def kafka_client(self) -> dict:
        """Return the connection arguments that every kafka-python client takes."""
        arguments = {
            "bootstrap_servers": self.kafka_bootstrap_servers.split(","),
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.endswith("SSL") and self.kafka_ssl_cafile:
            arguments["ssl_cafile"] = self.kafka_ssl_cafile
        if self.kafka_security_protocol.startswith("SASL"):
            arguments |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_sasl_username,
                "sasl_plain_password": self.kafka_sasl_password.get_secret_value(),
            }
        return arguments

    def confluent_client(self) -> dict:
        """Return the connection settings that every confluent-kafka client takes."""
        names = {
            "security_protocol": "security.protocol",
            "ssl_cafile": "ssl.ca.location",
            "sasl_mechanism": "sasl.mechanism",
            "sasl_plain_username": "sasl.username",
            "sasl_plain_password": "sasl.password",
        }
        given = {names[name]: value for name, value in self.kafka_client().items() if name in names}
        return given | {
            "bootstrap.servers": self.kafka_bootstrap_servers,
            "reconnect.backoff.max.ms": 1000,
        }

    def redis_client(self) -> dict:
        """Return the connection arguments of ``redis.Redis``; values come back as bytes."""
        arguments = {
            "host": self.redis_host,
            "port": self.redis_port,
            "db": self.redis_db,
            "username": self.redis_username or None,
            "password": self.redis_password.get_secret_value() or None,
        }
        if self.redis_tls:
            arguments |= {"ssl": True, "ssl_ca_certs": self.redis_ca_file or None}
        return arguments

    def signing_key(self) -> bytes:
        """Return the key that signs models; raises ``SettingsError`` if it is missing or short."""
        key = self.model_signing_key.get_secret_value().encode()
        where = "MODEL_SIGNING_KEY"
        if not key:
            where = str(self.model_signing_key_file)
            try:
                key = self.model_signing_key_file.read_bytes().strip()
            except OSError as error:
                raise SettingsError(
                    f"No signing key: MODEL_SIGNING_KEY is not set and {where} can't be read "
                    f"({error.strerror}). The first make run creates that file; without make run, "
                    "set MODEL_SIGNING_KEY or MODEL_SIGNING_KEY_FILE."
                ) from error
        if len(key) < 32:
            raise SettingsError(
                f"The signing key in {where} has {len(key)} characters; it needs at least 32."
            )
        return key

    def public(self) -> dict:
        """Return the settings that travel with the Flink job: all but the secrets."""
        fields = type(self).model_fields
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in self
            if fields[name].annotation is not SecretStr
        }


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may belong to a network address


def jaas_text(text: str) -> str:
    """Return the text escaped for double quotes in a JAAS configuration.

    Quotes, backslashes and control characters become octal escapes. So does ``$``, because the
    Kafka client replaces ``${...}`` before it reads the configuration.
    """
    return re.sub(r'[\x00-\x1f"$\\]', lambda found: f"\\{ord(found[0]):03o}", text)


def needs_jaas_text(password: str) -> bool:
    """Return whether the connector can read this password only in its escaped form."""
    return re.search(r'[\x00-\x1f"\\]', password) is not None


def of_a_job(sent: dict) -> Settings:
    """Return the settings of a job in its worker.

    Paths of files come from the worker's own environment if it sets them.
    """
    own = {name: os.environ[name.upper()] for name in FILES if os.environ.get(name.upper())}
    return Settings(**(sent | own))


class UserError(Exception):
    """An error that ends a command with one sentence for the user."""


class SettingsError(UserError, ValueError):
    """An invalid setting, in a sentence that names its variable."""


@contextmanager
def one_line(program: str = "Error") -> Iterator[None]:
    """End the program with one line and exit code 1 on a ``UserError``, Redis or Kafka error.

    The line begins with ``program``. Any other error keeps its traceback. Also a decorator.
    """
    try:
        yield
    except UserError as error:
        sentence = str(error)
    except Exception as error:
        sentence = _of_a_client(error)
        if not sentence:
            raise
    else:
        return
    raise SystemExit(f"{program}: {' '.join(sentence.splitlines())}")


def _of_a_client(error: Exception) -> str:
    """Return an error of a Redis or Kafka client as a sentence with the address.

    For any other error, return an empty string.
    """
    # Imported here: a program that only reads settings needs neither client.
    import redis
    from confluent_kafka import KafkaException
    from kafka.errors import KafkaError

    if not isinstance(error, redis.RedisError | KafkaException | KafkaError):
        return ""
    config = settings()
    reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    reason = reason.rstrip(".")
    if not isinstance(error, redis.RedisError):
        return f"Kafka at {config.kafka_bootstrap_servers} can't be used: {reason}."
    where = f"Redis at {config.redis_host}:{config.redis_port}"
    if isinstance(error, redis.AuthenticationError):
        return f"{where} refuses the password ({reason}): set REDIS_PASSWORD."
    return f"{where} can't be used: {reason}."


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return this process's settings; raises ``SettingsError`` naming each invalid variable."""
    try:
        return Settings()
    except ValidationError as error:
        problems = []
        for found in error.errors():
            name = ".".join(map(str, found["loc"])).upper()
            problems.append(f"{name}: {found['msg'].removeprefix('Value error, ')}")
        raise SettingsError("; ".join(problems)) from None
