"""The page of a grid: complete, self-contained, data never becomes markup, charts stay in their frames."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from filelock import FileLock
from grids import cell_folder, change_metrics, fail_cell, run_grid, write_cell, write_grid
from hypothesis import given
from hypothesis import strategies as st
from test_pages import EVIL, Page

from msm4sr.errors import InputError
from msm4sr.reports.grid_report import write_grid_report
from msm4sr.reports.pages.charts import WIDTH, Curve, difference_bars, panels


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on six real runs: popularity, itemknn and sasrec with two seeds."""
    grid = run_grid(tmp_path_factory.mktemp("reports") / "grid")
    return write_grid_report(grid, resamples=200)


def small(tmp_path: Path, **changes: object) -> Path:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), seeds=(0, 1), **changes)
    for seed in (0, 1):
        write_cell(grid, "sasrec", [3, 12, 40, 9], seed=seed, item_counts=[0, 3, 8, 60])
        write_cell(grid, "msm4sr", [1, 7, 30 + seed, 2], seed=seed, item_counts=[0, 3, 8, 60])
    return grid


def page_of(grid: Path) -> Page:
    return Page(write_grid_report(grid, resamples=50).read_text(encoding="utf-8"))


def test_a_report_of_real_runs_has_all_its_parts(real: Path) -> None:
    page = Page(real.read_text(encoding="utf-8"))
    for part in (
        "6 of 6 cells finished",
        "Results on ring",
        "ring, seen items excluded",
        "40 users, 12 items,",
        "Differences on ring",
        "By history length, ring",
        "Beyond accuracy, ring",
        "Learning curves, ring",
        "Weights, time and memory, ring",
        "Settings",
        "All cells",
        "Versions",
        "SASREC",
        "excluded",
        "Mean ± standard deviation over 2 seeds",
    ):
        assert part in page.text, part
    assert len(page.all("ul", "differences")) == 2  # as the runs rank, and with seen items excluded
    assert page.all("polyline", "line")


def test_tables_are_written_in_three_formats_and_linked(real: Path) -> None:
    page = Page(real.read_text(encoding="utf-8"))
    names = {file.name for file in real.parent.iterdir()} - {"index.html"}
    stems = {
        "trial",
        "trial-seen-items-excluded",
        "trial-differences-ring",
        "trial-seen-items-excluded-differences-ring",
        "trial-by-history-length-ring",
        "trial-beyond-accuracy-ring",
        "trial-seen-items-excluded-beyond-accuracy-ring",
        "trial-validation-ring",
        "trial-cost-ring",
        "trial-cells",
    }
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("md", "tex", "csv")}
    assert {link["href"] for link in page.all("a")} == names
    (row,) = (row for row in csv.DictReader((real.parent / "trial.csv").open()) if row["System"] == "SASREC")
    assert 0 < float(row["ring R@10"]) <= 1
    lists = {row["System"]: row for row in csv.DictReader((real.parent / "trial-beyond-accuracy-ring.csv").open())}
    assert all(0 < float(row["Coverage@10"]) <= 1 for row in lists.values())
    assert not any(name.startswith("Diversity") for row in lists.values() for name in row)  # the data has IDs only


def test_the_page_makes_no_requests_and_runs_no_script(real: Path) -> None:
    html = real.read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", html)
    assert page.all("script") == []
    assert not [
        1 for _, attributes in page.tags if "style" in attributes or any(n.startswith("on") for n in attributes)
    ]
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_references_inside_charts_resolve(real: Path) -> None:
    page = Page(real.read_text(encoding="utf-8"))
    ids = [group["id"] for group in page.all("g")]
    assert len(ids) == len(set(ids)) >= 2
    assert {use["href"] for use in page.all("use")} <= {f"#{name}" for name in ids}


def test_data_never_becomes_markup(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), labels={"sasrec": EVIL, "msm4sr": EVIL}, title=EVIL)
    write_cell(grid, "sasrec", [1, 2], settings={EVIL: EVIL}, protocol=EVIL)
    fail_cell(grid, "msm4sr", EVIL)
    page = page_of(grid)
    assert page.all("script") == []
    assert page.text.count(EVIL) > 8


