"""What Kafka sources and sinks declare: how to reach the brokers, and which topics."""

from __future__ import annotations

import re
import socket
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from streamflow.codecs.formats import Format, FormatField, JsonFormat
from streamflow.contracts import Codec, Context
from streamflow.errors import suggestion
from streamflow_connectors.kafka.start import Start
from streamflow_connectors.network.routes import FromField
from streamflow_connectors.network.tls import Certificates

REQUIRES = {"aiokafka": "streamflow-online[kafka]"}

ID_PARTS = ("group", "topic", "node", "partitions", "instance")
"""What a transactional id may be made of."""

DEFAULT_ID = "streamflow.{group}.{partitions}.{topic}.{node}"


class Connection(Certificates):
    """How to reach the brokers, for sources and sinks alike."""

    type: Literal["kafka"] = "kafka"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            *("bootstrap_servers", "connect_timeout", "retry_for", "username", "sasl_mechanism"),
            "security_protocol",
        }
    )

    bootstrap_servers: str = Field(
        min_length=1, description="host:port of one broker or several, separated by commas."
    )
    connect_timeout: float = Field(
        15.0, gt=0, description="Seconds within which brokers must answer when the node opens."
    )
    retry_for: float = Field(
        120.0,
        gt=0,
        description="Seconds to go on trying while brokers are away or refuse, before the run "
        "fails.",
    )
    username: str | None = Field(None, description="Name to log in with.")
    password: SecretStr | None = Field(None, description="Password to log in with.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="How to log in."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SASL_: with a login; _SSL or SSL: encrypted."
    )

    @field_validator("security_protocol")
    @classmethod
    def _check_security(cls, protocol: str, info: ValidationInfo) -> str:
        """Refuse a login or certificates that would silently go unused, or that are missing."""
        is_given = {name: value is not None for name, value in info.data.items()}
        has_login = is_given.get("username", True) and is_given.get("password", True)
        if protocol.startswith("SASL") and not has_login:
            message = f"expected username and password with {protocol}, found none; give both"
            raise ValueError(message)
        if not protocol.startswith("SASL") and (
            is_given.get("username") or is_given.get("password")
        ):
            message = (
                f"expected SASL_SSL or SASL_PLAINTEXT with username and password, "
                f"found {protocol}; choose one of these"
            )
            raise ValueError(message)
        files = [name for name in ("ca_file", "cert_file", "key_file") if is_given.get(name)]
        if files and not protocol.endswith("SSL"):
            message = f"expected SSL or SASL_SSL with {files[0]}, found {protocol}; choose one"
            raise ValueError(message)
        return protocol

    @property
    def addresses(self) -> tuple[str, ...]:
        """The brokers to begin with."""
        return tuple(server.strip() for server in self.bootstrap_servers.split(","))

    def client_options(self, context: Context) -> dict[str, Any]:
        """Return aiokafka's options for a client; reads the certificates.

        Raises:
            ConnectorError: A certificate or key cannot be read.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
        }
        if self.username is not None and self.password is not None:
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password.get_secret_value()
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self.tls(context)
        return options


class KafkaSourceOptions(Connection):
    """What to read, and where to begin."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            *("stop_at_end", "if_lost", "max_poll_records", "refresh"),
            *("session_timeout", "rebalance_timeout", "group_instance_id"),
        }
    )

    topics: tuple[str, ...] = Field((), description="Topics to read.")
    pattern: str | None = Field(
        None,
        min_length=1,
        description="Instead of topics: a regular expression, as Python has them, for whole names "
        "of topics. Those that come up later are read, too, from their beginning.",
    )
    refresh: float = Field(
        10.0, gt=0, description="Seconds after which new topics are looked for, with a pattern."
    )
    partitions: tuple[int, ...] | None = Field(
        None, min_length=1, description="Partitions to read of each topic, whatever others read."
    )
    group: str | None = Field(
        None, min_length=1, description="Consumer group that positions are committed for."
    )
    start: Start = Field(
        "earliest",
        description="Where to begin while no position has been committed: earliest, latest, or "
        "the first record of a time, such as 2026-01-31T08:00:00Z or seconds since 1970.",
    )
    stop_at_end: bool = Field(
        False, description="End where the topics end when the run starts, instead of waiting."
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    formats: dict[str, FormatField] = Field(
        default_factory=dict,
        description="Formats of single topics, by name, in place of format.",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Whether to leave out records of aborted transactions."
    )
    if_lost: Literal["error", "earliest", "latest"] = Field(
        "error",
        description="What to do about a position, committed or of a checkpoint, that the topic no "
        "longer holds: fail, or go on at its start or end.",
    )
    max_poll_records: int = Field(
        1000, gt=0, description="How many records to take at once at the most."
    )
    session_timeout: float = Field(
        10.0, gt=0, description="Seconds until the group gives up a member that is not heard of."
    )
    rebalance_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds that the members of a group have to finish what they hold before "
        "their partitions are shared out again.",
    )
    group_instance_id: str | None = Field(
        None,
        min_length=1,
        description="Name of this member, another one for each: it keeps its partitions while it "
        "restarts within the session timeout.",
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        topics = info.data.get("topics")
        if topics is not None and bool(topics) == (pattern is not None):
            message = (
                f"expected either topics or a pattern, found {'both' if topics else 'none'}; "
                f"list the topics, or write a pattern that their names match"
            )
            raise ValueError(message)
        try:
            _compiled(pattern or "")
        except re.error as error:
            message = f"expected a regular expression, found {pattern}: {error}"
            raise ValueError(message) from None
        return pattern

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, formats: dict[str, Format], info: ValidationInfo) -> dict[str, Format]:
        topics, pattern = info.data.get("topics"), info.data.get("pattern")
        for name in formats if topics or pattern else ():
            if pattern is not None and not _compiled(pattern).fullmatch(name):
                message = f"expected names that match {pattern}, found {name}; remove it"
                raise ValueError(message)
            if topics and name not in topics:
                cure = suggestion(name, list(topics))
                message = f"expected names of the topics, found {name}; {cure}"
                raise ValueError(message)
        return formats

    @field_validator("group_instance_id")
    @classmethod
    def _check_group_instance_id(cls, name: str | None, info: ValidationInfo) -> str | None:
        is_member = info.data.get("group") is not None and info.data.get("partitions") is None
        if name is not None and not is_member:
            message = "expected a group that shares out partitions with it, found none; remove one"
            raise ValueError(message)
        return name

    @property
    def topic_pattern(self) -> re.Pattern[str] | None:
        """The pattern, whose `re.Pattern.match` takes whole names only."""
        return None if self.pattern is None else _compiled(self.pattern)

    @property
    def is_shared(self) -> bool:
        """Whether the members of its group share out the partitions."""
        return self.group is not None and self.partitions is None

    def codec_of(self, topic: str) -> Codec:
        """Return what decodes the values of a topic."""
        return self.formats.get(topic, self.format).codec()


