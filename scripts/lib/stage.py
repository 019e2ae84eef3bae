"""How a stage runs: its log, its errors, its progress and its run record."""

from __future__ import annotations

import errno
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


def progress(chunks: Iterable[counts.Chunk], n_obs: int, what: str) -> Iterator[counts.Chunk]:
    """Pass `chunks` on, logging every ten seconds how many of `n_obs` cells are done, the rate and the time left."""
    started = said = time.time()
    done = 0
    for chunk in chunks:
        yield chunk
        done += chunk.X.shape[0]
        now = time.time()
        if now - said >= LOG_EVERY:
            said = now
            rate = done / (now - started)
            left = (n_obs - done) / rate
            log.info("%s: %d of %d cells, %.0f cells/s, %.0f s left", what, done, n_obs, rate, left)
    log.info("%s: %d cells in %.1f s", what, done, time.time() - started)


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