def test_cells_without_a_result_are_listed_with_their_reasons(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "sine", "msm4sr"), seeds=(0, 1))
    for seed in (0, 1):
        write_cell(grid, "sasrec", [1, 2], seed=seed)
        fail_cell(grid, "sine", "the training has diverged", seed=seed)
    cell_folder(grid, "msm4sr").mkdir(parents=True)
    with FileLock(cell_folder(grid, "msm4sr") / ".run.lock"):
        text = " ".join(page_of(grid).text.split())
    assert "failed SINE on shop, seed 0, 1: the training has diverged" in text
    assert "running MSM4SR on shop, seed 0" in text
    assert "missing MSM4SR on shop, seed 1" in text


def test_a_grid_without_finished_cells_has_a_report(tmp_path: Path) -> None:
    text = page_of(write_grid(tmp_path / "grid")).text
    assert "0 of 2 cells finished" in text
    assert "Differences" not in text


def test_the_headline_compares_ours_with_the_best_baseline(tmp_path: Path) -> None:
    text = " ".join(page_of(small(tmp_path)).text.split())
    assert "MSM4SR on shop, NDCG@10" in text
    number = r"[+−]0\.\d{4}"
    assert re.search(rf"\+\d+\.\d% against SASREC: {number} \[{number}, {number}\], (not )?significant", text)


def test_an_ablation_is_shown_as_differences_to_the_full_system(tmp_path: Path) -> None:
    text = page_of(small(tmp_path, kind="ablation", best_against=["sasrec"])).text
    assert "difference to the full system, SASREC" in text
    assert "Improvement" not in text


def test_published_values_are_shown_for_data_of_the_same_name(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", data=("pantry",))
    write_cell(grid, "msm4sr", [1, 2], "pantry")
    page = page_of(grid)
    assert page.all("td", "printed")
    assert "0.0405" in page.text
    assert not Page(write_grid_report(small(tmp_path / "other"), resamples=50).read_text()).all("td", "printed")


def test_versions_that_differ_are_marked(tmp_path: Path) -> None:
    grid = small(tmp_path)
    change_metrics(cell_folder(grid, "sasrec"), versions={"python": "3.11.9", "torch": "2.6.0"})
    assert "2.6.0, 2.13.0 cells differ" in " ".join(page_of(grid).text.split())


def test_a_damaged_grid_leaves_no_report(tmp_path: Path) -> None:
    grid = small(tmp_path)
    (cell_folder(grid, "msm4sr", seed=1) / "users.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"users\.parquet"):
        write_grid_report(grid)
    assert not (grid / "report").exists()


def test_a_report_is_written_to_a_chosen_folder_and_can_be_written_again(tmp_path: Path) -> None:
    grid = small(tmp_path)
    for _ in range(2):
        page = write_grid_report(grid, tmp_path / "elsewhere" / "page", ["mrr"], resamples=50)
        assert page == tmp_path / "elsewhere" / "page" / "index.html"
    assert not (grid / "report").exists()
    assert "MRR" in (page.parent / "trial.md").read_text()


VALUE = st.floats(-1, 1, allow_subnormal=False)


@given(st.lists(st.tuples(VALUE, VALUE, VALUE), min_size=1, max_size=6))
def test_bars_and_intervals_share_one_scale(rows: list[tuple[float, float, float]]) -> None:
    ordered = [sorted(row) for row in rows]
    bars = difference_bars([("x", mean, low, high, 0, False) for low, mean, high in ordered])
    assert len({bar.zero for bar in bars}) == 1
    for bar, (low, mean, high) in zip(bars, ordered, strict=True):
        assert 0 <= bar.low <= bar.high <= WIDTH
        assert bar.low - 0.02 <= (bar.x if mean < 0 else bar.x + bar.width) <= bar.high + 0.02
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH
        assert (low <= 0 <= high) <= (bar.low - 0.02 <= bar.zero <= bar.high + 0.02)


MILLIONTHS = st.integers(0, 10**6).map(lambda number: number / 1e6)  # a metric of a million users is no finer
POINTS = st.lists(st.tuples(st.floats(0, 1e6), MILLIONTHS), max_size=5)


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(POINTS, max_size=3), max_size=4))
def test_panels_stay_in_their_frames_and_ours_comes_first(systems: dict[str, list[list[tuple[float, float]]]]) -> None:
    drawn = panels(
        "NDCG", "epoch", {name: [Curve(sorted(own)) for own in curves] for name, curves in systems.items()}, "d"
    )
    there = [name for name, curves in systems.items() if any(curves)]
    if not there:
        assert drawn is None
        return
    assert drawn is not None
    assert {panel.title for panel in drawn.panels} == set(there)
    assert drawn.panels[0].ours == ("d" in there)
    paths = [line.points for panel in drawn.panels for line in panel.lines] + drawn.background
    places = [tuple(map(float, pair.split(","))) for path in paths for pair in path.split()]
    assert all(0 <= x <= 240 and 0 <= y <= 150 for x, y in places)
    assert len(drawn.background) == sum(1 for curves in systems.values() for own in curves if own)


