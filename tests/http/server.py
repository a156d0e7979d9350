"""A web server on this machine, in threads, that does as a test says."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """What a client asks; `Server.answer` says what becomes of it."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def reply(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """Answer with a whole page."""
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        """Begin an answer whose end is that of the connection."""
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Send more of it."""
        self.wfile.write(data)
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    """Listens on a free port.

    Attributes:
        requests: The headers of all requests.
    """

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answer = answer
        self.requests: list[dict[str, str]] = []
        self.scheme = "http"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/feed"


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve until the block is left."""
    with Server(answer) as server:
        if tls is not None:
            server.scheme = "https"
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def from_queue(queue: Queue[bytes | None]) -> Answer:
    """Return an answer that streams what is put into a queue, up to None."""

    def answer(request: Request) -> None:
        request.stream()
        while (data := queue.get()) is not None:
            request.send(data)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that is another one each time, the last one for ever."""
    left = list(answers)

    def answer(request: Request) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer
