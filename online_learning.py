"""The job in Flink SQL: it reads samples, learns, and writes predictions and rejects exactly once.

flink run -m localhost:8081 -py online_learning.py
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from py4j.protocol import Py4JJavaError
from pyflink.common import Configuration
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway
from pyflink.table import StreamTableEnvironment

from learners.learner import LearnerError, new_learner
from loop.archive import write_archive
from loop.lease import STARTING_MS, Lease, new_submission
from loop.messages import load_format
from loop.model_store import ModelStore
from loop.transactions import (
    MODEL_HEADER,
    abort_open_transactions,
    start_at_the_model,
    submissions_in,
    transactional_prefix,
)
from settings import Settings, SettingsError, jaas_text, needs_jaas_text, one_line, settings
from udf_model import online_learner

OPTIONS = {
    "pipeline.name": "online_learning",
    "pipeline.object-reuse": "true",
    # Flink ends a bundle after 5 ms. A batch is what arrives meanwhile, at most 5,000 messages. So
    # few samples wait only briefly, and many are learned together.
    "python.fn-execution.bundle.time": "5",
    "python.fn-execution.bundle.size": "50000",
    "python.fn-execution.arrow.batch.size": "5000",
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    "execution.checkpointing.interval": "2 s",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    # Most faults are over in seconds, so the back-off is short.
    # After ten failures in a row the job ends, because a person has to act.
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "500 ms",
    "restart-strategy.exponential-delay.max-backoff": "5 s",
    "restart-strategy.exponential-delay.backoff-multiplier": "2.0",
    "restart-strategy.exponential-delay.reset-backoff-threshold": "20 s",
    "restart-strategy.exponential-delay.attempts-before-reset-backoff": "10",
}

SOURCE = """
CREATE TABLE samples (
    payload BYTES,
    kafka_partition INT METADATA FROM 'partition' VIRTUAL,
    kafka_offset BIGINT METADATA FROM 'offset' VIRTUAL
) WITH (
    'connector' = 'kafka',
    'topic' = {topic},
    'properties.group.id' = {group},
    'scan.startup.mode' = 'group-offsets',
    'properties.auto.offset.reset' = 'earliest',
    'properties.isolation.level' = 'read_committed',
    'scan.topic-partition-discovery.interval' = '5 s',
    'properties.max.poll.records' = '5000',
    'format' = 'raw',
    {kafka}
)"""

SINK = """
CREATE TABLE {table} (
    message BYTES,
    headers MAP<STRING, BYTES> METADATA
) WITH (
    'connector' = 'kafka',
    'topic' = {topic},
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = {prefix},
    'sink.transaction-naming-strategy' = 'pooling',
    'properties.transaction.timeout.ms' = '900000',
    'properties.batch.size' = '262144',
    'format' = 'raw',
    {kafka}
)"""

INSERT = """
INSERT INTO {table}
SELECT learned.`out`, MAP['{header}', X'{model}'] FROM results WHERE {which}
"""


def main() -> None:
    """Submit the job; raises ``LeaseError`` if another submission is running on the same model."""
    config = settings()
    try_learner(config)
    env = StreamExecutionEnvironment.get_execution_environment(_options(config))
    if env.get_parallelism() != 1:
        raise SettingsError(
            f"The parallelism is {env.get_parallelism()}, but one model learns one stream in one "
            "order: submit with flink run -p 1. The topic may have any number of partitions."
        )
    store = ModelStore(config)
    lease = Lease(store, new_submission(store))
    lease.take(STARTING_MS)
    try:
        _abort_open_transactions(env, config, store)
        table_env = StreamTableEnvironment.create(env)
        with TemporaryDirectory(prefix="online-learning-") as folder:
            named = [name for name in (config.learner, config.message_format) if ":" in name]
            modules = [name.partition(":")[0] for name in named]
            code = write_archive(Path(folder) / "online_learning.zip", modules)
            table_env.add_python_file(str(code))
            build(table_env, config, lease.submission)
    except BaseException:
        lease.give_back()
        raise


def try_learner(config: Settings) -> None:
    """Try the learner on made-up samples; raises ``SettingsError`` if it can't learn them."""
    form = load_format(config.message_format)
    try:
        new_learner(config.learner, form.classes, form.n_features, form.low, form.high)
    except LearnerError as error:  # learners know no settings
        raise SettingsError(str(error)) from error


