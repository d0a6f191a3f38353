"""A headless Chromium, controlled through chromedriver's HTTP protocol (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
]


KEYS = {"Tab": "\ue004", "Enter": "\ue007", "PageDown": "\ue00f", "End": "\ue010"}  # as WebDriver has them


class Browser:
    """A browser window."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": FLAGS}}}
        self._session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def open(self, address: str) -> None:
        """Load a page."""
        self._call("POST", f"/session/{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """Run a script, and return the value that it passes to `done`."""
        wrapped = f"const done = arguments[arguments.length - 1]; {script}"
        return self._call("POST", f"/session/{self._session}/execute/async", {"script": wrapped, "args": []})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, on the element that has the focus: letters, or names of `KEYS`."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._call("POST", f"/session/{self._session}/actions", body)

    def save_downloads(self, folder: Path) -> None:
        """Save what pages download into a folder, without a question."""
        body = {"cmd": "Browser.setDownloadBehavior", "params": {"behavior": "allow", "downloadPath": str(folder)}}
        self._call("POST", f"/session/{self._session}/goog/cdp/execute", body)

    def choose(self, selector: str, file: Path) -> None:
        """Select a file in an <input type=file>."""
        locator = {"using": "css selector", "value": selector}
        elements = self._call("POST", f"/session/{self._session}/element", locator)
        element = next(iter(elements.values()))
        self._call("POST", f"/session/{self._session}/element/{element}/value", {"text": str(file)})

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window in pixels."""
        self._call("POST", f"/session/{self._session}/window/rect", {"width": width, "height": height})

    def emulate(self, width: int, height: int, scheme: str = "light") -> None:
        """Show pages in a viewport of this size, also one that is narrower than a window can be.

        scheme: The preferred colours, "light" or "dark".
        """
        viewport = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        for command, params in (("setDeviceMetricsOverride", viewport), ("setEmulatedMedia", media)):
            body = {"cmd": f"Emulation.{command}", "params": params}
            self._call("POST", f"/session/{self._session}/goog/cdp/execute", body)

    def screenshot(self) -> bytes:
        """Return a screenshot of the window as PNG."""
        return base64.b64decode(self._call("GET", f"/session/{self._session}/screenshot"))

    def close(self) -> None:
        """Close the window."""
        self._call("DELETE", f"/session/{self._session}")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Open a browser window. The test is skipped if Chromium is not installed."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver: apt-get install chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout)  # one line contains the port
        port = next(match.group(1) for line in lines if (match := re.search(r"successfully on port (\d+)", line)))
        window = Browser(f"http://127.0.0.1:{port}")
        try:
            yield window
        finally:
            window.close()
    finally:
        process.terminate()
        process.wait()


def until(window: Browser, condition: str, seconds: float = 25) -> Any:
    """Wait until a JavaScript expression is true, and return its value."""
    script = f"""
        const start = Date.now(), poll = () => {{
          const value = (() => {{ try {{ return {condition}; }} catch (e) {{ return null; }} }})();
          if (value || Date.now() - start > {1000 * seconds}) done(value); else setTimeout(poll, 100);
        }}; poll();"""
    value = window.run(script)
    assert value, (
        f"never true: {condition}; text of the page: {window.run('done(document.body.innerText.slice(0, 2000))')}"
    )
    return value
