"""The tables of a grid report: a line per system, a column per data set and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from msm4sr.experiments.grid import Row
from msm4sr.reports.comparison import FULL_RANKING, LEVEL, Comparison, Score, scores_of
from msm4sr.reports.published import other_results, paper_results
from msm4sr.reports.results import GridResults, Outcome
from msm4sr.reports.table_writer import DIGITS, Column, Table, TableCell, TableRow, signed

WRITTEN = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "map": "MAP",
    "precision": "Precision",
    "mrr": "MRR",
    "coverage": "Coverage",
    "gini": "Gini",
    "novelty": "Novelty",
    "popularity": "Popularity",
    "cold": "Cold items",
    "diversity_content": "Diversity by content",
    "diversity_categories": "Diversity by categories",
}
HELD_OUT = {"among_all": "among all items", "among_held_out": "among held-out items"}


def metric_name(name: str, short: bool = False) -> str:
    """`ndcg@10` -> `NDCG@10`, or as in the paper's tables `N@10`."""
    measure, _, cutoff = name.partition("@")
    written = WRITTEN.get(measure, measure)
    return f"{written[0] if short else written}@{cutoff}" if cutoff else written


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def places(values: Sequence[float | None]) -> list[int]:
    """1 for the best of a column, 2 for the second, else 0; equal digits share a place; all 0 if all are equal."""
    shown = [None if value is None else round(value, DIGITS) for value in values]
    there = [value for value in shown if value is not None]
    different = sorted(set(there), reverse=True)
    ranking = different[:2] if len(different) > 1 else []
    return [ranking.index(value) + 1 if value in ranking else 0 for value in shown]


def metric_cells(scores: Sequence[Score | None], comparable: bool = True) -> list[TableCell]:
    """A column of metrics, with their deviations over seeds; the best and the second marked if they are comparable."""
    ranking = places([None if score is None or not comparable else score.mean for score in scores])
    return [
        TableCell() if score is None else TableCell(f"{score.mean:.{DIGITS}f}", score.mean, score.deviation, place)
        for score, place in zip(scores, ranking, strict=True)
    ]


class TableBuilder:
    """Builds a table column by column: a row for each row of a grid and, if it has a label, a summary."""

    def __init__(self, rows: Iterable[Row], results: GridResults) -> None:
        self.rows, self._results = list(rows), results
        self.columns: list[Column] = []
        self._cells: list[Sequence[TableCell]] = []

    def add(self, column: Column, cells: Sequence[TableCell], summary: TableCell | None = None) -> None:
        self.columns.append(column)
        self._cells.append([*cells, summary or TableCell("")])

    def table(self, name: str, title: str, notes: Sequence[str], summary: str = "") -> Table:
        """The table; without columns it has no rows, so that it is not shown."""
        rows = [
            TableRow(row.label, [cells[number] for cells in self._cells], row.name in self._results.ours)
            for number, row in enumerate(self.rows if self.columns else ())
        ]
        rows += [TableRow(summary, [cells[-1] for cells in self._cells], summary=True)] if summary and rows else []
        return Table(name, title, "System", self.columns, rows, notes)


def main_table(comparison: Comparison, only: str | None = None) -> Table:
    """The table in the paper's form, of all data sets or `only` one; last row: the improvement over the baselines."""
    results = comparison.results
    shown = results.data if only is None else (only,)
    build = TableBuilder(comparison.rows, results)
    build.add(Column("Seen items", words=True), [TableCell(seen_items(comparison, row.name)) for row in build.rows])
    for data in shown:
        printed = _printed(comparison, data)
        group = data if only is None else "measured here" if printed else ""
        for metric in comparison.metrics:
            marked = metric_cells([comparison.scores.get((data, row.name, metric)) for row in build.rows])
            cells = [_tested(comparison, data, r.name, metric, c) for r, c in zip(build.rows, marked, strict=True)]
            build.add(Column(metric_name(metric, True), group), cells, _improvement_cell(comparison, data, metric))
        paper = paper_results(results.kind, data)
        for metric in printed:
            there = [paper.get((row.name, metric)) for row in build.rows]
            cells = [TableCell(one.text, one.value, tip=one.source) if one else TableCell() for one in there]
            build.add(Column(metric_name(metric, True), f"{data}, as printed", printed=True), cells)
    title = (only or results.title) + comparison.suffix
    summary = "Improvement" if _has_improvement(comparison) else ""
    return build.table(comparison.name, title, _notes(comparison, shown), summary)


def _has_improvement(comparison: Comparison) -> bool:
    """Whether there are both our rows and baselines."""
    ours = comparison.results.ours
    return not comparison.is_of_variants and len({row.name in ours for row in comparison.rows}) == 2


