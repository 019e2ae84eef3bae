"""What a job says when its GPU has no memory left."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from lib.run import device as devices


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("std::bad_alloc: out_of_memory: Exceeded memory limit", "more GPU memory than its cap of 2000 MB"),
        ("CUDA error: cudaErrorMemoryAllocation out of memory", "only 700 of the 2000 MB"),
    ],
)
def test_a_cap_that_is_too_low_is_told_from_a_card_that_is_full(monkeypatch, error, said):
    device = devices.Device("gpu", np, 2000 * devices.MB)
    monkeypatch.setattr(devices, "current", lambda: device)
    counts = SimpleNamespace(allocation_counts=SimpleNamespace(peak_bytes=700 * devices.MB))
    monkeypatch.setattr(devices, "_STATISTICS", [counts])
    assert said in devices.out_of_memory(MemoryError(error), "qc (sample=P1)")
