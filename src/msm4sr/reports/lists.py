"""The table of a grid report about the recommended lists (`evaluation.beyond_accuracy`)."""

from __future__ import annotations

from msm4sr.evaluation.beyond_accuracy import MEASURES
from msm4sr.reports.comparison import Comparison
from msm4sr.reports.table_writer import DIGITS, Column, Table
from msm4sr.reports.tables import TableBuilder, mean_cell, metric_name

LISTED = 10  # items of the lists that are described


def beyond_accuracy_table(comparison: Comparison, data: str) -> Table:
    """Coverage, concentration, novelty, popularity and diversity of the lists of each row, means over seeds."""
    protocol = "seen_excluded" if comparison.excludes_seen else "seen_included"
    found: dict[str, list[dict[str, float]]] = {}
    for row in comparison.rows:
        there = [outcome.metrics.get("beyond_accuracy") for outcome in comparison.results.finished(data, row.name)]
        if there and all(there):
            found[row.name] = [metrics[protocol] for metrics in there if metrics is not None]
    build = TableBuilder((row for row in comparison.rows if row.name in found), comparison.results)
    for name in (f"{measure}@{LISTED}" for measure in MEASURES):
        values = [[cell.get(name) for cell in found[row.name]] for row in build.rows]
        digits = 1 if name.startswith("popularity") else DIGITS
        cells = [mean_cell(each, f",.{digits}f") for each in values]
        if any(cell.value is not None for cell in cells):  # without content or categories there is no diversity
            build.add(Column(metric_name(name)), cells)
    note = (
        f"The first {LISTED} items of the list of each user, test part, means over seeds. Coverage: share of the "
        "catalogue in any list; Gini: 0 if all items are listed equally often; novelty: bits; popularity: training "
        "interactions; cold items: share without any; diversity: mean of 1 - cosine over pairs of a list."
    )
    title = f"Beyond accuracy, {data}{comparison.suffix}"
    return build.table(f"{comparison.name}-beyond-accuracy-{data}", title, [note])
