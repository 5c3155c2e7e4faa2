"""Who is answered: every attack of docs/serve.md that comes by a request."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from _pytest.monkeypatch import MonkeyPatch

from levada.web.access import Access, cookie_of
from levada.web.app import create_app
from levada.web.guard import Guard
from levada.web.pages import Pages

from .conftest import HOSTILE, Client, served

RUNS = "/api/1/runs"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil.example@localhost",  # that of an address would be what is behind the @
        "localhost/evil.example",
        "localhost?evil.example",
        "10.0.0.7",
        "",
        "[",
        "::1",
    ],
)
def test_a_host_that_is_no_name_of_the_server_is_refused(client: Client, host: str) -> None:
    status, _, body = client.get(RUNS, host=host)
    assert status == 403
    assert b"runs" not in body


@pytest.mark.parametrize(("hosts", "wanted"), [(0, 403), (1, 503), (2, 403)])
def test_a_request_has_exactly_one_host(root: Path, hosts: int, wanted: int) -> None:
    # What parses requests refuses such ones as well, of HTTP/1.1; the guard does not count on it.
    statuses = []

    async def ask() -> None:
        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = [(b"host", b"127.0.0.1:8765"), (b"host", b"localhost")][:hosts]
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": headers,
        }
        await create_app(root, pages=Pages(root / "none"))(scope, receive, send)

    asyncio.run(ask())
    assert statuses[0] == wanted


def test_a_socket_that_talks_both_ways_is_closed(root: Path) -> None:
    # Neither Origin nor token would be asked for by what serves one.
    sent = []

    async def ask() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        headers = [(b"host", b"127.0.0.1:8765")]
        scope = {"type": "websocket", "path": "/api/1/events", "raw_path": b"", "query_string": b"", "headers": headers}
        await Guard(lambda *_: pytest.fail("it is served"), Access(), lambda: None)(scope, receive, send)

    asyncio.run(ask())
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8765"])
def test_names_of_this_machine_are_answered(client: Client, host: str) -> None:
    assert client.get(RUNS, host=host)[0] == 200


def test_where_other_machines_come_in_numbers_and_the_machines_own_name_are_known_and_no_other() -> None:
    own = socket.gethostname()
    for host in ("0.0.0.0", "::"):
        access = Access(host, closed=True)
        known = [access.knows_host(one) for one in ("192.0.2.7:8765", "[2001:db8::7]:8765", own, "localhost:8765")]
        assert known == [True] * 4
        refused = ("evil.example", "evil.example:8765", f"{own}.evil.example", "192.0.2.7.evil.example", "192.0.2", "")
        assert [access.knows_host(one) for one in refused] == [False] * len(refused)
    assert [Access("host.example").knows_host(one) for one in ("host.example:1", "evil.example")] == [True, False]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_more_than_reading_needs_the_origin_and_the_token(client: Client, method: str) -> None:
    own = f"http://127.0.0.1:{client.port}"
    bearer = f"Bearer {client.token}"
    for path in (RUNS, "/api/1/compute/check", "/"):
        assert client.ask(method, path)[0] == 403
        assert client.ask(method, path, authorization=bearer)[0] == 403
        assert client.ask(method, path, origin=own)[0] == 401
        assert client.ask(method, path, origin=own, authorization="Bearer x")[0] == 401
        assert client.ask(method, path, origin=own, authorization=f"Basic {client.token}")[0] == 401
        assert client.ask(method, path, origin="http://evil.example", authorization=bearer)[0] == 403
        assert client.ask(method, path, origin="null", authorization=bearer)[0] == 403
    # With both, there is still nothing to write to.
    assert client.ask(method, RUNS, origin=own, authorization=bearer)[0] == 405


def test_the_token_is_compared_in_constant_time(monkeypatch: MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr("levada.web.access.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    access = Access()
    assert not access.is_token({"authorization": "Bearer nearly"})
    assert access.is_token({"authorization": f"Bearer {access.token}"})
    assert not access.is_token({})
    assert not Access(closed=True).may_read({"host": "a:1", "cookie": f"{cookie_of('a:1')}=x"})
    assert len(compared) == 5
    source = ast.parse(Path(__import__("levada.web.access", fromlist=["x"]).__file__).read_text())
    plain = [node for node in ast.walk(source) if isinstance(node, ast.Compare) and "token" in ast.dump(node)]
    assert not plain
    for secret in ("token", "session"):
        assert len({getattr(Access(), secret) for _ in range(100)}) == 100
        assert len(getattr(access, secret)) >= 43  # letters of 6 bits: at least 256 bits
    assert access.token not in repr(access)


def test_pages_of_other_sites_get_no_answer(client: Client) -> None:
    assert client.get(RUNS, origin="http://evil.example")[0] == 403
    assert client.get(RUNS, origin=f"http://127.0.0.1:{client.port + 1}")[0] == 403
    for site in ("cross-site", "same-site"):
        assert client.get(RUNS, sec_fetch_site=site)[0] == 403
        assert client.get("/api/1/events", sec_fetch_site=site, sec_fetch_mode="cors")[0] == 403
        navigation = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert client.get(RUNS, sec_fetch_site=site, **navigation)[0] == 403
        assert client.get("/", sec_fetch_site=site, **navigation)[0] == 503  # a link to the page may be followed
        assert client.get("/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="iframe")[0] == 403
        assert client.get("/", sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="document")[0] == 403
    for site in ("same-origin", "none"):
        status, headers, _ = client.get(RUNS, sec_fetch_site=site, origin=f"http://127.0.0.1:{client.port}")
        assert status == 200
        assert not [name for name in headers if name.startswith("access-control")]


def test_every_answer_tells_browsers_what_pages_may_do(client: Client) -> None:
    for path in ("/", RUNS, "/api/1/nothing", client.run("watched"), "/nothing", f"{RUNS}?x=1"):
        _, headers, _ = client.get(path)
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        own = dict.fromkeys(("script-src", "style-src", "connect-src", "font-src", "manifest-src"), "'self'")
        none = dict.fromkeys(("default-src", "frame-ancestors", "base-uri", "form-action"), "'none'")
        assert policy == own | none | {"img-src": "'self' data:", "worker-src": "'self' blob:"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["permissions-policy"] == "camera=(), geolocation=(), microphone=()"
        assert "server" not in headers
    assert client.get(RUNS)[1]["cache-control"] == "no-store"
    page = client.get("/explore.html")[1]["content-security-policy"]
    usual = client.get("/")[1]["content-security-policy"]
    assert page.replace(" 'wasm-unsafe-eval'", "") == usual != page
    assert client.get(RUNS, host="evil.example")[1]["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%5c..%5cetc%5cpasswd",
        "/assets/%252e%252e/etc/passwd",
        "//etc/passwd",
        "/api/1/runs/../../../etc/passwd",
        "/api/1/runs/..%2f..%2fwatched",
        "/api/1/runs/%2e%2e",
        "/api/1/runs/watched",
        "/api/1/runs/aaaaaaaaaaaaaaaaaaaa%00",
        "/%00",
        "/index.html%00.js",
        "/docs",  # pages of FastAPI's, with scripts of another site
        "/redoc",
        "/openapi.json",
    ],
)
def test_no_path_leads_out(client: Client, path: str) -> None:
    status, headers, body = client.get(path)
    assert status in (404, 422)
    assert b"root:" not in body
    assert headers["content-type"].startswith(("application/json", "text/plain"))


def test_names_are_text_wherever_they_are_put(client: Client) -> None:
    for path in (RUNS, client.run("checks/one"), client.run("watched")):
        _, headers, body = client.get(path)
        assert headers["content-type"] == "application/json"
        assert not re.search(rb"[<>&]", body)
        assert HOSTILE in json.dumps(json.loads(body), ensure_ascii=False)


def test_what_is_too_large_is_not_read(client: Client) -> None:
    status, _, body = client.post("/api/1/compute/check", b"[" + b" " * 2**14 + b"]")
    assert (status, json.loads(body)) == (413, {"detail": "A request has at most 16,384 bytes. Send fewer."})
    try:
        status = client.get(RUNS, x="x" * 2**17)[0]
    except ConnectionError:  # the server hangs up before all was sent
        status = 0
    assert status in (0, 400, 431)


def test_a_body_without_end_is_not_waited_for(root: Path) -> None:
    # Its length need not be told: what comes is counted.
    access, told, given = Access(), list[Any](), 0

    async def ask() -> None:
        async def send(message: Any) -> None:
            told.append(message)

        async def receive() -> Any:
            nonlocal given
            given += 1
            assert given < 100
            return {"type": "http.request", "body": b" " * 1024, "more_body": True}

        headers = {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1", "authorization": f"Bearer {access.token}"}
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/api/1/session", "query_string": b"", "headers": sent}
        await create_app(root, access, pages=Pages(root / "none"))(scope, receive, send)

    asyncio.run(ask())
    assert (told[0]["status"], given) == (413, 17)


def test_head_is_get_without_a_body(client: Client) -> None:
    for path in (RUNS, client.run("watched"), "/api/1/events"):
        status, headers, body = client.ask("HEAD", path)
        assert (status, body) == (200, b"")
        assert headers["content-type"] == client.get(RUNS)[1]["content-type"] or path.endswith("events")
    assert client.ask("HEAD", RUNS, host="evil.example")[0] == 403


def test_with_token_reading_needs_it_too(root: Path) -> None:
    with served(root, closed=True) as client:
        bearer = f"Bearer {client.token}"
        for path in (RUNS, client.run("watched"), "/api/1/events", "/api/1/openapi.json"):
            assert client.ask("HEAD", path)[0] == 401  # first: of a stream that were open, GET would not end
            status, headers, _ = client.get(path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, authorization="Bearer x")[0] == 401
            assert client.get(path, cookie=f"levada-session-{client.port}={client.token}")[0] == 401
        assert client.get("/")[0] == 503  # the page's own files are no secret
        assert client.get(RUNS, authorization=bearer)[0] == 200
        status, headers, _ = client.post("/api/1/session", {})
        cookie = headers["set-cookie"]
        assert status == 200
        assert {"HttpOnly", "SameSite=strict", "Path=/api"} <= set(cookie.split("; "))
        assert client.token not in cookie
        assert client.get(RUNS, cookie=cookie.partition(";")[0])[0] == 200
        # The cookie reads, and does no more.
        own = f"http://127.0.0.1:{client.port}"
        assert client.ask("POST", "/api/1/session", cookie=cookie.partition(";")[0], origin=own)[0] == 401


def test_two_servers_of_a_machine_do_not_take_each_others_cookies(root: Path) -> None:
    with served(root, closed=True) as one, served(root, closed=True) as other:
        kept: dict[str, str] = {}  # as a browser keeps them, to which all ports of a machine are one site
        for client in (one, other):
            name, _, value = client.post("/api/1/session", {})[1]["set-cookie"].partition(";")[0].partition("=")
            kept[name] = value
        cookies = "; ".join(f"{name}={value}" for name, value in kept.items())
        assert [client.get(RUNS, cookie=cookies)[0] for client in (one, other)] == [200, 200]
