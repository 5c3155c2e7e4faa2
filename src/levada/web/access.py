"""Who may ask: names of this server, pages of it, and who knows the launch's token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final
from urllib.parse import urlsplit

__all__ = ["Access", "cookie_of", "is_loopback"]

_COOKIE: Final = "levada-session"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine alone.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.7", "example.org")]
        [True, True, True, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Give the name of a Host header or an origin, without the port; "" if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    whole = parts.netloc == host and "@" not in host
    return (parts.hostname or "") if whole else ""


def cookie_of(host: str) -> str:
    """Give the name of the cookie of a session: browsers send one server's to all ports of its machine.

    Args:
        host: the header, which has the port as the browser knows it, also through ssh.

    Example:
        >>> cookie_of("127.0.0.1:8765"), cookie_of("[::1]:8766"), cookie_of("localhost")
        ('levada-session-8765', 'levada-session-8766', 'levada-session-80')
    """
    return f"{_COOKIE}-{(urlsplit(f'//{host}').port or 80) if _name(host) else 80}"


@final
@dataclass(frozen=True, slots=True)
class Access:
    """What is asked of a request.

    Attributes:
        host: the address that is listened on.
        closed: whether reading, too, asks for the token.
        token: of this launch.
    """

    host: str = "127.0.0.1"
    closed: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def session(self) -> str:
        """What a page keeps in a cookie to read: made of the token, and no help to guess it."""
        return hmac.new(self.token.encode(), b"levada session", hashlib.sha256).hexdigest()

    def knows_host(self, host: str) -> bool:
        """Say whether a Host header names this server: a name of another site that leads here does not.

        Args:
            host: the header.

        Example:
            >>> [Access().knows_host(host) for host in ("localhost:8765", "[::1]:8765", "evil.example", "10.0.0.7", "")]
            [True, True, False, False, False]
            >>> [Access("0.0.0.0").knows_host(host) for host in ("10.0.0.7:8765", "evil.example")]
            [True, False]
        """
        name = _name(host).lower()
        if name in _LOOPBACK or (name and name == self.host.lower()):
            return True
        if is_loopback(self.host):
            return False
        try:  # no one can make a number in an address lead elsewhere, as one can a name
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return bool(name) and name == socket.gethostname().lower()

    def is_token(self, headers: Mapping[str, str]) -> bool:
        """Say whether a request has the token; the comparison takes the same time for all that come.

        Args:
            headers: by small name.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.encode(), self.token.encode()) and scheme.lower() == "bearer"

    def may_read(self, headers: Mapping[str, str]) -> bool:
        """Say whether a request may read runs.

        Args:
            headers: by small name.
        """
        if not self.closed or self.is_token(headers):
            return True
        own = cookie_of(headers.get("host", ""))
        cookies = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        given = [value for name, _, value in cookies if name == own]
        return any(hmac.compare_digest(one.encode(), self.session.encode()) for one in given)

    def is_own_page(self, headers: Mapping[str, str]) -> bool:
        """Say whether a request says that a page of this server makes it.

        Args:
            headers: by small name.
        """
        origin = headers.get("origin", "")
        return origin in {f"{scheme}://{headers.get('host')}" for scheme in ("http", "https")}

    def is_foreign(self, headers: Mapping[str, str], *, opens: bool) -> bool:
        """Say whether a page of another site makes a request.

        Args:
            headers: by small name.
            opens: whether it asks for a page, which a link elsewhere may open.
        """
        if "origin" in headers and not self.is_own_page(headers):
            return True
        site = headers.get("sec-fetch-site", "same-origin")
        followed = opens and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site not in ("same-origin", "none") and not followed
