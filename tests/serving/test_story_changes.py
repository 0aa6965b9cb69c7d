"""The page in Chromium: add an item with a photo, find it recommended; make items unavailable and available again."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import PHONE, answer, expect_recommended, pick
from playwright.sync_api import Browser, Page, expect
from service import Server, serving

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.loading import load_recommender

pytestmark = pytest.mark.slow


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


def test_a_broken_photo_is_an_error_in_the_form(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    page.locator("#open-add").click()
    page.get_by_label("Title", exact=True).fill("A thing")
    page.get_by_label("Photo").set_input_files(tmp_path / "photo.jpg")
    page.locator("#add").get_by_role("button", name="Add").click()
    expect(page.locator("#add .wrong")).to_contain_text("image 1 cannot be used: not an image")
    page.keyboard.press("Escape")
    expect(page.locator("#add")).to_be_hidden()


def test_an_item_is_switched_off_and_on(page: Page, server: Server) -> None:
    """Off: known in the history, shown as unavailable in the catalogue, not recommended. All by keyboard."""
    ids = [str(one.get_attribute("data-id")) for one in page.locator("#catalogue > li").all()]
    off = answer(server, ids[:1], "both")[0]
    title = server.client.get(f"/items/{off}").json()["title"]
    page.goto(f"{server.url}/item/{off}")
    expect(page.get_by_role("status")).to_have_text("Available", use_inner_text=True)
    switch(page, "Make unavailable")
    expect(page.get_by_role("status")).to_contain_text("Unavailable: not recommended", use_inner_text=True)
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
    expect(page.get_by_role("status")).to_have_text("Available", use_inner_text=True)
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
    expect(page.get_by_role("status")).to_have_text("Available", use_inner_text=True)


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
        expect(page.get_by_role("status")).to_contain_text("Unavailable", use_inner_text=True)
        assert server.client.get("/ready").json()["unavailable"] == 1
        page.reload()
        expect(page.get_by_role("status")).to_contain_text("Unavailable", use_inner_text=True)
        context.close()
