"""`levada serve` as a command: what it prints, what it refuses, how it ends, and that no log has the token."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from levada.cli import main
from levada.web.access import Access
from levada.web.app import create_app
from levada.web.pages import STATIC, Pages

from .conftest import Client


@pytest.fixture
def process(root: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-P", "-m", "levada", "serve", str(root), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        yield running
        running.kill()


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_it_prints_its_address_and_ends_in_one_line(process: subprocess.Popen[str], root: Path) -> None:
    assert process.stdout is not None
    first = process.stdout.readline()
    found = re.fullmatch(r"Serving (.*) at http://127\.0\.0\.1:(\d+)/#token=(\S+)\n", first)
    assert found is not None, first
    assert found[1] == str(root)
    if not (STATIC / "index.html").exists():
        assert "make web" in process.stdout.readline()
    assert process.stdout.readline() == "Ctrl-C ends it.\n"
    client = Client(int(found[2]), found[3])
    assert client.get("/api/1/runs")[0] == 200
    assert client.post("/api/1/session", {})[0] == 200
    assert client.post("/api/1/session", b"\xff", content_type="text/plain")[0] == 200
    assert client.get(f"/api/1/runs?token={client.token}")[0] == 422
    assert client.get("/api/1/runs", host="evil.example", authorization=f"Bearer {client.token}")[0] == 403
    with client.listening() as stream:
        assert stream.readline() == b"retry: 2000\n"
        process.send_signal(signal.SIGINT)
        assert stream.read() == b"\n"
    rest, _ = process.communicate(timeout=300)
    assert rest == "levada serve: ended.\n"
    assert client.token not in rest
    assert "Traceback" not in rest
    assert process.returncode == 0


@pytest.fixture
def opens(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], Path]]:
    """What browsers are started with by a server that ends at once, and where its temporary files lie."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text("<!doctype html>")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("levada.web.server.Pages", lambda: Pages(tmp_path / "pages"))
    started: list[str] = []

    async def serve(*_: object, **__: object) -> None:
        started.extend(file.read_text() for file in (tmp_path / "temporary").rglob("*.html"))

    def browse(address: str) -> bool:
        started.append(address)
        found = [(tmp_path / "temporary").glob("*"), (tmp_path / "temporary").glob("*/*")]
        modes = [stat.S_IMODE(path.lstat().st_mode) for paths in found for path in paths]
        assert os.name != "posix" or modes == [0o700, 0o600]
        return True

    monkeypatch.setattr("levada.web.server.Server.serve", serve)
    monkeypatch.setattr("webbrowser.open", browse)
    before = os.umask(0)
    yield started, tmp_path / "temporary"
    os.umask(before)


def test_no_command_line_of_a_browser_has_the_token(
    root: Path, opens: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    started, temporary = opens
    assert main(["serve", str(root), "--port", "0", "--open"]) == 0
    found = re.search(r"at (http://127\.0\.0\.1:\d+/#token=(\S+))\n", capsys.readouterr().out)
    assert found is not None
    address, page = started
    assert found[2] not in address
    assert re.fullmatch(rf"{re.escape(temporary.as_uri())}/levada-\w+/open\.html", address)
    assert f'<meta http-equiv="refresh" content="0; url={found[1]}">' in page
    assert list(temporary.iterdir()) == []


def test_where_no_file_can_be_written_the_server_goes_on(
    root: Path, opens: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    started, temporary = opens
    temporary.rmdir()
    assert main(["serve", str(root), "--port", "0", "--open"]) == 0
    assert started == []
    said = capsys.readouterr().out
    assert f"No browser is opened, as nothing can be written to {temporary}/levada-" in said
    assert said.endswith("levada serve: ended.\n")


def test_a_fault_of_the_server_is_told_without_the_token(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from .conftest import served

    async def broken(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("levada.web.scanner.Scanner.listed", broken)
    with served(root) as client:
        status, headers, body = client.get("/api/1/runs", authorization=f"Bearer {client.token}")
        assert (status, headers["x-content-type-options"]) == (500, "nosniff")
        assert client.token.encode() not in body
        assert b"a fault" not in body
    said = capfd.readouterr().err
    assert "a fault" in said
    assert client.token not in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_other_machines_come_in_with_a_token_alone(
    root: Path, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("levada.web.server.listening", lambda *_: pytest.fail("it listens"))
    assert main(["serve", str(root), "--host", host]) == 2
    assert f"--host {host} lets other machines in" in capsys.readouterr().err
    assert Access(host, closed=True).closed


def test_a_port_in_use_is_a_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(root), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"levada serve: Port {port} of 127.0.0.1 is in use: another server? Give another with --port, or 0.\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no/such/folder"], "a folder that holds runs is served, and there is none here"),
        ([__file__], "a folder that holds runs is served, and this is a file"),
        ([".", "--port", "70000"], "--port must be in [0, 65535], got 70000."),
        ([".", "--port", "x"], "--port must be a whole number, got 'x'"),
        ([".", "--host", "192.0.2.1", "--token"], "--host must be an address of this machine, got '192.0.2.1'"),
        ([".", "--host", "no.such.host.invalid", "--token"], "which no one knows"),
        ([".", "--hst", "x"], "there is no option --hst. Did you mean '--host'?"),
        ([], "DIR must be given"),
    ],
)
def test_wrong_words_are_sentences(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_without_its_packages_it_says_which_extra_brings_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(root)]) == 2
    assert "pip install 'levada[serve]'" in capsys.readouterr().err
    assert create_app(root) is not None