class KafkaSinkOptions(Connection):
    """Where to write, and how safely."""

    topic: Annotated[str, Field(min_length=1)] | FromField = Field(
        description="Topic to write to; {field: name} for the one that a field of each record "
        "names."
    )
    key: FromField | None = Field(
        None,
        description="{field: name} for the field whose text, bytes or integer becomes the key, "
        "in place of the key of the record.",
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="How to compress batches; all but gzip need another package."
    )
    max_request_size: int = Field(
        1_000_000, gt=0, description="Bytes a record may have; larger ones are rejected."
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="Whether outputs may come twice after a crash. exactly_once takes a single "
        "source, of the same cluster, with partitions and a group.",
    )
    transactional_id: str | None = Field(
        None,
        min_length=1,
        description="Name that fences off an earlier instance, with exactly_once: the same in "
        "every run, another one in each instance. May hold {group}, {topic}, {node}, {partitions} "
        "and {instance}, the name of the host; by default made of all but the last.",
    )

    @field_validator("transactional_id")
    @classmethod
    def _check_transactional_id(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("delivery") == "at_least_once":
            message = "expected it with delivery: exactly_once, found at_least_once; remove one"
            raise ValueError(message)
        try:
            (name or "").format_map(dict.fromkeys(ID_PARTS, ""))
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            message = (
                f"expected only {', '.join(map('{{{}}}'.format, ID_PARTS))} in braces, "
                f"found {error}; write other braces twice"
            )
            raise ValueError(message) from None
        return name

    def compression_requires(self) -> dict[str, str]:
        """Return what the compression needs beyond aiokafka, as `requires` does."""
        if self.compression in ("none", "gzip"):
            return {}
        return {"cramjam": f"aiokafka[{self.compression}]"}

    def transactional_id_for(self, source: KafkaSourceOptions, node: str) -> str:
        """Return the name of this instance that fences off an earlier one."""
        numbers = "-".join(map(str, sorted(source.partitions or ())))
        parts = {
            "group": source.group,
            "topic": self.topic if isinstance(self.topic, str) else self.topic.field,
            "node": node,
            "partitions": ".".join([*sorted(source.topics), numbers]),
            "instance": socket.gethostname(),
        }
        return (self.transactional_id or DEFAULT_ID).format_map(parts)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern})\Z")
