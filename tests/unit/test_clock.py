"""A stage's seconds by kind sum to its total time, each second counted once."""

from __future__ import annotations

import threading
import time

import pytest
from lib.run import clock


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(clock, "_spent", {"import": 0.0, "read": 0.0, "write": 0.0})


def test_kinds_sum_to_the_whole():
    with clock.spending("read"):
        time.sleep(0.02)
    kinds = clock.seconds_by(start=100.0, main=101.5, end=104.0)
    assert kinds["import"] == 1.5  # the time before main
    assert kinds["read"] >= 0.02
    assert sum(kinds.values()) == pytest.approx(4.0, abs=0.004)  # each is rounded to a millisecond


def test_what_runs_within_another_kind_counts_once():
    with clock.spending("read"), clock.spending("write"):
        time.sleep(0.02)
    assert clock._spent["write"] == 0
    assert clock._spent["read"] >= 0.02


def test_other_threads_do_not_count():
    thread = threading.Thread(target=clock.counted("read")(time.sleep), args=(0.02,))
    thread.start()
    thread.join()
    assert clock._spent["read"] == 0


def test_a_process_started_before_now():
    assert 0 < time.time() - clock.process_start() < 24 * 3600


def test_where_there_is_no_proc_time_counts_from_the_first_import(monkeypatch):
    monkeypatch.setattr(clock, "born", lambda pid: None)
    assert clock.process_start() == clock._LOADED
