"""What a browser may ask of Flink's REST API, and what the guard in it refuses."""

import http.client
import http.server
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import sync_playwright

from harness.stack import Stack

JOB = "0" * 32
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
FOREIGN = "http://evil.example"
OPENED = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
BODY = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}\r\n--x--\r\n'


def ask(
    stack: Stack, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """Return status and body of a request; a header's ``_`` stands for ``-``."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.settings.flink_port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


REFUSED = {
    "a job from another site": ("POST", "/jobs", BODY, MULTIPART | {"Origin": FOREIGN}),
    "a job from a sandboxed frame": ("POST", "/jobs", BODY, MULTIPART | {"Origin": "null"}),
    "a job from another port": (
        "POST",
        "/jobs",
        BODY,
        MULTIPART | {"Origin": "http://127.0.0.1:3000"},
    ),
    "a job without an origin": (
        "POST",
        "/jobs",
        BODY,
        MULTIPART | {"Sec-Fetch-Site": "cross-site"},
    ),
    "a job by another version": ("POST", "/v1/jobs", BODY, MULTIPART | {"Origin": FOREIGN}),
    "a jar": ("POST", "/jars/upload", BODY, MULTIPART | {"Origin": FOREIGN}),
    "a stop as plain text": (
        "POST",
        f"/jobs/{JOB}/stop",
        b"{}",
        {"Content-Type": "text/plain", "Origin": FOREIGN},
    ),
    "a form sent from another site": (
        "POST",
        f"/jobs/{JOB}/stop",
        b"{}",
        OPENED | {"Sec-Fetch-Site": "cross-site"},
    ),
    "a cancel": ("PATCH", f"/jobs/{JOB}", None, {"Origin": FOREIGN}),
    "the cluster's end": ("DELETE", "/cluster", None, {"Origin": FOREIGN}),
    "a preflight": (
        "OPTIONS",
        "/jobs",
        None,
        {"Origin": FOREIGN, "Access-Control-Request-Method": "PATCH"},
    ),
    "a websocket": (
        "GET",
        "/",
        None,
        {"Origin": FOREIGN, "Connection": "Upgrade", "Upgrade": "websocket"},
    ),
    "a rebound name": ("GET", "/jobs/overview", None, {"Host": "evil.example:8081"}),
    "a rebound name of its own origin": (
        "POST",
        "/jobs",
        BODY,
        {"Host": "evil.example", "Origin": FOREIGN},
    ),
    "a name that begins like ours": ("GET", "/", None, {"Host": "localhost.evil.example"}),
    "a script of another site": ("GET", "/jobs/overview", None, {"Sec-Fetch-Site": "cross-site"}),
    "a fetch of another port's page": ("GET", "/config", None, {"Sec-Fetch-Site": "same-site"}),
    "a frame": (
        "GET",
        "/",
        None,
        OPENED | {"Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "cross-site"},
    ),
    "a link that cancels": (
        "GET",
        f"/jobs/{JOB}/yarn-cancel",
        None,
        OPENED | {"Sec-Fetch-Site": "cross-site"},
    ),
    "an image that stops": ("GET", f"/v1/jobs/{JOB}/yarn%2Dstop", None, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_flink_refuses_what_another_site_sends(flink, name):
    method, path, body, headers = REFUSED[name]
    status, answer = ask(flink, method, path, body, **headers)
    assert status == 403, answer
    assert json.loads(answer)["errors"]


PASSED = {
    "a program": ("GET", "/overview", {}),
    "a typed address": ("GET", "/", OPENED | {"Sec-Fetch-Site": "none"}),
    "a link to the page": ("GET", "/", OPENED | {"Sec-Fetch-Site": "cross-site"}),
    "a link to the page's file": (
        "GET",
        "/index.html?a=b",
        OPENED | {"Sec-Fetch-Site": "same-site"},
    ),
    "the page's own requests": ("GET", "/overview", {"Sec-Fetch-Site": "same-origin"}),
    "another of this machine's names": ("GET", "/overview", {"Host": "LocalHost:1"}),
    "the sixth protocol's name": ("GET", "/overview", {"Host": "[::1]:8081"}),
}


@pytest.mark.parametrize("name", PASSED)
def test_flink_answers_its_own_page_and_programs(flink, name):
    method, path, headers = PASSED[name]
    assert ask(flink, method, path, **headers)[0] == 200


def test_a_refusal_ends_its_connection_and_what_follows_on_it(flink):
    host = f"Host: 127.0.0.1:{flink.settings.flink_port}\r\n"
    good = f"GET /overview HTTP/1.1\r\n{host}\r\n"
    foreign = f"POST /jobs HTTP/1.1\r\n{host}Origin: {FOREIGN}\r\nContent-Length: 2\r\n\r\n{{}}"
    with socket.create_connection(
        ("127.0.0.1", flink.settings.flink_port), timeout=20
    ) as connection:
        connection.sendall(good.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall((foreign + good).encode())
        with connection.makefile("rb") as answers:
            text = answers.read()
    assert text.startswith(b"HTTP/1.1 403")
    assert text.count(b"HTTP/1.1 ") == 1


def test_a_refused_upload_is_never_written_to_the_disk(flink):
    before = set(uploaded(flink))
    head = b'--x\r\nContent-Disposition: form-data; name="jarfile"; filename="a.jar"\r\n\r\n'
    body = head + b"0" * 20_000_000 + b"\r\n--x--\r\n"
    assert ask(flink, "POST", "/jobs", body, **MULTIPART, Origin=FOREIGN)[0] == 403
    assert set(uploaded(flink)) == before


def uploaded(stack: Stack) -> list[str]:
    return [
        str(path) for path in (stack.settings.run_dir / "flink" / "tmp").glob("flink-web-*/**/*")
    ]


@pytest.fixture
def another_site(tmp_path) -> Iterator[str]:
    """The address of a page that is not Flink's."""
    (tmp_path / "index.html").write_text("<title>another site</title>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


ATTACKS = {
    "a form with a file": """address => {
        const form = new FormData();
        form.append('request', new Blob(['{}']), 'request');
        return fetch(address + '/jobs', {method: 'POST', mode: 'no-cors', body: form}).catch(String);
    }""",
    "plain text": """address => fetch(address + '/jobs/0123456789abcdef0123456789abcdef/stop',
        {method: 'POST', mode: 'no-cors', body: '{}'}).catch(String)""",
    "a submitted form": """address => {
        document.body.innerHTML = `<form method=post action="${address}/jobs" enctype="multipart/form-data"
            target=_self><input name=request value="{}"></form>`;
        document.forms[0].submit();
    }""",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_another_sites_page_reaches_no_job_from_a_browser(flink, chromium, another_site, name):
    address = f"http://127.0.0.1:{flink.settings.flink_port}"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        tab.goto(another_site)
        with tab.expect_response(f"{address}/jobs**") as answer:
            tab.evaluate(ATTACKS[name], address)
        status = answer.value.status
        browser.close()
    assert status == 403


def test_flinks_page_works_in_a_browser_and_from_a_link(flink, chromium, another_site):
    address = f"http://localhost:{flink.settings.flink_port}/"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        refused: list[str] = []
        tab.on(
            "response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None
        )
        tab.goto(another_site)
        tab.evaluate(
            "address => { document.body.innerHTML = `<a href='${address}'>Flink</a>`; }", address
        )
        tab.click("a")
        tab.wait_for_url(f"{address}**")
        tab.get_by_text("Available Task Slots").first.wait_for()
        browser.close()
    assert not refused


def test_the_guard_is_a_jar_that_flink_loads_as_a_service(flink):
    jar = (flink.settings.run_dir / "flink" / "lib" / "rest-guard.jar").read_bytes()
    names = zipfile.ZipFile(io.BytesIO(jar)).namelist()
    assert (
        "META-INF/services/org.apache.flink.runtime.io.network.netty.InboundChannelHandlerFactory"
        in names
    )
    assert "Loaded channel inbound factory" in flink.parts["jobmanager"].log.read_text()


SMALL_JOB = """
from pyflink.table import EnvironmentSettings, TableEnvironment

tables = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
tables.execute_sql("CREATE TABLE a (x INT) WITH ('connector' = 'datagen', 'number-of-rows' = '1')")
tables.execute_sql("CREATE TABLE b (x INT) WITH ('connector' = 'blackhole')")
tables.execute_sql("INSERT INTO b SELECT x FROM a")
"""


def test_flink_run_submits_by_the_name_localhost(flink, tmp_path):
    (tmp_path / "small.py").write_text(SMALL_JOB)
    job = flink.named(flink_host="localhost").submit_job(str(tmp_path / "small.py"))
    flink.wait_for_job(job, "FINISHED")
