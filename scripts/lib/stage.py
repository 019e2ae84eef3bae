"""How a stage runs: its log, its errors, its progress and its run record."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import counts
from . import device as devices
from .errors import UserError

log = logging.getLogger("somersault")

RECORDED_PACKAGES = ("anndata", "h5py", "numpy", "pandas", "scipy", "scikit-learn", "snakemake")
LOG_EVERY = 10.0  # seconds between two lines of progress


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a stage's `main(snakemake)`.

    Everything logged goes to the rule's log file. A `UserError`, or an operating system error about
    space or permissions, ends the process with its message; any other exception with its
    traceback. Partial outputs are removed. Beside the log (`.run.json`) goes the run record:
    device, versions, seed, seconds, peak memory.
    """
    started = time.time()
    log_file = Path(snakemake.log[0])
    log_file.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=log_file, filemode="w", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.captureWarnings(True)
    # Finalisers that fail, as HDF5's on a full disk, tell it the log and not the user
    sys.excepthook = lambda *error: log.warning("in a finaliser: %s", error[1])
    sys.unraisablehook = lambda error: log.warning("in a finaliser: %s", error.exc_value)
    where = f"{snakemake.rule} ({', '.join(f'{k}={v}' for k, v in snakemake.wildcards.items()) or 'cohort'})"
    try:
        device = devices.resolve(snakemake.config["device"])
        counts.set_threads(snakemake.threads)
        main(snakemake)
    except BaseException as error:
        for output in snakemake.output:
            if Path(output).is_file():
                Path(output).unlink()
        message = _for_users(error)
        if message is None:
            sys.excepthook = sys.__excepthook__
            log.error("%s failed:\n%s", where, traceback.format_exc())
            raise
        log.error("%s", message)
        print(f"\nSomersault, {where}: {message}\nLog: {log_file}\n", file=sys.stderr)
        _end(1)
    _write_record(snakemake, log_file, started, device.name)
    log.info("done in %.1f s, peak memory %.0f MB", time.time() - started, peak_rss_mb())
    _end(0)


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


def progress(chunks: Iterable[counts.Chunk], n_obs: int, what: str) -> Iterator[counts.Chunk]:
    """Pass `chunks` of `n_obs` cells on, logging the pace."""
    pace = Pace(what, n_obs)
    for chunk in chunks:
        yield chunk
        pace.step(chunk.X.shape[0])
    pace.end()


class LogLines(io.TextIOBase):
    """A text stream into the log: for libraries that print how far they are."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        """Take text, and log what lines are whole."""
        self.text += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Log the text taken, a line each."""
        for line in filter(None, (" ".join(line.split()) for line in self.text.splitlines())):
            log.info("%s", line)
        self.text = ""


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long a block took."""
    started = time.time()
    yield
    log.info("%s: %.1f s", what, time.time() - started)


def peak_rss_mb() -> float:
    """The highest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _end(status: int) -> None:
    """End the process at once.

    Left to itself the interpreter tears down libraries' threads in no order, and now and then one aborts a stage that
    was done.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _for_users(error: BaseException) -> str | None:
    """The message for an error that its reader can mend, None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        path = error.filename or "the results folder"
        text = str(error)
        if error.errno == errno.ENOSPC or "No space left" in text:
            return f"the disk is full while writing {path}. Free some space, then run again: finished outputs are kept."
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return (
                f"no permission to write {path} ({error.strerror}). Make it writable, or run in another `--directory`."
            )
    return None


def _write_record(snakemake: Any, log_file: Path, started: float, device: str) -> None:
    record = {
        "rule": snakemake.rule,
        "wildcards": dict(snakemake.wildcards.items()),
        "device": device,
        "seed": snakemake.config.get("seed"),
        "threads": snakemake.threads,
        "seconds": round(time.time() - started, 2),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "host": os.uname().nodename,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in RECORDED_PACKAGES},
    }
    log_file.with_suffix(".run.json").write_text(json.dumps(record, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
