"""A service under mixed load while items come and go, then killed: is memory flat, did a request fail, is all there?

    python benchmarks/soak.py --run runs/ml-1m --minutes 10

locust recommends, explains and looks at pages; beside it, items with a picture are added (every --every seconds) and
two of three removed again. Memory is that of all processes of the server, every ten seconds. At the end the server is
killed with SIGKILL and started again on the same state.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from machine import describe
from PIL import Image
from service import Server, print_load, read_load, serving, start_load
from serving import histories_of

from msm4sr.cli.console import told

SAMPLE = 10.0  # seconds between two looks at memory


def memory(server: Server) -> float:
    """MiB of the server and its workers that no other process shares."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    return sum(one.memory_full_info().uss for one in family) / 2**20


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (12, 8, 3), dtype=np.uint8)).resize((300, 450))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG")
    return buffer.getvalue()


def main(
    run: Annotated[Path, typer.Option(help="A finished run.")],
    minutes: float = 10,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 50,
    every: Annotated[float, typer.Option(help="Seconds between two new items.")] = 1.0,
    workers: int = 2,
) -> None:
    with told(), tempfile.TemporaryDirectory() as scratch:
        state, options = Path(scratch) / "state", ("--workers", str(workers))
        there: set[str] = set()
        gone: set[str] = set()
        failed: list[str] = []
        print(f"{describe()}; {workers} workers, {rate:g} requests/s, an item every {every:g} s")
        with serving(run, state, *options) as server:
            load = start_load(server.url, histories_of(run), rate, 60 * minutes, users=16, mix=True)
            began, looked, number = time.monotonic(), -SAMPLE, 0
            while load.poll() is None:
                now = time.monotonic() - began
                if now - looked >= SAMPLE:
                    looked = now
                    print(f"{now:6.0f} s  {memory(server):8.0f} MiB  {len(there)} items added, {len(gone)} removed")
                data = {"item_id": f"soak-{number}", "title": f"A thing number {number}"}
                files = {"pictures": ("a.jpg", picture(number), "image/jpeg")}
                answer = server.client.post("/items", data=data, files=files)
                (there.add(f"soak-{number}") if answer.status_code == 201 else failed.append(answer.text))
                if number % 3 and (victim := f"soak-{number - 1}") in there:
                    answer = server.client.delete(f"/items/{victim}")
                    if answer.status_code != 204:
                        failed.append(answer.text)
                    there.discard(victim)
                    gone.add(victim)
                number += 1
                time.sleep(max(0.0, every * number - (time.monotonic() - began)))
            print_load(read_load(load))
            print(f"{memory(server):.0f} MiB at the end; {len(failed)} changes failed {failed[:3]}")
            server.kill()
        with serving(run, state, *options) as server:
            lost = [item for item in there if server.client.get(f"/items/{item}").status_code != 200]
            back = [item for item in gone if server.client.get(f"/items/{item}").status_code != 404]
            print(
                f"after the kill: {len(there) - len(lost)} of {len(there)} added items there, {len(back)} removed back"
            )
            if lost or back or failed:
                raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
