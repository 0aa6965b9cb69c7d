"""Options that the benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option("--data", help="A prepared folder.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="seed, released or best.")]
Changes = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change any setting of the preset.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Of PyTorch.")]
Plot = Annotated[Path, typer.Option("--out", help="Where the plot goes.")]