def _printed(comparison: Comparison, data: str) -> list[str]:
    """The metrics of the table that the paper prints for this data set and one of these rows."""
    if comparison.secondary:
        return []
    paper = paper_results(comparison.results.kind, data)
    return [metric for metric in comparison.metrics if any((row.name, metric) in paper for row in comparison.rows)]


def seen_items(comparison: Comparison, row: str) -> str:
    """Whether a row's ranking includes seen items, and what else its runs record of their protocol."""
    if comparison.secondary:
        return "excluded"
    recorded = {
        str(outcome.metrics["run"]["protocol"]).partition(FULL_RANKING)[2]
        for data in comparison.results.data
        for outcome in comparison.results.finished(data, row)
    }
    return "; ".join(sorted(recorded)) or "–"


def _tested(comparison: Comparison, data: str, row: str, metric: str, cell: TableCell) -> TableCell:
    """The cell of a score with its test; without a score, with the state of the row's cells."""
    outcomes = comparison.results.outcomes[data, row]
    if cell.value is None:
        states = [outcome.state for outcome in outcomes]
        text = next((state for state in ("failed", "running") if state in states), "missing")
        return TableCell(text, tip="; ".join(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason)))
    test, finished = comparison.tests.get((data, row, metric)), len(comparison.results.finished(data, row))
    few = finished < len(outcomes)
    tips = [f"{finished} of {len(outcomes)} seeds"] * few
    if test:
        against, p = comparison.label(test.against), p_text(test.p)
        tips.append(f"{test.interval} against {against}, p {p} after Holm's correction, {test.users:,} users")
    return replace(cell, text=cell.text + "*" * few, sign=test.sign if test else 0, tip="; ".join(tips))


def _improvement_cell(comparison: Comparison, data: str, metric: str) -> TableCell:
    share = comparison.improvement(data, metric)
    mine, other = comparison.best(data, metric, ours=True), comparison.best(data, metric, ours=False)
    if share is None or mine is None or other is None:
        return TableCell()
    test = comparison.tests.get((data, mine, metric))
    tip = f"{comparison.label(mine)} over {comparison.label(other)}"
    return TableCell(signed(share, ".1%"), share, sign=test.sign if test else 0, tip=tip)


def _notes(comparison: Comparison, shown: Sequence[str]) -> list[str]:
    results, notes = comparison.results, []
    if comparison.secondary:
        notes.append(
            "The same weights, ranked with seen items excluded, as in serving, in most published results, and in "
            "models that always exclude them."
        )
    else:
        notes.append(
            f"Test part, {comparison.split}, full ranking. Seen items: whether the items of a user's history are "
            "ranked (included) or not (excluded). Models that do not read the order of interactions always exclude "
            "them."
        )
    notes.append("Best measured value in bold, second best underlined.")
    if len(results.seeds) > 1:
        notes.append(f"Mean ± standard deviation over {len(results.seeds)} seeds.")
        if any(len(score.values) < len(results.seeds) for at, score in comparison.scores.items() if at[0] in shown):
            notes.append("* mean over the finished seeds.")
    else:
        notes.append("One seed, hence no deviations: small differences may be due to chance.")
    if comparison.tests:
        than = "the full system" if comparison.is_of_variants else "the best baseline of the column"
        notes.append(
            f"⁺ significantly better, ⁻ significantly worse than {than}: paired bootstrap over users "
            f"({comparison.resamples:,} resamples, metric averaged over seeds), p ≤ {LEVEL} after Holm's correction "
            "over the rows."
        )
    if _has_improvement(comparison):
        ours = " or ".join(row.label for row in comparison.rows if row.name in results.ours)
        notes.append(f"Improvement: of {ours} over the best baseline.")
    notes += [f"Not tested: {reason}." for data, reason in comparison.untested if data in shown]
    notes += [
        f"{data}, as printed: from arXiv 2303.11879, for its data set of this name; for context, not measured here."
        for data in shown
        if _printed(comparison, data)
    ]
    return notes


