"""Pictures of the page and of ``walk.html``, to be looked at: wide, on a phone and dark.

``python -m tests.support.screenshots FOLDER`` (or ``make screenshots``) makes them, with Debian's chromium.
"""

from __future__ import annotations

import base64
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mixer.analysis.plots import write_page
from mixer.sources.prepared.prepare import prepare
from tests.support.browser import Browser
from tests.support.dashboards import NAMES, SMALL, Server, Trainer, alarm, curriculum
from tests.support.serving import post
from tests.support.simulated import SimulatedRun

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
STEPS = 3000


def main(out: Path) -> None:
    """Write the pictures into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, contextlib.closing(Browser(Path(name) / "profile")) as browser:
        folder = Path(name)
        with served(folder) as server:
            for run in ("main", "small", "old"):
                each(browser, f"{server.url}/?run={run if run != 'main' else ''}", out, run)
            browser.prefer(color_scheme="light")
            browser.screen(*SIZES["wide"])
            browser.open(f"{server.url}/?run=small")
            browser.at("#legend button").click()
            browser.at("#smooth").click()
        browser.wait(lambda: "gone" in browser.text("#state-text"))
        picture(browser, out / "small-gone-wide.png")
        write_page(folder / "runs" / "main" / "journal.jsonl", folder / "walk.html")
        each(browser, f"file://{folder}/walk.html", out, "walk")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Give a server with a run of sixteen sources, a small one that is trained on, and an archived one."""
    plan = curriculum(folder, NAMES, floors={"web": 0.2}, prepared="rows", total_steps=STEPS + 500)
    prepare(plan, folder / "rows")
    journal = folder / "runs" / "main" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    now = time.time()
    with contextlib.closing(SimulatedRun(plan, journal, 4, time_of=lambda step: now - 7 * (STEPS - step))) as run:
        run.advance(STEPS, (0, 0, 3, 0))
    with Server(plan, folder / "runs") as server:
        small = curriculum(folder, NAMES[:3], **SMALL).model_dump(mode="json", exclude_none=True, exclude={"base_dir"})
        for run_name in ("small", "old"):
            assert post(server.url + "/runs", json={"name": run_name, "curriculum": small}).status_code == 201
            Trainer(server.url, run_name).train(150)
        for run_name, source, step in (("main", "code", 2100), ("small", "code", 90), ("main", "source-07", 2900)):
            server.watch(run_name).add({**alarm(source, step), "at": now - 1800})
        assert post(f"{server.url}/runs/old/archive", json={}).status_code == 200
        yield server


def each(browser: Browser, url: str, out: Path, name: str) -> None:
    """Take one page at every size, light and dark."""
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            browser.prefer(color_scheme=theme)
            browser.screen(width, height, is_phone=size == "phone")
            browser.driver.get(url)
            time.sleep(2.5)
            picture(browser, out / f"{name}-{size}{'-dark' if theme == 'dark' else ''}.png")
    for error in browser.errors():
        print(f"{name}: {error}", file=sys.stderr)


def picture(browser: Browser, path: Path) -> None:
    """Write the whole page, however long."""
    found = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(found["data"]))
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"))
