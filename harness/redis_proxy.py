"""A TCP proxy for Redis that can lose the answer to a commit by closing the connection."""

import contextlib
import socket
import threading


class RedisProxy:
    """Passes bytes between clients and Redis on 127.0.0.1; clients connect to ``port``.

    When ``cut`` is set, the answer to the next commit is lost. ``cuts`` counts lost answers.
    """

    def __init__(self, redis_port: int) -> None:
        self.redis_port = redis_port
        self.cut = threading.Event()
        self.cuts = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            redis = socket.create_connection(("127.0.0.1", self.redis_port))
        except OSError:
            client.close()
            return
        losing = threading.Event()
        answers = threading.Thread(
            target=self._pass, args=(redis, client, losing, False), daemon=True
        )
        answers.start()
        self._pass(client, redis, losing, True)

    def _pass(
        self, source: socket.socket, target: socket.socket, losing: threading.Event, commands: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                # A commit is the only command that holds the model's fields.
                if commands and self.cut.is_set() and b"commit_id" in data and b"EVALSHA" in data:
                    self.cut.clear()
                    losing.set()
                elif not commands and losing.is_set():
                    self.cuts += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
