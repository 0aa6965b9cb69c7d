"""The page in Chromium: build a history, see it change, switch, filter, search; wrong input, long words, no script."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from browsing import DESK, PHONE, answer, expect_recommended, fits, pick, recommended
from playwright.sync_api import Browser, Page, expect
from service import Server, serving
from serving import generate_run

from msm4sr.data.dataset import load_dataset

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)> & \"quotes\" 'n' </script>"


def test_picks_change_what_is_recommended_and_the_switch_does_too(page: Page, server: Server) -> None:
    ids = [str(one.get_attribute("data-id")) for one in page.locator("#catalogue > li").all()]
    assert len(ids) == 60
    pick(page, ids[0])
    first = recommended(page)
    assert first == answer(server, [ids[0]], "both")
    assert ids[0] not in first
    pick(page, ids[7])
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#recommended li .why-line").first).to_contain_text("Mostly by ")
    second = answer(server, [ids[0], ids[7]], "both")
    expect(page.locator(f'#recommended:not(.waiting) li:first-child[data-id="{second[0]}"]')).to_be_visible()
    assert recommended(page) == second
    for label, modality in (("Text", "text"), ("Image", "visual"), ("Both", "both")):
        page.locator("#by").get_by_label(label, exact=True).check()
        expect_recommended(page, answer(server, [ids[0], ids[7]], modality))
    page.locator("#recommended button").first.click()  # a recommendation is picked as well
    expect(page.locator("#history li")).to_have_count(3)
    page.locator("#history button").first.click()  # and removed again
    expect(page.locator("#history li")).to_have_count(2)
    page.reload()
    expect(page.locator("#history li")).to_have_count(2)
    page.locator("#clear").click()
    expect(page.locator("#invite")).to_be_visible()


def test_without_a_history_popular_items_are_shown(page: Page, server: Server) -> None:
    expect(page.locator("#what")).to_have_text("Popular items")
    expect_recommended(page, answer(server, [], "both"))
    expect(page.locator("#recommended .why-line").first).to_have_text("Popular")
    expect(page.locator("#by")).to_be_hidden()
    page.locator("#recommended button").first.click()
    expect(page.locator("#what")).to_have_text("Next for you")
    expect(page.locator("#by")).to_be_visible()


def test_categories_and_diversity_change_what_is_recommended(page: Page, server: Server) -> None:
    ids = [str(one.get_attribute("data-id")) for one in page.locator("#catalogue > li").all()]
    pick(page, ids[0])
    plain = answer(server, ids[:1], "both")
    expect_recommended(page, plain)
    page.locator("#rules summary").click()
    names = page.get_by_label("Only category").locator("option").all_inner_texts()[1:]
    assert names == sorted(names, key=str.casefold)
    one, other = [name for name in names if name != "Toys"][:2]
    page.get_by_label("Only category").select_option(one)
    expect_recommended(page, answer(server, ids[:1], "both", include_categories=[one]))
    page.get_by_label("Only category").select_option(other)
    expect_recommended(page, answer(server, ids[:1], "both", include_categories=[one, other]))
    page.get_by_label("Without category").select_option(one)  # a category has one kind at most
    expect(page.locator("#chips li")).to_have_text([f"Only {other}", f"Without {one}"])
    expect_recommended(page, answer(server, ids[:1], "both", include_categories=[other], exclude_categories=[one]))
    page.get_by_role("button", name=f"Remove: Only {other}").click()
    page.get_by_label("Boost category").select_option(other)
    rules = {"exclude_categories": [one], "boost_categories": {other: 1}}
    expect_recommended(page, answer(server, ids[:1], "both", **rules))
    page.locator("#diversity").fill("0.9")
    expect(page.locator("#rules output")).to_have_text("0.9")
    diverse = answer(server, ids[:1], "both", diversity=0.9, **rules)
    assert diverse != answer(server, ids[:1], "both", **rules)
    expect_recommended(page, diverse)
    page.reload()  # rules are kept
    expect_recommended(page, diverse)
    expect(page.locator("#chips li")).to_have_count(2)
    page.locator("#rules summary").click()
    page.get_by_label("Only category").select_option("Toys")
    for name in set(names) - {one, "Toys"}:
        page.get_by_label("Without category").select_option(name)
    expect(page.locator("#status")).to_have_text("No item fits these rules. Remove one.")


def test_a_user_of_the_run_in_place_of_a_history(page: Page, server: Server, toyshop: Path) -> None:
    dataset = load_dataset(toyshop)
    user = max(range(dataset.n_users), key=lambda user: len(dataset.histories[user]))
    history = [dataset.item_ids[item] for item in dataset.histories[user]]
    page.get_by_label("User id").fill("no such user")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No user 'no such user' among the 60 users")
    page.get_by_label("User id").fill(dataset.user_ids[user])
    page.keyboard.press("Enter")
    expect(page.locator("#whose")).to_have_text(f"History of user {dataset.user_ids[user]}")
    expect(page.locator("#history li")).to_have_count(len(history))
    expect_recommended(page, answer(server, history, "both"))
    expect(page.locator("#status")).to_be_hidden()
    page.reload()
    expect(page.locator("#whose")).to_have_text(f"History of user {dataset.user_ids[user]}")
    page.locator("#history button").last.click()  # a changed history is no longer that of the user
    expect(page.locator("#whose")).to_have_text("Your history")
    expect_recommended(page, answer(server, history[:-1], "both"))
    page.locator("#clear").click()
    expect(page.locator("#what")).to_have_text("Popular items")


def test_a_service_that_cannot_be_reached_is_an_error_and_no_old_list_is_shown(page: Page) -> None:
    expect(page.locator("#recommended li")).to_have_count(12)
    page.route("**/page/recommend", lambda route: route.abort())
    page.locator("#catalogue .pick").first.click()
    expect(page.locator("#status")).to_have_text("The service cannot be reached. Try again later.")
    expect(page.locator("#status")).to_be_in_viewport()
    expect(page.locator("#recommended li")).to_have_count(0)
    page.unroute("**/page/recommend")
    page.locator("#catalogue .pick").nth(1).click()
    recommended(page)
    expect(page.locator("#status")).to_be_hidden()


def test_a_search_that_fails_shows_no_old_items(page: Page) -> None:
    page.route("**/items?*", lambda route: route.abort())
    page.locator("#q").fill("train")
    expect(page.locator("#found")).to_have_text("The service cannot be reached. Try again later.")
    expect(page.locator("#catalogue > li")).to_have_count(0)
    page.unroute("**/items?*")
    page.locator("#q").fill("")
    expect(page.locator("#catalogue > li")).to_have_count(60)
    expect(page.locator("#found")).to_be_hidden()


def test_a_removed_item_leaves_the_history(page: Page, server: Server) -> None:
    added = {"item_id": "soon-gone", "title": "Soon gone", "text": "A red wooden train"}
    assert server.client.post("/items", data=added).status_code == 201
    page.reload()
    pick(page, added["item_id"])
    expect(page.locator("#what")).to_have_text("Next for you")
    assert server.client.delete("/items/soon-gone").status_code == 204
    page.locator("#rules summary").click()
    page.locator("#diversity").fill("0.5")  # asks again
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator("#what")).to_have_text("Popular items")
    expect(page.locator("#recommended .why-line").first).to_have_text("Popular")


def test_long_words_do_not_make_a_page_wider(page: Page, server: Server) -> None:
    long = {"item_id": "x" * 200, "title": "y" * 1000, "text": "z" * 2000, "categories": ["c" * 150]}
    assert server.client.post("/items", data=long).status_code == 201
    try:
        page.locator("#user").fill("u" * 200)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("No user")
        page.locator("#q").fill("w" * 200)
        expect(page.locator("#found")).to_contain_text("No item found")
        fits(page)
        page.goto(f"{server.url}/item/{long['item_id']}")
        page.get_by_role("button", name="Add to history").click()
        fits(page)
        page.goto(server.url)
        recommended(page)
    finally:
        server.client.delete(f"/items/{long['item_id']}")


def test_titles_and_texts_are_never_markup(page: Page, server: Server) -> None:
    added = server.client.post("/items", data={"item_id": HOSTILE, "title": HOSTILE, "text": HOSTILE})
    assert added.status_code == 201
    page.reload()
    card = page.locator("#catalogue > li").first
    expect(card.locator(".name")).to_have_text(HOSTILE)
    card.locator(".pick").click()
    expect(page.locator("#history li")).to_have_count(1)
    recommended(page)
    page.locator("#recommended button").first.click()
    expect(page.locator("#history li")).to_have_count(2)
    card.locator(".more").click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator(".pick-this")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".about .grid").first).to_be_visible()
    page.locator(".about .grid a").first.click()
    expect(page.locator("h1")).not_to_have_text(HOSTILE)
    page.goto(server.url)
    assert server.client.delete(f"/items/{quote(HOSTILE, safe='')}").status_code == 204


def test_everything_can_be_reached_by_keyboard(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    title = page.locator("#catalogue .name").nth(9).inner_text()
    page.keyboard.type(title)
    expect(page.locator("#found")).to_contain_text("found for")
    expect(page.locator("#catalogue .name").first).to_have_text(title)
    page.locator("#catalogue .pick").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#catalogue .pick").first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#history li")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.locator("#catalogue .more").first).to_be_focused()
    recommended(page)
    page.locator("#recommended button").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(2)
    recommended(page)
    expect(page.locator("#recommended button").nth(2)).to_be_focused()
    page.locator("#history button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history button")).to_have_count(1)
    expect(page.locator("#history button")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#q")).to_be_focused()


def test_search_that_finds_nothing_says_what_to_do(page: Page) -> None:
    page.locator("#q").fill("no such thing at all")
    expect(page.locator("#found")).to_have_text("No item found for “no such thing at all”. Try fewer or other words.")
    expect(page.locator("#catalogue > li")).to_have_count(0)


def test_the_search_and_the_item_page_need_no_script(browser: Browser, server: Server) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.url)
    title = page.locator("#catalogue .name").first.inner_text()
    page.locator("#q").fill(title)
    page.keyboard.press("Enter")
    expect(page.locator("#found")).to_contain_text("found for")
    page.locator("#catalogue .more").first.click()
    expect(page.locator("h1")).to_have_text(title)
    context.close()


def test_the_page_works_below_a_root_path(browser: Browser, run_folder: Path, tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state", "--root-path", "/shop") as server:
        context = browser.new_context(viewport=DESK)
        page = context.new_page()
        page.set_default_timeout(60_000)
        requested: list[str] = []
        page.on("response", lambda one: requested.append(f"{one.status} {one.url.removeprefix(server.url)}"))
        page.goto(f"{server.url}/shop/")
        title = page.locator("#catalogue .name").nth(9).inner_text()
        page.locator("#q").fill(title)
        expect(page.locator("#found")).to_contain_text("found for")
        page.locator("#catalogue .pick").first.click()
        recommended(page)
        image = page.locator("#recommended img").first
        assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
        page.locator("#open-add").click()
        page.get_by_label("Title", exact=True).fill("A thing below a path")
        page.locator("#add").get_by_role("button", name="Add").click()
        expect(page.locator("#status")).to_contain_text("was added")
        page.locator("#catalogue .more").first.click()
        expect(page.locator("h1")).to_have_text(title)
        page.locator(".about .grid a").first.click()
        expect(page.locator("h1")).not_to_have_text(title)
        page.locator(".back").click()
        expect(page.locator("#history li")).to_have_count(1)
        good = {f"{status} /shop/" for status in (200, 201, 304)}
        assert [one for one in requested if one[:10] not in good and "data:" not in one] == []
        context.close()


def test_ten_thousand_items_are_loaded_in_slices(browser: Browser, tmp_path: Path) -> None:
    with serving(generate_run(tmp_path, 10_000), tmp_path / "state") as server:
        context = browser.new_context(viewport=PHONE)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        expect(page.locator("#catalogue > li")).to_have_count(60)
        assert len(page.content()) < 200_000
        page.locator("#more").evaluate("button => { button.click(); button.click() }")
        expect(page.locator("#catalogue > li")).to_have_count(120)
        ids = page.locator("#catalogue > li").evaluate_all("cards => cards.map(card => card.dataset.id)")
        assert len(set(ids)) == 120
        page.locator("#q").fill("Item 9999")
        expect(page.locator("#catalogue > li")).to_have_count(1)
        pick(page, "9999")
        assert recommended(page) == answer(server, ["9999"], "both")
        context.close()
