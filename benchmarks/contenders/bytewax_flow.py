"""Contender: Bytewax with flat_map_batch.

At least once with its recovery store; without one, as here, a restart begins at the first sample.
"""

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main
from shared import BATCH, BROKER, INPUT, OUTPUT, Model

model = Model()
flow = Dataflow("learn")
source = kop.input("source", flow, brokers=[BROKER], topics=[INPUT], batch_size=BATCH)
values = op.map("value", source.oks, lambda message: message.value)
learned = op.flat_map_batch("learn", values, model.learn)
messages = op.map("message", learned, lambda value: KafkaSinkMessage(None, value))
kop.output("sink", messages, brokers=[BROKER], topic=OUTPUT)
cli_main(flow)
