"""The pipeline in Flink SQL: samples in, predictions and rejects out, each exactly once.

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
    # Every 5 ms Flink ends a bundle that is 5 ms old. A batch is what arrives in 5 to 10 ms while
    # the last one is learned, at most 5,000 messages. So a slow stream waits little, and a fast
    # stream is learned in large batches.
    "python.fn-execution.bundle.time": "5",
    "python.fn-execution.bundle.size": "50000",
    "python.fn-execution.arrow.batch.size": "5000",
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    "execution.checkpointing.interval": "2 s",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    # Most faults last seconds, so the back-off is short.
    # A job that fails ten times in a row needs a person.
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
SELECT learned.`out`, MAP['{header}', X'{model}']
FROM results
WHERE {which}"""


def main() -> None:
    """Submit the job, unless another submission is running on the same model."""
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
            code = write_archive(Path(folder) / "online_learning.zip", _own_modules(config))
            table_env.add_python_file(str(code))
            build(table_env, config, lease.submission)
    except BaseException:
        lease.give_back()
        raise


def try_learner(config: Settings) -> None:
    """Try the learner on invented samples before anything runs.

    Raises ``SettingsError``, which says what the learner can't do.
    """
    form = load_format(config.message_format)
    try:
        new_learner(config.learner, form.classes, form.n_features, form.low, form.high)
    except LearnerError as error:  # learners know no settings
        raise SettingsError(str(error)) from error


def _own_modules(config: Settings) -> list[str]:
    """Return the modules of a learner and a message format that are named as module:object."""
    names = (config.learner, config.message_format)
    return [name.partition(":")[0] for name in names if ":" in name]


def build(table_env: StreamTableEnvironment, config: Settings, submission: str) -> None:
    """Define the pipeline and submit it."""
    for table in tables(config, submission):
        table_env.execute_sql(table)

    table_env.create_temporary_function("learn", online_learner(config, submission))
    learned = table_env.sql_query(
        "SELECT learn(payload, kafka_partition, kafka_offset) AS learned FROM samples"
    )
    # As a DataStream the function runs once. As a plain view, which both INSERTs read, it would run
    # twice and learn everything twice. Rescaling gives the sinks a task of their own, so learning
    # continues while they commit a Kafka transaction.
    table_env.create_temporary_view("results", table_env.to_data_stream(learned).rescale())

    inserts = table_env.create_statement_set()
    for table, which in (("predictions", "learned.good"), ("rejects", "NOT learned.good")):
        model = config.model_key.encode().hex()
        insert = INSERT.format(table=table, header=MODEL_HEADER, model=model, which=which)
        inserts.add_insert_sql(insert)
    job = inserts.execute().get_job_client()
    print(f"Job {job.get_job_id() if job else '?'} runs; submission {submission}.")


def tables(config: Settings, submission: str) -> list[str]:
    """Return the statements that define the source and the two sinks."""
    properties = kafka_properties(config).items()
    kafka = ", ".join(f"'properties.{name}' = {sql_text(value)}" for name, value in properties)
    group = sql_text(config.kafka_group)
    statements = [SOURCE.format(topic=sql_text(config.input_topic), group=group, kafka=kafka)]
    for table, topic in (("predictions", config.predict_topic), ("rejects", config.reject_topic)):
        prefix = sql_text(transactional_prefix(config, topic, submission))
        sink = SINK.format(table=table, topic=sql_text(topic), prefix=prefix, kafka=kafka)
        statements.append(sink)
    return statements


def sql_text(text: str) -> str:
    """Return the text as a literal of Flink SQL."""
    return "'" + text.replace("'", "''") + "'"


def kafka_properties(config: Settings) -> dict[str, str]:
    """Return the connector's connection properties.

    They name the variable that holds the password; its value is read where the task runs.
    """
    properties = {
        "bootstrap.servers": config.kafka_bootstrap_servers,
        "security.protocol": config.kafka_security_protocol,
    }
    if config.kafka_security_protocol.endswith("SSL") and config.kafka_ssl_cafile:
        properties["ssl.truststore.type"] = "PEM"
        properties["ssl.truststore.location"] = config.kafka_ssl_cafile
    if config.kafka_security_protocol.startswith("SASL"):
        properties |= _login_properties(config)
    return properties


def _login_properties(config: Settings) -> dict[str, str]:
    shaded = "org.apache.flink.kafka.shaded.org.apache.kafka.common"
    module = f"{shaded}.security.scram.ScramLoginModule"
    if config.kafka_sasl_mechanism == "PLAIN":
        module = f"{shaded}.security.plain.PlainLoginModule"
    user = jaas_text(config.kafka_sasl_username)
    # The connector puts the variable's value between the quotes without escaping it.
    variable = "KAFKA_SASL_PASSWORD"
    if needs_jaas_text(config.kafka_sasl_password.get_secret_value()):
        variable = "KAFKA_SASL_PASSWORD_JAAS"
    return {
        "sasl.mechanism": config.kafka_sasl_mechanism,
        "config.providers": "env",
        "config.providers.env.class": f"{shaded}.config.provider.EnvVarConfigProvider",
        "sasl.jaas.config": f'{module} required username="{user}" password="${{env:{variable}}}";',
    }


def _options(config: Settings) -> Configuration:
    options = Configuration()
    for name, value in OPTIONS.items():
        options.set_string(name, value)
    options.set_string("python.executable", config.flink_python or sys.executable)
    if config.kafka_connector_jar:
        options.set_string("pipeline.jars", jar_addresses(config.kafka_connector_jar))
    return options


def jar_addresses(paths: str) -> str:
    """Return the addresses of jars as Flink takes them; ``paths`` are separated by commas."""
    return ";".join(Path(path.strip()).resolve().as_uri() for path in paths.split(","))


def _abort_open_transactions(
    env: StreamExecutionEnvironment, config: Settings, store: ModelStore
) -> None:
    """Abort the transactions that earlier submissions left open.

    The savepoint or checkpoint that ``flink run -s`` names keeps its transactions, because Flink
    ends those. Without one, the group begins at the model's position if that is lower.
    """
    options = Configuration(j_configuration=env._j_stream_execution_environment.getConfiguration())
    restored = options.get_string("execution.state-recovery.path", "")
    if not restored:
        abort_open_transactions(config)
        start_at_the_model(config, store.progress())
        return
    resumed = submissions_in(config, _checkpoint_metadata(restored))
    # A checkpoint of another version names no submission. Its own transactions are then unknown,
    # so none is aborted.
    if resumed:
        abort_open_transactions(config, resumed)


def _checkpoint_metadata(path: str) -> bytes:
    """Return the metadata of a savepoint or checkpoint, b"" if it can't be read.

    Flink itself reports a checkpoint that it can't read.
    """
    filesystem = get_gateway().jvm.org.apache.flink.runtime.state.filesystem
    storage = filesystem.AbstractFsCheckpointStorageAccess
    try:
        handle = storage.resolveCheckpointPointer(path).getMetadataHandle()
        return handle.openInputStream().readAllBytes()
    except Py4JJavaError:
        return b""


if __name__ == "__main__":
    with one_line("online_learning.py"):
        main()
