"""How to reach a server by its URL: the options that connectors for the web share."""

from __future__ import annotations

import ssl
from base64 import b64encode
from typing import ClassVar
from urllib.parse import urlsplit

from anyio import to_thread
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from streamflow.contracts import Context
from streamflow_connectors.tls import Certificates


class WebAddress(Certificates):
    """Where the server is, and who asks.

    Attributes:
        schemes: What the URL may begin with, without and with encryption.
    """

    schemes: ClassVar[tuple[str, str]]
    incidental: ClassVar[frozenset[str]] = frozenset(
        {"connect_timeout", "retry_for", "username", "headers", "read_timeout"}
    )

    url: str = Field(
        min_length=1, description="Where the server is; keep secrets out of it, it is shown."
    )
    token: SecretStr | None = Field(
        None, description="Token to identify with, sent as a bearer token."
    )
    username: str | None = Field(None, description="Name to log in with, instead of a token.")
    password: SecretStr | None = Field(None, description="Password to log in with.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers to send along; none of them a secret."
    )
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

    @field_validator("password")
    @classmethod
    def _check_login(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        has_name, has_token = (info.data.get(name) is not None for name in ("username", "token"))
        if has_name != (password is not None):
            message = (
                f"expected username and password together, found only "
                f"{'username' if has_name else 'password'}; give both, or neither"
            )
            raise ValueError(message)
        if has_name and has_token:
            message = "expected either a token or a login, found both; remove one"
            raise ValueError(message)
        return password

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

    @property
    def shown(self) -> str:
        """The URL as messages show it, without its query."""
        return self.url.partition("?")[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The server."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == self.schemes[1] else 80)
        return (f"{parts.hostname}:{port}",)

    def request_headers(self) -> dict[str, str]:
        """Return the headers of requests, with what identifies."""
        if self.token is not None:
            return {**self.headers, "Authorization": f"Bearer {self.token.get_secret_value()}"}
        if self.username is not None and self.password is not None:
            login = f"{self.username}:{self.password.get_secret_value()}".encode()
            return {**self.headers, "Authorization": f"Basic {b64encode(login).decode()}"}
        return dict(self.headers)

    async def tls_in_thread(self, context: Context) -> ssl.SSLContext | None:
        """Return what encrypts connections, if they are encrypted.

        Raises:
            ConnectorError: A certificate or key cannot be read.
        """
        if urlsplit(self.url).scheme != self.schemes[1]:
            return None
        return await to_thread.run_sync(self.tls, context)
