"""What ZeroMQ sources and sinks declare: how to reach the peers, and what to exchange."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from streamflow.codecs.formats import FormatField, JsonFormat
from streamflow.errors import Problem
from streamflow.nodes.declarations import Declaration
from streamflow.nodes.plugins import missing_packages
from streamflow.nodes.units import SizeField

REQUIRES = {"zmq": "streamflow-online[zeromq]"}

_TCP: Final = re.compile(r"tcp://(?P<host>\*|[\w.-]+|\[[\w:.%]+\]):(?P<port>[0-9]{1,5})")
_IPC: Final = re.compile(r"ipc://[^*@\0][^\0]*")
_KEY_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + ".-:+=^!/*?&<>()[]{}@%$#")
_KEY_LENGTH: Final = 40


def _check_bound(endpoint: str) -> str:
    return _check_endpoint(endpoint, "tcp://*:5555")


def _check_connected(endpoint: str) -> str:
    if endpoint.startswith("tcp://*"):
        message = f"expected the host of a peer, found {endpoint}; write tcp://host:5555"
        raise ValueError(message)
    return _check_endpoint(endpoint, "tcp://host:5555")


def _check_endpoint(endpoint: str, example: str) -> str:
    tcp = _TCP.fullmatch(endpoint)
    if not (_IPC.fullmatch(endpoint) or (tcp and 0 < int(tcp["port"]) < 2**16)):
        message = (
            f"expected tcp:// with a host and a port, or ipc:// with the path of a socket, "
            f"found {endpoint}; write {example} or ipc://feed.sock"
        )
        raise ValueError(message)
    return endpoint


Bound: TypeAlias = Annotated[str, AfterValidator(_check_bound)]
"""An endpoint to listen at."""

Connected: TypeAlias = Annotated[str, AfterValidator(_check_connected)]
"""An endpoint of a peer."""


class Endpoints(Declaration):
    """How to reach the peers, for sources and sinks alike."""

    type: Literal["zeromq"] = "zeromq"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            *("bind", "connect", "high_water_mark"),
            *("curve_server_key", "curve_public_key", "curve_secret_key"),
        }
    )

    bind: tuple[Bound, ...] = Field(
        (), description="Endpoints to listen at: tcp://*:5555, or ipc://feed.sock for a path."
    )
    connect: tuple[Connected, ...] = Field(
        (), description="Endpoints of peers to connect to, instead of bind: tcp://host:5555."
    )
    high_water_mark: int = Field(
        10_000,
        ge=1,
        lt=2**31,
        description="Records that may wait here for each peer. At a sink that is full push waits, "
        "and pub drops records.",
    )
    max_bytes: SizeField = Field(
        16 * 2**20,
        description="Bytes that a record's value may have; larger ones are rejected. A frame of "
        "more than four times as much makes a source close the connection.",
    )
    curve_server_key: str | None = Field(
        None,
        description="Public key of the peer that is the CURVE server; without it this end is the "
        "server, if it has keys.",
    )
    curve_public_key: str | None = Field(
        None, description="Public key of this end, in Z85; encrypts, with the secret key."
    )
    curve_secret_key: SecretStr | None = Field(None, description="Secret key of this end, in Z85.")

    @field_validator("bind", "connect")
    @classmethod
    def _check_each_once(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(endpoints)) < len(endpoints):
            message = "expected each endpoint once, found one twice; remove it"
            raise ValueError(message)
        return endpoints

    @field_validator("connect")
    @classmethod
    def _check_one_way(cls, connect: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        bind = info.data.get("bind")
        if bind is not None and bool(bind) == bool(connect):
            message = (
                f"expected endpoints in either bind or connect, found {'both' if bind else 'none'};"
                f" list those to listen at in bind, or those of peers in connect"
            )
            raise ValueError(message)
        return connect

    @field_validator("curve_server_key", "curve_public_key", "curve_secret_key")
    @classmethod
    def _check_key(cls, key: str | SecretStr | None) -> str | SecretStr | None:
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        if text is not None and not (len(text) == _KEY_LENGTH and _KEY_CHARACTERS.issuperset(text)):
            message = (
                f"expected a key of {_KEY_LENGTH} characters in Z85, as zmq.curve_keypair makes"
            )
            raise ValueError(message)
        return key

    @field_validator("curve_secret_key")
    @classmethod
    def _check_keys(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if not {"curve_server_key", "curve_public_key"} <= info.data.keys():
            return secret  # one of them is wrong itself
        has_server, has_public = (
            info.data[name] is not None for name in ("curve_server_key", "curve_public_key")
        )
        if has_public != (secret is not None) or (has_server and not has_public):
            given = [has_server and "curve_server_key", has_public and "curve_public_key"]
            found = " and ".join([name for name in given if name] or ["curve_secret_key"])
            message = (
                f"expected curve_public_key and curve_secret_key together, found only {found}; "
                f"give both, or neither of them"
            )
            raise ValueError(message)
        return secret

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield that the keys are no pair, which the driver tells."""
        if self.curve_secret_key is None or missing_packages(REQUIRES):
            return
        import zmq

        try:
            public = zmq.curve_public(self.curve_secret_key.get_secret_value().encode()).decode()
        except zmq.ZMQError:
            public = None
        if public != self.curve_public_key:
            message = (
                "expected the public key of curve_secret_key, found another; "
                "give both as zmq.curve_keypair has made them"
            )
            yield Problem(("curve_public_key",), message)


class ZeroMqSourceOptions(Endpoints):
    """What to receive."""

    incidental: ClassVar[frozenset[str]] = frozenset({"end_after"})

    socket: Literal["pull", "sub"] = Field(
        description="pull from push, which shares records out; or sub from pub, which sends each "
        "subscriber all of its topics."
    )
    topics: tuple[str, ...] = Field(
        (),
        description="Beginnings of the topics to subscribe to, with sub; without any, all of them.",
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    end_after: float | None = Field(
        None, gt=0, description="Seconds without a record after which the stream ends."
    )

    @field_validator("topics")
    @classmethod
    def _check_topics(cls, topics: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if topics and info.data.get("socket") == "pull":
            message = "expected topics with socket: sub, found pull; remove them, or use sub"
            raise ValueError(message)
        return topics


class ZeroMqSinkOptions(Endpoints):
    """What to send."""

    socket: Literal["push", "pub"] = Field(
        description="push, which shares records out among pulling peers; or pub, which sends all "
        "to each subscriber."
    )
    topic: str = Field("", description="Topic to publish under, with pub.")
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    numbered: bool = Field(
        True,
        description="Whether records are numbered, so that a receiver counts what is lost. Turn it "
        "off where several receivers share out what is pushed: each would miss some numbers.",
    )
    linger: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="Seconds that closing waits for peers to take what is on its way.",
    )

    @field_validator("topic")
    @classmethod
    def _check_topic(cls, topic: str, info: ValidationInfo) -> str:
        if topic and info.data.get("socket") == "push":
            message = "expected a topic with socket: pub, found push; remove it, or use pub"
            raise ValueError(message)
        return topic
