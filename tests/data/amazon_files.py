"""Files in the exact form of Amazon's public ones, with their irregularities."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

IMAGES = "https://images-na.ssl-images-amazon.com/images/I"


def asin(item: int) -> str:
    return f"B{item:09d}"


def write_lines(path: Path, lines: list[str | bytes]) -> Path:
    path.write_bytes(
        gzip.compress(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    )
    return path


def events(users: int, items: int, count: int, seed: int = 0) -> list[tuple[int, int, int, float]]:
    """User, item, day, rating; some users return, some repeat an item."""
    rng = random.Random(seed)
    return [
        (
            rng.randrange(users),
            rng.randrange(items),
            1_252_800_000 + 86_400 * rng.randrange(900),
            float(rng.randint(1, 5)),
        )
        for _ in range(count)
    ]


def review_2018(user: int, item: int, time: int, rating: float) -> dict[str, Any]:
    return {
        "overall": rating, "vote": "2", "verified": True, "reviewTime": "09 13, 2009",
        "reviewerID": f"A{user:013d}", "asin": asin(item), "style": {"Size:": " 12 oz"}, "reviewerName": "Ann \u00e9",
        "reviewText": "Good.\n<br>Would \"buy\" again.", "summary": "Good", "unixReviewTime": time,
    }  # fmt: skip


def review_2023(user: int, item: int, time: int, rating: float) -> dict[str, Any]:
    return {
        "rating": rating, "title": "Good", "text": "Would buy again.", "images": [], "asin": f"C{item:09d}",
        "parent_asin": asin(item), "user_id": f"A{user:027d}", "timestamp": time * 1000 + 123, "helpful_vote": 0,
        "verified_purchase": True,
    }  # fmt: skip


def item_2018(item: int) -> dict[str, Any]:
    return {
        "category": ["Grocery &amp; Gourmet Food", "Snacks", "</span></span>", "Snacks"],
        "tech1": "", "description": [f"<b>Nuts</b> no. {item} &amp; more.<br/>Crunchy.", ""], "fit": "",
        "title": f"Nuts &quot;No. {item}&quot;", "also_buy": [], "image": [], "tech2": "", "brand": "Acme",
        "feature": ["Roasted", "Salted"], "rank": [], "also_view": [], "details": {}, "main_cat": "Grocery",
        "similar_item": "", "date": "", "price": "$5.00", "asin": asin(item),
        "imageURL": [f"{IMAGES}/p{item}._SS40_.jpg"],
        "imageURLHighRes": [f"{IMAGES}/p{item}.jpg", f"{IMAGES}/q{item}.jpg"],
    }  # fmt: skip


def item_2014(item: int) -> str:
    """Python's notation, as the file has it."""
    return repr(
        {
            "asin": asin(item), "title": f"Nuts &quot;No. {item}&quot;", "price": 5.0, "salesRank": {"Grocery": 7},
            "imUrl": f"http://ecx.images-amazon.com/images/I/p{item}.jpg",
            "description": f"<b>Nuts</b> no. {item} &amp; more.<br/>Crunchy, isn't it?",
            "related": {"also_viewed": [asin(1)]}, "categories": [["Grocery &amp; Gourmet Food", "Snacks"], ["Snacks"]],
        }
    )  # fmt: skip


def item_2023(item: int) -> dict[str, Any]:
    image = {
        "thumb": f"{IMAGES}/p{item}._S40_.jpg",
        "large": f"{IMAGES}/p{item}.jpg",
        "hi_res": f"{IMAGES}/p{item}_big.jpg",
    }
    return {
        "main_category": "Grocery", "title": f"Nuts &quot;No. {item}&quot;", "average_rating": 4.5, "rating_number": 3,
        "features": ["Roasted", "Salted"], "description": [f"<b>Nuts</b> no. {item} &amp; more.<br/>Crunchy."],
        "price": None,
        "images": [{**image, "large": f"{IMAGES}/q{item}.jpg", "variant": "PT01"}, {**image, "variant": "MAIN"}],
        "videos": [], "store": "Acme", "categories": ["Grocery &amp; Gourmet Food", "Snacks"], "details": {},
        "parent_asin": asin(item), "bought_together": None,
    }  # fmt: skip


def dumps(row: dict[str, Any]) -> str:
    return json.dumps(row)
