"""The page's checks on requests: host, origin, rate of teaching, and the headers of each answer.

Where others can reach the page, teaching needs a token.
"""

import hmac
from urllib.parse import urlsplit

from flask import Flask, Request, Response, request
from flask_limiter import Limiter
from limits import parse
from werkzeug.exceptions import Forbidden

from settings import Settings

TOKEN_HEADER = "X-Feedback-Token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def guard(app: Flask, settings: Settings) -> Limiter:
    """Check each request before its route and set each answer's headers.

    Returns the limiter of a route's rate.
    """
    hosts = {host.strip("[]").lower() for host in settings.page_hosts}
    public = urlsplit(settings.page_public_url)
    if public.hostname:
        hosts.add(public.hostname)
    public_origin = f"{public.scheme}://{public.netloc}".lower() if public.hostname else ""

    @app.before_request
    def _check() -> None:
        _check_host(request, hosts)
        if request.method not in ("GET", "HEAD"):
            _check_origin(request, public_origin)

    @app.after_request
    def _harden(response: Response) -> Response:
        response.headers.update(HEADERS)
        is_static = request.path.startswith("/static/")
        response.headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
        return response

    return Limiter(lambda: "everyone", app=app, storage_uri="memory://", strategy="moving-window")


def feedback_limit(settings: Settings) -> str:
    """Return a window that takes ``feedback_burst`` at once and ``feedback_rate`` on average."""
    rate = parse(settings.feedback_rate)
    seconds = max(1, round(settings.feedback_burst * rate.get_expiry() / rate.amount))
    return f"{settings.feedback_burst} per {seconds} second"


def check_may_teach(settings: Settings) -> None:
    """Raise ``Forbidden`` unless this request may teach."""
    if not settings.feedback:
        raise Forbidden("Teaching is switched off here (setting FEEDBACK).")
    if not settings.page_is_open:
        return
    token = settings.feedback_token.get_secret_value()
    if not token:
        raise Forbidden(
            "Others can reach this page and it has no FEEDBACK_TOKEN, so it can't be taught."
        )
    if not hmac.compare_digest(token.encode(), request.headers.get(TOKEN_HEADER, "").encode()):
        raise Forbidden(
            "Teaching needs a token here: open the page with #token=... at the end of its address."
        )


def _check_host(asked: Request, hosts: set[str]) -> None:
    """Refuse names that are not ours.

    A foreign name that resolves to this machine is a DNS rebinding attack.
    """
    try:
        name = urlsplit(f"//{asked.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    if name not in hosts:
        raise Forbidden("This page answers only to the host names in PAGE_HOSTS.")


def _check_origin(asked: Request, public: str) -> None:
    """Refuse what another site's page sends; what sends neither header is not a browser."""
    origin = asked.headers.get("Origin", "").lower()
    own = {f"{scheme}://{asked.headers['Host'].lower()}" for scheme in ("http", "https")} | {public}
    if origin and origin not in own:
        raise Forbidden("This page takes drawings from itself only, not from another origin.")
    if asked.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("This page takes drawings from itself only, not from another site.")
