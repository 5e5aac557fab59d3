"""The drawing page and its API: predicts a drawing with the newest model, and sends a person's label into the loop.

Predictions come from memory; the model is swapped in the background. Without Kafka or Redis the page stays up, says
what is missing and predicts with the last model it had.
"""

import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from flask import Flask, Response, render_template, request
from gunicorn.app.base import BaseApplication
from werkzeug.exceptions import HTTPException

from drawing import DrawingError, features
from forecast.page import blueprint as forecast_pages
from model_store import ModelWatcher, Stored
from page_guard import check_may_teach, feedback_limit, guard
from page_kafka import NewestSamples, NotTaughtError, Teacher
from page_live import Live, TooManyClientsError, model_state
from repeatable import hold_one_thread
from settings import Settings, SettingsError
from settings import settings as this_process_settings

MAX_BODY_BYTES = 400_000
THREADS = 32
NO_MODEL = "There is no model yet: the job has not learned a sample. It answers as soon as the first one is in."


@dataclass(frozen=True)
class Parts:
    """What the page's routes use; ``start`` begins all background work, ``stop`` ends it."""

    settings: Settings
    watcher: ModelWatcher
    samples: NewestSamples
    live: Live
    teacher: Teacher

    def start(self) -> None:
        """Start watching Redis and Kafka in the background."""
        for part in (self.watcher, self.samples, self.live):
            part.start()

    def stop(self) -> None:
        """Stop it; returns when all threads have ended."""
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda part: part.stop(), (self.live, self.samples, self.watcher)))


def create_app(settings: Settings) -> Flask:
    """Return the page as a WSGI application; its ``extensions["parts"]`` still have to be started."""
    app = Flask(__name__)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, MAX_FORM_MEMORY_SIZE=MAX_BODY_BYTES, MAX_FORM_PARTS=10)
    watcher, samples = ModelWatcher(settings), NewestSamples(settings)
    parts = Parts(settings, watcher, samples, Live(settings, watcher, samples), Teacher(settings))
    app.extensions["parts"] = parts
    limiter = guard(app, settings)
    _errors(app)
    _routes(app, parts)
    app.register_blueprint(forecast_pages(settings.run_dir / "forecast" / "published"))
    app.add_url_rule("/feedback", view_func=limiter.limit(feedback_limit(settings))(_feedback(parts)), methods=["POST"])
    return app