def difference_table(comparison: Comparison, data: str) -> Table:
    """Every test on a data set, with its interval."""
    rows, users = [], 0
    for metric in comparison.metrics:
        for row in comparison.rows:
            if test := comparison.tests.get((data, row.name, metric)):
                found, users = test.difference, test.users
                cells = [
                    TableCell(comparison.label(test.against)),
                    TableCell(signed(found.mean), found.mean, sign=test.sign),
                ]
                cells += [TableCell(signed(bound), bound) for bound in (found.low, found.high)]
                cells += [TableCell(p_text(p), p) for p in (found.p, test.p)]
                label = f"{comparison.label(row.name)}, {metric_name(metric)}"
                rows.append(TableRow(label, cells, ours=row.name in comparison.results.ours))
    columns = [Column("against", words=True), Column("difference"), Column(f"{1 - LEVEL:.0%}, from"), Column("to")]
    columns += [Column("p"), Column("p, Holm")]
    note = f"Paired bootstrap over {users:,} users, {comparison.resamples:,} resamples, percentile intervals."
    name, title = f"{comparison.name}-differences-{data}", f"Differences on {data}{comparison.suffix}"
    return Table(name, title, "System, metric", columns, rows, [note])


def held_out_table(comparison: Comparison, data: str) -> Table:
    """Metrics of items held out of training, and a last row: a random order. No rows if none are held out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in comparison.rows:
        finished = comparison.results.finished(data, row.name)
        cells = [outcome.metrics["held_out"] for outcome in finished if "held_out" in outcome.metrics]
        if cells and len(cells) == len(finished):
            found[row.name] = cells
    build = TableBuilder((row for row in comparison.rows if row.name in found), comparison.results)
    counts = {(cell["users"], cell["items"]) for cells in found.values() for cell in cells}
    same = len(counts) == 1  # rows or seeds may hold out different items
    for among, group in HELD_OUT.items() if found else ():
        for metric in comparison.metrics:
            scores = [Score(tuple(cell[among][metric] for cell in found[row.name])) for row in build.rows]
            chance = found[build.rows[0].name][0][f"chance_{among}"][metric]
            column, random = Column(metric_name(metric, short=True), group), TableCell(f"{chance:.{DIGITS}f}", chance)
            build.add(column, metric_cells(scores, same), random if same else None)
    note = "Rows or seeds differ in the number of held-out items or of their users: they are not comparable."
    if same:
        ((users, items),) = counts
        note = (
            f"The {users:,} users with a test target among the {items:,} items held out of training; nothing is "
            "trained further. Random: the expected metrics of a random order."
        )
    tied = (
        "A system that scores all held-out items alike ranks each target in their middle; it is no better than random."
    )
    title = f"Items held out of training, {data}{comparison.suffix}"
    return build.table(f"{comparison.name}-held-out-{data}", title, [note, tied], "Random" if same else "")


def cold_table(comparison: Comparison, data: str) -> Table:
    """Metrics of users and of items without training interactions; no rows if there are none."""
    finished = {row.name: comparison.results.finished(data, row.name) for row in comparison.rows}
    cells = {
        name: [outcome.metrics["cold"]["test"] for outcome in outcomes]
        for name, outcomes in finished.items()
        if outcomes and all("cold" in outcome.metrics for outcome in outcomes)
    }
    build = TableBuilder((row for row in comparison.rows if row.name in cells), comparison.results)
    for what in ("users", "items"):
        parts = [[cell[what] for cell in cells[row.name]] for row in build.rows]
        counts = {part[what] for row in parts for part in row if part["metrics"]}
        group = f"{what} ({min(counts):,})" if len(counts) == 1 else what  # rows with other cores have other counts
        for metric in comparison.metrics if counts else ():
            scores = [
                Score(tuple(part["metrics"][metric] for part in row)) if all(part["metrics"] for part in row) else None
                for row in parts
            ]
            build.add(Column(metric_name(metric, short=True), group), metric_cells(scores, len(counts) == 1))
    note = (
        "Test part, what has no training interactions: such users, and such targets of the users of the main table. A "
        "model gives equal scores after an empty history, and to new items whose content it does not read."
    )
    title = f"Without training interactions, {data}{comparison.suffix}"
    return build.table(f"{comparison.name}-cold-{data}", title, [note])


def validation_table(comparison: Comparison, data: str) -> Table:
    """Metrics of the validation part, which selects the weights of each row."""
    scores, results = scores_of(comparison, "validation"), comparison.results
    build = TableBuilder((row for row in comparison.rows if results.finished(data, row.name)), results)
    for metric in comparison.metrics:
        column = Column(metric_name(metric, short=True))
        build.add(column, metric_cells([scores[data, row.name, metric] for row in build.rows]))
    title, note = f"Validation, {data}{comparison.suffix}", "Validation selects the weights of each row."
    return build.table(f"{comparison.name}-validation-{data}", title, [note])


def cost_table(results: GridResults, data: str) -> Table:
    """Weights, time and memory of each row, means over its finished seeds."""
    finished = {row.name: results.finished(data, row.name) for row in results.rows}
    build = TableBuilder((row for row in results.rows if finished[row.name]), results)
    cells = [finished[row.name] for row in build.rows]
    runs = [[outcome.metrics["run"] for outcome in outcomes] for outcomes in cells]
    seconds = [[run.get("training_seconds", {}) for run in each] for each in runs]
    epochs = [[{"epochs": len(outcome.epochs)} for outcome in outcomes] for outcomes in cells]
    columns = [("weights", runs, "parameters"), ("pre-training, s", seconds, "pretrain")]
    columns += [("fine-tuning, s", seconds, "finetune"), ("epochs", epochs, "epochs")]
    columns += [("memory, MiB", runs, "peak_memory_mib"), ("GPU memory, MiB", runs, "peak_gpu_memory_mib")]
    for heading, records, key in columns:
        found = [mean_cell([record.get(key) for record in each]) for each in records]
        if key != "peak_gpu_memory_mib" or any(cell.value is not None for cell in found):
            build.add(Column(heading), found)
    hardware = [TableCell("; ".join(dict.fromkeys(run.get("hardware", "unknown") for run in each))) for each in runs]
    build.add(Column("hardware", words=True), hardware)
    note = "Means over seeds. Seconds exclude validation. Memory is the peak of the process since the run began."
    return build.table(f"{results.name}-cost-{data}", f"Weights, time and memory, {data}", [note])


def mean_cell(values: Iterable[float | None], form: str = ",.0f") -> TableCell:
    """The mean over the runs that have recorded the value."""
    there = [value for value in values if value is not None]
    return TableCell(format(np.mean(there), form), float(np.mean(there))) if there else TableCell()


def cells_table(results: GridResults) -> Table:
    """Every cell: seed, state, training seconds, commit and folder."""
    columns = [Column(name, words=name != "seconds") for name in ("seed", "state", "seconds", "commit", "folder")]
    rows = []
    for outcome in results.all():
        seconds = sum(outcome.metrics["run"].get("training_seconds", {}).values()) if outcome.metrics else None
        cells = [
            TableCell(str(outcome.seed)),
            TableCell(outcome.state, tip=outcome.reason),
            TableCell() if seconds is None else TableCell(f"{seconds:,.0f}", seconds),
            TableCell(str(outcome.metrics.get("versions", {}).get("commit", "–"))),
            TableCell(str(outcome.folder.relative_to(results.folder))),
        ]
        rows.append(TableRow(f"{results.labels[outcome.row]}, {outcome.data}", cells, ours=outcome.row in results.ours))
    return Table(f"{results.name}-cells", "Cells", "Row, data", columns, rows)


def published_table(data: str) -> Table:
    """Results that others have published for a data set of this name; empty if there is nothing."""
    published = other_results(data)
    metrics = list(dict.fromkeys(one.metric for one in published))
    rows = []
    for system in dict.fromkeys(one.system for one in published):
        own = {one.metric: one for one in published if one.system == system}
        first = next(iter(own.values()))
        values = [
            TableCell(own[metric].text, own[metric].value) if metric in own else TableCell() for metric in metrics
        ]
        rows.append(TableRow(system, [*values, TableCell(first.protocol), TableCell(first.source)]))
    columns = [Column(metric_name(metric), printed=True) for metric in metrics]
    columns += [Column("protocol", words=True), Column("source", words=True)]
    note = "Other code, other settings, possibly other users: for context, neither measured nor compared here."
    return Table(f"published-{data}", f"Published elsewhere for {data}", "System", columns, rows, [note])


def split_settings(results: GridResults) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that all finished cells share, and for each row its other settings.

    A setting that differs between cells of one row is named with data set and seed.
    """
    cells = [outcome for outcome in results.all() if outcome.state == "finished"]
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {row.name: {} for row in results.rows}
    for key in sorted({key for cell in cells for key in cell.settings}):
        having = [cell for cell in cells if key in cell.settings]
        value = having[0].settings[key]
        if len(having) == len(cells) and all(cell.settings[key] == value for cell in cells):
            shared[key] = value
            continue
        for row, settings in own.items():
            there = [cell for cell in having if cell.row == row]
            if there and all(cell.settings[key] == there[0].settings[key] for cell in there):
                settings[key] = there[0].settings[key]
            else:
                settings |= {f"{key} ({cell.data}, seed {cell.seed})": cell.settings[key] for cell in there}
    return shared, own


def software_versions(cells: Iterable[Outcome]) -> list[tuple[str, list[str]]]:
    """The software versions of the cells."""
    found: dict[str, dict[str, None]] = {}  # a set in the order of the cells
    for cell in cells:
        for name, version in cell.metrics.get("versions", {}).items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, list(there)) for name, there in found.items()]
