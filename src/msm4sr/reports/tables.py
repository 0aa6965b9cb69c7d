"""The tables of a report as sheets: systems on rows, data sets and metrics in columns; on the test part unless said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from msm4sr.reports.measured import LEVEL, VARIANTS, Measured, Score, Test, by_popularity, scores_of
from msm4sr.reports.published import elsewhere, of_paper
from msm4sr.reports.results import GridResults, Outcome
from msm4sr.reports.table_writer import Cell, Column, Line, Sheet

BY_POPULARITY = ("recall@10", "ndcg@10")
DIGITS = 4  # of a metric, as in the paper
HISTORY = {"history never ranked": "left out", "history ranked like any item": "ranked"}
PROTOCOLS = {False: "histories-ranked", True: "histories-left-out"}


def places(values: Sequence[float | None]) -> list[int]:
    """1 for the best of a column, 2 for the second, else 0; equal digits share their place. A single value has none."""
    shown = [None if value is None else round(value, DIGITS) for value in values]
    ranking = sorted({value for value in shown if value is not None}, reverse=True)
    alone = sum(value is not None for value in shown) < 2
    order = {value: place for place, value in enumerate(ranking[:2], start=1) if not alone}
    return [0 if value is None else order.get(value, 0) for value in shown]


def main_sheet(measured: Measured, several: bool = False, only: str | None = None) -> Sheet:
    """The table in the paper's form, and a last line: by how much ours is above the best baseline.

    Of all data sets, or of one alone. `several`: there are tables of other protocols beside it.
    """
    results = measured.results
    shown = results.data if only is None else (only,)
    columns = [Column("History", words=True)]
    for data in shown:
        printed = _printed(measured, data)
        group = data if only is None else "measured here" if printed else ""
        columns += [Column(metric_name(metric, short=True), group) for metric in measured.metrics]
        columns += [Column(metric_name(metric, short=True), f"{data}, as printed", printed=True) for metric in printed]
    place = {
        (data, row.name, metric): rank
        for data in shown
        for metric in measured.metrics
        for row, rank in zip(measured.rows, places(measured.column(data, metric)), strict=True)
    }
    lines = []
    for row in measured.rows:
        cells = [Cell("left out" if measured.beside else _history(results, row.name))]
        for data in shown:
            for metric in measured.metrics:
                cells.append(_score_cell(measured, data, row.name, metric, place[data, row.name, metric]))
            paper = of_paper(results.kind, data)
            for metric in _printed(measured, data):
                there = paper.get((row.name, metric))
                cells.append(Cell(there.text, there.value, tip=there.source) if there else Cell())
        lines.append(Line(row.label, cells, ours=row.name in results.ours))
    if _has_improvement(measured):
        cells = [Cell("")]
        for data in shown:
            cells += [_improvement_cell(measured, data, metric) for metric in measured.metrics]
            cells += [Cell("")] * len(_printed(measured, data))
        lines.append(Line("Improvement", cells, summary=True))
    protocol = f", {PROTOCOLS[measured.excludes_seen].replace('-', ' ')}" if several else measured.look
    title = (only or results.title) + protocol
    return Sheet(_named(measured, several), title, "System", columns, lines, _notes(measured, shown))


def _has_improvement(measured: Measured) -> bool:
    """Whether there are both, rows of ours and baselines."""
    return (
        measured.results.kind not in VARIANTS and len({row.name in measured.results.ours for row in measured.rows}) == 2
    )


def _named(measured: Measured, several: bool) -> str:
    return measured.results.name + (f"-{PROTOCOLS[measured.excludes_seen]}" if several or measured.beside else "")


def _printed(measured: Measured, data: str) -> list[str]:
    """The metrics of the table that the paper prints for this data set and one of these rows."""
    if measured.beside:
        return []
    paper = of_paper(measured.results.kind, data)
    return [metric for metric in measured.metrics if any((row.name, metric) in paper for row in measured.rows)]


def _history(results: GridResults, row: str) -> str:
    """What becomes of the history's items when all are ranked, as the runs say it."""
    said = {
        str(outcome.metrics["run"]["protocol"]).removeprefix("leave-one-out, full ranking, ")
        for data in results.data
        for outcome in results.finished(data, row)
    }
    for long, short in HISTORY.items():
        said = {one.replace(long, short) for one in said}
    return "; ".join(sorted(said)) or "–"


