"""Choose a card for each job on a machine with several jobs and several cards.

A job claims its cap of GPU memory on a card that has that much unclaimed, and waits until there is one. So jobs share a
card only if they fit together, even jobs of several workflows. Each card has a file of claims, which is read and
written under an exclusive lock. Claims of processes that have ended are ignored.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lib.run.clock import born

log = logging.getLogger("somersault")

USABLE = 0.97  # of a card's memory: the rest is left to the driver and to libraries' own allocations
CONTEXT_MB = 750  # GPU memory of a process besides its arrays: CUDA's context and the libraries' kernels
LARGE_MB = 30_000  # memory beside which that of several spares is no matter
COMPUTE_MODE = 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE; 0: default
POLL = 0.25  # seconds between two reads of the claims


@dataclass(frozen=True)
class Card:
    """A card that this process may use.

    Attributes
    ----------
    ordinal
        Its number among the cards that CUDA shows to this process.
    uuid
        Its name, the same for every process.
    memory_mb
        Its total memory.
    """

    ordinal: int
    uuid: str
    memory_mb: int


def claim(
    need_mb: int, cards: Sequence[Card] | None = None, folder: Path | None = None, shard: int | None = None
) -> tuple[Card, int]:
    """Claim memory on a card until this process ends; wait until a card has enough.

    Parameters
    ----------
    need_mb
        The memory wanted; at most what the largest card has is claimed.
    cards
        The cards to choose from; None: those that CUDA shows.
    folder
        The folder of the files of claims; None: one per user in the machine's temporary folder.
    shard
        A shard's number: it takes the emptiest card. If several are equally empty, neighbouring shards take different
        ones.

    Returns
    -------
    The card and the memory claimed.
    """
    cards = visible() if cards is None else cards
    folder = _folder(folder)
    most = max(room(card) for card in cards)
    if need_mb > most:
        log.warning("the job asks for %d MB of GPU memory; the largest card has only %d MB", need_mb, most)
    need_mb, waiting = min(need_mb, most), False
    while True:
        # The fullest card with room, so that large jobs find empty ones; shards are spread over all cards
        turn = (shard or 0) % len(cards)
        turned = [*cards[turn:], *cards[:turn]]
        for card in sorted(turned, key=lambda card: room(card) - claimed(folder, card), reverse=shard is not None):
            if _claimed_now(folder, card, need_mb):
                log.info("GPU %s: %d of its %d MB", card.uuid, need_mb, card.memory_mb)
                return card, need_mb
        if not waiting:
            log.info("waiting for %d MB on a card: other jobs have claimed them", need_mb)
            waiting = True
        time.sleep(POLL)


def release(cards: Sequence[Card] | None = None, folder: Path | None = None) -> None:
    """Give this process' claims back."""
    folder = _folder(folder)
    for card in visible() if cards is None else cards:
        with _locked(folder, card) as file:
            claims = _living(file)
            if claims.pop(str(os.getpid()), None):
                file.truncate(0)
                file.write(json.dumps(claims))


def room(card: Card) -> int:
    """The memory of a card that can be claimed, in MB: without contexts of a job and of spares (`lib.run.forks`)."""
    return int(card.memory_mb * USABLE) - (1 + spares(card.memory_mb)) * CONTEXT_MB


def spares(memory_mb: float) -> int:
    """The number of processes that wait for jobs with CUDA started on a card, of which so much memory may be used."""
    return 4 if memory_mb > LARGE_MB else 2


def is_shared(card: Card) -> bool:
    """Whether several processes may have a context on a card at a time."""
    mode = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(mode), COMPUTE_MODE, card.ordinal)
    return mode.value == 0


def claimed(folder: Path, card: Card) -> int:
    """The memory of a card that running processes have claimed, contexts included, in MB."""
    with _locked(folder, card) as file:
        return _sum(_living(file))


def visible() -> list[Card]:
    """The cards that CUDA shows to this process; creates no context on any of them."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    cards = []
    for ordinal in range(count.value):
        uuid, memory = (ctypes.c_ubyte * 16)(), ctypes.c_size_t(0)
        driver.cuDeviceGetUuid_v2(uuid, ordinal)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), ordinal)
        text = bytes(uuid).hex()
        parts = text[:8], text[8:12], text[12:16], text[16:20], text[20:]
        cards.append(Card(ordinal, "GPU-" + "-".join(parts), memory.value >> 20))
    return cards


def _folder(folder: Path | None) -> Path:
    folder = folder or Path(tempfile.gettempdir()) / f"somersault-gpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _claimed_now(folder: Path, card: Card, need_mb: int) -> bool:
    with _locked(folder, card) as file:
        claims = _living(file)
        if _sum(claims) + need_mb > room(card):
            return False
        claims[str(os.getpid())] = {"mb": need_mb, "born": born(os.getpid())}
        file.truncate(0)
        file.write(json.dumps(claims))
        return True


def _locked(folder: Path, card: Card) -> TextIO:
    """The card's file of claims, opened, and locked until it is closed."""
    file = (folder / f"{card.uuid}.json").open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _living(file: TextIO) -> dict[str, dict]:
    """The claims in a file whose processes still run."""
    file.seek(0)
    try:
        claims = json.loads(file.read() or "{}")
    except json.JSONDecodeError:  # the process that wrote it was killed
        claims = {}
    return {pid: claim for pid, claim in claims.items() if born(int(pid)) == claim["born"]}


def _sum(claims: dict[str, dict]) -> int:
    return sum(claim["mb"] + CONTEXT_MB for claim in claims.values())
