"""The page in Chromium: build a history, see it change, switch, add an item with a photo, find it recommended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from service import Server, serving
from serving import generate_run

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.loading import load_recommender

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1300, "height": 900}
HOSTILE = "<img src=x onerror=alert(1)> & \"quotes\" 'n' </script>"


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(run_folder, tmp_path_factory.mktemp("story") / "state") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """The catalogue page. No request to another host, no failing script, no horizontal overflow."""
    context = browser.new_context(viewport=request.param)
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)  # a busy machine is no failure
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.on("request", lambda one: None if one.url.startswith((server.url, "data:")) else wrong.append(one.url))
    page.on("dialog", lambda dialog: wrong.append("a dialog"))
    page.goto(server.url)
    yield page
    fits(page)
    context.close()
    assert wrong == []


def is_wrong(message: ConsoleMessage) -> bool:
    """Chromium itself logs every answer over 400, which the page shows in words."""
    return message.type == "error" and "Failed to load resource" not in message.text


def recommended(page: Page) -> list[str]:
    expect(page.locator("#recommended:not(.waiting) li")).to_have_count(12)
    return [str(one.get_attribute("data-id")) for one in page.locator("#recommended li").all()]


def pick(page: Page, item_id: str) -> None:
    page.locator(f'#catalogue [data-id="{item_id}"] .pick').click()


def test_picks_change_what_is_recommended_and_the_switch_does_too(page: Page, server: Server) -> None:
    ids = [str(one.get_attribute("data-id")) for one in page.locator("#catalogue > li").all()]
    assert len(ids) == 60
    pick(page, ids[0])
    first = recommended(page)
    assert first == answer(server, [ids[0]], "both")
    assert ids[0] not in first
    pick(page, ids[7])
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#recommended li .why-line").first).to_contain_text("mostly")
    second = answer(server, [ids[0], ids[7]], "both")
    expect(page.locator(f'#recommended:not(.waiting) li:first-child[data-id="{second[0]}"]')).to_be_visible()
    assert recommended(page) == second
    for label, way in (("Text", "text"), ("Image", "visual"), ("Both", "both")):
        page.locator("#by").get_by_label(label, exact=True).check()
        expect_recommended(page, answer(server, [ids[0], ids[7]], way))
    page.locator("#recommended button").first.click()  # a recommendation is picked as well
    expect(page.locator("#history li")).to_have_count(3)
    page.locator("#history button").first.click()  # and removed again
    expect(page.locator("#history li")).to_have_count(2)
    page.reload()
    expect(page.locator("#history li")).to_have_count(2)
    page.locator("#clear").click()
    expect(page.locator("#invite")).to_be_visible()


def answer(server: Server, history: list[str], way: str, **more: Any) -> list[str]:
    found = server.client.post("/recommend", json={"history": history, "k": 12, "by": way} | more).json()
    return [one["item_id"] for one in found["items"]]


def expect_recommended(page: Page, item_ids: list[str]) -> None:
    for place, item_id in enumerate(item_ids, start=1):
        shown = page.locator(f"#recommended:not(.waiting) li:nth-child({place})")
        expect(shown).to_have_attribute("data-id", item_id)
    expect(page.locator("#recommended li")).to_have_count(len(item_ids))


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


def test_an_item_that_is_added_with_a_photo_is_recommended(
    page: Page, server: Server, run_folder: Path, toyshop: Path, tmp_path: Path
) -> None:
    """With the photo and the text of the best recommendation: the new item must rank high as well."""
    recommender = load_recommender(run_folder)
    ids = load_dataset(toyshop).item_ids
    pick(page, ids[0])
    pick(page, ids[1])
    expect(page.locator("#history li")).to_have_count(2)
    best = next(i for i in answer(server, ids[:2], "both") if recommender.item(i).images)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(recommender.read_image(best))
    page.locator("#open-add").click()
    page.get_by_label("Title", exact=True).fill(f"My own {page.viewport_size['width'] if page.viewport_size else ''}")
    page.locator("#add textarea").fill(recommender.item(best).text or recommender.item(best).title)
    page.get_by_label("Photo").set_input_files(photo)
    expect(page.locator("#preview")).to_be_visible()
    page.locator("#add").get_by_role("button", name="Add").click()
    expect(page.locator("#status")).to_contain_text("was added: rank")
    new = str(page.locator("#catalogue > li").first.get_attribute("data-id"))
    assert new.startswith("my-own")
    rank = next(n for n, one in enumerate(all_ranked(server, ids[:2]), start=1) if one == new)
    expect(page.locator("#status")).to_contain_text(f"rank {rank} for your history")
    assert rank <= 30  # of 59
    shown = page.locator(f'#catalogue [data-id="{new}"] img')
    expect(shown).to_be_visible()
    assert shown.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    server.client.delete(f"/items/{new}")


def all_ranked(server: Server, history: list[str]) -> list[str]:
    found = server.client.post("/recommend", json={"history": history, "k": 200}).json()
    return [one["item_id"] for one in found["items"]]


def test_an_item_is_switched_off_and_on(page: Page, server: Server) -> None:
    """Off: known in the history, shown as unavailable in the catalogue, not recommended. All by keyboard."""
    ids = [str(one.get_attribute("data-id")) for one in page.locator("#catalogue > li").all()]
    off = answer(server, ids[:1], "both")[0]
    title = server.client.get(f"/items/{off}").json()["title"]
    page.goto(f"{server.url}/item/{off}")
    expect(page.locator(".availability")).to_have_text("Available", use_inner_text=True)
    switch(page, "Make unavailable")
    expect(page.locator(".availability")).to_contain_text("Unavailable: not recommended", use_inner_text=True)
    expect(page.get_by_role("button", name="Make available")).to_be_focused()
    page.get_by_role("button", name="Add to history").click()
    page.goto(server.url)
    expect(page.locator(f'#catalogue [data-id="{off}"] .badge')).to_have_text("Unavailable")
    pick(page, ids[0])
    expect(page.locator("#history").get_by_role("button", name=f"Remove {title}", exact=True)).to_be_visible()
    expect_recommended(page, answer(server, [off, ids[0]], "both"))
    page.locator("#history button").first.click()
    without = answer(server, ids[:1], "both")
    assert off not in without
    expect_recommended(page, without)
    page.goto(f"{server.url}/item/{off}")
    switch(page, "Make available")
    expect(page.locator(".availability")).to_have_text("Available", use_inner_text=True)
    page.goto(server.url)
    expect_recommended(page, [off, *without[:-1]])
    expect(page.locator(f'#catalogue [data-id="{off}"] .badge')).to_have_count(0)


def switch(page: Page, name: str) -> None:
    """Open the dialog with the button of that name, leave it, open it again, and confirm, without a mouse."""
    page.get_by_role("button", name=name).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=name.replace("Make", "Make this item"))).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_change_that_is_refused_leaves_the_item_and_says_why(page: Page, server: Server) -> None:
    assert server.client.post("/items", data={"item_id": "gone", "title": "Gone"}).status_code == 201
    page.goto(f"{server.url}/item/gone")
    server.client.delete("/items/gone")
    page.get_by_role("button", name="Make unavailable").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Make unavailable").click()
    expect(dialog.get_by_role("alert")).to_contain_text("No item 'gone' in the catalogue")
    page.route("**/items/*", lambda route: route.abort())
    dialog.get_by_role("button", name="Make unavailable").click()
    expect(dialog.get_by_role("alert")).to_have_text("The service cannot be reached. Try again later.")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator(".availability")).to_have_text("Available", use_inner_text=True)


def test_changes_on_the_page_need_the_key_of_the_service(browser: Browser, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("sesame")
    with serving(run_folder, tmp_path / "state", "--api-key-file", str(tmp_path / "key.txt")) as server:
        context = browser.new_context(viewport=PHONE)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        page.locator("#catalogue .more").first.click()
        page.get_by_role("button", name="Make unavailable").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_label("API key")).to_be_focused()
        page.keyboard.press("Enter")  # the browser asks for the key
        expect(dialog).to_be_visible()
        page.keyboard.type("open")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("This is not the API key of the service.")
        assert server.client.get("/ready").json()["unavailable"] == 0
        dialog.get_by_label("API key").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator(".availability")).to_contain_text("Unavailable", use_inner_text=True)
        assert server.client.get("/ready").json()["unavailable"] == 1
        page.reload()
        expect(page.locator(".availability")).to_contain_text("Unavailable", use_inner_text=True)
        context.close()


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


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"


def test_a_broken_photo_is_an_error_in_the_form(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    page.locator("#open-add").click()
    page.get_by_label("Title", exact=True).fill("A thing")
    page.get_by_label("Photo").set_input_files(tmp_path / "photo.jpg")
    page.locator("#add").get_by_role("button", name="Add").click()
    expect(page.locator("#add .wrong")).to_contain_text("Image 1 cannot be used: not an image")
    page.keyboard.press("Escape")
    expect(page.locator("#add")).to_be_hidden()


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
        page.locator("#more").click()
        expect(page.locator("#catalogue > li")).to_have_count(120)
        page.locator("#q").fill("Item 9999")
        expect(page.locator("#catalogue > li")).to_have_count(1)
        pick(page, "9999")
        assert recommended(page) == answer(server, ["9999"], "both")
        context.close()
