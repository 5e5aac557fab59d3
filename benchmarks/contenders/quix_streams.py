"""Quix Streams with a batch of 1,000 inside apply: at least once for messages, yet a crash loses a batch not yet learned."""

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
