"""Who may send a request, decided from its head before any of its body is read."""

from __future__ import annotations

import hmac
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from msm4sr.serving.problems import Refused
from msm4sr.serving.service import ServeSettings

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
DEFAULT_PORTS = {"http": "80", "https": "443"}  # of the schemes that pages of an allowed site can have
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Every other request that is not safe needs the key, also those of routes to come.
WITHOUT_KEY = frozenset({"/recommend", "/recommend/batch", "/explain", "/page/recommend"})


class Access:
    """The hosts that a service answers to, the pages that may use it, and the key for changes.

    A page of another site whose name leads to this address (DNS rebinding) is recognised by its Host, every other page
    of another site by its Origin.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._proxies, self._root = settings.proxies, settings.root_path
        self._local = LOCAL_HOSTS if settings.address is None else LOCAL_HOSTS | {settings.address.lower()}
        self._hosts = None if settings.hosts is None else {_name_and_port(host) for host in settings.hosts}
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request that is not allowed. Host and scheme become those that a proxy forwards."""
        if self._is_proxy(scope):
            _forward(scope)
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) > 1 or len(origins) > 1:
            raise Refused(400, "a request may have one Host and one Origin")
        host = _name_and_port("".join(hosts))
        named = self._hosts is None or bool({host, (host[0], "")} & self._hosts)
        if not named and host[0] not in self._local:
            detail = f"this service does not answer to the host {hosts[0][:200] if hosts else ''!r}"
            raise Refused(403, f"{detail}; start it with --allowed-host")
        if origins:
            scheme, _, site = origins[0].lower().partition("://")
            # A proxy for a named host may have another scheme, but on this machine that is another program.
            own = {host} if named or scheme == scope["scheme"] else set()
            if not site or not _is_one_of(scheme, site, own | (self._hosts or set())):
                detail = f"a page of {origins[0][:200]} may not change items or use this service"
                raise Refused(403, f"{detail}; if it is the service's own page, start it with --allowed-host")
        if scope["method"] not in SAFE_METHODS and scope["path"].removeprefix(self._root) not in WITHOUT_KEY:
            self._check_key(headers)

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


def _name_and_port(host: str) -> tuple[str, str]:
    """The name of a host in lower case, without a final dot, and its port or ""."""
    name, _, port = host.lower().rpartition(":")
    if not (name and port.isdecimal()):
        name, port = host.lower(), ""
    return name.removesuffix("."), port


def _is_one_of(scheme: str, site: str, allowed: set[tuple[str, str]]) -> bool:
    """Whether the host of an Origin is allowed, with its port."""
    default = DEFAULT_PORTS.get(scheme)
    name, port = _name_and_port(site)
    return default is not None and (name, port or default) in {(one, other or default) for one, other in allowed}


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
