"""A headless Chromium driven through chromedriver's HTTP protocol (W3C WebDriver)."""

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


class Browser:
    """One window."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": FLAGS}}}
        self._session = self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]

    def open(self, address: str) -> None:
        """Load a page."""
        self._call("POST", f"/session/{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """What a script `return`s, or hands to the callback `done`."""
        wrapped = f"const done = arguments[arguments.length - 1]; {script}"
        return self._call("POST", f"/session/{self._session}/execute/async", {"script": wrapped, "args": []})

    def choose(self, selector: str, file: Path) -> None:
        """Give a file to an <input type=file>, as its dialog does."""
        where = {"using": "css selector", "value": selector}
        found = self._call("POST", f"/session/{self._session}/element", where)
        element = next(iter(found.values()))
        self._call("POST", f"/session/{self._session}/element/{element}/value", {"text": str(file)})

    def resize(self, width: int, height: int) -> None:
        """The window, in pixels."""
        self._call("POST", f"/session/{self._session}/window/rect", {"width": width, "height": height})

    def picture(self) -> bytes:
        """What the window shows, as a PNG."""
        return base64.b64decode(self._call("GET", f"/session/{self._session}/screenshot"))

    def close(self) -> None:
        """Close the window."""
        self._call("DELETE", f"/session/{self._session}")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver: apt-get install chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = iter(process.stdout)  # its last line names the port
        port = next(found.group(1) for line in said if (found := re.search(r"successfully on port (\d+)", line)))
        window = Browser(f"http://127.0.0.1:{port}")
        try:
            yield window
        finally:
            window.close()
    finally:
        process.terminate()
        process.wait()


def until(window: Browser, condition: str, seconds: float = 25) -> Any:
    """What a JavaScript expression gives, as soon as it is true."""
    script = f"""
        const start = Date.now(), look = () => {{
          const found = (() => {{ try {{ return {condition}; }} catch (e) {{ return null; }} }})();
          if (found || Date.now() - start > {1000 * seconds}) done(found); else setTimeout(look, 100);
        }}; look();"""
    found = window.run(script)
    assert found, (
        f"never true: {condition}; the page says: {window.run('done(document.body.innerText.slice(0, 2000))')}"
    )
    return found
