"""Steps on the page of the service in Chromium."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import ConsoleMessage, Page, expect
from service import Server

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1300, "height": 900}


def is_wrong(message: ConsoleMessage) -> bool:
    """Chromium itself logs every answer over 400, which the page shows in words."""
    return message.type == "error" and "Failed to load resource" not in message.text


def recommended(page: Page) -> list[str]:
    expect(page.locator("#recommended:not(.waiting) li")).to_have_count(12)
    return [str(one.get_attribute("data-id")) for one in page.locator("#recommended li").all()]


def pick(page: Page, item_id: str) -> None:
    page.locator(f'#catalogue [data-id="{item_id}"] .pick').click()


def answer(server: Server, history: list[str], modality: str, **more: Any) -> list[str]:
    found = server.client.post("/recommend", json={"history": history, "k": 12, "by": modality} | more).json()
    return [one["item_id"] for one in found["items"]]


def expect_recommended(page: Page, item_ids: list[str]) -> None:
    for place, item_id in enumerate(item_ids, start=1):
        shown = page.locator(f"#recommended:not(.waiting) li:nth-child({place})")
        expect(shown).to_have_attribute("data-id", item_id)
    expect(page.locator("#recommended li")).to_have_count(len(item_ids))


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
