"""Limit: Flink alone, Kafka to Kafka, exactly once, without learning.

FLINK_FORMAT is json (typed columns) or raw (bytes).
"""

import os

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

from online_learning import OPTIONS

COLUMNS = {"json": "ts STRING, x ARRAY<INT>, actual_y INT", "raw": "message BYTES"}[
    os.environ["FLINK_FORMAT"]
]
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
table_env = TableEnvironment.create(
    EnvironmentSettings.new_instance().with_configuration(options).build()
)
output = os.environ["PREDICT_TOPIC"]
SOURCE = f"""
    'scan.startup.mode' = 'earliest-offset',
    'properties.group.id' = '{os.environ["KAFKA_GROUP"]}',
    'properties.max.poll.records' = '5000'"""
SINK = f"""
    'sink.delivery-guarantee' = 'exactly-once',
    'sink.transactional-id-prefix' = '{output}',
    'sink.transaction-naming-strategy' = 'pooling',
    'properties.transaction.timeout.ms' = '900000',
    'properties.batch.size' = '262144'"""
table_env.execute_sql(TABLE.format("samples", os.environ["INPUT_TOPIC"], SOURCE))
table_env.execute_sql(TABLE.format("copies", output, SINK))
table_env.execute_sql("INSERT INTO copies SELECT * FROM samples")
