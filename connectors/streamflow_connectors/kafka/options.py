"""How to reach the brokers: the options that Kafka sources and sinks share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from streamflow.contracts import Context
from streamflow_connectors.network.tls import Certificates

REQUIRES = {"aiokafka": "streamflow-online[kafka]"}


class Connection(Certificates):
    """How to reach the brokers, for sources and sinks alike."""

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
