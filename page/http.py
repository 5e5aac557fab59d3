"""The page's HTTP server: only whole requests take a thread, and slow ones have a deadline.

Waitress reads each request to its end before a thread takes it, and sends answers from its loop. So
neither half a request nor an answer that nobody reads holds a thread. The deadlines close their
connections.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import orjson
from flask import Flask
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

MAX_BODY_BYTES = 400_000
THREADS = 32
MAX_CONNECTIONS = 500
REQUEST_SECONDS = 10  # from a request's first byte to its last
IDLE_SECONDS = 30  # from one answer, or the connection's start, to the end of the next request
STALLED_SECONDS = 15  # longer than the pause between an event stream's heartbeats
EVENT_BUFFER = 262_144  # bytes of an event stream that wait for a slow reader

SENTENCES = {
    404: "There is nothing at this address.",
    405: "This address takes another method.",
    413: f"The request is larger than {MAX_BODY_BYTES:,} bytes.",
    429: "Too many labels at once: wait a few seconds, then continue teaching.",
}
UNREADABLE = {400: "The request can't be read as HTTP.", 431: "The request's header is too large."}


class _Refusal(ErrorTask):
    """The answer to what never reaches the application, in the API's form."""

    def execute(self) -> None:
        error = self.request.error
        sentence = (SENTENCES | UNREADABLE).get(error.code, f"{error.reason}.")
        body = orjson.dumps({"success": False, "error": sentence})
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    """A connection that is closed when a request or the reading of an answer takes too long."""

    error_task_class = _Refusal

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.free_since = self.reading_since = time.monotonic()
        super().__init__(*arguments, **named)

    def received(self, data: bytes) -> bool:
        before = self.request
        taken = super().received(data)
        if self.request is not before:
            self.reading_since = time.monotonic()
        return taken

    def service(self) -> None:
        if len(self.requests) > 1:
            # No browser sends requests in advance. Their answers would wait in a thread for a
            # client that does not read.
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()
        self.free_since = time.monotonic()

    def readable(self) -> bool:
        """Return whether more may be read; the loop asks at least once a second."""
        if self._overdue():
            self.will_close = True
        return super().readable()

    def _overdue(self) -> bool:
        if self.total_outbufs_len:
            return time.time() - self.last_activity > STALLED_SECONDS
        if self.requests:
            return False
        now = time.monotonic()
        reading = self.request is not None and now - self.reading_since > REQUEST_SECONDS
        return reading or now - self.free_since > IDLE_SECONDS


def serve(app: Flask, listening: socket.socket, on_end: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; ``on_end`` is called before waiting for running requests."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a queue is not a problem
    server = create_server(
        app,
        sockets=[listening],
        threads=THREADS,
        connection_limit=MAX_CONNECTIONS,
        max_request_body_size=MAX_BODY_BYTES + 1,  # the first size that is refused
        outbuf_high_watermark=EVENT_BUFFER,
        channel_request_lookahead=1,  # to notice a closed connection while its answer is made
        asyncore_use_poll=True,
        log_socket_errors=False,
        ident=None,
    )
    server.channel_class = _Channel

    def end(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        on_end()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    server.run()
    server.close()
