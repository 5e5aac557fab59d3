"""Contender: Quix Streams with batches of 1,000 inside apply.

Messages are at least once, but a crash loses a batch that is not learned yet.
"""

from collections.abc import Sequence

from quixstreams import Application
from shared import BATCH, BROKER, GROUP, INPUT, OUTPUT, Model

app = Application(
    broker_address=BROKER,
    consumer_group=GROUP,
    auto_offset_reset="earliest",
    auto_create_topics=False,
)
model = Model()
waiting: list[bytes] = []


def learn(message: bytes) -> Sequence[bytes]:
    """Return a batch's predictions when the batch is full."""
    waiting.append(message)
    if len(waiting) < BATCH:
        return ()
    batch = waiting.copy()
    waiting.clear()
    return model.learn(batch)


source = app.topic(INPUT, value_deserializer="bytes", key_deserializer="bytes")
sink = app.topic(OUTPUT, value_serializer="bytes", key_serializer="bytes")
app.dataframe(source).apply(learn, expand=True).to_topic(sink)
app.run()
