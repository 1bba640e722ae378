"""A Chromium without a screen, driven by its own protocol over a pair of pipes; no library, no port.

with Browser(folder) as browser:
    page = browser.page(1440, 900)
    page.go(link)
    page.until("document.querySelector('h1')")
    page.picture(path)
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 60.0
"""Far longer than anything takes on a busy machine: only a failing test waits so long."""
COMMAND = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync"),
    *("--hide-scrollbars", "--force-color-profile=srgb", "--disable-dev-shm-usage"),
)


def found() -> str | None:
    """Return where a Chromium is; None: there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Browser:
    """The process, and its pipes."""

    def __init__(self, folder: Path) -> None:
        program = found()
        assert program is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        shell = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$0" "$@"'
        command = ["bash", "-c", shell, program, *COMMAND, f"--user-data-dir={folder}", "about:blank"]
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=[to_browser, from_browser],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": str(folder)},
            )
        finally:
            os.close(to_browser)
            os.close(from_browser)
        self._data = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.ask("Browser.close")
            self.process.wait(WAIT_S)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            os.close(self._write)
            os.close(self._read)

    def ask(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Return the result of a command of the protocol."""
        self._number += 1
        about = {"sessionId": session} if session else {}
        message = {"id": self._number, "method": method, "params": parameters, **about}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                result: dict[str, Any] = said["result"]
                return result
            self.events.append(said)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium says nothing for {WAIT_S:g} s"
            piece = os.read(self._read, 1 << 20)
            assert piece, "Chromium has ended"
            self._data += piece
        message, _, self._data = self._data.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said

    def page(self, width: int, height: int, dark: bool = False) -> Page:
        """Return a new page of this size, in a context of its own: no cookies, nothing stored."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height, dark)


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str, width: int, height: int, dark: bool) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.bringToFront")  # the others are in the background: that is what the page is told, too
        self.size(width, height)
        self.theme(dark)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command about this page."""
        return self._browser.ask(method, self._session, **parameters)

    def size(self, width: int, height: int) -> None:
        """Have the page be so large."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def theme(self, dark: bool) -> None:
        """Have the system prefer a theme."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def go(self, url: str) -> None:
        """Open an address."""
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return what an expression is, once it is settled.  Raises `AssertionError` for what it throws."""
        said = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, script: str) -> Any:
        """Return what an expression is, as soon as it is true."""
        deadline = time.monotonic() + WAIT_S
        while not (value := self.run(script)) and value != {}:  # that is an element
            assert time.monotonic() < deadline, (
                f"not within {WAIT_S:g} s: {script}; {self.text()[:2000]}; {self.faults()}"
            )
            time.sleep(0.02)
        return value

    def until_that(self, holds: Callable[[], bool]) -> None:
        """Return as soon as something holds that no script of the page can see."""
        deadline = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < deadline, f"not within {WAIT_S:g} s; {self.faults()}"
            time.sleep(0.02)

    def text(self) -> str:
        """Return what is to be read."""
        return str(self.run("document.body.innerText"))

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does."""
        place = self.until(
            f"(async () => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center'});"
            " const at = () => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] };"
            " const first = at();"
            " for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);"
            " const then = at(); const there = document.elementFromPoint(...then);"
            " return String(first) === String(then) && there && e.contains(there) ? then : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, **at)

    def key(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page, down to its end."""
        said = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))

    def faults(self) -> list[str]:
        """Return what the console has said that is an error, and what was thrown."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            about = event["params"]
            if event["method"] == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"].get("exception", {}).get("description", about)))
            if event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
                found.append(str([each.get("value") or each.get("description") for each in about["args"]]))
        return found
