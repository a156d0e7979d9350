"""Certificates: whom to trust, and how to identify."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.nodes.declarations import Declaration


class Certificates(Declaration):
    """The options of connections that may be encrypted."""

    incidental: ClassVar[frozenset[str]] = frozenset({"ca_file", "cert_file", "key_file"})

    ca_file: Path | None = Field(
        None, description="Certificates (PEM) to trust instead of the system's."
    )
    cert_file: Path | None = Field(None, description="Certificate (PEM) to identify with.")
    key_file: Path | None = Field(None, description="Key (PEM) of cert_file, if not in it.")
    key_password: SecretStr | None = Field(None, description="Password of the key.")

    @property
    def certificate_files(self) -> list[str]:
        """The names of the options that name files."""
        names = ("ca_file", "cert_file", "key_file")
        return [name for name in names if getattr(self, name) is not None]

    def tls(self, context: Context) -> ssl.SSLContext:
        """Return what encrypts connections and checks the other end; reads the certificates.

        Raises:
            ConnectorError: A certificate or key cannot be read.
        """
        folder = context.folder
        secret = self.key_password
        try:
            made = ssl.create_default_context(cafile=self.ca_file and folder / self.ca_file)
            if self.cert_file is not None:
                made.load_cert_chain(
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
        return made
