"""Contender: the original design, a ScalarFunction that learns row by row.

The model is stored every 30 s; a crash loses what was learned since.
"""

import os
import sys

from pyflink.common import Configuration
from pyflink.table import DataTypes, EnvironmentSettings, TableEnvironment
from pyflink.table.udf import FunctionContext, ScalarFunction, udf

REDIS_PORT = int(os.environ["REDIS_PORT"])
MODEL_KEY = os.environ["MODEL_KEY"]
TABLE = f"""
CREATE TABLE {{}} (ts STRING, x ARRAY<INT>, actual_y INT {{}}) WITH (
    'connector' = 'kafka',
    'topic' = '{{}}',
    'properties.bootstrap.servers' = '{os.environ["KAFKA_BOOTSTRAP_SERVERS"]}',
    'properties.group.id' = '{os.environ["KAFKA_GROUP"]}',
    'scan.startup.mode' = 'earliest-offset',
    'format' = 'json'
)"""


class Learn(ScalarFunction):
    """Learn one sample and return its prediction."""

    def open(self, function_context: FunctionContext) -> None:
        """Connect to Redis and create the model."""
        import redis
        from sklearn.linear_model import SGDClassifier

        self.redis = redis.Redis(port=REDIS_PORT, password="redis_password")
        self.model = SGDClassifier(
            alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=0
        )
        self.dumped = 0.0
        group = function_context.get_metric_group().add_group("online_ml")
        self.counter = group.counter("sample_count")
        self.labels = group.distribution("metric_distribution_y")

    def eval(self, x: list[int], y: int) -> int:
        """Learn the sample, then predict it."""
        import pickle
        import time

        self.model.partial_fit([x], [y], classes=list(range(10)))
        self.counter.inc()
        self.labels.update(y)
        if time.monotonic() - self.dumped >= 30:
            self.redis.set(MODEL_KEY, pickle.dumps(self.model))
            self.dumped = time.monotonic()
        return int(self.model.predict([x])[0])


options = Configuration()
options.set_string("python.executable", sys.executable)
options.set_string("parallelism.default", "1")
table_env = TableEnvironment.create(
    EnvironmentSettings.new_instance().with_configuration(options).build()
)
table_env.create_temporary_function("learn", udf(Learn(), result_type=DataTypes.INT()))
table_env.execute_sql(TABLE.format("samples", "", os.environ["INPUT_TOPIC"]))
table_env.execute_sql(TABLE.format("predictions", ", predict_y INT", os.environ["PREDICT_TOPIC"]))
table_env.execute_sql(
    "INSERT INTO predictions SELECT ts, x, actual_y, learn(x, actual_y) FROM samples"
)
