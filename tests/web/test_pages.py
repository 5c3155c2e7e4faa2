"""The files of the pages: a list that is made once, their types and tags, and what is said where there are none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from levada.web.pages import MISSING, STATIC, Pages

from .conftest import Client, served

INDEX = "<!doctype html><script type=module src=/assets/a-1234.js></script>"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What Vite writes, and some things that it does not."""
    folder, secret = tmp_path / "static", tmp_path / "secret.js"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(INDEX)
    (folder / "assets" / "a-1234.js").write_text("export {};")
    (folder / "assets" / "a.css").write_text("body{}")
    (folder / "notes.py").write_text("secret")
    for name in ("single/explore.html", "report/report.js"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("secret")
    secret.write_text("secret")
    (folder / "linked.js").symlink_to(secret)
    (folder / "outside").symlink_to(tmp_path)
    return folder


def test_files_come_with_their_type_and_a_tag(root: Path, built: Path) -> None:
    with served(root, pages=built) as client:
        status, headers, body = client.get("/")
        assert (status, body.decode()) == (200, INDEX)
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["cache-control"] == "no-cache"
        tag = headers["etag"]
        assert client.get("/index.html")[1]["etag"] == tag
        assert client.get("/", if_none_match=tag)[0] == 304
        assert client.get("/", if_none_match=f'"x", W/{tag}')[0] == 304
        assert client.get("/", if_none_match='"x"')[0] == 200
        status, headers, body = client.get("/assets/a-1234.js")
        assert (status, headers["content-type"], body) == (200, "text/javascript; charset=utf-8", b"export {};")
        assert "immutable" in headers["cache-control"]
        assert client.get("/assets/a.css")[1]["content-type"] == "text/css; charset=utf-8"
        assert client.ask("HEAD", "/")[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/notes.py",
        "/linked.js",
        "/outside/secret.js",
        "/assets",
        "/assets/",
        "/static/index.html",
        "/single/explore.html",  # its script stands in the page, and would not be run
        "/report/report.js",
    ],
)
def test_no_other_file_has_an_address(root: Path, built: Path, path: str) -> None:
    with served(root, pages=built) as client:
        (built / "later.js").write_text("not in the list")
        for one in (path, "/later.js"):
            status, _, body = client.get(one)
            assert (status, body) == (404, b"There is no such file.\n")


def test_a_file_that_is_no_part_of_a_page_is_not_held(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("levada.web.pages._LARGEST", len(INDEX))
    (built / "assets" / "huge.js").write_text("x" * (len(INDEX) + 1))
    assert set(Pages(built).files) == {"index.html", "assets/a-1234.js", "assets/a.css"}


def test_a_folder_or_a_pipe_with_the_name_of_a_file_is_none(built: Path) -> None:
    known = set(Pages(built).files)
    (built / "folder.js").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(built / "pipe.js")  # to read it would wait for ever
    assert set(Pages(built).files) == known == {"index.html", "assets/a-1234.js", "assets/a.css"}


def test_a_file_behind_a_linked_folder_is_none_though_it_were_found(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some versions of Python follow links to folders where others do not.
    monkeypatch.setattr(Path, "rglob", lambda *_: [built / "index.html", built / "outside" / "secret.js"])
    assert set(Pages(built).files) == {"index.html"}


def test_the_list_comes_with_the_first_page_to_who_may_read_it(root: Path, built: Path) -> None:
    soon = "<api/1/runs>; rel=preload; as=fetch; crossorigin"
    with served(root, pages=built) as client:
        tag = client.get("/")[1]["etag"]
        assert client.get("/")[1]["link"] == soon
        assert client.get("/index.html", if_none_match=tag)[1]["link"] == soon
        assert "link" not in client.get("/assets/a.css")[1]
    with served(root, pages=built, closed=True) as client:
        assert "link" not in client.get("/")[1]  # it would be refused
        assert client.get("/", authorization=f"Bearer {client.token}")[1]["link"] == soon


@pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the pages are not built: make web")
def test_no_page_that_is_served_has_a_script_that_the_policy_forbids() -> None:
    held = Pages()
    pages = {name: file.content.decode() for name, file in held.files.items() if name.endswith(".html")}
    assert set(pages) == {"index.html", "explore.html"}
    for text in pages.values():
        assert [one for one in re.findall(r"<script\b([^>]*)>", text) if "src=" not in one] == []
        assert not re.search(r"<style\b|\son\w+=|javascript:", text)


def test_without_pages_a_sentence_says_how_to_build_them(client: Client, tmp_path: Path) -> None:
    status, headers, body = client.get("/")
    assert (status, body.decode().strip()) == (503, MISSING)
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert "`make web`" in MISSING
    assert not Pages(tmp_path / "none").there
