"""The device that a stage computes on: the CPU, or one GPU with a hard cap on its memory.

The choice is made once, when the workflow is read (`diagnosis.choose`). A rule that runs on the GPU asks for the
resource `gpu`, and its stage reads the choice from its job (`of`).
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from lib.run import diagnosis
from lib.run.clock import spending
from lib.run.errors import UserError

MB = 1 << 20
RELEASE_THRESHOLD = 4  # cudaMemPoolAttrReleaseThreshold: memory that a pool keeps when it is freed


@dataclass(frozen=True)
class Device:
    """The place where arrays live.

    `xp` is the array module (NumPy or CuPy) and `sparse` its sparse module. Code on counts uses these two, never NumPy
    or SciPy directly.

    Attributes
    ----------
    name
        cpu or gpu.
    memory
        Bytes of GPU memory that this process may take; None on the CPU.
    """

    name: str
    xp: ModuleType
    memory: int | None = None

    @cached_property
    def sparse(self) -> ModuleType:
        """The sparse module, imported at its first use."""
        return import_module("cupyx.scipy.sparse" if self.is_gpu else "scipy.sparse")

    @property
    def is_gpu(self) -> bool:
        """Whether arrays live on a GPU."""
        return self.name == "gpu"

    def to_host(self, array: Any) -> np.ndarray:
        """The array as a NumPy array."""
        return array.get() if hasattr(array, "get") else np.asarray(array)

    def peak_mb(self) -> float | None:
        """The highest GPU memory of this process so far, in MB; None on the CPU."""
        return _STATISTICS[0].allocation_counts.peak_bytes / MB if _STATISTICS else None

    def describe(self) -> dict[str, Any]:
        """The run record's entries about the device: card, driver, CUDA, packages; empty for the CPU."""
        if not self.is_gpu:
            return {}
        runtime = self.xp.cuda.runtime
        return {
            "card": runtime.getDeviceProperties(self.xp.cuda.Device().id)["name"].decode(),
            "card_mb": runtime.memGetInfo()[1] // MB,
            "cap_mb": self.memory // MB,
            "driver": diagnosis.driver_version(),
            "cuda": diagnosis.dotted(runtime.runtimeGetVersion()),
            "gpu_versions": {name: diagnosis.version_of_package(name) for name in diagnosis.PACKAGES},
        }


@cache
def cpu() -> Device:
    """The CPU: NumPy and SciPy."""
    return Device("cpu", np)


@cache
def gpu(memory_mb: int | None = None, pool: bool = True, shard: int | None = None) -> Device:
    """A GPU: CuPy, which takes its memory from RMM, as cuVS, cuML and pylibcugraph do.

    RMM's limiting adaptor raises a MemoryError for allocations beyond the cap; its statistics adaptor knows the peak.

    Parameters
    ----------
    memory_mb
        The cap. It is claimed on a card with that much free memory, before anything is allocated (`lib.run.cards`).
        None: the free memory of the first card.
    pool
        Take memory from CUDA's pool, which keeps freed memory for the next allocation; else from cudaMalloc.
    shard
        See `lib.run.cards.claim`.

    Raises
    ------
    UserError
        If no GPU can be used: the message says whether driver, card or packages are missing, and how to get them.
    """
    if problem := diagnosis.unusable():
        raise UserError(diagnosis.refusal(problem))
    from lib.run import cards

    card = None if memory_mb is None else cards.claim(memory_mb, shard=shard)
    import cupy
    import rmm.mr
    from rmm.allocators.cupy import rmm_cupy_allocator

    # CUB's block reductions are no faster here, and each takes 3 to 5 s to compile, once on every machine
    cupy._core.set_reduction_accelerators([])
    with spending("import"):  # CUDA's initialisation
        cupy.cuda.Device(0 if card is None else card[0].ordinal).use()
        cupy.cuda.runtime.free(0)
    cap = int(cupy.cuda.runtime.memGetInfo()[0] * cards.USABLE) if card is None else card[1] * MB
    source = rmm.mr.CudaMemoryResource()
    if pool:  # the device's own, so that it can be trimmed
        from cuda.bindings.runtime import cudaMemPool_t

        own = cupy.cuda.runtime.deviceGetDefaultMemPool(cupy.cuda.Device().id)
        cupy.cuda.runtime.memPoolSetAttribute(own, RELEASE_THRESHOLD, (1 << 63) - 1)
        source = rmm.mr.CudaAsyncViewMemoryResource(cudaMemPool_t(own))
    resource = rmm.mr.StatisticsResourceAdaptor(rmm.mr.LimitingResourceAdaptor(source, allocation_limit=cap))
    rmm.mr.set_current_device_resource(resource)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    _STATISTICS.append(resource)
    _CURRENT.append(Device("gpu", cupy, cap))
    return _CURRENT[0]


