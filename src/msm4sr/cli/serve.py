"""A finished run over HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msm4sr.cli.console import RunFolder, console, handle_errors
from msm4sr.errors import InputError
from msm4sr.serving.memory import use_one_arena

if TYPE_CHECKING:
    from msm4sr.serving.service import ServeSettings


def serve(
    folder: RunFolder,
    host: Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    state: Annotated[
        Path | None, typer.Option("--state", help="Where added items are kept.", show_default="RUN.state")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="A file with the key that changes need; else MSM4SR_API_KEY is it."),
    ] = None,
    index: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option("--index", help="How the best items are found; auto: approximate from 300,000 items on."),
    ] = "auto",
) -> None:
    """Recommendations over HTTP, and a page at /. RUN may be a link; when it leads to a newer run, that is served."""
    with handle_errors("stopped"):
        use_one_arena()
        settings = _settings(folder, workers, state, api_key_file, index)
        _serve(settings, host, port)


def _settings(folder: Path, workers: int, state: Path | None, key_file: Path | None, index: str) -> ServeSettings:
    try:
        from msm4sr.recommend.index import IndexSettings
        from msm4sr.serving.service import ServeSettings, default_state
    except ImportError as error:
        raise InputError(f"serving needs {error.name}; pip install 'msm4sr[serve]'") from None
    key = os.environ.get("MSM4SR_API_KEY")
    if key_file is not None:
        try:
            key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {key_file}: not readable ({error})") from None
    if key is not None and not key:
        raise InputError("the API key is empty; write one into the file (or MSM4SR_API_KEY), or leave the option out")
    return ServeSettings.model_validate(
        {
            "run": folder.absolute(),
            "state": state or default_state(folder),
            "api_key": key,
            "workers": workers,
            "index": IndexSettings.model_validate({"kind": index}),
        }
    )


def _serve(settings: ServeSettings, host: str, port: int) -> None:
    import tempfile

    try:
        import uvicorn

        from msm4sr.serving.app import ENVIRONMENT, create_app
    except ImportError as error:
        raise InputError(f"serving needs {error.name}; pip install 'msm4sr[serve]'") from None
    options: dict[str, Any] = {"host": host, "port": port, "log_level": "warning", "timeout_graceful_shutdown": 10}
    if settings.workers == 1:
        app = create_app(settings)
        console.print(f"serving {settings.run} at http://{host}:{port}", markup=False)
        uvicorn.run(app, **options)
        return
    # Workers are processes of their own: they find the settings in the environment.
    record = settings.model_dump(mode="json")
    record["api_key"] = settings.api_key.get_secret_value() if settings.api_key else None
    with tempfile.TemporaryDirectory(prefix="msm4sr-metrics-") as folder:
        os.environ |= {ENVIRONMENT: json.dumps(record), "PROMETHEUS_MULTIPROC_DIR": folder}
        create_app(settings).state.service.store.close()  # wrong input is told once, and an index is built once
        console.print(f"serving {settings.run} at http://{host}:{port}, {settings.workers} processes", markup=False)
        uvicorn.run("msm4sr.serving.app:app_from_environment", factory=True, workers=settings.workers, **options)
