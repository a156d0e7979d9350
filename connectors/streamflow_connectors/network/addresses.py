"""How to reach a server by its URL: the options that connectors share."""

from __future__ import annotations

import ssl
from base64 import b64encode
from typing import ClassVar
from urllib.parse import urlsplit

from anyio import to_thread
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from streamflow.contracts import Context
from streamflow_connectors.network.tls import Certificates


class Address(Certificates):
    """Where the server is, and who asks.

    Attributes:
        schemes: What the URL may begin with, without and with encryption.
        ports: Where servers listen if the URL does not say, likewise.
    """

    schemes: ClassVar[tuple[str, str]]
    ports: ClassVar[tuple[int, int]] = (80, 443)
    incidental: ClassVar[frozenset[str]] = frozenset({"connect_timeout", "retry_for", "username"})

    url: str = Field(
        min_length=1, description="Where the server is; keep secrets out of it, it is shown."
    )
    username: str | None = Field(None, description="Name to log in with.")
    password: SecretStr | None = Field(None, description="Password to log in with.")
    connect_timeout: float = Field(
        15.0, gt=0, description="Seconds within which a connection must come about."
    )
    retry_for: float = Field(
        120.0,
        gt=0,
        description="Seconds to go on trying while the server is away, before the run fails.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in cls.schemes or not parts.hostname:
            message = (
                f"expected a URL that begins with {' or '.join(f'{s}://' for s in cls.schemes)}, "
                f"found {parts.scheme or 'none of them'}; write {cls.schemes[1]}://host/path"
            )
            raise ValueError(message)
        if parts.username is not None or parts.password is not None:
            message = (
                "expected a URL without a login, found one with; "
                "use the options username and password"
            )
            raise ValueError(message)
        return url

    @property
    def shown(self) -> str:
        """The URL as messages show it, without its query."""
        return self.url.partition("?")[0]

    @property
    def is_encrypted(self) -> bool:
        """Whether the URL says so."""
        return urlsplit(self.url).scheme == self.schemes[1]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The server."""
        parts = urlsplit(self.url)
        port = parts.port or self.ports[self.is_encrypted]
        return (f"{parts.hostname}:{port}",)

    async def tls_in_thread(self, context: Context) -> ssl.SSLContext | None:
        """Return what encrypts connections, if they are encrypted.

        Raises:
            ConnectorError: A certificate or key cannot be read.
        """
        if not self.is_encrypted:
            return None
        return await to_thread.run_sync(self.tls, context)


class WebAddress(Address):
    """Where a web server is, and who asks."""

    incidental: ClassVar[frozenset[str]] = frozenset({"headers", "read_timeout"})

    token: SecretStr | None = Field(
        None, description="Token to identify with, sent as a bearer token, instead of a login."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers to send along; none of them a secret."
    )

    @field_validator("token")
    @classmethod
    def _check_login(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        has_name, has_password = (
            info.data.get(name) is not None for name in ("username", "password")
        )
        if has_name != has_password:
            message = (
                f"expected username and password together, found only "
                f"{'username' if has_name else 'password'}; give both, or neither"
            )
            raise ValueError(message)
        if has_name and token is not None:
            message = "expected either a token or a login, found both; remove one"
            raise ValueError(message)
        return token

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() == "authorization":
                message = (
                    f"expected no header {name}, whose value would be shown; "
                    f"use token, or username and password"
                )
                raise ValueError(message)
        return headers

    def request_headers(self) -> dict[str, str]:
        """Return the headers of requests, with what identifies."""
        if self.token is not None:
            return {**self.headers, "Authorization": f"Bearer {self.token.get_secret_value()}"}
        if self.username is not None and self.password is not None:
            login = f"{self.username}:{self.password.get_secret_value()}".encode()
            return {**self.headers, "Authorization": f"Basic {b64encode(login).decode()}"}
        return dict(self.headers)
