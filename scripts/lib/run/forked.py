"""Run tasks in forked processes, which share the memory of this one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

R = TypeVar("R")

_tasks: Sequence[Callable[[], Any]] = ()


def run_all(tasks: Sequence[Callable[[], R]], processes: int, done: Callable[[], None] = lambda: None) -> list[R]:
    """The results of tasks, in their order, from this many forked processes; from this process if one suffices.

    Nothing is copied to a fork; results are pickled. An error of a task is raised here, with its traceback. Tasks of a
    process with a GPU must not touch the GPU, nor its arrays.

    Parameters
    ----------
    done
        Called here after each task.
    """
    global _tasks
    found: dict[int, R] = {}
    if min(processes, len(tasks)) < 2:
        for i, task in enumerate(tasks):
            found[i] = task()
            done()
        return list(found.values())
    _tasks = tasks
    options = {"mp_context": get_context("fork"), "initializer": _begin}
    with warnings.catch_warnings(), ProcessPoolExecutor(min(processes, len(tasks)), **options) as pool:
        warnings.simplefilter("ignore", DeprecationWarning)  # threads, which inflate counts, are of no use to the forks
        jobs = {pool.submit(_run, i): i for i in range(len(tasks))}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            done()
    _tasks = ()
    return [found[i] for i in range(len(tasks))]


def _begin() -> None:
    """Leave the objects of the forked process, some of them on a GPU, and its threads alone."""
    gc.freeze()
    threadpool_limits(1)  # OpenMP's threads are gone in a fork, and more than one would be waited for


def _run(i: int) -> Any:
    return _tasks[i]()
