"""Certificates that connectors identify with, with a server that asks for them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.http import HttpSource
from tests.http.server import Server, serving

pytestmark = pytest.mark.anyio

SECRET = "hush-hush"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that lets in whom an authority has certified; the certificates lie beside it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    client.private_key_pem.write_to_path(tmp_path / "key.pem")
    key = load_pem_private_key(client.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())
    )
    (tmp_path / "encrypted.pem").write_bytes(encrypted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(lambda request: request.reply(b"1"), context) as started:
        yield started


async def read(server: Server, folder: Path, **options: Any) -> list[Any]:
    source = HttpSource(url=server.url, mode="poll", ca_file="ca.pem", retry_for=0.2, **options)
    async with source.open(Context("in", folder)) as reader:
        return (await reader.receive()).batch.rows()


@pytest.mark.parametrize(
    "options",
    [
        {"cert_file": "both.pem"},
        {"cert_file": "cert.pem", "key_file": "key.pem"},
        {"cert_file": "cert.pem", "key_file": "encrypted.pem", "key_password": SECRET},
    ],
)
async def test_who_identifies_is_let_in(
    server: Server, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert await read(server, tmp_path, **options) == [1]


async def test_who_does_not_identify_is_not_let_in(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match=r"within 0\.2 s, found \w+"):
        await read(server, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"cert_file": "cert.pem"},
        {"cert_file": "cert.pem", "key_file": "ca.pem"},
        {"cert_file": "cert.pem", "key_file": "encrypted.pem"},
        {"cert_file": "cert.pem", "key_file": "encrypted.pem", "key_password": "wrong-one"},
    ],
)
async def test_certificates_that_do_not_fit_are_told(
    server: Server, tmp_path: Path, options: dict[str, Any]
) -> None:
    expected = r"in: expected certificates and key in PEM .*; check ca_file, cert_file, key_file"
    with pytest.raises(ConnectorError, match=expected) as caught:
        await read(server, tmp_path, **options)
    assert "wrong-one" not in str(caught.value)
