"""Kafka topics as sources and sinks."""

from streamflow_connectors.kafka.nodes import KafkaSink, KafkaSource

__all__ = [
    "KafkaSink",
    "KafkaSource",
]
