"""Kafka topics as sources and sinks.

Here are the declarations; what they open lies in `kafka_reader` and `kafka_writer`, which import
the driver. The driver, aiokafka, runs on asyncio only.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from streamflow.codecs import CsvFormat, FormatField, JsonFormat
from streamflow.errors import ConnectorError, Problem
from streamflow.nodes import Context, Declaration, Reader, Sink, Source, Writer
from streamflow.plugins import missing_packages

REQUIRES = {"aiokafka": "streamflow[kafka]"}


class Connection(Declaration):
    """How to reach the brokers, for sources and sinks alike."""

    bootstrap_servers: str = Field(
        min_length=1, description="host:port of one broker or several, separated by commas."
    )
    connect_timeout: float = Field(
        15.0, gt=0, description="Seconds within which brokers must answer when the node opens."
    )
    username: str | None = Field(None, description="Name to log in with.")
    password: SecretStr | None = Field(None, description="Password to log in with.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="How to log in."
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) to trust instead of the system's."
    )
    cert_file: Path | None = Field(None, description="Certificate (PEM) to identify with.")
    key_file: Path | None = Field(None, description="Key (PEM) of cert_file, if not in it.")
    key_password: SecretStr | None = Field(None, description="Password of the key.")
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
        if not protocol.startswith("SASL") and (is_given["username"] or is_given["password"]):
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
            options["ssl_context"] = self._ssl_context(context)
        return options

    def _ssl_context(self, context: Context) -> ssl.SSLContext:
        folder = context.folder
        secret = self.key_password
        try:
            tls = ssl.create_default_context(cafile=self.ca_file and folder / self.ca_file)
            if self.cert_file is not None:
                tls.load_cert_chain(
                    folder / self.cert_file,
                    self.key_file and folder / self.key_file,
                    # An empty one keeps OpenSSL from asking at the terminal.
                    secret.get_secret_value() if secret else "",
                )
        except OSError as error:  # ssl.SSLError is one
            message = (
                f"{context.name}: expected certificates and key in PEM format, found {error}; "
                f"check ca_file, cert_file, key_file and key_password"
            )
            raise ConnectorError(message) from error
        return tls


class KafkaSource(Connection, Source):
    """Reads topics from where its group stood, or from the start or the end.

    In a group without ``partitions``, partitions are shared out among the group's members, and what
    one had not finished when it lost a partition is read again by the next. With ``partitions``, or
    without a group, exactly these partitions (or those that the topics have at the start) are read;
    without a group nothing is committed.

    From a checkpoint it goes on at the checkpoint's positions; in a group at the committed one of a
    partition if that is larger, since another member has learned what lies between.

    Keys are text where their bytes are UTF-8, else bytes; a Kafka sink writes either as the same
    bytes. Records without a value (tombstones) are skipped and counted.
    """

    type: Literal["kafka"] = "kafka"
    requires: ClassVar[dict[str, str]] = REQUIRES

    topics: tuple[str, ...] = Field(min_length=1, description="Topics to read.")
    partitions: tuple[int, ...] | None = Field(
        None, min_length=1, description="Partitions to read of each topic, whatever others read."
    )
    group: str | None = Field(
        None, min_length=1, description="Consumer group that positions are committed for."
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where to begin while no position has been committed."
    )
    stop_at_end: bool = Field(
        False, description="End where the topics end when the run starts, instead of waiting."
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
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

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.format, CsvFormat)

    @property
    def keeps_positions(self) -> bool:
        """Whether a later run goes on where this one has finished."""
        return self.group is not None

    @property
    def rereads(self) -> bool:
        """Whether it can go on at the positions of a checkpoint: as long as the topic has them."""
        return True

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, and give a reader until the context is left.

        Raises:
            ConnectorError: No broker answers in time, a topic does not exist, or the event loop is
                not asyncio's.
        """
        from streamflow_connectors.kafka_reader import open_reader  # imports the driver

        return open_reader(self, context)


class KafkaSink(Connection, Sink):
    """Writes to a topic, each record once, in order for each key.

    Partitions are chosen by the key as Java's clients do; records without a key go to the
    partitions in turn. Keys other than text and bytes are written as text. Timestamps and headers
    are kept.
    """

    type: Literal["kafka"] = "kafka"
    requires: ClassVar[dict[str, str]] = REQUIRES

    topic: str = Field(min_length=1, description="Topic to write to.")
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", description="How to compress batches; all but gzip need another package."
    )
    max_request_size: int = Field(
        1_000_000, gt=0, description="Bytes a record may have; larger ones are rejected."
    )
    delivery_timeout: float = Field(
        120.0, gt=0, description="Seconds to try to deliver a record before the run fails."
    )

    def compression_requires(self) -> dict[str, str]:
        """Return what the compression needs beyond aiokafka, as `requires` does."""
        if self.compression in ("none", "gzip"):
            return {}
        return {"cramjam": f"aiokafka[{self.compression}]"}

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield the package that the compression lacks."""
        for message in missing_packages(self.compression_requires()):
            yield Problem(("compression",), message)

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left.

        Raises:
            ConnectorError: No broker answers in time, the topic neither exists nor may be created,
                or the event loop is not asyncio's.
            MissingExtraError: The compression needs a package that is not installed.
        """
        from streamflow_connectors.kafka_writer import open_writer  # imports the driver

        return open_writer(self, context)
