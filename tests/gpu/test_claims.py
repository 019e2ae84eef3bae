"""Parallel jobs on this machine's cards: jobs that fit together share a card, others get one each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from carried import HOME
from lib.run import cards, diagnosis

JOB = """
import sys
sys.path.append(sys.argv[1])
import tempfile
tempfile.tempdir = sys.argv[2]
from lib.run import device
found = device.gpu(int(sys.argv[3]))
held = found.xp.ones(1 << 20)
print(found.xp.cuda.Device().id, flush=True)
sys.stdin.read()
"""


@contextmanager
def job(folder, mb: int) -> Iterator[subprocess.Popen[str]]:
    """A process that claims GPU memory, prints the card, and holds the claim until the block ends."""
    command = [sys.executable, "-c", JOB, str(HOME / "scripts"), str(folder), str(mb)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


@pytest.fixture(scope="module")
def room() -> list[int]:
    """The memory of each card that can be claimed, in MB."""
    if diagnosis.unusable():
        pytest.skip("needs a GPU")
    return [cards.room(card) for card in cards.visible()]


def test_small_jobs_share_a_card(room, tmp_path):
    with job(tmp_path, room[0] // 4) as one, job(tmp_path, room[0] // 4) as other:
        assert one.stdout.readline() == other.stdout.readline() != ""


def test_large_jobs_take_a_card_each(room, tmp_path):
    if len(room) < 2:
        pytest.skip("needs two cards")
    most = min(room)
    with job(tmp_path, most * 3 // 5) as one, job(tmp_path, most * 3 // 5) as other:
        assert {one.stdout.readline(), other.stdout.readline()} == {"0\n", "1\n"}


def test_a_job_that_fits_nowhere_waits_until_another_ends(room, tmp_path):
    last = [job(tmp_path, mb * 3 // 5) for mb in room]
    holders = [each.__enter__() for each in last]
    taken = {holder.stdout.readline() for holder in holders}
    assert len(taken) == len(room)
    with job(tmp_path, min(room) * 3 // 5) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(8)
        last[0].__exit__(None, None, None)
        assert waiting.stdout.readline() in taken
    for each in last[1:]:
        each.__exit__(None, None, None)
