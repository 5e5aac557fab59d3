"""The drawing page and its API: predictions from the newest model, and people's labels for the loop.

Predictions come from memory; the model is swapped in the background. Without Kafka or Redis the
page stays up, says what is missing and predicts with the last model it had.
"""

import gc
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from forecast.page import blueprint as forecast_pages
from learners.repeatable import hold_one_thread
from loop.model_store import Stored
from page.drawing import DrawingError, features
from page.guard import check_may_teach, feedback_limit, guard
from page.http import MAX_BODY_BYTES, SENTENCES, serve
from page.live import Live, TooManyClientsError, model_state
from page.newest import NewestSamples
from page.teacher import NotTaughtError, Teacher
from page.watcher import ModelWatcher
from settings import Settings, SettingsError, UserError, one_line
from settings import settings as this_process_settings

View = Callable[[], tuple[dict, int]]
NO_MODEL = (
    "There is no model yet: the job has not learned a sample. "
    "The page answers as soon as it has learned the first one."
)


@dataclass(frozen=True)
class Parts:
    """What the page's routes use; ``start`` starts all background work, ``stop`` ends it."""

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
    """Return the page as a WSGI application.

    Its ``extensions["parts"]`` still have to be started.
    """
    app = Flask(__name__)
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES, MAX_FORM_MEMORY_SIZE=MAX_BODY_BYTES, MAX_FORM_PARTS=10
    )
    watcher = ModelWatcher(settings)
    samples = NewestSamples(settings, watcher.pin)
    parts = Parts(settings, watcher, samples, Live(settings, watcher, samples), Teacher(settings))
    app.extensions["parts"] = parts
    limiter = guard(app, settings)
    _errors(app)
    _routes(app, parts)
    app.register_blueprint(forecast_pages(settings.run_dir / "forecast" / "published"))
    teach = limiter.limit(feedback_limit(settings))(_teach(parts))
    app.add_url_rule("/feedback", view_func=_feedback(settings, teach), methods=["POST"])
    return app


def _routes(app: Flask, parts: Parts) -> None:
    @app.get("/")
    def page() -> str:
        needs_token = parts.settings.page_is_open
        return render_template(
            "page.html", feedback=parts.settings.feedback, needs_token=needs_token
        )

    @app.post("/predict")
    def predict() -> tuple[dict, int]:
        x = features(_field("imgStr"))
        stored = parts.watcher.current
        if stored is None:
            return _error(NO_MODEL, 503)
        try:
            return {"success": True, **prediction(stored, x), "x": x.tolist()}, 201
        except (ValueError, TypeError) as error:  # its stream is not one of drawings
            return _error(f"The newest model can't read a drawing of 64 pixels: {error}", 503)

    @app.get("/model")
    def model() -> tuple[dict, int]:
        stored = parts.watcher.current
        return (model_state(stored), 200) if stored else _error(NO_MODEL, 503)

    @app.get("/events")
    def events() -> Response:
        parts.live.enter()
        gone = request.environ.get("waitress.client_disconnected", lambda: False)
        response = Response(
            parts.live.events(gone),
            mimetype="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )
        response.call_on_close(parts.live.leave)
        return response

    @app.get("/healthz")
    def healthz() -> tuple[dict, int]:
        found = parts.live.parts()
        well = parts.watcher.current is not None and all(
            found[part] == "up" for part in found.keys() - {"model"}
        )
        return {"success": well, **found}, 200 if well else 503


def _feedback(settings: Settings, teach: View) -> View:
    """Return the view that checks who may teach; the requests of others don't use up the rate."""

    def feedback() -> tuple[dict, int]:
        check_may_teach(settings)
        return teach()

    return feedback


def _teach(parts: Parts) -> View:
    def teach() -> tuple[dict, int]:
        label = _field("actual_y")
        if label not in list("0123456789"):
            raise DrawingError("The label (actual_y) must be one digit, 0 to 9.")
        partition, offset = parts.teacher.teach(features(_field("imgStr")).tolist(), int(label))
        return {
            "success": True,
            "topic": parts.settings.input_topic,
            "partition": partition,
            "offset": offset,
        }, 202

    return teach


def prediction(stored: Stored, x: np.ndarray) -> dict:
    """Return a model's answer to 64 pixels, uint8 (64,).

    ``probabilities`` is None where its estimator has none.
    """
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

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[dict, int]:
        code = error.code or 500
        return _error(SENTENCES.get(code, error.description or error.name), code)

    @app.errorhandler(DrawingError)
    def bad_input(error: DrawingError) -> tuple[dict, int]:
        return _error(str(error), 400)

    @app.errorhandler(NotTaughtError)
    @app.errorhandler(TooManyClientsError)
    def not_now(error: Exception) -> tuple[dict, int]:
        return _error(str(error), 503)


def _listening(settings: Settings) -> socket.socket:
    """Return the page's socket; raises ``UserError`` where the port is taken."""
    address = settings.page_host, settings.page_port
    family = socket.AF_INET6 if ":" in settings.page_host else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=128)
    except OSError as error:
        raise UserError(
            f"The page can't listen on {address[0]}:{address[1]} ({error.strerror}): "
            "another program may hold that port; PAGE_PORT sets another one."
        ) from error


def rest_collector() -> None:
    """Leave what was loaded at the start out of all later garbage collections.

    It is some 190,000 objects, which never become garbage. Going through them stops all requests
    for 0.1 s and more.
    """
    gc.collect()
    gc.freeze()


@click.command()
@one_line()
def main() -> None:
    """Serve the drawing page and its API at PAGE_HOST and PAGE_PORT until Ctrl-C."""
    settings = this_process_settings()
    settings.signing_key()
    try:
        feedback_limit(settings)
    except ValueError as error:
        raise SettingsError(f"FEEDBACK_RATE must be like 10/second: {error}.") from error
    listening = _listening(settings)
    click.echo(f"The page is at http://{settings.page_host}:{settings.page_port}; Ctrl-C ends it.")
    sys.stdout.flush()
    app = create_app(settings)
    parts: Parts = app.extensions["parts"]
    hold_one_thread()
    rest_collector()
    parts.start()
    serve(app, listening, parts.live.end)
    parts.stop()


if __name__ == "__main__":
    main()