def _routes(app: Flask, parts: Parts) -> None:
    @app.get("/")
    def page() -> str:
        needs_token = bool(parts.settings.page_public_url)
        return render_template("page.html", feedback=parts.settings.feedback, needs_token=needs_token)

    @app.post("/predict")
    def predict() -> tuple[dict, int]:
        x = features(_field("imgStr"))
        stored = parts.watcher.current
        if stored is None:
            return _error(NO_MODEL, 503)
        return {"success": True, **prediction(stored, x), "x": x.tolist()}, 201

    @app.get("/model")
    def model() -> tuple[dict, int]:
        stored = parts.watcher.current
        return (model_state(stored), 200) if stored else _error(NO_MODEL, 503)

    @app.get("/events")
    def events() -> Response:
        parts.live.enter()
        connection = request.environ.get("gunicorn.socket")
        events = parts.live.events(lambda: connection is not None and has_hung_up(connection))
        response = Response(events, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
        response.call_on_close(parts.live.leave)
        return response

    @app.get("/healthz")
    def healthz() -> tuple[dict, int]:
        found = parts.live.parts()
        well = parts.watcher.current is not None and found["redis"] == found["kafka"] == "up"
        return {"success": well, **found}, 200 if well else 503


def has_hung_up(connection: socket.socket) -> bool:
    """Return whether the other end has closed the connection; without asking, only the second write to it would tell."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _feedback(parts: Parts) -> Callable[[], tuple[dict, int]]:
    def feedback() -> tuple[dict, int]:
        check_may_teach(parts.settings)
        label = _field("actual_y")
        if label not in list("0123456789"):
            raise DrawingError("The label (actual_y) must be one digit, 0 to 9.")
        partition, offset = parts.teacher.teach(features(_field("imgStr")).tolist(), int(label))
        return {"success": True, "topic": parts.settings.input_topic, "partition": partition, "offset": offset}, 202

    return feedback


def prediction(stored: Stored, x: np.ndarray) -> dict:
    """Return what a model says of 64 numbers; ``probabilities`` is None where its estimator has none."""
    estimator: Any = stored.estimator()
    row = x.reshape(1, -1).astype(np.float64)
    meta = {"model_version": stored.meta.version, "samples": stored.meta.samples}
    if not hasattr(estimator, "predict_proba"):
        return {"predict_result": int(estimator.predict(row)[0]), "probabilities": None, **meta}
    shares = estimator.predict_proba(row)[0]
    return {
        "predict_result": int(estimator.classes_[int(np.argmax(shares))]),
        "probabilities": [round(float(share), 6) for share in shares],
        **meta,
    }


def _field(name: str) -> str:
    value = request.form.get(name)
    if value is None:
        raise DrawingError(f"The form field {name} is missing.")
    return value


def _error(sentence: str, status: int) -> tuple[dict, int]:
    return {"success": False, "error": sentence}, status


def _errors(app: Flask) -> None:
    """Answer every error with a sentence in JSON."""
    sentences = {
        404: "There is nothing at this address.",
        405: "This address takes another method.",
        413: f"The request is larger than {MAX_BODY_BYTES:,} bytes.",
        429: "Too many labels at once: wait a few seconds, then go on teaching.",
    }

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[dict, int]:
        return _error(sentences.get(error.code or 500, error.description or error.name), error.code or 500)

    @app.errorhandler(DrawingError)
    def bad_input(error: DrawingError) -> tuple[dict, int]:
        return _error(str(error), 400)

    @app.errorhandler(NotTaughtError)
    @app.errorhandler(TooManyClientsError)
    def not_now(error: Exception) -> tuple[dict, int]:
        return _error(str(error), 503)


class _Gunicorn(BaseApplication):
    """Gunicorn with one worker process and many threads: every request needs the same model in memory."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self.settings, self.listening = settings, listening
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": f"fd://{self.listening.fileno()}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": THREADS,
            "loglevel": "warning",
            "graceful_timeout": 10,
            "keepalive": 30,  # seconds; a connection that is closed just as the next request comes is an error
            "post_worker_init": self._begin,
            "worker_exit": self._end,
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return create_app(self.settings)

    @staticmethod
    def _begin(worker: Any) -> None:
        hold_one_thread()
        parts: Parts = worker.wsgi.extensions["parts"]
        parts.live.ending = lambda: not worker.alive  # else a watching client would hold up the end
        parts.start()

    @staticmethod
    def _end(_: Any, worker: Any) -> None:
        worker.wsgi.extensions["parts"].stop()


@click.command()
def main() -> None:
    """Serve the drawing page and its API until Ctrl-C; where, the settings PAGE_HOST and PAGE_PORT say."""
    try:
        settings = this_process_settings()
        settings.signing_key()
        feedback_limit(settings)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.ClickException(f"FEEDBACK_RATE must be like 10/second: {error}.") from error
    try:
        listening = socket.create_server((settings.page_host, settings.page_port), backlog=128)
    except OSError as error:
        raise click.ClickException(
            f"The page can't listen on {settings.page_host}:{settings.page_port} ({error.strerror}): another program "
            "may hold that port; PAGE_PORT sets another one."
        ) from error
    click.echo(f"The page is at http://{settings.page_host}:{settings.page_port}; Ctrl-C ends it.")
    sys.stdout.flush()
    _Gunicorn(settings, listening).run()


if __name__ == "__main__":
    main()
