"""The report of a grid: one page to look at, and every table of it as Markdown, LaTeX and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msm4sr.evaluation.significance import RESAMPLES
from msm4sr.experiments.grid import Row
from msm4sr.files import write_text
from msm4sr.reports.measured import METRICS, VARIANTS, Measured, by_popularity, measure, measure_seen_excluded
from msm4sr.reports.pages.differences import difference_bars
from msm4sr.reports.pages.grid import (
    Differences,
    GridPage,
    Headline,
    Popularity,
    Result,
    RowSettings,
    Unfinished,
    grid_page,
)
from msm4sr.reports.pages.panels import Curve, Panels, panels
from msm4sr.reports.results import GridResults, Outcome, read_grid
from msm4sr.reports.table_writer import Cell, Column, Line, Sheet, write_sheet
from msm4sr.reports.tables import (
    BY_POPULARITY,
    cost_sheet,
    difference_sheet,
    elsewhere_sheet,
    held_out_sheet,
    main_sheet,
    metric_name,
    popularity_sheet,
    signed,
    split_settings,
    validation_sheet,
    versions,
)

WATCHED = "ndcg@10"  # in charts, where the table has it


def write_grid_report(
    folder: Path, out: Path | None = None, metrics: Sequence[str] = METRICS, resamples: int = RESAMPLES
) -> Path:
    """Read the grid in `folder`, write index.html and the tables into `out` (folder/report), return the page's path.

    Everything is read and computed before the first file is written. InputError as `read_grid` and `measure` raise it.
    """
    results = read_grid(folder)
    measured = measure(results, metrics, resamples)
    page = make_page(results, measured)
    html = grid_page(page)
    out = out or folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    for sheet in page.sheets:
        write_sheet(out, sheet)
    write_text(out / "index.html", html)
    return out / "index.html"


def make_page(results: GridResults, measured: Sequence[Measured]) -> GridPage:
    """All that the page shows. Rows of different protocols stand in tables of their own."""
    several = len(measured) > 1
    left_out = measure_seen_excluded(measured)
    looks = [*measured, *([left_out] if left_out else [])]
    cells = list(results.all())
    finished = [cell for cell in cells if cell.state == "finished"]
    shared, own = split_settings(results)
    return GridPage(
        title=results.title,
        kind=results.kind.replace("_", " ").capitalize(),
        popularity_first="cold" in results.kind,
        facts=_facts(results, cells),
        headline=[line for one in looks for line in _headline(one)],
        main=[Result(main_sheet(one, several, data), _size(one, data)) for data in results.data for one in looks],
        whole=[main_sheet(one, several) for one in looks],
        held_out=[
            sheet for one in measured for data in results.data if (sheet := held_out_sheet(one, data, several)).lines
        ],
        shares=[(data, chart) for one in measured for data in results.data if (chart := _shares(one, data))],
        unfinished=_unfinished(results),
        differences=[found for one in looks for data in results.data for found in _differences(one, data, several)],
        popularity=[found for one in measured for data in results.data for found in _popularity(one, data, several)],
        curves=[(data, drawn) for data in results.data if (drawn := _curves(results, data))],
        validation=[
            sheet for data in results.data for one in measured if (sheet := validation_sheet(one, data, several)).lines
        ],
        cost=[sheet for data in results.data if (sheet := cost_sheet(results, data)).lines],
        elsewhere=[sheet for data in results.data if (sheet := elsewhere_sheet(data)).lines],
        rows=[RowSettings(row.label, _asked(row), _as_text(own[row.name])) for row in results.rows],
        shared=_as_text(shared),
        cells=_cells_sheet(results),
        versions=versions(finished),
    )


def _facts(results: GridResults, cells: Sequence[Outcome]) -> str:
    parts = []
    for many, one, several in ((results.rows, "row", "rows"), (results.data, "data set", "data sets")):
        parts.append(f"{len(many)} {one if len(many) == 1 else several}")
    seeds = ", ".join(str(seed) for seed in results.seeds)
    parts.append(f"seed{'s' if len(results.seeds) > 1 else ''} {seeds}")
    states = [cell.state for cell in cells]
    parts.append(f"{states.count('finished')} of {len(cells)} cells finished")
    return " · ".join(parts)


def _size(measured: Measured, data: str) -> str:
    """Users, items and interactions, as the runs say; where they do not agree, all that they say."""
    runs = [cell.metrics["run"] for row in measured.rows for cell in measured.results.finished(data, row.name)]
    sizes = (", ".join(f"{run[what]:,} {what}" for what in ("users", "items", "interactions")) for run in runs)
    return "; or ".join(dict.fromkeys(sizes))


def _watched(measured: Measured) -> str:
    return WATCHED if WATCHED in measured.metrics else measured.metrics[0]


def _headline(measured: Measured) -> list[Headline]:
    """The best of ours on each data set, and how it stands to the best baseline."""
    lines = []
    metric = _watched(measured)
    for data in measured.results.data:
        mine = measured.best(data, metric, ours=True)
        if mine is None:
            continue
        score, share = measured.scores[data, mine, metric], measured.improvement(data, metric)
        test = measured.tests.get((data, mine, metric))
        more = ""
        if share is not None and test is not None:
            it, verdict = test.difference, "significant" if test.sign else "not significant"
            interval = f"{signed(it.mean)} [{signed(it.low)}, {signed(it.high)}]"
            more = f"{signed(share, '.1%')} against {measured.label(test.against)}: {interval}, {verdict}"
        label = f"{measured.label(mine)} on {data}, {metric_name(metric)}{measured.look}"
        lines.append(Headline(label, f"{score.mean:.4f}", more))
    return lines


def _unfinished(results: GridResults) -> list[Unfinished]:
    """One line for the seeds of a row on a data set that share state and reason."""
    grouped: dict[tuple[str, str, str, str], list[int]] = {}
    for cell in results.all():
        if cell.state != "finished":
            grouped.setdefault((cell.data, cell.row, cell.state, cell.reason), []).append(cell.seed)
    labels = {row.name: row.label for row in results.rows}
    return [
        Unfinished(f"{labels[row]} on {data}, seed {', '.join(map(str, seeds))}", state, reason)
        for (data, row, state, reason), seeds in grouped.items()
    ]


def _differences(measured: Measured, data: str, several: bool) -> list[Differences]:
    """The chart of a data set, with the table of all its tests; none where nothing was tested."""
    metric = _watched(measured)
    tests = [(row, measured.tests.get((data, row.name, metric))) for row in measured.rows]
    rows = [
        (row.label, test.difference.mean, test.difference.low, test.difference.high, test.sign, row.name in ours)
        for ours in [measured.results.ours]
        for row, test in tests
        if test is not None
    ]
    if not rows:
        return []
    other = measured.label(measured.against[data, metric])
    what = "the full system" if measured.results.kind in VARIANTS else "the best baseline"
    score = measured.scores[data, measured.against[data, metric], metric].mean
    said = f"{metric_name(metric)}, difference to {what}, {other} ({score:.4f})"
    bars, sheet = difference_bars(rows), difference_sheet(measured, data, several)
    return [Differences(data + measured.look, said, bars, sheet)]


def _popularity(measured: Measured, data: str, several: bool) -> list[Popularity]:
    counts, found = by_popularity(measured, data, BY_POPULARITY)
    names = list(counts)
    charts = []
    for metric in BY_POPULARITY:
        curves = {}
        for row in measured.rows:
            values = [(float(place), found.get((row.name, metric, bucket))) for place, bucket in enumerate(names)]
            curves[row.label] = [Curve([(place, value) for place, value in values if value is not None])]
        charts.append(panels(metric_name(metric), "training interactions", curves, _ours(measured), names))
    drawn = [chart for chart in charts if chart is not None]
    users = ", ".join(f"{count:,} at {bucket}" for bucket, count in counts.items())
    return [Popularity(data, users, drawn, popularity_sheet(measured, data, several))] if drawn else []


def _shares(measured: Measured, data: str) -> Panels | None:
    """The watched metric of each model by the share of the users that it was trained on; None where all saw all."""
    metric = _watched(measured)
    points: dict[str, dict[float, float]] = {}
    ours = []
    for row in measured.rows:
        for cell in measured.results.finished(data, row.name)[:1]:
            share = 1 - float(cell.settings.get("dataset.hold_out_users", 0))
            points.setdefault(row.model, {})[share] = measured.scores[data, row.name, metric].mean
            ours += [row.model] if row.name in measured.results.ours else []
    shares = sorted({share for own in points.values() for share in own})
    if len(shares) < 2:
        return None
    curves = {
        model: [Curve([(float(shares.index(share)), own[share]) for share in sorted(own)])]
        for model, own in points.items()
    }
    names = [f"{share:.0%}" for share in shares]
    return panels(metric_name(metric), "share of the users that is trained on", curves, ours, names)


def _ours(measured: Measured) -> list[str]:
    return [row.label for row in measured.rows if row.name in measured.results.ours]


def _curves(results: GridResults, data: str) -> list[Panels]:
    """Validation by epoch and by seconds of training, both counted from the beginning of the first stage."""
    ours = [row.label for row in results.rows if row.name in results.ours]
    drawn = []
    for clock in ("epoch", "second of training"):
        curves = {
            row.label: [curve for cell in results.finished(data, row.name) for curve in _cell_curves(cell, clock)]
            for row in results.rows
        }
        drawn.append(panels(f"{metric_name(WATCHED)} on validation", clock, curves, ours))
    return [chart for chart in drawn if chart is not None]


def _cell_curves(cell: Outcome, clock: str) -> list[Curve]:
    """One curve a stage; all but the last stage are early ones."""
    stages = list(dict.fromkeys(str(row["stage"]) for row in cell.epochs))
    points: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    gone = 0.0
    for row in cell.epochs:
        gone += 1 if clock == "epoch" else float(row["seconds"])
        value = row.get(WATCHED)  # there is none where an epoch was not validated, and no number where it diverged
        if isinstance(value, int | float) and math.isfinite(value):
            points[row["stage"]].append((gone, float(value)))
    return [Curve(points[stage], early=stage != stages[-1]) for stage in stages]


def _asked(row: Row) -> str:
    """A row as the grid asks for it."""
    parts = [f"--model {row.model}", f"--preset {row.preset}"]
    parts += [f"--settings {row.settings}"] if row.settings else []
    return " ".join([*parts, *(f"--set {key}={_value(value)}" for key, value in row.changes.items())])


def _as_text(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _value(value)) for key, value in settings.items()]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cells_sheet(results: GridResults) -> Sheet:
    """Every cell: where it lies, what became of it, with which commit, in how many seconds."""
    columns = [Column(name, words=name != "seconds") for name in ("seed", "state", "seconds", "commit", "folder")]
    labels = {row.name: row.label for row in results.rows}
    lines = []
    for cell in results.all():
        seconds = sum(cell.metrics["run"].get("training_seconds", {}).values()) if cell.metrics else None
        commit = cell.metrics.get("versions", {}).get("commit", "–")
        texts = [
            Cell(str(cell.seed)),
            Cell(cell.state, tip=cell.reason),
            Cell() if seconds is None else Cell(f"{seconds:,.0f}", seconds),
            Cell(str(commit)),
            Cell(str(cell.folder.relative_to(results.folder))),
        ]
        lines.append(Line(f"{labels[cell.row]}, {cell.data}", texts, ours=cell.row in results.ours))
    return Sheet(f"{results.name}-cells", "Cells", "Row, data", columns, lines)