def _score_cell(measured: Measured, data: str, row: str, metric: str, place: int) -> Cell:
    score = measured.scores.get((data, row, metric))
    outcomes = measured.results.outcomes[data, row]
    if score is None:
        states = [outcome.state for outcome in outcomes]
        text = next((state for state in ("failed", "at work") if state in states), "missing")
        return Cell(text, tip="; ".join(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason)))
    test = measured.tests.get((data, row, metric))
    few = f"{len(score.values)} of {len(outcomes)} seeds" if len(score.values) < len(outcomes) else ""
    return Cell(
        text=f"{score.mean:.{DIGITS}f}" + ("*" if few else ""),
        value=score.mean,
        spread=score.deviation,
        place=place,
        sign=test.sign if test else 0,
        tip="; ".join(part for part in (few, in_words(measured, test) if test else "") if part),
    )


def in_words(measured: Measured, test: Test) -> str:
    """A test in a line."""
    it = test.difference
    return (
        f"{signed(it.mean)} [{signed(it.low)}, {signed(it.high)}] against {measured.label(test.against)}, "
        f"p {p_text(test.p)} after Holm's correction, {test.users:,} users"
    )


def signed(value: float, form: str = f".{DIGITS}f") -> str:
    """With a sign that is as wide as a digit."""
    return f"{value:+{form}}".replace("-", "−")


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def _improvement_cell(measured: Measured, data: str, metric: str) -> Cell:
    share = measured.improvement(data, metric)
    if share is None:
        return Cell()
    mine, other = measured.best(data, metric, True), measured.best(data, metric, False)
    assert mine is not None
    assert other is not None
    test = measured.tests.get((data, mine, metric))
    tip = f"{measured.label(mine)} over {measured.label(other)}"
    return Cell(signed(share, ".1%"), share, sign=test.sign if test else 0, tip=tip)


def _notes(measured: Measured, shown: Sequence[str]) -> list[str]:
    results, notes = measured.results, []
    if measured.beside:
        notes.append(
            "The same weights as in the table before, ranked without what a user already took: as in serving, on one "
            "footing with the systems that never rank it, and as some publish their figures."
        )
    else:
        notes.append(
            "Test part, leave-one-out, all items ranked. History: whether the items that a user already took are "
            "ranked like any other or left out; systems that do not read the order never rank them."
        )
    notes.append("Best in bold, second underlined, among what was measured here.")
    if len(results.seeds) > 1:
        notes.append(f"Mean ± standard deviation over {len(results.seeds)} seeds.")
        if any(len(score.values) < len(results.seeds) for at, score in measured.scores.items() if at[0] in shown):
            notes.append("* mean over the seeds that are finished.")
    else:
        notes.append("One seed, so there are no deviations: differences of the last digits may be luck.")
    if measured.tests:
        than = "the full system" if results.kind in VARIANTS else "the best baseline of the column"
        notes.append(
            f"⁺ significantly better, ⁻ significantly worse than {than}: paired bootstrap over users "
            f"({measured.resamples:,} resamples, metric averaged over seeds), p ≤ {LEVEL} after Holm's correction over "
            "the rows."
        )
    if _has_improvement(measured):
        ours = " or ".join(row.label for row in measured.rows if row.name in results.ours)
        notes.append(f"Improvement: of {ours} over the best baseline.")
    notes += [f"Not tested: {reason}." for data, reason in measured.untested if data in shown]
    for data in shown:
        if _printed(measured, data):
            notes.append(
                f"{data}, as printed: arXiv 2303.11879, of its data set of this name; context, not measured here."
            )
    return notes


def difference_sheet(measured: Measured, data: str, several: bool = False) -> Sheet:
    """Every test on a data set, with its interval."""
    lines = [
        Line(
            f"{measured.label(row.name)}, {metric_name(metric)}",
            [
                Cell(measured.label(test.against)),
                Cell(signed(test.difference.mean), test.difference.mean, sign=test.sign),
                Cell(signed(test.difference.low), test.difference.low),
                Cell(signed(test.difference.high), test.difference.high),
                Cell(p_text(test.difference.p), test.difference.p),
                Cell(p_text(test.p), test.p),
            ],
            ours=row.name in measured.results.ours,
        )
        for metric in measured.metrics
        for row in measured.rows
        if (test := measured.tests.get((data, row.name, metric)))
    ]
    users = next((test.users for (name, _, _), test in measured.tests.items() if name == data), 0)
    columns = [Column("against", words=True), Column("difference"), Column(f"{1 - LEVEL:.0%}, from"), Column("to")]
    columns += [Column("p"), Column("p, Holm")]
    note = f"Paired bootstrap over {users:,} users, {measured.resamples:,} resamples, percentile intervals."
    name = f"{_named(measured, several)}-differences-{data}"
    return Sheet(name, f"Differences on {data}{measured.look}", "System, metric", columns, lines, [note])


