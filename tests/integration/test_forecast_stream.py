"""The hourly features from a real Kafka through a real Flink."""

import dataclasses
import random

from kafka.admin import KafkaAdminClient, NewTopic

from forecast import stream
from forecast.simulate import simulate


def drawn(line: bytes) -> bool:
    """Return whether an event is among the 30 % that are sent; the same events each time."""
    return random.Random(line).random() < 0.3  # noqa: S311


def test_cells_and_late_events_are_the_batch_result_to_the_last_cell(kafka, tmp_path):
    operator = simulate(1_000_000, days=30)
    first = int(operator.first[0]) + 300
    lines = list(stream.events(operator, first, 6))
    lines = [line for line in lines if line.endswith(b",0") or drawn(line)]
    late = [line.rsplit(b",", 2)[0] + f",{first * 3_600_000 + 5},1".encode() for line in lines[:20]]
    far = [
        line.rsplit(b",", 2)[0] + f",{(first + 48) * 3_600_000},0".encode()
        for line in lines[: len(operator.first)]
    ]
    topics = stream.Topics(*(f"{name}-test" for name in dataclasses.astuple(stream.Topics())))
    admin = KafkaAdminClient(**kafka.settings.kafka_client())
    admin.create_topics([NewTopic(name, 2, 1) for name in dataclasses.astuple(topics)])
    admin.close()
    every = [*lines, *far, *late]
    assert stream.produce(kafka.settings, topics.events, every) == len(every)
    stream.start(
        stream.environment(tmp_path), kafka.settings, topics, "forecast-test", bounded=True
    ).wait()
    cells = stream.read(kafka.settings, topics.cells)
    too_late = stream.read(kafka.settings, topics.late)
    assert not cells.duplicated(["region", "network", "station", "ms"]).any()
    together = stream.sums(cells)
    if len(too_late):
        together = together.add(stream.sums(too_late), fill_value=0).astype(int)
    expected = stream.batch(every)
    assert together.index.equals(expected.index)
    assert (together == expected).all()
    assert (expected == 0).any()
