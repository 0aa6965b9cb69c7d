"""Who may send a request, decided from its head before any of its body is read."""

from __future__ import annotations

import hmac
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from msm4sr.serving.problems import Refused
from msm4sr.serving.service import ServeSettings

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Every other request that is not safe needs the key, also those of routes to come.
WITHOUT_KEY = frozenset({"/recommend", "/recommend/batch", "/explain", "/page/recommend"})


class Access:
    """The hosts that a service answers to, the pages that may use it, and the key for changes.

    A page of another site whose name leads to this address (DNS rebinding) is recognised by its Host, every other page
    of another site by its Origin.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._hosts, self._proxies, self._root = settings.hosts, settings.proxies, settings.root_path
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request that is not allowed. Host and scheme become those that a proxy forwards."""
        if self._is_proxy(scope):
            _forward(scope)
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if self._hosts is not None and not (_without_port(host) in LOCAL_HOSTS or self._is_named(host)):
            raise Refused(403, f"this service does not answer to the host {host[:200]!r}; --allowed-host NAME adds one")
        origin = headers.get("origin")
        if origin is not None:
            site = origin.lower().partition("://")[2]
            if not site or (site != host and not self._is_named(site)):
                detail = f"pages of {origin[:200]} may not use this service"
                raise Refused(403, f"{detail}; if that is its own address, start it with --allowed-host NAME")
        if scope["method"] not in SAFE_METHODS and scope["path"].removeprefix(self._root) not in WITHOUT_KEY:
            self._check_key(headers)

    def _is_named(self, host: str) -> bool:
        return self._hosts is not None and (host in self._hosts or _without_port(host) in self._hosts)

    def _is_proxy(self, scope: Scope) -> bool:
        if not self._proxies or scope.get("client") is None:
            return False
        address = ip_address(scope["client"][0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        bearer = headers.get("authorization", "")
        given = headers.get("x-api-key") or (bearer[7:] if bearer[:7].lower() == "bearer " else "")
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            detail = "this needs the API key, in the header X-API-Key or Authorization: Bearer"
            raise Refused(401, detail, {"WWW-Authenticate": "Bearer"})


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _forward(scope: Scope) -> None:
    """Take Host and scheme from the last values of X-Forwarded-Host and -Proto, which the proxy itself has written."""
    headers = Headers(scope=scope)
    if hosts := headers.getlist("x-forwarded-host"):
        host = hosts[-1].split(",")[-1].strip()
        kept = [header for header in scope["headers"] if header[0] != b"host"]
        scope["headers"] = [*kept, (b"host", host.encode("latin-1"))]
    if schemes := headers.getlist("x-forwarded-proto"):
        scheme = schemes[-1].split(",")[-1].strip().lower()
        scope["scheme"] = scheme if scheme in ("http", "https") else scope["scheme"]
