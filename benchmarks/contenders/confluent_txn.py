"""Contender: a loop with confluent-kafka and transactions.

Predictions are exactly once; the model may learn a batch twice.
"""

from confluent_kafka import Consumer, Producer
from shared import BATCH, BROKER, GROUP, INPUT, OUTPUT, Model

consumer = Consumer(
    {
        "bootstrap.servers": BROKER,
        "group.id": GROUP,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
producer = Producer({"bootstrap.servers": BROKER, "transactional.id": GROUP, "linger.ms": 5})
consumer.subscribe([INPUT])
producer.init_transactions()
model = Model()
while True:
    messages = consumer.consume(BATCH, timeout=1)
    if not messages:
        continue
    producer.begin_transaction()
    for message in model.learn([message.value() for message in messages]):
        producer.produce(OUTPUT, message)
    producer.send_offsets_to_transaction(
        consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
    )
    producer.commit_transaction()
