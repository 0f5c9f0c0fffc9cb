"""What every request must pass before anything else looks at it: Host, Origin, headers of the answer.

The dashboard listens on loopback without a login, so a web page that the same person has open is the attacker: it may
send requests here and rebind names. Nothing here decides by path, and no answer leaves without the headers.
"""

import ipaddress
from collections.abc import Collection

from aiohttp import hdrs, web
from multidict import CIMultiDict

from web.server.problems import ProblemError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


SERVER_NAME = "amp"


class InsecureBindError(Exception):
    """The address asked for would let other machines drive the mesh without a login."""


def require_loopback(host: str) -> None:
    """Refuse an address that other machines reach.

    Raises: InsecureBindError naming the address and the cure.
    """
    if host == "localhost":
        return
    try:
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            return
    except ValueError:
        pass
    raise InsecureBindError(
        f"web.host {host!r} is reachable from other machines and there is no login yet; "
        "use 127.0.0.1 and a proxy with authentication in front"
    )


def check_host(request: web.BaseRequest, allowed_hosts: Collection[str]) -> None:
    """Refuse a request for a name that is not ours: DNS rebinding reaches us under the attacker's name.

    Raises: ProblemError 421.
    """
    hosts = request.headers.getall(hdrs.HOST, [])
    named = {_host_name(host) for host in hosts}
    if request.url.is_absolute() and "://" in request.raw_path:
        named.add((request.url.host or "").lower())
    allowed = {_host_name(host) for host in allowed_hosts}
    if len(hosts) != 1 or not named <= allowed:
        raise ProblemError(
            421,
            "host_not_allowed",
            "this name is not served here; open the dashboard by one of: " + ", ".join(sorted(allowed_hosts)),
            title="Wrong host",
        )


def check_origin(request: web.BaseRequest, *, upgrade: bool) -> None:
    """Refuse what another site's page sent: changes, WebSockets, and reading by script.

    Programs send neither Origin nor Sec-Fetch-Site and pass; browsers cannot leave them out.
    Raises: ProblemError 403.
    """
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    unsafe = request.method not in SAFE_METHODS or upgrade
    navigation = (
        request.headers.get("Sec-Fetch-Mode") == "navigate" and request.method == "GET" and not upgrade
    )
    origins = request.headers.getall(hdrs.ORIGIN, [])
    own = f"{request.scheme}://{request.headers.get(hdrs.HOST, '')}".lower()
    foreign_origin = any(origin.lower() != own for origin in origins)
    foreign_site = site not in ("same-origin", "none") and not navigation
    if foreign_site or (foreign_origin and (unsafe or not navigation)):
        raise ProblemError(
            403, "cross_site", "requests from other sites' pages are refused", title="Cross-site request"
        )


def add_headers(headers: CIMultiDict[str], *, request_id: str) -> None:
    """Put the security headers and the request's id on an answer; answers are not cached unless they say so."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    headers[hdrs.SERVER] = SERVER_NAME
    headers["X-Request-Id"] = request_id


def _host_name(host: str) -> str:
    """Return the name part of a Host header, lower case, without port and brackets."""
    text = host.strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].lstrip("[")
    return text.partition(":")[0]
