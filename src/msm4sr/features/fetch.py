"""Download the images that `items.parquet` lists by URL into the prepared folder. Needs the extra `fetch`.

Politely: a few requests at a time, increasing waits, and those that a server asks for (`Retry-After`). Safely: https
only, at every redirect; all addresses that a host resolves to must be public, and the address of each socket is checked
again before it connects, so that no spelling of a host evades the check (aiohttp also reads digits of other scripts).
No proxy of the environment is used. Each answer must be a complete image, by its content, of a bounded size.

Files are written atomically, so that an interrupted run resumes: what is there is not requested again. What fails is
listed with its reason in `failed-images.jsonl`, stays an address, and is tried again by the next run.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import aiohttp
import polars as pl
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import Field
from yarl import URL

from msm4sr.data.images import BrokenImage, image_suffix
from msm4sr.data.items import is_url
from msm4sr.data.preparation.catalogue import ITEM_GROUP, SafeNames, write_parquet
from msm4sr.data.schema import ITEMS, PROVENANCE, read_items, read_parquet, result_record
from msm4sr.errors import InputError
from msm4sr.features.images import decode_image
from msm4sr.files import atomic_file, write_json, write_text
from msm4sr.locks import locked
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.strict import Strict

FAILED = "failed-images.jsonl"
LOCK = ".fetch.lock"
UNFINISHED = ".unfinished"  # the suffix that `atomic_file` gives
REDIRECTS = 5
SMALLEST = 8  # pixels per side: shops answer with less if an image is gone
LONGEST_WAIT = 120.0  # seconds that a server may ask us to wait
NAT64, GLOBAL_UNICAST = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2000::/3")
SPECIAL = [  # networks that some versions of Python take for global, and the address of Azure's internal service
    ipaddress.ip_network(name) for name in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "168.63.129.16/32")
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchSettings(Strict):
    """How many requests, tries and bytes."""

    parallel: int = Field(8, ge=1, le=64, description="Number of parallel requests.")
    attempts: int = Field(4, ge=1, description="Attempts per image, with increasing waits.")
    first_wait: float = Field(1.0, ge=0, description="Seconds before the second attempt; each wait is twice the last.")
    timeout: float = Field(60.0, gt=0, description="Time limit of an attempt, in seconds, redirects included.")
    max_mib: float = Field(20.0, gt=0, description="Size limit of an image, in MiB.")


@dataclass
class FetchReport:
    """What was fetched, what existed already, and what failed (URL to reason)."""

    fetched: int = 0
    already: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for the console."""
        reasons = Counter(self.failed.values()).most_common(5)
        listed = f"; listed in {FAILED}" if self.failed else ""
        return [
            f"images  {self.fetched:,} fetched, {self.already:,} were there, {len(self.failed):,} failed{listed}",
            *(f"failed  {count:,} {reason}" for reason, count in reasons),
        ]


def is_public(address: Address) -> bool:
    """Whether an address is public; an address embedded in it (4 in 6, NAT64, 6to4, ISATAP) must be public too."""
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.ipv4_mapped or address in NAT64:
            return is_public(last)
        isatap = (int(address) >> 32) & 0xFCFFFFFF == 0x5EFE  # RFC 5214
        embedded = address.sixtofour or (last if isatap else None)
        if address not in GLOBAL_UNICAST or (embedded is not None and not is_public(embedded)):
            return False
    special = any(address in network for network in SPECIAL)
    return address.is_global and not (special or address.is_multicast or address.is_reserved)


