"""The page as a process for tests, with drawings to send and a model that needs no job."""

import base64
import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache

import requests
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from harness.stack import Stack, free_port, until
from loop.model_store import Meta, ModelStore, Stored, new_model_id
from settings import HERE

# One way to write each digit: strokes of (x, y) in a box of 100 x 100.
STROKES: dict[int, list[list[tuple[int, int]]]] = {
    0: [[(50, 12), (32, 24), (26, 50), (34, 78), (50, 88), (66, 78), (74, 50), (66, 22), (50, 12)]],
    1: [[(50, 10), (50, 90)]],
    2: [[(28, 30), (36, 16), (54, 12), (68, 22), (66, 40), (48, 62), (28, 86), (74, 86)]],
    3: [[(30, 18), (50, 12), (66, 24), (60, 42), (44, 48), (64, 56), (70, 74), (52, 88), (28, 82)]],
    4: [[(40, 10), (26, 54), (74, 54)], [(60, 34), (56, 90)]],
    5: [
        [(36, 14), (32, 46), (52, 42), (68, 56), (62, 80), (44, 88), (28, 82)],
        [(36, 14), (70, 14)],
    ],
    6: [[(60, 10), (40, 36), (32, 66), (42, 86), (60, 84), (66, 68), (54, 56), (38, 64)]],
    7: [[(26, 14), (74, 14), (56, 48), (44, 90)], [(38, 50), (66, 50)]],
    8: [
        [
            (64, 22),
            (48, 12),
            (36, 24),
            (44, 42),
            (60, 58),
            (64, 78),
            (48, 90),
            (36, 76),
            (46, 56),
            (60, 40),
            (64, 22),
        ]
    ],
    9: [[(66, 24), (50, 12), (36, 26), (42, 46), (60, 44), (66, 24), (64, 56), (58, 90)]],
}


def drawing(digit: int) -> str:
    """Return the base64 of an SVG of a digit."""
    lines = ""
    for stroke in STROKES[digit]:
        points = " ".join(f"{x},{y}" for x, y in stroke)
        lines += f'<polyline points="{points}" fill="none" stroke="#000" stroke-width="7"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg">{lines}</svg>'
    return base64.b64encode(svg.encode()).decode()


@lru_cache(maxsize=1)
def _learned() -> bytes:
    X, y = load_digits(return_X_y=True)
    estimator = SGDClassifier(loss="log_loss", shuffle=False, random_state=0).fit(X / 16, y)
    estimator.coef_ /= 16
    return pickle.dumps(estimator)


def a_model(version: int = 1, model_id: str = "") -> Stored:
    """Return a model of the data set's digits as the store would return it."""
    meta = Meta(
        model_id=model_id or new_model_id(),
        version=version,
        samples=1797 * version,
        progress={0: 1797},
    )
    return Stored(_learned(), meta)


def commit(store: ModelStore, before: Stored | None, model: Stored) -> Stored:
    """Store a model in Redis and return what is stored."""
    return store.commit(before, model.meta, model.model, b"")


class Page:
    """A running ``python server.py``."""

    def __init__(self, stack: Stack, **env: str) -> None:
        self.stack = stack
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = stack.env | {"PAGE_PORT": str(self.port)} | env
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: self.get("/healthz")[0] in (200, 503), 60, "the page answers")

    def stop(self) -> str:
        """Stop the page as Ctrl-C does and return its output."""
        assert self.process
        self.process.send_signal(2)
        printed, _ = self.process.communicate(timeout=20)
        return printed

    def get(self, path: str) -> tuple[int, dict]:
        return self._answered(requests.get(self.url + path, timeout=20))

    def post(self, path: str, headers: dict | None = None, **fields: str | int) -> tuple[int, dict]:
        return self._answered(
            requests.post(self.url + path, data=fields, headers=headers, timeout=20)
        )

    def ready(self, version: int = 1) -> None:
        """Return when the page has this version of the model, or a newer one."""

        def has_version() -> bool:
            return self.get("/model")[1].get("version", 0) >= version

        until(has_version, 30, f"the page has version {version}")

    @staticmethod
    def _answered(answer: requests.Response) -> tuple[int, dict]:
        return answer.status_code, answer.json()


@contextlib.contextmanager
def serving(stack: Stack, **env: str) -> Iterator[Page]:
    """Run the page on a free port while the block runs."""
    page = Page(stack, **env)
    try:
        yield page
    finally:
        if page.process and page.process.poll() is None:
            page.process.kill()
            page.process.wait()
