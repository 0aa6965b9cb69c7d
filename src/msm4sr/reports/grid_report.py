"""The report of a grid: an HTML page, and each of its tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from msm4sr.evaluation.segments import POPULARITY
from msm4sr.evaluation.significance import RESAMPLES
from msm4sr.experiments.grid import Row
from msm4sr.files import write_text
from msm4sr.reports.comparison import METRICS, Comparison, measure, measure_seen_excluded
from msm4sr.reports.lists import beyond_accuracy_table
from msm4sr.reports.pages.charts import Curve, DifferenceBar, Panels, difference_bars, panels
from msm4sr.reports.pages.page import render
from msm4sr.reports.results import GridResults, Outcome, read_grid
from msm4sr.reports.segments import BY_SEGMENT, SegmentMetrics, segment_metrics, segment_tables
from msm4sr.reports.table_writer import Table, signed, write_table
from msm4sr.reports.tables import (
    cells_table,
    cold_table,
    cost_table,
    difference_table,
    held_out_table,
    main_table,
    metric_name,
    published_table,
    seen_items,
    software_versions,
    split_settings,
    validation_table,
)

CHARTED = "ndcg@10"  # the metric of charts, if the table has it


class Section(NamedTuple):
    """A section of the page: charts, a table or both (then the table is collapsed); `context` was not measured here."""

    title: str
    subtitle: str = ""
    table: Table | None = None
    bars: Sequence[DifferenceBar] = ()
    charts: Sequence[Panels] = ()
    context: bool = False


def write_grid_report(
    folder: Path, out: Path | None = None, metrics: Sequence[str] = METRICS, resamples: int = RESAMPLES
) -> Path:
    """Write index.html and all tables of a grid to `out` (None: `folder`/report); return the path of index.html.

    A grid that is still running can be reported. Rows of different protocols have tables of their own. Raises
    InputError as `read_grid` and `measure` do; no file is written then.
    """
    results = read_grid(folder)
    comparisons = measure(results, metrics, resamples)
    every = [*comparisons, *measure_seen_excluded(results, comparisons)]
    sections = list(_sections(results, comparisons, every))
    cells, shared_by = cells_table(results), split_settings(results)
    html = render(
        "grid.html.jinja",
        title=results.title,
        kind=results.kind.replace("_", " ").capitalize(),
        facts=_facts(results),
        headline=[line for one in every for line in _headline(one)],
        unfinished=_unfinished(results),
        sections=sections,
        rows=[(row.label, _options(row), _as_text(shared_by[1][row.name])) for row in results.rows],
        shared=_as_text(shared_by[0]),
        cells=cells,
        versions=software_versions(results.all()),
    )
    shown = [section.table for section in sections if section.table is not None]
    tables = [*shown, *(main_table(one) for one in every), cells]  # main tables with all data sets replace single ones
    out = out or folder / "report"
    for table in {table.name: table for table in tables}.values():
        write_table(out, table)
    write_text(out / "index.html", html)
    return out / "index.html"


def _sections(
    results: GridResults, comparisons: Sequence[Comparison], every: Sequence[Comparison]
) -> Iterator[Section]:
    """The sections in their order; `every` has the rows with seen items excluded too, for main tables and tests."""
    for data, one in _places(results, every):
        yield Section(f"Results on {data}{one.suffix}", _size(one, data), main_table(one, data))
    for data, one in _places(results, comparisons):
        yield from _of_table(held_out_table(one, data))
        yield from _of_table(cold_table(one, data))
        yield from _shares(one, data)
    differences = [section for one in every for data in one.results.data for section in _differences(one, data)]
    by_segment = [_segments(one, data) for one in comparisons for data in one.results.data]
    popularity = [section for sections, _ in by_segment for section in sections]
    yield from [*popularity, *differences] if "cold" in results.kind else [*differences, *popularity]
    yield from (section for _, sections in by_segment for section in sections)
    for data, one in _places(results, every):
        yield from _of_table(beyond_accuracy_table(one, data))
    for data in results.data:
        yield from _curves(results, data)
    for data, one in _places(results, comparisons):
        yield from _of_table(validation_table(one, data))
    for data in results.data:
        yield from _of_table(cost_table(results, data))
    for data in results.data:
        yield from _of_table(published_table(data), context=True)


def _places(results: GridResults, comparisons: Sequence[Comparison]) -> list[tuple[str, Comparison]]:
    """Each data set with the comparisons that have cells on it."""
    return [(data, one) for data, one in product(results.data, comparisons) if data in one.results.data]


def _of_table(table: Table, context: bool = False) -> Iterator[Section]:
    if table.rows:
        yield Section(table.title, table=table, context=context)


def _facts(results: GridResults) -> str:
    cells = list(results.all())
    counts = {"row": len(results.rows), "data set": len(results.data)}
    parts = [f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items()]
    parts.append(f"seed{'s' * (len(results.seeds) > 1)} {', '.join(map(str, results.seeds))}")
    finished = sum(cell.state == "finished" for cell in cells)
    return " · ".join([*parts, f"{finished} of {len(cells)} cells finished"])


def _size(comparison: Comparison, data: str) -> str:
    """Users, items and interactions as the runs record them; all versions if they differ."""
    cells = (cell for row in comparison.rows for cell in comparison.results.finished(data, row.name))
    runs = (cell.metrics["run"] for cell in cells)
    sizes = (", ".join(f"{run[what]:,} {what}" for what in ("users", "items", "interactions")) for run in runs)
    return "; or ".join(dict.fromkeys(sizes))


def _charted(comparison: Comparison) -> str:
    return CHARTED if CHARTED in comparison.metrics else comparison.metrics[0]


def _headline(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The best of ours on each data set, its score, and a comparison with the best baseline."""
    metric = _charted(comparison)
    for data in comparison.results.data:
        mine = comparison.best(data, metric, ours=True)
        if mine is None:
            continue
        score, share = comparison.scores[data, mine, metric], comparison.improvement(data, metric)
        test, detail = comparison.tests.get((data, mine, metric)), ""
        if share is not None and test is not None:
            verdict = "significant" if test.sign else "not significant"
            detail = f"{signed(share, '.1%')} against {comparison.label(test.against)}: {test.interval}, {verdict}"
        protocol = comparison.suffix or f", seen items {seen_items(comparison, mine)}"
        label = f"{comparison.label(mine)} on {data}, {metric_name(metric)}{protocol}"
        yield label, f"{score.mean:.4f}", detail


