"""What keeps web pages from the server of the machine that they are looked at on, while it has no tokens.

Then whoever reaches the server is an admin, and so would be any page in a browser of that machine: it may send requests
to every address, and a name of its own may be made to mean 127.0.0.1 (DNS rebinding). Such requests bear marks that no
page can take off: the name that was asked for, where the page is from, and the lack of any field that a browser would
first ask leave for.
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
    """Return the name or address of a Host field, small and without its port; None if it is no Host field."""
    found = AUTHORITY.fullmatch(authority)
    return None if found is None else found["host"].lower().strip("[]").removesuffix(".")


def check_page(sent: Mapping[bytes, bytes], *, is_change: bool, bound: str) -> None:
    """Raise ForeignPageError for a request that may be one of a web page of elsewhere.

    Args:
        sent: fields of the request, those that are looked at.
        is_change: whether it may change something.
        bound: what the server listens to.
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