def build(table_env: StreamTableEnvironment, config: Settings, submission: str) -> None:
    """Define the pipeline and submit it."""
    for table in tables(config, submission):
        table_env.execute_sql(table)

    table_env.create_temporary_function("learn", online_learner(config, submission))
    learned = table_env.sql_query(
        "SELECT learn(payload, kafka_partition, kafka_offset) AS learned FROM samples"
    )
    # Through the DataStream bridge the function runs once per message. A plain view would run it
    # once per INSERT, so everything would be learned twice. rescale() ends Flink's operator chain,
    # so that the learner continues while the sinks' task ends a Kafka transaction.
    table_env.create_temporary_view("results", table_env.to_data_stream(learned).rescale())

    inserts = table_env.create_statement_set()
    names = {"header": MODEL_HEADER, "model": config.model_key.encode().hex()}
    inserts.add_insert_sql(INSERT.format(table="predictions", which="learned.good", **names))
    inserts.add_insert_sql(INSERT.format(table="rejects", which="NOT learned.good", **names))
    job = inserts.execute().get_job_client()
    print(f"Job {job.get_job_id() if job else '?'} runs; submission {submission}.")


def tables(config: Settings, submission: str) -> list[str]:
    """Return the statements that define the source and the two sinks."""
    properties = kafka_properties(config).items()
    kafka = ", ".join(f"'properties.{name}' = {sql_text(value)}" for name, value in properties)
    group = sql_text(config.kafka_group)
    found = [SOURCE.format(topic=sql_text(config.input_topic), group=group, kafka=kafka)]
    sinks = {"predictions": config.predict_topic, "rejects": config.reject_topic}
    for table, topic in sinks.items():
        prefix = sql_text(transactional_prefix(config, topic, submission))
        found.append(SINK.format(table=table, topic=sql_text(topic), prefix=prefix, kafka=kafka))
    return found


def sql_text(text: str) -> str:
    """Return the text as a literal of Flink SQL."""
    return "'" + text.replace("'", "''") + "'"


def kafka_properties(config: Settings) -> dict[str, str]:
    """Return the connection properties of Flink's Kafka connector.

    They name the variable that holds the password. Its value is read in the TaskManager.
    """
    properties = {
        "bootstrap.servers": config.kafka_bootstrap_servers,
        "security.protocol": config.kafka_security_protocol,
    }
    if config.kafka_security_protocol.endswith("SSL") and config.kafka_ssl_cafile:
        properties |= {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": config.kafka_ssl_cafile,
        }
    if config.kafka_security_protocol.startswith("SASL"):
        shaded = "org.apache.flink.kafka.shaded.org.apache.kafka.common"
        # The connector does not escape the variable's value between the quotes.
        variable = "KAFKA_SASL_PASSWORD"
        if needs_jaas_text(config.kafka_sasl_password.get_secret_value()):
            variable = "KAFKA_SASL_PASSWORD_JAAS"
        module = "scram.ScramLoginModule"
        if config.kafka_sasl_mechanism == "PLAIN":
            module = "plain.PlainLoginModule"
        properties |= {
            "sasl.mechanism": config.kafka_sasl_mechanism,
            "config.providers": "env",
            "config.providers.env.class": f"{shaded}.config.provider.EnvVarConfigProvider",
            "sasl.jaas.config": f"{shaded}.security.{module} required "
            f'username="{jaas_text(config.kafka_sasl_username)}" password="${{env:{variable}}}";',
        }
    return properties


def _options(config: Settings) -> Configuration:
    options = Configuration()
    for name, value in OPTIONS.items():
        options.set_string(name, value)
    options.set_string("python.executable", config.flink_python or sys.executable)
    if config.kafka_connector_jar:
        options.set_string("pipeline.jars", jar_addresses(config.kafka_connector_jar))
    return options


def jar_addresses(paths: str) -> str:
    """Return a comma-separated list of jars as Flink's ``pipeline.jars`` needs it."""
    return ";".join(Path(path.strip()).resolve().as_uri() for path in paths.split(","))


def _abort_open_transactions(
    env: StreamExecutionEnvironment, config: Settings, store: ModelStore
) -> None:
    """Abort the open transactions of earlier submissions.

    The submission that ``flink run -s`` restores keeps its transactions. Without ``-s`` the
    consumer group starts at the model's position if that is lower than its own.
    """
    options = Configuration(j_configuration=env._j_stream_execution_environment.getConfiguration())
    restored = options.get_string("execution.state-recovery.path", "")
    if not restored:
        abort_open_transactions(config)
        start_at_the_model(config, store.progress())
        return
    filesystem = get_gateway().jvm.org.apache.flink.runtime.state.filesystem
    storage = filesystem.AbstractFsCheckpointStorageAccess
    try:
        handle = storage.resolveCheckpointPointer(restored).getMetadataHandle()
        metadata = handle.openInputStream().readAllBytes()
    except Py4JJavaError:
        return  # Flink will report that it can't be read
    # A restore point of an earlier version names no submission, so its transactions are unknown.
    if resumed := submissions_in(config, metadata):
        abort_open_transactions(config, resumed)


if __name__ == "__main__":
    with one_line("online_learning.py"):
        main()