def _unfinished(results: GridResults) -> list[tuple[str, str, str]]:
    """Cells, state and reason: one line for the seeds of a row on a data set that share both."""
    grouped: dict[tuple[str, str, str, str], list[int]] = {}
    for cell in results.all():
        if cell.state != "finished":
            grouped.setdefault((cell.data, cell.row, cell.state, cell.reason), []).append(cell.seed)
    return [
        (f"{results.labels[row]} on {data}, seed {', '.join(map(str, seeds))}", state, reason)
        for (data, row, state, reason), seeds in grouped.items()
    ]


def _differences(comparison: Comparison, data: str) -> Iterator[Section]:
    """The chart of a data set and the table of all its tests; nothing if there are no tests."""
    metric, ours = _charted(comparison), comparison.results.ours
    tests = [(row, comparison.tests.get((data, row.name, metric))) for row in comparison.rows]
    rows = [
        (row.label, test.difference.mean, test.difference.low, test.difference.high, test.sign, row.name in ours)
        for row, test in tests
        if test is not None
    ]
    if rows:
        reference = comparison.references[data, metric]
        what = "the full system" if comparison.is_of_variants else "the best baseline"
        score = comparison.scores[data, reference, metric].mean
        subtitle = f"{metric_name(metric)}, difference to {what}, {comparison.label(reference)} ({score:.4f})"
        table = difference_table(comparison, data)
        yield Section(table.title, subtitle, table, difference_bars(rows))