def fetch_images(
    folder: Path,
    settings: FetchSettings = FetchSettings(),
    progress: Progress = NoProgress(),
    *,
    allowed: Callable[[Address], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> FetchReport:
    """Download the images that `folder / "items.parquet"` lists by URL, and write their paths there.

    `allowed` says whether an address may be connected to; `tls` has the certificates to trust, None for those that
    Python trusts. Raises InputError if there is no prepared folder with items, or another process fetches its images.
    """
    items = read_items(folder)
    if not (folder / ITEMS).is_file():
        raise InputError(f"{folder / ITEMS}: no such file; a data set of IDs only has no images to fetch")
    with locked(folder / LOCK, f"{folder}: another process fetches its images; wait until it ends"):
        return _fetch(folder, items, settings, progress, allowed, tls)


def _fetch(
    folder: Path,
    items: pl.DataFrame,
    settings: FetchSettings,
    progress: Progress,
    allowed: Callable[[Address], bool],
    tls: ssl.SSLContext | None,
) -> FetchReport:
    stems = _stems(items)
    (folder / "images").mkdir(exist_ok=True)
    for path in (folder / "images").glob(f".*{UNFINISHED}"):  # of a run that was killed
        path.unlink()
    there = {path.stem: f"images/{path.name}" for path in (folder / "images").iterdir()}
    found = {url: there[stem] for url, stem in stems.items() if stem in there}
    report = FetchReport(already=len(found))
    wanted = {url: stem for url, stem in stems.items() if url not in found}
    if wanted:
        try:
            with progress.task("fetching images", len(wanted), "images") as advance:
                fetcher = _Fetcher(folder / "images", settings, allowed, tls or ssl.create_default_context())
                asyncio.run(fetcher.run(wanted, advance))
        except ExceptionGroup as group:  # of the workers: a full disk, for example
            raise group.exceptions[0] from None
        found |= fetcher.found
        report.fetched, report.failed = len(fetcher.found), fetcher.failed
    _rewrite(folder, items, found, report)
    return report


def _stems(items: pl.DataFrame) -> dict[str, str]:
    """Address -> the name of its file without suffix; the same in every run, whatever was fetched before."""
    names = SafeNames()
    images = [(item_id, image or []) for item_id, image in items.select("item_id", "image").iter_rows()]
    for path in (path for _, image in images for path in image if not is_url(path)):
        names.reserve(Path(path).stem)
    stems: dict[str, str] = {}
    for item_id, image in images:
        for number, url in enumerate(image):
            if is_url(url) and url not in stems:
                stems[url] = names.new(item_id, number, "")
    return stems


def _rewrite(folder: Path, items: pl.DataFrame, found: dict[str, str], report: FetchReport) -> None:
    """Write the paths of `found` addresses to items.parquet, the failures, and the new hashes to provenance.json."""
    if found:
        image = items["image"].list.eval(pl.element().replace(found))
        table = read_parquet(folder / ITEMS).with_columns(image)
        with atomic_file(folder / ITEMS) as unfinished:
            write_parquet(table.lazy(), unfinished, ITEM_GROUP)
    (folder / FAILED).unlink(missing_ok=True)
    if report.failed:
        owners = dict(items.explode("image").group_by("image").agg("item_id").select("image", "item_id").iter_rows())
        lines = [{"items": owners[url], "url": url, "reason": reason} for url, reason in sorted(report.failed.items())]
        write_text(folder / FAILED, "".join(json.dumps(line) + "\n" for line in lines))
    provenance = folder / PROVENANCE
    if provenance.is_file():
        record = json.loads(provenance.read_text(encoding="utf-8"))
        write_json(provenance, {**record, "result": result_record(folder)})


class _Temporary(BrokenImage):
    """A temporary failure; `after`: the seconds that the server asks to wait, if it does."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _NotPublic(OSError):
    pass


class _CheckedResolver(AbstractResolver):
    """Resolves a host, and refuses it if one of its addresses is not allowed."""

    def __init__(self, require_allowed: Callable[[str], None]) -> None:
        self._require_allowed = require_allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for one in found:
            self._require_allowed(one["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


@dataclass(eq=False)
class _Fetcher:
    images: Path
    settings: FetchSettings
    allowed: Callable[[Address], bool]
    tls: ssl.SSLContext
    not_before: dict[str, float] = field(default_factory=dict)  # host -> time of the event loop
    found: dict[str, str] = field(default_factory=dict)  # address -> path
    failed: dict[str, str] = field(default_factory=dict)  # address -> reason

    async def run(self, wanted: dict[str, str], advance: Advance) -> None:
        """Fetch the addresses of `wanted`, each to the file name without suffix that it gives."""
        connector = aiohttp.TCPConnector(
            ssl=self.tls,
            resolver=_CheckedResolver(self._require_allowed),
            socket_factory=self._socket,
            limit=self.settings.parallel,
        )
        headers = {"User-Agent": f"msm4sr/{version('msm4sr')} (fetch-images)", "Accept": "image/*"}
        queue = iter(wanted.items())
        session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            auto_decompress=False,
            skip_auto_headers=["Accept-Encoding"],
            trust_env=False,  # a proxy would resolve the host itself
        )
        async with session, asyncio.TaskGroup() as workers:
            for _ in range(min(self.settings.parallel, len(wanted))):
                workers.create_task(self._work(session, queue, advance))

    def _require_allowed(self, address: str) -> None:
        if not self.allowed(ipaddress.ip_address(address.partition("%")[0])):
            raise _NotPublic

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket that is about to connect to an address, which is final: no name is resolved after this."""
        family, kind, protocol, _, address = info
        self._require_allowed(str(address[0]))
        return socket.socket(family, kind, protocol)

    async def _work(self, session: aiohttp.ClientSession, queue: Iterator[tuple[str, str]], advance: Advance) -> None:
        for url, stem in queue:
            try:
                data = await self._try(session, url)
                self.found[url] = await asyncio.to_thread(self._write, stem, data)
            except BrokenImage as refused:
                self.failed[url] = refused.reason
            advance(1)

    def _write(self, stem: str, data: bytes) -> str:
        """Write an image that can be decoded completely, and return its path. Raises BrokenImage."""
        decoded = decode_image(data)
        if min(decoded.size) < SMALLEST:
            raise BrokenImage(f"{decoded.width} x {decoded.height} pixels: a placeholder")
        name = stem + image_suffix(io.BytesIO(data))
        with atomic_file(self.images / name) as unfinished:
            unfinished.write_bytes(data)
        return f"images/{name}"

    async def _try(self, session: aiohttp.ClientSession, address: str) -> bytes:
        """The bytes at `address`, after as many tries as the settings allow."""
        url = _checked(address)
        wait, host = self.settings.first_wait, url.host or ""
        loop = asyncio.get_running_loop()
        for attempt in range(1, self.settings.attempts + 1):
            await asyncio.sleep(self.not_before.get(host, 0.0) - loop.time())
            try:
                async with asyncio.timeout(self.settings.timeout):
                    return await self._get(session, url)
            except TimeoutError:
                problem = _Temporary(f"no answer within {self.settings.timeout:g} seconds")
            except _Temporary as error:
                problem = error
            if problem.after is not None and problem.after > LONGEST_WAIT:
                raise BrokenImage(f"{problem.reason}, try again in {problem.after:.0f} seconds")
            if problem.after is not None:  # the host asks for a pause of all requests
                self.not_before[host] = max(self.not_before.get(host, 0.0), loop.time() + problem.after)
            elif attempt < self.settings.attempts:
                await asyncio.sleep(wait)
            wait *= 2
        raise BrokenImage(f"{problem.reason} ({self.settings.attempts} tries)")

    async def _get(self, session: aiohttp.ClientSession, url: URL) -> bytes:
        """One try. Raises `_Temporary` if another may succeed, else BrokenImage."""
        for _ in range(REDIRECTS + 1):
            try:
                async with session.get(url, allow_redirects=False, timeout=aiohttp.ClientTimeout(None)) as response:
                    if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                        url = _checked(response.headers["Location"], url)
                        continue
                    if response.status in (408, 425, 429) or response.status >= 500:
                        raise _Temporary(f"HTTP {response.status}", _retry_after(response.headers.get("Retry-After")))
                    if response.status != 200:
                        raise BrokenImage(f"HTTP {response.status}")
                    return await self._body(response)
            except aiohttp.ClientConnectorCertificateError as error:
                raise BrokenImage("the host's certificate is not trusted") from error
            except aiohttp.ClientPayloadError as error:
                raise _Temporary("cut short") from error
            except ValueError as error:  # aiohttp.InvalidURL, or an invalid host name
                raise BrokenImage("not a valid address") from error
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, _NotPublic):
                    raise BrokenImage("the host's address is not public") from error
                if isinstance(error, aiohttp.ClientConnectorDNSError):
                    raise _Temporary("the host is not known") from error
                raise _Temporary(f"no connection ({type(error).__name__})") from error
        raise BrokenImage(f"more than {REDIRECTS} redirects")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = int(self.settings.max_mib * 2**20)
        data = bytearray()
        if (response.content_length or 0) <= limit:
            async for chunk in response.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > limit:
                    break
            else:
                return bytes(data)
        raise BrokenImage(f"larger than {self.settings.max_mib:g} MiB")


def _checked(address: str, base: URL | None = None) -> URL:
    """The URL as aiohttp requests it, relative to `base` if it is a redirect. Raises BrokenImage."""
    try:
        url = URL(address) if base is None else base.join(URL(address))
        host = url.host
    except ValueError as error:
        raise BrokenImage("not a valid address") from error
    if url.scheme != "https":
        raise BrokenImage(f"not https but {url.scheme or 'nothing'}")
    if not host or url.user is not None or url.password is not None:
        raise BrokenImage("not a valid address")
    return url


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None for anything else."""
    value = value or ""
    with suppress(ValueError):
        if value.strip().isdigit():
            return float(value)
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return None
