"""Log the progress of long tasks."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lib.store.stream import Chunk

log = logging.getLogger("somersault")

LOG_EVERY = 10.0  # seconds between two lines of progress


class Pace:
    """The progress of a long task, logged every ten seconds: how much is done, the rate and the time left.

    Parameters
    ----------
    what
        The task.
    total
        Steps in all.
    unit
        What a step is.
    """

    def __init__(self, what: str, total: int, unit: str = "cells") -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self.started = self.said = time.time()

    def step(self, n: int = 1) -> None:
        """Count `n` more steps as done."""
        self.done += n
        now = time.time()
        if now - self.said >= LOG_EVERY:
            self.said = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            progress = (self.what, self.done, self.total, self.unit, rate, self.unit, left)
            log.info("%s: %d of %d %s, %.3g %s/s, %.0f s left", *progress)

    def end(self) -> None:
        """Log what was done and how long it took."""
        log.info("%s: %d %s in %.1f s", self.what, self.done, self.unit, time.time() - self.started)


def progress(chunks: Iterable[Chunk], n_obs: int, what: str) -> Iterator[Chunk]:
    """Yield `chunks`, of `n_obs` cells in all, and log the progress."""
    pace = Pace(what, n_obs)
    for chunk in chunks:
        yield chunk
        pace.step(chunk.X.shape[0])
    pace.end()


class LogLines(io.TextIOBase):
    """A text stream that writes to the log, for libraries that print their progress.

    Parameters
    ----------
    what
        The task. Each line like `3 / 14` counts as one step of it.
    unit
        What a step is.
    """

    def __init__(self, what: str = "", unit: str = "steps") -> None:
        self.text, self.pace = "", Pace(what, 0, unit)

    def write(self, text: str) -> int:
        """Take text, and log its complete lines."""
        self.text += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Log the text taken so far, line by line."""
        for line in filter(None, (" ".join(line.split()) for line in self.text.splitlines())):
            if step := re.fullmatch(r"(\d+) / (\d+)", line):
                self.pace.total = int(step[2])
                self.pace.step(int(step[1]) - self.pace.done)
            else:
                log.info("%s", line)
        self.text = ""


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log the duration of a block."""
    started = time.time()
    yield
    log.info("%s: %.1f s", what, time.time() - started)