def _segments(comparison: Comparison, data: str) -> tuple[list[Section], list[Section]]:
    """Charts and table by the popularity of the target, and the tables by other kinds of segments."""
    found = segment_metrics(comparison, data)
    popularity, others = list[Section](), list[Section]()
    for one, table in zip(found, segment_tables(comparison, data, found), strict=True):
        if one.kind == POPULARITY:
            users = ", ".join(f"{count:,} at {segment}" for segment, count in one.users.items())
            subtitle = "rows have different users" if one.differ else f"users: {users}"
            popularity.append(Section(table.title, subtitle, table, charts=_popularity_charts(comparison, one)))
        else:
            others.append(Section(table.title, table=table))
    return popularity, others


def _popularity_charts(comparison: Comparison, found: SegmentMetrics) -> list[Panels]:
    names, charts = list(found.users), []
    for metric in BY_SEGMENT:
        curves = {}
        for row in comparison.rows:
            values = [(float(x), found.metrics.get((row.name, metric, name))) for x, name in enumerate(names)]
            curves[row.label] = [Curve([(x, value) for x, value in values if value is not None])]
        charts.append(panels(metric_name(metric), "training interactions", curves, _ours(comparison.results), names))
    return [chart for chart in charts if chart is not None]


def _shares(comparison: Comparison, data: str) -> Iterator[Section]:
    """The charted metric by the share of users in training; nothing if all have the same share.

    A model has one curve; a second variant with the same share has its own.
    """
    metric, ours = _charted(comparison), []
    points: dict[str, dict[float, float]] = {}
    for row in comparison.rows:
        for cell in comparison.results.finished(data, row.name)[:1]:
            share = 1 - float(cell.settings.get("dataset.hold_out_users", 0))
            name = row.label if share in points.get(row.model, {}) else row.model
            points.setdefault(name, {})[share] = comparison.scores[data, row.name, metric].mean
            ours += [name] if row.name in comparison.results.ours else []
    shares = sorted({share for own in points.values() for share in own})
    curves = {
        model: [Curve([(float(shares.index(share)), own[share]) for share in sorted(own)])]
        for model, own in points.items()
    }
    names = [f"{share:.0%}" for share in shares]
    chart = panels(metric_name(metric), "share of users in training", curves, ours, names)
    if chart is not None and len(shares) > 1:
        yield Section(f"By the share of users in training, {data}", charts=[chart])


def _ours(results: GridResults) -> list[str]:
    return [row.label for row in results.rows if row.name in results.ours]


def _curves(results: GridResults, data: str) -> Iterator[Section]:
    """Validation by epoch and by seconds of training, both counted from the beginning of the first stage."""
    charts = []
    for clock in ("epoch", "second of training"):
        curves = {
            row.label: [curve for cell in results.finished(data, row.name) for curve in _cell_curves(cell, clock)]
            for row in results.rows
        }
        charts.append(panels(f"{metric_name(CHARTED)} on validation", clock, curves, _ours(results)))
    if drawn := [chart for chart in charts if chart is not None]:
        subtitle = "one line per seed; dashed: an earlier stage; dot: the highest value; logarithmic horizontal axes"
        yield Section(f"Learning curves, {data}", subtitle, charts=drawn)


def _cell_curves(cell: Outcome, clock: str) -> list[Curve]:
    """One curve per stage; all but the last stage are early ones."""
    stages = list(dict.fromkeys(str(row["stage"]) for row in cell.epochs))
    points: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    elapsed = 0.0
    for row in cell.epochs:
        elapsed += 1 if clock == "epoch" else float(row["seconds"])
        value = row.get(CHARTED)  # missing if the epoch was not validated, not finite if it diverged
        if isinstance(value, int | float) and math.isfinite(value):
            points[row["stage"]].append((elapsed, float(value)))
    return [Curve(points[stage], early=stage != stages[-1]) for stage in stages]


def _options(row: Row) -> str:
    """A row as options of `msm4sr run`."""
    file = [f"--settings {row.settings}"] if row.settings else []
    changes = [f"--set {key}={value}" for key, value in _as_text(row.changes)]
    return " ".join([f"--model {row.model}", f"--preset {row.preset}", *file, *changes])


def _as_text(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in settings.values())
    return list(zip(settings, texts, strict=True))
