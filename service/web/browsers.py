"""Refuses requests that foreign web pages may have sent, while the server has no tokens.

Without tokens, whoever reaches the server is an admin. A web page that is open in a browser on the same machine can
reach it too: by a cross-site request, or by a DNS name of its own that it points at 127.0.0.1 (DNS rebinding). A page
cannot hide three things, which ``check_page`` looks at: the Host field, the fields Origin and Sec-Fetch-Site, and a
content type that needs no preflight request (CORS).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from service.errors import ForeignPageError

AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{1,5})?")
READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


@lru_cache(256)  # a server has few names, and each request has one
def host_of(authority: str) -> str | None:
    """Return the name or address in a Host field, in lower case and without the port; None if it is malformed."""
    found = AUTHORITY.fullmatch(authority)
    return None if found is None else found["host"].lower().strip("[]").removesuffix(".")


def check_page(sent: Mapping[bytes, bytes], *, is_change: bool, bound: str) -> None:
    """Raise ForeignPageError for a request that a web page from elsewhere may have sent.

    Args:
        sent: the header fields that ``middleware`` reads.
        is_change: whether the request may change something.
        bound: the address that the server listens to.
    """
    host = sent.get(b"host", b"").decode("latin-1")
    if host and not _is_local(host_of(host), bound):
        raise ForeignPageError(
            f"the request is for {host[:100]!r}, which is not a name of this machine's own: without tokens it alone is "
            "served"
        )
    origin = sent.get(b"origin", b"").decode("latin-1")
    if origin and urlsplit(origin).netloc.lower() != host.lower():
        raise ForeignPageError(f"the request is of a page from {origin[:100]!r}, not of the server's own page")
    site = sent.get(b"sec-fetch-site", b"none")
    if site not in (b"same-origin", b"none"):
        raise ForeignPageError("the request is of a page from elsewhere, as the browser says")
    if is_change and b"authorization" not in sent:
        kind = sent.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind == b"application/json":
            return
        raise ForeignPageError("a change without `content-type: application/json`, which any web page could ask for")


@lru_cache(256)
def _is_local(host: str | None, bound: str) -> bool:
    if host is None:
        return False
    if host in ("localhost", bound.lower()):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
