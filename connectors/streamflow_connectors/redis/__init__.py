"""Redis streams as sources and sinks."""

from streamflow_connectors.redis.nodes import RedisSink, RedisSource

__all__ = [
    "RedisSink",
    "RedisSource",
]
