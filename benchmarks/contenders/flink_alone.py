"""Flink alone, Kafka to Kafka, exactly once, with no learning: FLINK_FORMAT is json (typed columns) or raw (bytes)."""

import os

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

from online_learning import OPTIONS

COLUMNS = {"json": "ts STRING, x ARRAY<INT>, actual_y INT", "raw": "message BYTES"}[os.environ["FLINK_FORMAT"]]
TABLE = f"""
CREATE TABLE {{}} ({COLUMNS}) WITH (
    'connector' = 'kafka',
    'topic' = '{{}}',
    'properties.bootstrap.servers' = '{os.environ["KAFKA_BOOTSTRAP_SERVERS"]}',
    'format' = '{os.environ["FLINK_FORMAT"]}',
    {{}}
)"""

options = Configuration()
for name, value in OPTIONS.items():
    options.set_string(name, value)
table_env = TableEnvironment.create(EnvironmentSettings.new_instance().with_configuration(options).build())
group, output = os.environ["KAFKA_GROUP"], os.environ["PREDICT_TOPIC"]
table_env.execute_sql(
    TABLE.format(
        "samples",
        os.environ["INPUT_TOPIC"],
        f"""
    'properties.group.id' = '{group}', 'scan.startup.mode' = 'earliest-offset',
    'properties.max.poll.records' = '5000'""",
    )
)
table_env.execute_sql(
    TABLE.format(
        "copies",
        output,
        f"""
    'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{output}',
    'sink.transaction-naming-strategy' = 'pooling', 'properties.transaction.timeout.ms' = '900000', 'properties.batch.size' = '262144'""",
    )
)
table_env.execute_sql("INSERT INTO copies SELECT * FROM samples")