def popularity_sheet(measured: Measured, data: str, several: bool = False) -> Sheet:
    """Metrics by the training interactions of the target, means over seeds."""
    counts, found = by_popularity(measured, data, BY_POPULARITY)
    rows = [row for row in measured.rows if any(row.name == name for name, _, _ in found)]
    columns, cells = [], []
    for metric in BY_POPULARITY:
        for bucket, users in counts.items():
            columns.append(Column(f"{bucket} (n={users:,})", metric_name(metric)))
            values = [found.get((row.name, metric, bucket)) for row in rows]
            cells.append(
                [
                    Cell() if value is None else Cell(f"{value:.{DIGITS}f}", value, place=place)
                    for value, place in zip(values, places(values), strict=True)
                ]
            )
    lines = [
        Line(row.label, [column[number] for column in cells], ours=row.name in measured.results.ours)
        for number, row in enumerate(rows)
    ]
    note = "Users by the training interactions of the item that they took (n: users); test part, means over seeds."
    name = f"{_named(measured, several)}-popularity-{data}"
    return Sheet(name, f"By how well the item was known, {data}", "System", columns, lines, [note])


HELD_OUT = {"among_all": "among all items", "among_held_out": "among those held out"}


def held_out_sheet(measured: Measured, data: str, several: bool = False) -> Sheet:
    """How items that no training saw are recommended when they arrive; a last line: by lot. No lines for other runs."""
    cells_of = {row.name: measured.results.finished(data, row.name) for row in measured.rows}
    found = {
        row.name: [cell.metrics["held_out"] for cell in cells_of[row.name]]
        for row in measured.rows
        if cells_of[row.name] and all("held_out" in cell.metrics for cell in cells_of[row.name])
    }
    rows = [row for row in measured.rows if row.name in found]
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    for among, group in HELD_OUT.items():
        for metric in measured.metrics:
            columns.append(Column(metric_name(metric, short=True), group))
            scores = [Score(tuple(each[among][metric] for each in found[row.name])) for row in rows]
            column = [
                Cell(f"{score.mean:.{DIGITS}f}", score.mean, score.deviation, place)
                for score, place in zip(scores, places([score.mean for score in scores]), strict=True)
            ]
            by_lot = [each[f"chance_{among}"][metric] for row in rows for each in found[row.name]]
            cells.append([*column, Cell(f"{by_lot[0]:.{DIGITS}f}", by_lot[0]) if by_lot else Cell()])
    lines = [
        Line(row.label, [column[number] for column in cells], ours=row.name in measured.results.ours)
        for number, row in enumerate(rows)
    ]
    notes: list[str] = []
    if rows:
        lines.append(Line("By lot", [column[-1] for column in cells], summary=True))
        first = found[rows[0].name][0]
        notes.append(
            f"The {first['users']:,} users whose last item is one of the {first['items']:,} that no training saw; "
            "recommended without any further training. By lot: what a random order has on average."
        )
    name = f"{_named(measured, several)}-held-out-{data}"
    return Sheet(name, f"Items that were held out of training, {data}", "System", columns, lines, notes)


def validation_sheet(measured: Measured, data: str, several: bool = False) -> Sheet:
    """What chose the weights of each row, on a data set: metrics of the validation part."""
    scores = scores_of(measured.results, measured.rows, measured.metrics, "validation")
    rows = [row for row in measured.rows if (data, row.name, measured.metrics[0]) in scores]
    place = {
        (row.name, metric): rank
        for metric in measured.metrics
        for row, rank in zip(rows, places([scores[data, row.name, metric].mean for row in rows]), strict=True)
    }
    lines = []
    for row in rows:
        found = [(scores[data, row.name, metric], place[row.name, metric]) for metric in measured.metrics]
        cells = [Cell(f"{one.mean:.{DIGITS}f}", one.mean, one.deviation, rank) for one, rank in found]
        lines.append(Line(row.label, cells, ours=row.name in measured.results.ours))
    columns = [Column(metric_name(metric, short=True)) for metric in measured.metrics]
    name = f"{_named(measured, several)}-validation-{data}"
    return Sheet(name, f"Validation, {data}", "System", columns, lines, ["The part that chose the weights."])


