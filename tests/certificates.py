"""Certificates of an authority of the tests' own."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


def server_tls(folder: Path) -> ssl.SSLContext:
    """Return what a server on this machine encrypts with; write ``ca.pem`` to trust it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context
