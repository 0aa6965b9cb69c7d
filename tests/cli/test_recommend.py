"""The command `recommend`: for a user, for a history, as a table and as a page; and its errors."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from calling import Cli, Trained

from msm4sr.cli import main
from msm4sr.data.dataset import load_dataset

Refused = Callable[..., str]


def test_a_user_gets_ten_new_items_with_titles(cli: Cli, trained: Trained, shop: Path) -> None:
    called = cli("recommend", trained.folder, "--user", "user-00007")
    assert called.code == 0, called
    items = dict(pl.read_parquet(shop / "items.parquet").select("item_id", "title").iter_rows())
    dataset = load_dataset(shop)
    seen = {dataset.item_ids[i] for i in dataset.histories[dataset.user_ids.index("user-00007")]}
    listed = re.findall(r"│ \d+ │ (\S+) │", called.out)
    assert len(listed) == len(set(listed)) == 10
    assert not set(listed) & seen
    assert all((items[item] or item) in called.out for item in listed)


def test_a_user_is_the_history_of_all_items_of_the_user(cli: Cli, trained: Trained, shop: Path) -> None:
    dataset = load_dataset(shop)
    history = [dataset.item_ids[i] for i in dataset.histories[dataset.user_ids.index("user-00007")]]
    of_user = cli("recommend", trained.folder, "--user", "user-00007").out
    of_history = cli("recommend", trained.folder, "--history", *history).out
    assert of_user.partition("┏")[2] == of_history.partition("┏")[2] != ""


def test_history_may_be_given_in_one_go_or_option_by_option(cli: Cli, trained: Trained) -> None:
    one = cli("recommend", trained.folder, "--history", "toy-0001", "toy-0002", "toy-0003", "-k", "2")
    other = cli(
        "recommend",
        trained.folder,
        "--history",
        "toy-0001",
        "--history",
        "toy-0002",
        "--history",
        "toy-0003",
        "-k",
        "2",
    )
    assert one.code == 0, one
    assert one.out == other.out
    assert "all 3" in one.out
    assert sum(word.startswith("toy-") for word in one.out.split()) == 2


def test_an_empty_history_gets_popular_items_and_the_answer_says_so(
    cli: Cli, trained: Trained, shop: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(shop)
    counts = Counter(dataset.item_ids[item] for history in dataset.histories for item in history[:-2])
    best = sorted(dataset.item_ids, key=lambda item_id: -counts[item_id])[:3]
    called = cli("recommend", trained.folder, "--history", "", "-k", "3", "--html", tmp_path / "page.html")
    assert called.code == 0, called
    assert called.out.startswith("an empty history: the items with the most training interactions")
    assert re.findall(r"│ \d+ │ (\S+) │.*?│ +(\d+) │", called.out) == [(item, str(counts[item])) for item in best]
    assert "Recommendations for an empty history (popular items)" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "? ?pple ?"), ("latin-1", "? äpple ?"), ("cp1252", "€ äpple ?"), ("utf-8", "€ äpple 木")],
)
def test_a_title_outside_the_encoding_of_stdout_is_printed_with_replacements(
    copy_of_run: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    file = copy_of_run / "model" / "items.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"titles": ["€ äpple 木"] * len(stored["titles"])}))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["msm4sr", "recommend", str(copy_of_run), "--history", "toy-0001", "-k", "2"])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert ended.value.code in (0, None)
    assert written.getvalue().decode(encoding).count(shown) == 3  # of the history and of two items


def test_the_order_of_a_history_matters(cli: Cli, trained: Trained) -> None:
    forth = cli("recommend", trained.folder, "--history", "toy-0001", "toy-0002", "toy-0003").out
    back = cli("recommend", trained.folder, "--history", "toy-0003", "toy-0002", "toy-0001").out
    assert forth.partition("┏")[2] != back.partition("┏")[2]


def test_seen_items_are_included_on_request_only(cli: Cli, trained: Trained) -> None:
    without = cli("recommend", trained.folder, "--history", "toy-0001", "-k", "60").out
    included = cli("recommend", trained.folder, "--history", "toy-0001", "-k", "60", "--include-seen").out
    assert "│ toy-0001 │" not in without
    assert "│ toy-0001 │" in included


def test_the_page_shows_images_and_titles(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    called = cli("recommend", trained.folder, "--user", "user-00007", "--html", page)
    assert f"page: {page}" in called.out
    html = page.read_text()
    assert "User user-00007" in html
    assert html.count("data:image/jpeg;base64,") > 10
    assert list(tmp_path.iterdir()) == [page]


def test_an_unknown_user_gets_the_closest_ids(refused: Refused, trained: Trained) -> None:
    message = refused("recommend", trained.folder, "--user", "USER-00007")
    assert "no user 'USER-00007'" in message
    assert "did you mean 'user-00007'" in message


def test_an_unknown_item_gets_the_closest_ids(refused: Refused, trained: Trained) -> None:
    message = refused("recommend", trained.folder, "--history", "toy-0001", "toy-001")
    assert "no item 'toy-001'" in message
    assert "did you mean" in message
    assert "no item 'toy-0001'" not in message


@pytest.mark.parametrize("who", [(), ("--user", "user-00007", "--history", "toy-0001")])
def test_one_of_user_and_history_is_needed(refused: Refused, trained: Trained, who: tuple[str, ...]) -> None:
    message = refused("recommend", trained.folder, *who)
    assert "--user" in message
    assert "--history" in message


def test_ids_belong_to_history(refused: Refused, trained: Trained) -> None:
    assert "'toy-0001'" in refused("recommend", trained.folder, "toy-0001", "--user", "user-00007")


@pytest.mark.parametrize("k", ["0", "-3"])
def test_at_least_one_item_must_be_asked_for(refused: Refused, trained: Trained, k: str) -> None:
    assert f"k is {k}" in refused("recommend", trained.folder, "--user", "user-00007", "-k", k)


def test_k_beyond_the_catalogue_gives_what_there_is(cli: Cli, trained: Trained) -> None:
    called = cli("recommend", trained.folder, "--history", "toy-0001", "-k", "1000")
    assert called.code == 0
    assert "│ 59 │" in called.out
    assert "│ 60 │" not in called.out


def test_a_page_that_cannot_be_written_is_an_error(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    called = cli("recommend", trained.folder, "--history", "toy-0001", "--html", tmp_path / "file" / "page.html")
    assert called.code in (1, 2)
    assert "error:" in called.err
    assert str(tmp_path / "file") in called.err


def test_a_run_that_is_not_finished_has_nothing_to_recommend(refused: Refused, copy_of_run: Path) -> None:
    (copy_of_run / "model" / "model.safetensors").unlink()
    message = refused("recommend", copy_of_run, "--user", "user-00007")
    assert str(copy_of_run / "model") in message
    assert "no model here (model.safetensors is missing); `msm4sr evaluate RUN` creates one" in message


def test_items_that_changed_since_the_training_are_refused(
    refused: Refused, copy_of_run: Path, shop: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(shop, tmp_path / "other"))
    items = pl.read_parquet(other / "items.parquet")
    items.reverse().write_parquet(other / "items.parquet")
    message = refused("recommend", copy_of_run, "--user", "user-00007", "--data", other)
    assert f"{other}: the items are no longer those" in message
    (copy_of_run / "model" / "items.json").unlink()
    message = refused("recommend", copy_of_run, "--user", "user-00007")
    assert f"{copy_of_run}: training is incomplete: continue with `msm4sr run ... --resume`" in message


def test_a_history_and_rules_need_the_model_folder_only(
    cli: Cli, refused: Refused, trained: Trained, copy_of_run: Path, shop: Path
) -> None:
    category = pl.read_parquet(shop / "items.parquet")["categories"][2][0]
    config = copy_of_run / "config.yaml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join("data: /nowhere" if line.startswith("data:") else line for line in lines))
    history = ["--history", "toy-0001", "toy-0002"]
    for rules in ([], ["--exclude-category", category], ["--include-category", category]):
        without, expected = (cli("recommend", run, *history, *rules).out for run in (copy_of_run, trained.folder))
        assert without.startswith("/nowhere: no such folder")
        assert without.endswith(expected)
    message = refused("recommend", copy_of_run, "--user", "user-00007")
    assert "/nowhere" in message
    assert "--user needs the data of the run; --history needs only its model folder" in message


def test_rules_filter_boost_and_diversify(cli: Cli, trained: Trained, shop: Path) -> None:
    categories = dict(pl.read_parquet(shop / "items.parquet").select("item_id", "categories").iter_rows())
    price = next(names[1] for names in categories.values() if names)
    history = ("recommend", trained.folder, "--history", "toy-0001", "toy-0002")

    def listed(*options: str) -> list[str]:
        called = cli(*history, "-k", "60", *options)
        assert called.code == 0, called
        return re.findall(r"│ +\d+ │ (\S+) │", called.out)

    plain = listed()
    only = listed("--include-category", price)
    assert only == [item for item in plain if price in (categories[item] or ())]
    assert listed("--exclude-category", price) == [item for item in plain if item not in only]
    assert listed("--exclude-item", plain[0], "--exclude-item", plain[2]) == [plain[1], *plain[3:]]
    assert listed("--boost-item", f"{plain[-1]}=50")[0] == plain[-1]
    assert listed("--boost-item", f"{plain[-1]}=50", "--boost-item", f"{plain[-1]}=0")[0] == plain[-1]  # they add up
    assert listed("--boost-category", f"{price}=50")[: len(only)] == only
    diverse = listed("--diversity", "0.9")
    assert diverse[0] == plain[0]
    assert diverse != plain
    assert sorted(diverse) == sorted(plain)
    assert (
        "no item is left to recommend" in cli(*history, "--exclude-category", "Toys", "--include-category", price).out
    )


def test_popular_items_are_filtered_and_boosted(cli: Cli, trained: Trained) -> None:
    asked = ("recommend", trained.folder, "--history", "", "-k", "3")
    best = re.findall(r"│ +\d+ │ (\S+) │", cli(*asked).out)
    assert best[0] not in cli(*asked, "--exclude-item", best[0]).out
    boosted = cli(*asked, "--boost-item", f"{best[2]}=9.5").out
    assert re.findall(r"│ +\d+ │ (\S+) │", boosted)[0] == best[2]
    assert "score" in boosted  # and not a number of interactions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--boost-item", "toy-0001"), "--boost-item 'toy-0001': give a name and a number, such as toy-0001=0.5"),
        (("--boost-category", "Toys=much"), "--boost-category 'Toys=much': give a name and a number, such as Toys=0.5"),
        (("--boost-category", "Toys=1000"), "'Toys' has the boost 1000.0: give a number from -100 to 100"),
        (("--diversity", "2"), "diversity is 2.0: give a number from 0 to 1"),
        (("--include-category", "Tois"), "no category 'Tois' in the catalogue: did you mean 'Toys'?"),
        (("--exclude-item", "toy-1"), "no item 'toy-1' in the catalogue of 60"),
    ],
)
def test_a_wrong_rule_is_named(refused: Refused, trained: Trained, options: tuple[str, str], message: str) -> None:
    assert message in refused("recommend", trained.folder, "--history", "toy-0003", *options)
