"""What a wheel and an sdist hold: the package, and the pages that are built, which git does not know."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = "levada/web/static/index.html"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree as an sdist has it: without git, so that nothing is built by Node.js."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "static"))
    return tmp_path


def with_pages(tree: Path) -> Path:
    page = tree / "src" / PAGE
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html>", encoding="utf-8")
    (tree / ".gitignore").write_text("src/levada/web/static/\n", encoding="utf-8")
    return tree


def build(tree: Path, target: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(tree / "built")]
    return subprocess.run(words, cwd=tree, capture_output=True, text=True, timeout=300)


def test_a_wheel_holds_the_pages(tree: Path) -> None:
    build(with_pages(tree), "wheel")
    (path,) = (tree / "built").glob("*.whl")
    names = zipfile.ZipFile(path).namelist()
    assert {PAGE, "levada/__init__.py", "levada/py.typed"} <= set(names)
    assert all(name.startswith(("levada/", "levada-")) for name in names)


def test_an_sdist_holds_the_pages(tree: Path) -> None:
    build(with_pages(tree), "sdist")
    (path,) = (tree / "built").glob("*.tar.gz")
    with tarfile.open(path) as packed:
        names = {name.split("/", 1)[1] for name in packed.getnames()}
    assert {f"src/{PAGE}", "hatch_build.py", "pyproject.toml"} <= names


def test_an_sdist_without_pages_is_refused(tree: Path) -> None:
    done = build(tree, "sdist")
    assert done.returncode != 0
    assert "An sdist carries the pages" in done.stderr
    assert "make web" in done.stderr
    assert not list(tree.glob("built/*.tar.gz"))


def test_a_wheel_without_pages_is_made_with_a_warning(tree: Path) -> None:
    done = build(tree, "wheel")
    assert done.returncode == 0
    assert "This wheel is without pages" in done.stdout + done.stderr
    assert list(tree.glob("built/*.whl"))
