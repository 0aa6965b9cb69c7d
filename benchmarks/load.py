"""What a load generator asks of a service; `serving.py` and `soak.py` start it.

    HISTORIES=histories.json locust -f benchmarks/load.py --headless --host http://127.0.0.1:8000 -u 50 -r 50 -t 30s

histories.json is a list of histories (item ids). The users ask at RATE requests a second altogether, at times that are
drawn; who waits for an answer when the next is due makes up for it. MIX=1 asks for explanations, similar items and
pages too.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from urllib.parse import quote

from locust import FastHttpUser, task

HISTORIES: list[list[str]] = json.loads(Path(os.environ["HISTORIES"]).read_text())
MIX = int(os.environ.get("MIX", "0"))
EACH = float(os.environ.get("RATE", "300")) / float(os.environ.get("USERS", "50"))
random.seed(0)


class Visitor(FastHttpUser):
    due = 0.0

    def wait_time(self) -> float:
        """Until the next request is due: by chance, so that users do not come all at once."""
        now = time.monotonic()
        self.due = max(self.due or now, now - 1.0) + random.expovariate(EACH)
        return max(0.0, self.due - now)

    @task(40)
    def recommend(self) -> None:
        self.client.post("/recommend", json={"history": random.choice(HISTORIES), "k": 10})

    @task(2 * MIX)
    def recommend_with_reasons(self) -> None:
        body = {"history": random.choice(HISTORIES)[-10:], "k": 12, "reasons": True}
        self.client.post("/recommend", json=body, name="/recommend with reasons")

    @task(MIX)
    def explain(self) -> None:
        history = random.choice(HISTORIES)[-20:]
        self.client.post("/explain", json={"history": history, "item_id": history[0]})

    @task(MIX)
    def similar(self) -> None:
        item_id = random.choice(random.choice(HISTORIES))
        self.client.get(f"/items/{quote(item_id, safe='')}/similar", name="/items/ID/similar")

    @task(MIX)
    def wall(self) -> None:
        self.client.get(f"/?page={random.randint(1, 20)}", name="/")
