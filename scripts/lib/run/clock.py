"""Measure how much of a stage's time goes into imports, reading and writing; the rest is computing."""

from __future__ import annotations

import builtins
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P, R = ParamSpec("P"), TypeVar("R")
_spent = {"import": 0.0, "read": 0.0, "write": 0.0}
_LOADED = time.time()
_started: list[float] = []
_PLAIN: list[Any] = []  # `import` without counting, once it is counted
_running: list[str] = []  # the kinds that the main thread is in, the innermost last


@contextmanager
def spending(kind: str) -> Iterator[None]:
    """Count the block's time as this kind; a block within a block of another kind counts as the outer kind."""
    if _running or threading.current_thread() is not threading.main_thread():
        yield
        return
    _running.append(kind)
    started = time.perf_counter()
    try:
        yield
    finally:
        _spent[kind] += time.perf_counter() - started
        _running.pop()


def counted(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Count the decorated function's time as this kind."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with spending(kind):
                return function(*args, **kwargs)

        return timed

    return decorate


def count_imports() -> None:
    """From now on, count the time of `import` statements, such as those within functions."""
    if _PLAIN:
        return
    _PLAIN.append(plain := builtins.__import__)

    def timed(name: str, *args: Any, **kwargs: Any) -> Any:
        module, wanted = sys.modules.get(name), kwargs.get("fromlist", args[2] if len(args) > 2 else ())
        if module is not None and all(hasattr(module, attribute) for attribute in wanted or ()):
            return plain(name, *args, **kwargs)  # at once: functions that import are called thousands of times
        with spending("import"):
            return plain(name, *args, **kwargs)

    builtins.__import__ = timed


def born(pid: int) -> str | None:
    """When a process started, in ticks since the boot, which tells it from a later one with the same number.

    None if there is no such process.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def process_start() -> float:
    """When this process, or the one that it works for (`starts`), started, in seconds since the epoch."""
    return _started[0] if _started else started(os.getpid()) or _LOADED


def started(pid: int) -> float | None:
    """When a process started, in seconds since the epoch; None if there is none, or not on Linux."""
    if (ticks := born(pid)) is None:
        return None
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - since_boot + int(ticks) / os.sysconf("SC_CLK_TCK")


def starts(when: float | None) -> None:
    """Count time from `when` on, or from now, and nothing that was counted before."""
    _started[:] = [when or time.time()]
    _spent.update(dict.fromkeys(_spent, 0.0))


def seconds_by(start: float, main: float, end: float) -> dict[str, float]:
    """Seconds by kind of a process that started at `start` and called its stage's main at `main`.

    They sum to the whole time. The time before main counts as imports.
    """
    spent = dict(_spent, **{"import": _spent["import"] + main - start})
    spent["compute"] = end - start - sum(spent.values())
    return {kind: round(seconds, 3) for kind, seconds in spent.items()}
