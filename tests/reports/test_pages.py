from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from msm4sr.data.items import Item
from msm4sr.features.images import load_image
from msm4sr.reports.pages.charts import learning_curves, ticks
from msm4sr.reports.pages.page import ExampleUser, recommendation_page
from msm4sr.reports.run_report import RunReport, run_page

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes and the text, and a check that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, cls: str = "") -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and (not cls or cls in a.get("class", "").split())]


@dataclass(frozen=True)
class Shop:
    """Six items and the folder of their images."""

    items: list[Item]
    folder: Path

    def example(
        self, scores: dict[int, float], target: int | None = None, history: Sequence[int] = (0, 1)
    ) -> ExampleUser:
        return ExampleUser(
            "ann",
            [self.items[row] for row in history],
            [(self.items[row], score) for row, score in scores.items()],
            None if target is None else self.items[target],
        )

    def page(self, *users: ExampleUser) -> str:
        return recommendation_page("p", users, self.folder)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Item 0 has a red image, item 1 a broken file, item 2 a tall image, the others none."""
    Image.new("RGB", (64, 60), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    Image.new("RGB", (400, 900), "blue").save(tmp_path / "tall.png")
    contents = [("cup-1", "Red cup", "red.png"), ("cup-2", "Blue cup", "broken.jpg"), ("pot-1", "Tea pot", "tall.png")]
    items = [Item(item_id, title, images=[image]) for item_id, title, image in contents]
    others = [Item("pan-1", "Frying pan"), Item("jar-1", "<script>alert('jar')</script>"), Item("x", "x")]
    return Shop(items + others, tmp_path)


def report(**changes: object) -> RunReport:
    values: dict[str, object] = {
        "name": "toys",
        "data_lines": [("Users", "12"), ("Dropped", "none")],
        "metrics": {"validation": {"mrr": 0.3, "ndcg@10": 0.25}, "test": {"mrr": 0.2, "ndcg@10": 0.125}},
        "epochs": [
            {"stage": "pretrain", "epoch": 1, "loss": 5.0, "seconds": 30.0},
            {"stage": "pretrain", "epoch": 2, "loss": 4.0, "seconds": 40.0},
            {"stage": "finetune", "epoch": 1, "loss": 3.0, "recall@20": 0.1, "ndcg@10": None},
        ],
        "settings_yaml": "model:\n  dim: 64\n",
    }
    return RunReport(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def pages(shop: Shop) -> list[str]:
    one = shop.example({4: 2.0, 2: 1.0, 3: -1.0}, target=2)
    return [shop.page(one), run_page(report(users=[one], folder=shop.folder))]


def test_no_title_from_data_can_become_a_script(shop: Shop, pages: list[str]) -> None:
    for page in pages:
        assert not Page(page).all("script")
        assert "&lt;script&gt;alert(&#39;jar&#39;)&lt;/script&gt;" in page


def test_every_text_of_a_report_is_escaped(shop: Shop) -> None:
    page = run_page(
        report(
            name=EVIL,
            data_lines=[(EVIL, EVIL)],
            metrics={EVIL: {EVIL: 1.0}},
            epochs=[{"stage": EVIL, "epoch": 0, "loss": 1.0, f"{EVIL}@1": 0.5}],
            settings_yaml=EVIL,
            comparison=[(EVIL, {EVIL: 1.0})],
        )
    )
    assert not Page(page).all("script")


def test_a_page_asks_the_network_for_nothing(pages: list[str]) -> None:
    for page in pages:
        parsed = Page(page)
        assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
        assert not parsed.all("link")
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in parsed.all("img"))


def test_the_policy_allows_this_stylesheet_and_embedded_images_only(pages: list[str]) -> None:
    for page in pages:
        policy = next(m for m in Page(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
        style = re.search("<style>(.*?)</style>", page, re.DOTALL)
        assert style
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        assert policy["content"] == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        )
        # The policy would drop these silently.
        assert not any("style" in attributes or "onerror" in attributes for _, attributes in Page(page).tags)


def test_images_are_small_jpegs_with_the_title_as_alternative_text(shop: Shop) -> None:
    sources = Page(shop.page(shop.example({2: 1.0}))).all("img")
    assert [source["alt"] for source in sources] == ["Red cup", "Tea pot"]
    sizes = []
    for source in sources:
        data = base64.b64decode(source["src"].removeprefix("data:image/jpeg;base64,"))
        image = Image.open(io.BytesIO(data))
        assert image.format == "JPEG"
        sizes.append(image.size)
    assert sizes == [(64, 60), (107, 240)]


def test_a_missing_and_a_broken_image_become_a_tile_that_says_so(shop: Shop) -> None:
    page = Page(shop.page(shop.example({3: 1.0})))
    labels = [span["aria-label"] for span in page.all("span", "tile") if "aria-label" in span]
    assert labels == ["Blue cup: image unreadable", "Frying pan: no image"]
    assert "Fno image" in page.text  # the initial, then the note


def test_an_image_outside_the_folder_is_not_shown(shop: Shop, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    user = ExampleUser("u", [Item("a", "A", images=["../red.png"])], [])
    assert not Page(recommendation_page("p", [user], inner)).all("img")


def test_the_first_readable_image_of_an_item_is_shown(shop: Shop) -> None:
    user = ExampleUser("u", [Item("a", "A", images=["broken.jpg", "red.png"])], [])
    assert len(Page(shop.page(user)).all("img")) == 1


def test_an_image_is_decoded_once_a_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def load(folder: Path, path: str, size_hint: int) -> Image.Image:
        decoded.append(path)
        return load_image(folder, path, size_hint)

    monkeypatch.setattr("msm4sr.reports.pages.thumbnails.load_image", load)
    shop.page(shop.example({2: 1.0}), shop.example({2: 1.0, 0: 0.5}))
    assert sorted(decoded) == ["broken.jpg", "red.png", "tall.png"]


def test_items_without_images_or_a_folder_make_a_page() -> None:
    user = ExampleUser("u", [Item("a", "A", images=["a.png"])], [(Item("b", "B"), 1.0)])
    assert "no image" in recommendation_page("p", [user], None)


def test_the_next_item_is_marked_among_the_recommendations(shop: Shop) -> None:
    page = shop.page(shop.example({3: 2.0, 2: 1.0}, target=2))
    assert page.count(">next item<") == 1
    assert "Next item: <b>Tea pot</b>, rank 2" in page


def test_a_target_that_was_missed_is_named_and_nothing_is_marked(shop: Shop) -> None:
    page = shop.page(shop.example({3: 2.0, 2: 1.0}, target=5))
    assert ">next item<" not in page
    assert "Next item: <b>x</b>, not among these 2" in page


def test_only_the_last_items_of_a_long_history_are_shown(shop: Shop) -> None:
    page = shop.page(shop.example({}, history=[3] * 20 + [0, 2]))
    assert "last 10 of 22" in page
    assert [image["alt"] for image in Page(page).all("img")] == ["Red cup", "Tea pot"]


def test_score_bars_are_proportional_and_stay_inside_with_negative_scores(shop: Shop) -> None:
    def bars(scores: dict[int, float]) -> list[float]:
        page = Page(shop.page(shop.example(scores)))
        return [float(rect["width"]) for rect in page.all("rect", "fill")]

    assert bars({3: 2.0, 2: 1.0}) == [100.0, 50.0]
    assert bars({3: 1.0, 2: -3.0}) == [100.0, 0.0]
    assert bars({3: 0.0}) == [0.0]


def test_a_page_without_users_says_so() -> None:
    assert "No users." in Page(recommendation_page("p", [], None)).text


def test_a_report_with_neither_users_nor_epochs_nor_metrics_renders() -> None:
    page = Page(run_page(report(users=[], epochs=[], metrics={}, data_lines=[])))
    assert "Learning curves" not in page.text
    assert not page.all("article")


def test_metrics_are_side_by_side_in_reading_order() -> None:
    metrics = {"validation": {"mrr": 0.5, "ndcg@10": 0.4, "recall@50": 0.3, "recall@5": 0.2}, "test": {"mrr": 0.05}}
    page = run_page(report(metrics=metrics))
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>', page)
    assert rows == [
        ("Recall@5", "0.2000", "–"),
        ("Recall@50", "0.3000", "–"),
        ("NDCG@10", "0.4000", "–"),
        ("MRR", "0.5000", "0.0500"),
    ]


def test_the_best_value_of_each_column_of_the_comparison_is_bold() -> None:
    systems = [("Popularity", {"mrr": 0.1, "recall@5": 0.4}), ("MSM4SR", {"mrr": 0.3, "recall@5": 0.2})]
    page = run_page(report(comparison=systems))
    assert re.findall("<td><b>(.*?)</b></td>", page) == ["0.4000", "0.3000"]


def test_curves_are_drawn_for_each_stage_and_gaps_are_skipped() -> None:
    nan = [{"stage": "finetune", "epoch": 2, "loss": math.nan, "recall@20": 0.2}]
    charts = learning_curves([*report().epochs, *nan])
    assert [chart.title for chart in charts] == ["Pre-training: loss", "Fine-tuning: loss", "Fine-tuning: validation"]
    assert len(charts[0].lines[0].points.split()) == 2
    assert len(charts[1].lines[0].dots) == 1
    assert charts[2].lines[0].best is not None
    assert charts[2].lines[0].best[1] == "0.2000 at epoch 2"


def test_a_falling_loss_falls_on_the_chart() -> None:
    chart = learning_curves(report().epochs)[0]
    (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in chart.lines[0].points.split()]
    assert x1 < x2
    assert y1 < y2  # SVG counts downwards
    assert [label for _, label in chart.y_ticks] == ["4.0", "4.5", "5.0"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.4, [0.0, 0.1, 0.2, 0.3, 0.4]), (3.1, 9.0, [2.0, 4.0, 6.0, 8.0, 10.0]), (0.0, 0.0, [0.0, 0.5, 1.0])],
)
def test_axis_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_the_duration_of_training_is_shown() -> None:
    assert "3 epochs in 1 min 10 s" in run_page(report())
