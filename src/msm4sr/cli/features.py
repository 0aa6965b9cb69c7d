"""Show what a features folder contains, as a table and as a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from msm4sr.cli.console import console, handle_errors
from msm4sr.errors import InputError

SHOWN_REASONS = 5


def features(
    folder: Annotated[Path, typer.Argument(help="A run, or a features folder.", metavar="RUN_OR_DIR")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page of items with their features.")] = None,
    items: Annotated[int, typer.Option("--items", min=1, help="Items on the page.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed for drawing the items.")] = 0,
    data: Annotated[Path | None, typer.Option("--data", help="The prepared folder, for --html without a run.")] = None,
) -> None:
    """Show the extracted features: encoders, settings, number of vectors, and which items lack them and why."""
    with handle_errors():
        from msm4sr.data.dataset import load_dataset
        from msm4sr.experiments.run import open_run
        from msm4sr.experiments.stages import load_run_data
        from msm4sr.features.settings import store_names
        from msm4sr.features.store import find_stores, read_manifest, readable

        if html is None and (data, items, seed) != (None, 40, 0):
            raise InputError("--data, --items and --seed are of the page; give its file with --html")
        run = open_run(folder) if (folder / "config.yaml").exists() else None
        place = run.features if run else folder
        stores = find_stores(place)
        if run:  # the folder may be shared
            used = set(store_names(run.settings.features, run.precomputed).values())
            stores = [store for store in stores if store.name in used]
        if not stores:
            raise InputError(f"{place}: no extracted features; create them with `msm4sr extract DATA --out RUN`")
        for store in stores:
            with readable(store):
                table = _table(store, read_manifest(store) or {})
            console.print(table)
        for unfinished in sorted(place.glob("*.chunks")):
            chunks = len(list(unfinished.glob("*.safetensors")))
            console.print(f"{unfinished}: {chunks} chunks of an unfinished extraction", markup=False)
        if html is not None:
            from msm4sr.files import write_text
            from msm4sr.reports.pages.features import features_page

            if data is None and run is None:
                raise InputError("--html: the page needs the images and texts of the data; give its folder with --data")
            dataset = load_run_data(run) if run and data is None else load_dataset(data or Path())
            write_text(html, features_page(dataset, stores, items, seed))
            console.print(f"page: {html}", markup=False)


def _table(store: Path, manifest: Mapping[str, Any]) -> Table:
    """The manifest of a store, one line per fact."""
    title, columns = escape(store.name), ("", Column(overflow="fold"))
    table = Table(*columns, title=title, title_justify="left", show_header=False, box=SIMPLE_HEAD)
    encoder, words = manifest["encoder"], manifest.get("vocabulary_words")
    fingerprint = encoder["fingerprint"]
    is_hash = re.fullmatch("[0-9a-f]{16,}", fingerprint)  # otherwise a name
    settings = [f"{name} {value}" for name, value in manifest["settings"].items() if not isinstance(value, dict | None)]
    size = sum(path.stat().st_size for path in store.iterdir()) / 2**20
    for label, shown in (
        ("modality", f"{manifest['modality']}, {manifest['kind']}"),
        ("encoder", encoder["name"] + (f" ({fingerprint[:16]})" if is_hash else "")),
        ("ran on", ", ".join(manifest.get("backends", []))),
        ("settings", ", ".join(settings)),
        ("items", f"{manifest['items_with_rows']:,} of {manifest['items']:,} have rows"),
        ("vectors", f"{manifest['rows']:,}, {manifest['dim']:,}-d"),
        (
            "vocabulary",
            f"{len(words):,} words ({manifest['vocabulary']}): {', '.join(words[:8])}, ..." if words else "",
        ),
        ("missing items", _reasons(manifest["missing"])),
        ("broken images", _reasons(manifest["broken"])),
        ("on disk", f"{size:,.1f} MiB"),
    ):
        if shown:
            table.add_row(label, escape(shown))
    return table


def _reasons(counts: Mapping[str, int]) -> str:
    lines = [f"{count:,} {reason}" for reason, count in list(counts.items())[:SHOWN_REASONS]]
    if others := list(counts.values())[SHOWN_REASONS:]:
        lines.append(f"{sum(others):,} for other reasons")
    return "\n".join(lines) or "0"
