from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import GraphError
from streamflow_connectors.http import HttpSource


def source(**options: Any) -> HttpSource:
    return HttpSource(**{"url": "https://host/feed", "mode": "events", **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"url": "ftp://h"}, "url: expected a URL that begins with http:// or https://, found ftp"),
        ({"url": "host/feed"}, "found none of them; write https://host/path"),
        ({"url": "https:///x"}, "url: expected a URL"),
        ({"url": "https://me:hush@host"}, "without a login, found one with; use the options"),
        ({"username": "me"}, "username and password together, found only username"),
        ({"password": "hush"}, "username and password together, found only password"),
        ({"token": "t", "username": "me", "password": "hush"}, "either a token or a login"),
        ({"headers": {"Authorization": "hush"}}, "headers: expected no header Authorization"),
        ({"mode": "pull"}, "mode: expected one of events, poll"),
        ({"body": "lines"}, "body: expected it with mode: poll, found events"),
        ({"repeat": True}, "repeat: expected it with mode: poll, found events"),
        ({"mode": "poll", "events": ["a"]}, "events: expected it with mode: events, found poll"),
        ({"mode": "poll", "body": "list", "format": "raw"}, "format: expected json with body"),
        ({"every": 0}, "every"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"read_timeout": 0}, "read_timeout"),
        ({"end_after": 0}, "end_after"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"retry_for": 0}, "retry_for"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected) as caught:
        source(**options)
    assert "hush" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    for declared in (source(token="hush"), source(username="me", password="hush")):
        assert "hush" not in repr(declared) + str(declared.model_dump())
        assert "hush" not in declared.model_dump_json()


def test_what_can_be_said_without_a_connection() -> None:
    assert source().addresses == ("host:443",)
    assert source(url="http://host/?q").addresses == ("host:80",)
    assert source(url="http://host:8080/?q").shown == "http://host:8080/"
    csv = source(format={"csv": {"fields": ["a"]}})
    assert csv.only_scalars
    assert not source().only_scalars
    assert csv.decoder(Path(), {}).decode([b"5"]).values == {"a": [5]}
