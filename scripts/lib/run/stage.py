"""Run a stage: its log, its errors, its progress and its run record."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from lib import start
from lib.run import clock
from lib.run import device as devices
from lib.run.errors import UserError
from lib.store import compressed, identity
from lib.store.names import unescape

P, R = ParamSpec("P"), TypeVar("R")
log = logging.getLogger("somersault")

RECORDED_PACKAGES = (
    "anndata",
    "h5py",
    "igraph",
    "numpy",
    "opentsne",
    "pandas",
    "pydeseq2",
    "scikit-learn",
    "scipy",
    "snakemake",
    "umap-learn",
)

_NOTICES: list[str] = []  # of this job


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a stage's `main(snakemake)`.

    All log messages go to the rule's log file. A `UserError`, or an operating system error about space or permissions,
    ends the process with its message; any other exception ends it with its traceback. Partial outputs are removed. The
    run record is written beside the log (`.run.json`): device, versions, seed, seconds by kind, peak memory of the host
    and of the GPU.
    """
    started, began = clock.process_start(), time.time()
    _keep_freed_memory()
    clock.count_imports()
    log_file = Path(snakemake.log[0])
    log_file.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=log_file, filemode="w", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.captureWarnings(True)
    # Finalisers that fail, such as HDF5's on a full disk, write to the log instead of the console
    sys.excepthook = lambda *error: log.warning("in a finaliser: %s", error[1])
    sys.unraisablehook = lambda error: log.warning("in a finaliser: %s", error.exc_value)
    log.info("started %s", start.HOW)
    where = f"{snakemake.rule} ({', '.join(f'{k}={v}' for k, v in snakemake.wildcards.items()) or 'cohort'})"
    try:
        compressed.set_threads(snakemake.threads)
        identity.check_inputs(dict(snakemake.input.items()))
        main(snakemake)
    except BaseException as error:
        for output in snakemake.output:
            if Path(output).is_file():
                Path(output).unlink()
        message = _for_users(error, where)
        if message is None:
            sys.excepthook = sys.__excepthook__
            log.error("%s failed:\n%s", where, traceback.format_exc())
            raise
        log.error("%s", message)
        noted = "".join(f"\nBefore: {text}" for text in _NOTICES)
        print(f"\nSomersault, {where}: {message}{noted}\nLog: {log_file}\n", file=sys.stderr)
        _end(1)
    record = _record(snakemake, started, began)
    log_file.with_suffix(".run.json").write_text(json.dumps(record, indent=1) + "\n")
    log.info(
        "done in %.1f s (%s)", record["seconds"], ", ".join(f"{k} {v:.1f}" for k, v in record["seconds_by"].items())
    )
    log.info("peak memory %.0f MB, of the GPU %.0f MB", record["peak_rss_mb"], record["peak_gpu_mb"] or 0)
    _end(0)


def notice(message: str, *args: object) -> None:
    """Log a message for the user: a choice that the config left open, or a result to check.

    The run record holds it too. It is printed at the end of the run, and the report shows it.
    """
    text = message % args
    if text not in _NOTICES:
        log.warning("%s", text)
        _NOTICES.append(text)


def peak_rss_mb() -> float:
    """The highest resident memory of this process so far, in MB, without what a fork shares with the warm process."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # bytes on macOS
    return own_mb("VmHWM")


def own_mb(name: str = "VmRSS") -> float:
    """A memory of this process in MB, by its name in /proc, without what a fork shares with the warm process."""
    shared = _kilobytes("/proc/self/smaps_rollup", "Shared_") if start.HOW == start.FORKED else 0
    return (_kilobytes("/proc/self/status", name) - shared) / 1024


def _kilobytes(file: str, prefix: str) -> int:
    """The sum of the lines of a file of /proc that begin with the prefix."""
    return sum(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(prefix))


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next array: new pages cost a streaming stage a third of its time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 28)  # M_MMAP_THRESHOLD: larger arrays are mapped, and unmapped when freed
        libc.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD: unused memory kept before some is returned to the system


def _end(status: int) -> NoReturn:
    """End the process at once.

    A normal exit stops the libraries' threads in no fixed order, and sometimes one of them aborts a finished stage.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    start.END(status)


def _for_users(error: BaseException, where: str) -> str | None:
    """The message for an error that the user can fix; None for a bug of this workflow."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return devices.out_of_memory(error, where)
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


def _record(snakemake: Any, started: float, began: float) -> dict[str, Any]:
    device, end = devices.current(), time.time()
    return {
        "rule": snakemake.rule,
        "wildcards": {name: unescape(value) for name, value in snakemake.wildcards.items()},
        "device": device.name,
        "seed": snakemake.params.get("seed"),
        "threads": snakemake.threads,
        "started": round(started, 2),
        "ended": round(end, 2),
        "seconds": round(end - started, 2),
        "seconds_by": clock.seconds_by(started, began, end),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "peak_gpu_mb": None if device.peak_mb() is None else round(device.peak_mb(), 1),
        "process": start.HOW,
        "host": os.uname().nodename,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in RECORDED_PACKAGES},
        "code": snakemake.params.get("code"),
        "notices": _NOTICES,
        **device.describe(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