def of(snakemake: Any) -> Device:
    """The device of a job: the GPU, capped at `vram_mb`, if its rule asked for one (resource `gpu`), else the CPU."""
    resources = snakemake.resources
    if not resources.get("gpu", 0):
        return cpu()
    shard = snakemake.wildcards.get("scatteritem")
    number = None if shard is None else int(shard.partition("-")[0])
    return gpu(int(resources.get("vram_mb")), bool(resources.get("gpu_pool", 1)), number)


def resolve(choice: str = "auto") -> Device:
    """The device for `auto`, `cpu` or `gpu`, outside a job."""
    return gpu() if diagnosis.choose(choice) == "gpu" else cpu()


def current() -> Device:
    """The device of this process: the GPU if it was set up, else the CPU."""
    return _CURRENT[0] if _CURRENT else cpu()


def given_back(kept: list[Any]) -> int:
    """Give the GPU's memory and the claim on it back; the bytes that are still in use.

    RMM's resources are added to `kept`, as handles of the libraries may refer to them.
    """
    if not _CURRENT:
        return 0
    import cupy
    import rmm.mr

    from lib.run import cards

    _CURRENT.clear()
    gpu.cache_clear()
    gc.collect()
    cupy.cuda.runtime.deviceSynchronize()
    resource = _STATISTICS.pop()
    used = resource.allocation_counts.current_bytes
    kept.append(resource)
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    rmm.mr.set_current_device_resource(rmm.mr.CudaMemoryResource())
    if not used:
        pool = cupy.cuda.runtime.deviceGetDefaultMemPool(cupy.cuda.Device().id)
        cupy.cuda.runtime.memPoolTrimTo(pool, 0)
        cards.release()
    return used


def out_of_memory(error: MemoryError, where: str) -> str:
    """The message for a stage that needs more memory than its device has."""
    if not current().is_gpu:
        return f"out of memory ({error}). Give the rule more (`mem_mb`), or run it on a machine that has more."
    cap, peak = current().memory / MB, current().peak_mb()
    if "cudaErrorMemoryAllocation" in str(error):  # by CUDA, not by the cap
        return (
            f"{where}: the card has no memory left, though this job had only {peak:.0f} of the {cap:.0f} MB that it "
            f"may take: other programs use the card, or another job takes more than it claims ({error}). Run it again "
            "when they have ended, let the workflow's jobs use less of the card together with `--resources "
            "vram_mb=...`, or choose another card with CUDA_VISIBLE_DEVICES."
        )
    return (
        f"{where} needs more GPU memory than its cap of {cap:.0f} MB: it had {peak:.0f} MB at most, and then {error}. "
        "Raise `gpu: memory_gb` in the config if that is the cap, run the rule again with a larger "
        "`--set-resources RULE:vram_mb=...`, use a card with more memory, or set `device: cpu`."
    )


_CURRENT: list[Device] = []  # the GPU, once it is set up
_STATISTICS: list[Any] = []  # RMM's resource, once a GPU is set up