@pytest.mark.parametrize(
    ("epochs", "labels"),
    [
        ((1, 4), ["1", "2", "3", "4"]),
        ((1, 30), ["1", "3", "10", "30"]),
        ((2, 60), ["3", "10", "30"]),
        ((1, 5000), ["1", "10", "100", "1k"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_marks(epochs: tuple[int, int], labels: list[str]) -> None:
    drawn = panels("NDCG", "epoch", {"a": [Curve([(float(epoch), 0.1) for epoch in epochs])]})
    assert drawn is not None
    assert [label for _, label in drawn.panels[0].x_ticks] == labels


def test_named_positions_are_evenly_spaced_and_have_no_best() -> None:
    drawn = panels("Recall", "bucket", {"a": [Curve([(0.0, 0.1), (1.0, 0.3), (2.0, 0.2)])]}, names=["0", "1-5", ">5"])
    assert drawn is not None
    (panel,) = drawn.panels
    (one, two, three) = (x for x, _ in panel.x_ticks)
    assert three - two == pytest.approx(two - one)
    assert [label for _, label in panel.x_ticks] == ["0", "1-5", ">5"]
    (line,) = panel.lines
    assert line.best is None
    assert len(line.dots) == 3


@pytest.mark.parametrize(("kind", "first"), [("comparison", "Differences"), ("cold_start", "By popularity")])
def test_a_grid_about_cold_start_shows_popularity_first(tmp_path: Path, kind: str, first: str) -> None:
    text = page_of(small(tmp_path, kind=kind)).text
    assert min(("Differences", "By popularity"), key=text.index) == first


def test_shares_of_users_are_drawn_as_one_curve_per_model(tmp_path: Path) -> None:
    rows = [
        {"name": f"{model}-{share}", "label": f"{model} {share} %", "model": model}
        for model in ("sasrec", "msm4sr")
        for share in (10, 50, 100)
    ]
    grid = write_grid(tmp_path / "grid", kind="sparsity", rows=rows, best_against=["msm4sr-10", "msm4sr-100"])
    for row in rows:
        held_out = 1 - int(str(row["name"]).rpartition("-")[2]) / 100
        write_cell(grid, str(row["name"]), [3, 9, 40], settings={"dataset": {"hold_out_users": held_out}})
    html = write_grid_report(grid, resamples=50).read_text()
    section = html[html.index("By the share of users") : html.index("Differences on")]
    assert section.count("<figure") == 2
    assert section.count('class="ours"') == 1
    assert all(f">{name}</text>" in section for name in ("10%", "50%", "100%"))
    assert "By the share" not in page_of(small(tmp_path / "other")).text
