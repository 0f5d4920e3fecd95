"""Debian's headless Chromium on one page: what it shows, what it logs, what it asks the network for."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --window-size=1300,1000 --hide-scrollbars"
)

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromium-driver (Debian's packages)"
    ),
]


class Browser:
    """A browser of its own, with an empty profile; ``close`` it."""

    def __init__(self, profile: Path) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (in the extra dev)")
        options = webdriver.ChromeOptions()
        for option in [*OPTIONS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(option)
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def close(self) -> None:
        """End it."""
        self.driver.quit()

    def js(self, code: str, *args: Any) -> Any:
        """Return the value of an expression."""
        return self.driver.execute_script(f"return {code}", *args)

    def at(self, css: str) -> Any:
        """Return the first element."""
        return self.driver.find_element("css selector", css)

    def count(self, css: str) -> int:
        """Return the number of elements."""
        return len(self.driver.find_elements("css selector", css))

    def text(self, css: str) -> str:
        """Return the text of the first element, seen or not."""
        return str(self.js("document.querySelector(arguments[0]).textContent", css))

    def wait(self, what: Callable[[], Any], timeout_s: float = 10) -> Any:
        """Wait until something is true, and return it."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.02)
        raise AssertionError(f"did not come about in {timeout_s} s; logged: {self.errors()}")

    def open(self, url: str) -> None:
        """Open the dashboard, and wait until it shows a run."""
        self.driver.get(url)
        self.wait(lambda: self.text("#tile-step") != "–" and self.count("#legend button"))

    def type(self, css: str, text: str) -> None:
        """Replace what a field holds."""
        field = self.at(css)
        field.clear()
        field.send_keys(text)

    def errors(self) -> list[str]:
        """Return what the page complained about since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def addresses(self) -> set[str]:
        """Return what was asked of the network since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    def size(self, width: int, height: int) -> None:
        """Be a phone."""
        self.screen(width, height, is_phone=True)

    def screen(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Be a screen of so many pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1 + is_phone, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def forget(self) -> None:
        """Be as at first: nothing stored, emulated or logged."""
        self.driver.switch_to.new_window("tab")  # its session storage is its own
        for handle in self.driver.window_handles[:-1]:
            self.driver.switch_to.window(handle)
            self.driver.close()
        self.driver.switch_to.window(self.driver.window_handles[-1])
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.prefer()
        self.errors(), self.addresses()

    def prefer(self, **features: str) -> None:
        """Have the system prefer something, as in ``color_scheme="dark"``."""
        media = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
