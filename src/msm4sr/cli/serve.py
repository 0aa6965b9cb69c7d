"""Serve a finished run over HTTP."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import socket
import tempfile
from contextlib import nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from msm4sr.cli.console import RunFolder, console, handle_errors
from msm4sr.errors import InputError

if TYPE_CHECKING:
    import uvicorn

    from msm4sr.serving.service import ServeSettings

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MSM4SR_API_KEY"
OPTIONS = {"hosts": "--allowed-host", "proxies": "--proxy", "root_path": "--root-path"}
M_ARENA_MAX = -8  # of glibc's malloc.h

AllowedHosts = Annotated[
    list[str],
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="A host name that requests may use, such as shop.example, or '*' for any. Can be given several times. "
        "Default: only localhost if --host is a loopback address, else any.",
    ),
]
Proxies = Annotated[
    list[str],
    typer.Option(
        "--proxy",
        metavar="ADDRESS",
        help="Address or network (10.0.0.0/8) of a proxy whose X-Forwarded-Host and -Proto are used.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        "--drain",
        metavar="SECONDS",
        min=0,
        max=3600,
        help="After SIGTERM, /ready answers 503, and requests are answered for so long, until a load balancer sends "
        "no more.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="json: one object a line, on standard error.")
]
AccessLog = Annotated[bool, typer.Option("--access-log", help="Log each request.")]
Trace = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="URL",
        help="Send traces to an OTLP receiver such as http://localhost:4318; OpenTelemetry's variables also apply.",
    ),
]


def serve(
    folder: RunFolder,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; 0.0.0.0: all addresses.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Number of processes.")] = 1,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="FOLDER | postgresql://...",
            help="The folder for added items; or a PostgreSQL database (extra 'postgres'), for services on several "
            "machines: postgresql://USER@HOST:PORT/DATABASE?schema=msm4sr. Put the password into PGPASSWORD or "
            "~/.pgpass, since other users of the machine see the command line.",
            show_default="RUN.state",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help=f"A file with the API key for changes to items. Default: {KEY_VARIABLE}."),
    ] = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Serve a public --host without an API key: anyone can change items.")
    ] = False,
    allowed_host: AllowedHosts = [],
    proxy: Proxies = [],
    root_path: Annotated[
        str, typer.Option("--root-path", metavar="PATH", help="The path at which a proxy serves this, such as /shop.")
    ] = "",
    index: Annotated[
        str,
        typer.Option(
            "--index",
            metavar="KIND[=ADDRESS]",
            help="Search for the best items: exact, approximate (a graph in this process), qdrant=http://HOST:6333, or "
            "auto: approximate from 300,000 items on. QDRANT_API_KEY is the key of a Qdrant server.",
        ),
    ] = "auto",
    drain: Drain = 0.0,
    log_format: LogFormat = "text",
    access_log: AccessLog = False,
    trace: Trace = None,
) -> None:
    """Serve recommendations over HTTP, and a web page at /. RUN can be a link; change it to serve a newer run."""
    with handle_errors("stopped"):
        use_one_arena()
        options: dict[str, Any] = {"run": folder, "state": state, "workers": workers, "index": index}
        options |= {"api_key": read_key(api_key_file), "proxies": proxy, "root_path": root_path.rstrip("/")}
        options["address"] = f"[{host}]" if ":" in host else host
        options["hosts"] = hosts_of(host, allowed_host, options["api_key"] is None and not without_key)
        options |= {"drain": drain, "log_format": log_format, "access_log": access_log, "trace": trace}
        _serve(options, host, port)


def _serve(options: dict[str, Any], host: str, port: int) -> None:
    try:
        import uvicorn

        from msm4sr.experiments.run import open_run
        from msm4sr.recommend.index import IndexSettings
        from msm4sr.serving.app import create_app
        from msm4sr.serving.logs import log_errors, logging_to_stderr
        from msm4sr.serving.service import ServeSettings
        from msm4sr.serving.state import state_of
        from msm4sr.serving.workers import GRACE, serve_here
    except ModuleNotFoundError as error:
        reason = f"serving needs the extra 'serve' ({error.name} is missing)"
        raise InputError(f"{reason}: pip install 'msm4sr[serve]'") from None

    run = options["run"].absolute()
    try:
        index = IndexSettings.parse(options["index"])
        settings = ServeSettings.model_validate(
            {**options, "run": run, "index": index, **state_of(options["state"], run)}
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(f"{OPTIONS[str(wrong['loc'][0])]} {wrong['input']!r}: {wrong['msg']}") from None
    _check_port(host, port)
    server: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_config": None,  # `logging_to_stderr` is
        "log_level": "warning",
        "timeout_graceful_shutdown": GRACE,
        "http": "msm4sr.serving.connections:Connection",
        "ws": "none",
        "backlog": 128,
        "proxy_headers": False,  # `Access` reads them
    }
    with logging_to_stderr(settings.log_format), log_errors() if settings.log_format == "json" else nullcontext():
        open_run(run)  # before the state makes a folder
        app = create_app(settings)
        if settings.workers == 1:
            _announce(settings, f"serving {run} at http://{host}:{port}")
            serve_here(uvicorn.Config(app, **server))
            return
        app.state.service.close()  # created only to report wrong input once, and to build the index
        del app
        factory = "msm4sr.serving.workers:app_from_environment"
        _serve_by_workers(settings, uvicorn.Config(factory, factory=True, workers=settings.workers, **server))


def _serve_by_workers(settings: ServeSettings, config: uvicorn.Config) -> None:
    from msm4sr.serving.workers import ENVIRONMENT, Supervisor

    with tempfile.TemporaryDirectory(prefix="msm4sr-metrics-", ignore_cleanup_errors=True) as folder:
        hidden = {"api_key": settings.api_key, "database": settings.database}
        visible = {name: secret and secret.get_secret_value() for name, secret in hidden.items()}
        last_run = Path(folder) / "last-run"
        supervisor = Supervisor(config, [config.bind_socket()], last_run)
        record = json.dumps(settings.model_dump(mode="json") | visible | {"last_run": str(last_run)})
        os.environ |= {ENVIRONMENT: record, "PROMETHEUS_MULTIPROC_DIR": folder}
        _announce(settings, f"serving {settings.run} at http://{config.host}:{config.port}, {config.workers} processes")
        supervisor.run()
    if supervisor.interrupted:
        raise KeyboardInterrupt
    if supervisor.failed:
        raise InputError("no worker could be started; the reasons are above")


def _announce(settings: ServeSettings, line: str) -> None:
    if settings.log_format == "json":
        logger.info("%s", line)
    else:
        console.print(line, markup=False)


def hosts_of(host: str, names: list[str], changes_are_free: bool) -> list[str] | None:
    """The hosts to answer to besides the local ones, or None for any.

    Raises InputError for a public host if changes need no key.
    """
    try:
        addresses = {str(address[4][0]) for address in socket.getaddrinfo(host or "::", None)}
    except OSError as error:
        raise InputError(f"--host {host!r}: {error.strerror}") from None
    public = not all(ip_address(address.partition("%")[0]).is_loopback for address in addresses)
    if public and changes_are_free:
        reason = f"--host {host} can be reached from other machines, and there is no API key"
        raise InputError(f"{reason}: pass --api-key-file FILE, or --without-key to let anyone change items")
    if "*" in names or (public and not names):
        return None
    return [name.lower() for name in names]


def _check_port(host: str, port: int) -> None:
    """InputError if another program listens there: before the model is loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another with --port") from None
        raise


def read_key(file: Path | None) -> str | None:
    """The API key in this file, else in the environment. Raises InputError for one that no request can have."""
    key = os.environ.get(KEY_VARIABLE)
    key = None if key is None else key.strip()
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file}: not readable ({error})") from None
    if key is not None and not key:
        raise InputError(f"the API key is empty; write one into the file (or {KEY_VARIABLE}), or omit the option")
    if key is not None and not key.isprintable():
        raise InputError("the API key has a line break or another character that no header can have; use one line")
    return key


def use_one_arena() -> None:
    """Make all threads allocate from one malloc arena, here and in processes that are started from here.

    glibc gives each thread an arena, and an arena keeps the memory of the largest answers of its thread, so that
    memory grew for as long as it was measured. With one arena it is constant (`benchmarks/soak.py`). Call this before
    threads are started, since existing arenas stay in use. It has no effect without glibc.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return  # the user has decided
    os.environ["MALLOC_ARENA_MAX"] = "1"  # glibc reads it when a process starts
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 1)
