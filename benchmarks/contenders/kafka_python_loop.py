"""Contender: a loop with kafka-python.

At least once: offsets are committed after Kafka has acknowledged the batch's predictions.
"""

from kafka import KafkaConsumer, KafkaProducer
from shared import BATCH, BROKER, GROUP, INPUT, OUTPUT, Model

consumer = KafkaConsumer(
    INPUT,
    bootstrap_servers=BROKER,
    group_id=GROUP,
    auto_offset_reset="earliest",
    enable_auto_commit=False,
    max_poll_records=BATCH,
)
producer = KafkaProducer(bootstrap_servers=BROKER, acks="all", linger_ms=5, batch_size=262_144)
model = Model()
while True:
    records = [record for batch in consumer.poll(timeout_ms=1000).values() for record in batch]
    if not records:
        continue
    for message in model.learn([record.value for record in records]):
        producer.send(OUTPUT, message)
    producer.flush()
    consumer.commit()
