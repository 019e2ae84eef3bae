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

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
OPTIONS += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
KEYS = {"Enter": (13, "\r"), "Tab": (9, "\t"), "Escape": (27, ""), "ArrowLeft": (37, ""), "ArrowRight": (39, "")}


class Page:
    """A page, opened from a file.

    Attributes
    ----------
    errors
        What its console said of errors and warnings, and exceptions.
    requests
        The addresses that it asked for, without its own and data: URIs.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 900)) -> None:
        self.folder, self.errors, self.requests, self._ids = folder, [], [], count(1)
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
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

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
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:")) and params["type"] != "Document":
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

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, and wait until it is complete."""
        self.ask("Page.navigate", url=f"{path.resolve().as_uri()}{fragment}")
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", str(found)))
        return found["result"].get("value")

    def wait(self, condition: str | Callable[[], bool], seconds: float = 30) -> None:
        """Wait until an expression, or a function, is true."""
        end = time.monotonic() + seconds
        while not (condition() if callable(condition) else self.evaluate(condition)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true after {seconds} s: {condition}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key of `KEYS`."""
        number, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if kind == "keyDown" and text else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=number, **typed)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
