"""The page of a data set: what it shows, and that nothing in the data can act in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_pages import EVIL, Page

from msm4sr.data.statistics import statistics
from msm4sr.reports.data_report import _over_time, write_data_report
from msm4sr.reports.pages.charts import histogram


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (20, 20), "red").save(folder / "images" / "a.png")
    n = 30
    ids = [f"i{i}" for i in range(n)]
    titles = [EVIL, *ids[1:]]
    image = [["images/a.png"] if i % 10 == 0 else ["https://example.com/x.jpg"] for i in range(n)]
    pl.DataFrame({"item_id": ids, "title": titles, "categories": [[EVIL, "x"]] * n, "image": image}).write_parquet(
        folder / "items.parquet"
    )
    log = {
        "user_id": ["u", "v"] * n,
        "item_id": ids * 2,
        "timestamp": [1_500_000_000 + 86_400 * i for i in range(2 * n)],
    }
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    return folder


def page(shop: Path, tmp_path: Path) -> Page:
    return Page(write_data_report(statistics(shop), tmp_path / "page.html").read_text())


def test_the_page_shows_numbers_distributions_and_items_with_images_first(shop: Path, tmp_path: Path) -> None:
    shown = page(shop, tmp_path)
    assert [figure for figure in shown.all("svg") if "viewBox" in figure or "viewbox" in figure]
    assert len(shown.all("figure")) == 4
    assert len(shown.all("li", "card")) == 20
    images = [image["src"] for image in shown.all("img")]
    assert len(images) == 3
    assert all(source.startswith("data:image/jpeg") for source in images)
    assert "not fetched yet" in shown.text
    for text in ("30", "60", "Sparsity", "Statistics", "no provenance.json"):
        assert text in shown.text


def test_nothing_of_the_data_is_markup(shop: Path, tmp_path: Path) -> None:
    (shop / "provenance.json").write_text(
        json.dumps(
            {"made_by": EVIL, "format": EVIL, "sources": [], "steps": [], "dropped": [], "result": {"sha256": EVIL}}
        )
    )
    shown = page(shop, tmp_path)
    assert shown.all("script") == []
    assert EVIL in shown.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_by": 1, "format": 2, "sources": 3}'])
def test_a_damaged_provenance_is_ignored(shop: Path, tmp_path: Path, content: str) -> None:
    (shop / "provenance.json").write_text(content)
    assert "no provenance.json" in page(shop, tmp_path).text


def test_provenance_is_shown(shop: Path, tmp_path: Path) -> None:
    record = {
        "made_by": "msm4sr 1",
        "format": "amazon",
        "sources": [{"file": "reviews.json.gz", "bytes": 1234, "sha256": "ab" * 32}],
        "steps": [{"step": "read", "interactions": 77}],
        "dropped": [{"reason": "broken JSON", "count": 5, "example": "x"}],
        "result": {"sha256": "cd" * 32},
    }
    (shop / "provenance.json").write_text(json.dumps(record))
    text = page(shop, tmp_path).text
    for part in ("reviews.json.gz", "1,234 bytes", "After: read", "77 interactions", "broken JSON", "cdcdcdcdcdcdcdcd"):
        assert part in text


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=60))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    chart = histogram("Lengths", "users", np.array(values))
    counts = [int(bar.text.split(": ")[1].split()[0].replace(",", "")) for bar in chart.bars]
    assert sum(counts) == len(values)
    for bar, count in zip(chart.bars, counts, strict=True):
        low, _, high = bar.text.split(": ")[0].replace(",", "").partition(" to ")
        assert count == sum(int(low) <= value <= int(high or low) for value in values), bar.text
        assert 0 <= bar.x <= bar.x + bar.width <= 360.1
        assert (bar.height > 0) == (count > 0) or count < max(counts) / 100


def test_long_periods_are_counted_by_year() -> None:
    months = [(f"{2000 + m // 12}-{m % 12 + 1:02d}", 1) for m in range(120)]
    assert [bar.text for bar in _over_time(months).bars][:2] == ["2000: 12 interactions", "2001: 12 interactions"]
    assert len(_over_time(months[:48]).bars) == 48
