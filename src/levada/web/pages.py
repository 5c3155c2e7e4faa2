"""The files of the pages: found once, at the start, so that no request can name another."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

__all__ = ["MISSING", "STATIC", "Pages"]

STATIC: Final = Path(__file__).parent / "static"
MISSING: Final = (
    "This installation of levada has no pages, and answers questions only. In a checkout, `make web` builds them."
)
_INDEX: Final = "index.html"
# For pages that are opened from a disk: their script stands in the page, which the policy of the server's forbids.
_APART: Final = ("single/", "report/")
# What the first page asks for at once, so that it comes beside the page's script and not after it.
_SOON: Final = "<api/1/runs>; rel=preload; as=fetch; crossorigin"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_LARGEST: Final = 2**24


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str
    hashed: bool


@final
class Pages:
    """The files below a folder: plain ones, of a known type; of others there is no address.

    Args:
        folder: what Vite wrote; it need not exist.
    """

    def __init__(self, folder: Path = STATIC) -> None:
        self.files: dict[str, _File] = {}
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            kind, about = _TYPES.get(path.suffix), path.lstat()
            inside = path.resolve().is_relative_to(folder.resolve())
            if kind is None or not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST or not inside:
                continue
            name = path.relative_to(folder).as_posix()
            if name.startswith(_APART):
                continue
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            # Vite puts a hash of the content into the names of what is in assets.
            self.files[name] = _File(content, kind, tag, name.startswith("assets/"))

    @property
    def there(self) -> bool:
        """Whether there is a page to show."""
        return _INDEX in self.files

    def answer(self, request: Request, name: str, reads: bool = False) -> Response:
        """Give a file.

        Args:
            request: for it.
            name: its path from the folder on; "" for the first page.
            reads: whether who asks may read the runs: then the list is on its way with the first page.
        """
        if not name and not self.there:
            return PlainTextResponse(f"{MISSING}\n", 503)
        file = self.files.get(name or _INDEX)
        if file is None:
            return PlainTextResponse("There is no such file.\n", 404)
        kept = "public, max-age=31536000, immutable" if file.hashed else "no-cache"
        headers = {"etag": file.tag, "cache-control": kept}
        if reads and (name or _INDEX) == _INDEX:
            headers["link"] = _SOON
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if file.tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)
