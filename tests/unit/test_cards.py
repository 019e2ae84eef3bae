"""Claims on cards: jobs share a card only if they fit together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lib.run import cards
from lib.run.cards import CONTEXT_MB, Card, claim, claimed, room

SCRIPTS = Path(__file__).parents[2] / "scripts"
TWO = [Card(0, "GPU-a", 16_000), Card(1, "GPU-b", 80_000)]


def claimant(folder: Path, need_mb: int, card: Card) -> subprocess.Popen:
    """Another process that claims memory on a card and then waits."""
    code = (
        f"import sys, time; sys.path.append({str(SCRIPTS)!r}); from pathlib import Path; from lib.run.cards import *\n"
        f"claim({need_mb}, [{card!r}], Path({str(folder)!r})); print('has it', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "has it\n"
    return process


def test_a_job_takes_the_card_where_it_fits_most_closely(tmp_path):
    card, got = claim(10_000, TWO, tmp_path)
    assert (card.uuid, got) == ("GPU-a", 10_000)
    assert claimed(tmp_path, TWO[0]) == 10_000 + CONTEXT_MB
    assert claimed(tmp_path, TWO[1]) == 0


def test_what_does_not_fit_beside_another_job_goes_to_another_card(tmp_path):
    other = claimant(tmp_path, 10_000, TWO[0])
    try:
        assert claim(10_000, TWO, tmp_path)[0].uuid == "GPU-b"
    finally:
        other.kill()


def test_jobs_that_fit_share_a_card(tmp_path):
    other = claimant(tmp_path, 6_000, TWO[0])
    try:
        assert claim(6_000, TWO, tmp_path)[0].uuid == "GPU-a"
        assert claimed(tmp_path, TWO[0]) == 2 * (6_000 + CONTEXT_MB)
    finally:
        other.kill()


def test_a_job_waits_until_another_is_gone(tmp_path, monkeypatch):
    other = claimant(tmp_path, 10_000, TWO[0])
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        other.kill()  # without cleanup: its claim stays in the file
        other.wait()

    monkeypatch.setattr(time, "sleep", sleep)
    assert claim(10_000, TWO[:1], tmp_path)[1] == 10_000
    assert waited == [cards.POLL]


def test_a_claim_of_a_process_that_has_a_dead_ones_number_counts_for_nothing(tmp_path):
    claim(10_000, TWO[:1], tmp_path)
    file = tmp_path / "GPU-a.json"
    assert str(os.getpid()) in file.read_text()
    file.write_text(file.read_text().replace('"born": "', '"born": "1'))
    assert claimed(tmp_path, TWO[0]) == 0


def test_shards_take_a_card_each_and_the_emptiest(tmp_path):
    equal = [Card(0, "GPU-a", 80_000), Card(1, "GPU-b", 80_000)]
    for folder, shard in (("first", 1), ("second", 2)):  # as if both read the claims at the same moment
        assert claim(1000, equal, tmp_path / folder, shard)[0].ordinal == shard % 2
    other = claimant(tmp_path, 6_000, equal[1])
    try:
        assert [claim(1000, equal, tmp_path, shard)[0].uuid for shard in (1, 2)] == ["GPU-a", "GPU-a"]
    finally:
        other.kill()


def test_more_than_any_card_has_is_cut_to_the_largest(tmp_path, caplog):
    card, got = claim(1_000_000, TWO, tmp_path)
    assert (card.uuid, got) == ("GPU-b", room(TWO[1]))
    assert "the largest card has" in caplog.text


def test_a_broken_file_of_claims_is_an_empty_one(tmp_path):
    (tmp_path / "GPU-a.json").write_text('{"12": {"mb"')
    assert claim(1000, TWO[:1], tmp_path)[1] == 1000


@pytest.mark.parametrize("need", [1, 15_000])
def test_claims_end_with_their_process(tmp_path, need):
    other = claimant(tmp_path, min(need, room(TWO[0])), TWO[0])
    assert claimed(tmp_path, TWO[0]) > 0
    other.kill()
    other.wait()
    assert claimed(tmp_path, TWO[0]) == 0