def cost_sheet(results: GridResults, data: str) -> Sheet:
    """Weights, time and memory of each row, means over its finished seeds."""
    rows = [(row, results.finished(data, row.name)) for row in results.rows]
    rows = [(row, outcomes) for row, outcomes in rows if outcomes]
    gpu = any("peak_gpu_memory_mib" in outcome.metrics["run"] for _, outcomes in rows for outcome in outcomes)
    columns = [Column("weights"), Column("pre-training, s"), Column("fine-tuning, s"), Column("epochs")]
    columns += [Column("memory, MiB"), *([Column("GPU memory, MiB")] if gpu else []), Column("hardware", words=True)]
    lines = []
    for row, outcomes in rows:
        runs = [outcome.metrics["run"] for outcome in outcomes]
        seconds = [run.get("training_seconds", {}) for run in runs]
        cells = [
            _mean_cell(run.get("parameters") for run in runs),
            _mean_cell(each.get("pretrain") for each in seconds),
            _mean_cell(each.get("finetune") for each in seconds),
            _mean_cell(len(outcome.epochs) for outcome in outcomes),
            _mean_cell(run.get("peak_memory_mib") for run in runs),
            *([_mean_cell(run.get("peak_gpu_memory_mib") for run in runs)] if gpu else []),
            Cell("; ".join(dict.fromkeys(run.get("hardware", "unknown") for run in runs))),
        ]
        lines.append(Line(row.label, cells, ours=row.name in results.ours))
    note = "Means over seeds; seconds without validation; memory is the peak of the process since the run began."
    return Sheet(f"{results.name}-cost-{data}", f"Weights, time and memory, {data}", "System", columns, lines, [note])


def _mean_cell(values: Iterable[float | None]) -> Cell:
    """A mean without digits after the point; what no run has recorded is left open."""
    there = [value for value in values if value is not None]
    return Cell(f"{np.mean(there):,.0f}", float(np.mean(there))) if there else Cell()


def elsewhere_sheet(data: str) -> Sheet:
    """What others have printed for a data set of this name, if they have."""
    printed = elsewhere(data)
    metrics = list(dict.fromkeys(one.metric for one in printed))
    lines = []
    for system in dict.fromkeys(one.system for one in printed):
        own = {one.metric: one for one in printed if one.system == system}
        first = next(iter(own.values()))
        values = [Cell(own[m].text, own[m].value) if m in own else Cell() for m in metrics]
        lines.append(Line(system, [*values, Cell(first.protocol), Cell(first.source)]))
    columns = [*(Column(metric_name(m), printed=True) for m in metrics), Column("protocol", words=True)]
    columns.append(Column("source", words=True))
    note = "Other code, other settings, perhaps other users: context, not measured here, and compared with nothing."
    return Sheet(f"elsewhere-{data}", f"Printed elsewhere for {data}", "System", columns, lines, [note])


# -- settings --------------------------------------------------------------------------------------------------------


def split_settings(results: GridResults) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings that all finished cells share, and of each row those that it does not share with all others.

    A setting that differs between cells of one row is named with its data set, and with the seed where seeds differ.
    """
    cells = [outcome for outcome in results.all() if outcome.state == "finished"]
    keys = sorted({key for cell in cells for key in cell.settings})
    shared = {
        key: cells[0].settings[key]
        for key in keys
        if all(key in cell.settings and cell.settings[key] == cells[0].settings[key] for cell in cells)
    }
    own: dict[str, dict[str, Any]] = {}
    for row in results.rows:
        mine = [cell for cell in cells if cell.row == row.name]
        own[row.name] = {}
        for key in keys:
            values = {(cell.data, cell.seed): cell.settings[key] for cell in mine if key in cell.settings}
            if key in shared or not values:
                continue
            first = next(iter(values.values()))
            if all(value == first for value in values.values()):
                own[row.name][key] = first
            else:
                own[row.name] |= {f"{key} ({data}, seed {seed})": value for (data, seed), value in values.items()}
    return shared, own


def versions(cells: Iterable[Outcome]) -> list[tuple[str, list[str]]]:
    """Name to the versions that cells were made with; more than one means that they were not made alike."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, version in cell.metrics.get("versions", {}).items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, list(there)) for name, there in found.items()]


def metric_name(name: str, short: bool = False) -> str:
    """`ndcg@10` -> `NDCG@10`, or as in the paper's tables `N@10`."""
    measure, _, cutoff = name.partition("@")
    written = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR"}.get(measure, measure)
    return f"{written[0] if short else written}@{cutoff}" if cutoff else written
