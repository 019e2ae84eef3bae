"""Tasks in forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from lib.run import forked

SCRIPTS = Path(forked.__file__).parents[2]


def test_results_are_in_the_order_of_the_tasks_and_each_is_told():
    told = []
    tasks = [partial(divmod, i, 3) for i in range(7)]
    for processes in (0, 1, 3):
        told.clear()
        assert forked.run_all(tasks, processes, lambda: told.append(1)) == [divmod(i, 3) for i in range(7)]
        assert len(told) == 7
    assert forked.run_all([], 4) == []
    assert os.getpid() not in forked.run_all([os.getpid] * 3, 2)


def test_libraries_with_threads_run_in_forks_of_a_process_that_used_them():
    """OpenMP's threads are gone in a fork, and its next parallel region would wait for them for ever."""
    code = f"""
import sys
sys.path.append({str(SCRIPTS)!r})
import numpy as np
from lib.run import forked
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

X = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
with threadpool_limits(2):
    NearestNeighbors(n_neighbors=5, algorithm="brute").fit(X).kneighbors(X)
    KMeans(4, n_init=1, random_state=0).fit(X)
task = lambda: KMeans(4, n_init=1, random_state=0).fit(X).labels_
one, two = forked.run_all([task, task], 2)
print((one == two).all())
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    options = {"capture_output": True, "text": True, "timeout": 120, "check": True}
    done = subprocess.run([sys.executable, "-c", code], env=env, **options)
    assert done.stdout == "True\n"
