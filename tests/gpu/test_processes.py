"""Processes that run one job on the card after another: what a job leaves behind, and what it does not."""

from __future__ import annotations

import os

import pytest
from lib import start
from lib.run import cards, diagnosis
from served import Served, serve, until

# Says which process it is, and how much of the card's memory this one holds; claims all, and takes 1.6 GB
JOB = """
from lib.run import device
import cupy
cupy.cuda.runtime.free(0)
reserved = 5  # cudaMemPoolAttrReservedMemCurrent
pool = cupy.cuda.runtime.deviceGetDefaultMemPool(0)
print(os.getpid(), cupy.cuda.runtime.memPoolGetAttribute(pool, reserved), flush=True)
xp = device.gpu({claim}).xp
taken = xp.ones(200_000_000)
{then}
sys.stdout.flush()
start.END(0)
"""
FAULT = """
xp.RawKernel('extern "C" __global__ void fault(int* at) { *at = 1; }', 'fault')((1,), (1,), (xp.uint64(0),))
xp.cuda.runtime.deviceSynchronize()
"""


@pytest.fixture
def served(tmp_path):
    if diagnosis.unusable() or len(cards.visible()) != 1:
        pytest.skip("needs one GPU")
    yield from serve(tmp_path, gpu=1)


def run(served: Served, then: str = "") -> tuple[int, int, int]:
    """A job that claims the whole card: its exit status, its process, and the memory that the one before left."""
    code = JOB.format(claim=cards.room(*cards.visible()), then=then)
    status, out, err = served.run(code)
    forked, told = out.splitlines()
    assert forked == start.FORKED, err
    return (status, *map(int, told.split()))


def goes_on(served: Served, places: set[int]) -> bool:
    """Whether the next job runs in a process that ran one of those before."""
    status, place, left = run(served)
    assert (status, left) == (0, 0)
    known = place in places
    places.add(place)
    return known


def test_a_process_gives_the_memory_of_each_job_back_and_its_claim(served):
    served.run()
    places: set[int] = set()
    until(lambda: goes_on(served, places))
    until(lambda: not cards.claimed(served.folder / f"somersault-gpu-{os.getuid()}", *cards.visible()))


@pytest.mark.parametrize("then", [FAULT, "sys.kept = taken", "raise ValueError('odd')"])
def test_a_process_ends_after_an_error_of_cuda_or_with_memory_in_use(served, then):
    served.run()
    places: set[int] = set()
    until(lambda: goes_on(served, places))
    status, place, _ = run(served, then)
    assert (status == 0) == (then == "sys.kept = taken")
    found: set[int] = set()
    until(lambda: goes_on(served, found))
    assert place not in found
