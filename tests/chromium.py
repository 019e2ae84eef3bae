"""A headless Chromium, driven through its pipe (the Chrome DevTools Protocol), for tests of pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
OPTIONS += ["--enable-unsafe-swiftshader", "--use-angle=swiftshader"]  # WebGL without a GPU
OPTIONS += ["--disable-background-networking", "--disable-dev-shm-usage"]
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """A page of a new browser; the test is skipped where there is none.

    Attributes
    ----------
    errors
        What its console said of errors and warnings, and exceptions.
    requests
        The addresses that it asked for, without those that were opened, and data: and blob: URIs.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 900)) -> None:
        if PROGRAM is None:
            pytest.skip("needs Chromium (Debian: apt-get install chromium)")
        self.errors, self.requests, self._ids = [], [], count(1)
        self._opened = "about:blank"
        ours, theirs = os.pipe(), os.pipe()
        self._to, self._from = ours[1], theirs[0]

        def pipes() -> None:
            first, second = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(first, 3)
            os.dup2(second, 4)

        width, height = size
        command = [PROGRAM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, close_fds=False, preexec_fn=pipes, **quiet)
        os.close(ours[0])
        os.close(theirs[1])
        self._rest, self._session = b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        screen = {"screenWidth": width, "screenHeight": height}  # canvases of WebGL are no larger than the screen
        shown = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **shown, **screen)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._to)
        os.close(self._from)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            found = os.read(self._from, 1 << 20)
            if not found:
                raise RuntimeError("Chromium ended")
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", str(params)))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            if "(OpenGL, Performance," not in params["entry"]["text"]:  # a driver's notice of its own speed
                self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")) and url != self._opened:
                self.requests.append(url)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != number:
            pass
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

    def open(self, address: Path | str, fragment: str = "") -> None:
        """Open a file or an address, and wait until it is complete."""
        whole = f"{address.resolve().as_uri()}{fragment}" if isinstance(address, Path) else address
        self._opened = whole.partition("#")[0]
        self.ask("Page.navigate", url=whole)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", str(found)))
        return found["result"].get("value")

    def wait(self, condition: str | Callable[[], bool], seconds: float = 30) -> None:
        """Wait until an expression, or a function, is true."""
        end = time.monotonic() + seconds
        while not (condition() if callable(condition) else self.run(f"Boolean({condition})")):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {seconds} s: {condition}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a letter, or a key of `KEYS`, and release it."""
        text = {"Enter": "\r"}.get(key, "" if key in KEYS else key)
        number = KEYS.get(key, ord(key[0].upper()))
        for kind, typed in (("keyDown", {"text": text} if text else {}), ("keyUp", {})):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=number, **typed)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the mouse: mouseMoved, mousePressed, mouseReleased."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
