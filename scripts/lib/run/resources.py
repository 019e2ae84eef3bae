"""Describe a job, and the memory, GPU memory, time and disk that it needs, for the models of the stages.

Each stage's script has a model, `needs`, a function from a `Job` to a `Need` (`lib.run.models` finds it). Its terms are
the arrays that the stage holds: chunks of the counts, independent of the cohort's size, and tables of cells, genes and
neighbours. The bytes per cell or chunk include copies and libraries, and were fitted to measured peaks
(tests/benchmarks/results/peaks-*.json). A test checks the models: a model is never below a peak, and from 20,000 cells
on at most twice as high. With fewer cells the 150 to 250 MB of the process itself dominate. The claims on a GPU
(`vram`) are wider, as a job that exceeds its claim fails.

A model counts the cells that may be kept: the non-zeros of each cell, where the file tells them, say which cells pass
`cells: min_genes`; other limits only remove more cells. Time is generous, as a job that ends early costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from lib.inputs.config import clustering_names, groupings
from lib.store.stream import ROWS_NNZ

if TYPE_CHECKING:
    from lib.inputs.sizes import Sizes

KB, MB, GB = 1e3, 1e6, 1e9
PYTHON = 150 * MB  # a process with NumPy, SciPy and pandas
CUPY, CUML = 350 * MB, 750 * MB  # their host memory, with CUDA
THREAD = 15 * MB  # each further thread of a pass
DRAWER = 100 * MB  # each further process that draws figures
# A regression's matrix stays in memory as float32 if it fits this, else as float16 if that fits, else it is streamed
CACHE_BYTES = 1 << 30
HVG_SHARE = 2.5  # highly variable genes hold at most this many times their share of the non-zeros
BLOCKS = 4  # most blocks of a user's file that threads check at a time
KEPT = 90  # neighbours of a cell that are kept at least: those of t-SNE's usual perplexity
N_TESTED = 10_000  # assumed genes that can be tested between conditions in a group
N_GROUPS = 30  # assumed groups of a label, or of a clustering at resolution 1; the true number is not known beforehand


@dataclass(frozen=True)
class Load:
    """The input of a stage: one sample, or all samples together.

    Attributes
    ----------
    n_obs, n_kept, nnz
        Cells, cells that may be kept, and non-zeros.
    n_vars
        Genes of the sample with most genes.
    n_samples, n_batches
        Files, and batches in all.
    largest, largest_batch
        Non-zeros of the largest file; cells of the largest batch.
    turned
        Non-zeros of the largest file that is stored gene by gene.
    """

    n_obs: int
    n_kept: int
    nnz: int
    n_vars: int
    n_samples: int
    n_batches: int
    largest: int
    largest_batch: int
    turned: int

    @classmethod
    def of(cls, samples: Sequence[Sizes]) -> Load:
        """The load of these samples together."""
        return cls(
            n_obs=sum(s.n_obs for s in samples),
            n_kept=sum(s.n_kept for s in samples),
            nnz=sum(s.nnz for s in samples),
            n_vars=max(s.n_vars for s in samples),
            n_samples=len(samples),
            n_batches=sum(s.n_batches for s in samples),
            largest=max(s.nnz for s in samples),
            largest_batch=max(s.largest_batch for s in samples),
            turned=max(s.nnz * s.turned for s in samples),
        )

    def of_group(self, n_kept: int) -> Load:
        """The load of a group of cells: the counts of all samples, of which at most `n_kept` cells are used."""
        of_group = {name: min(getattr(self, name), n_kept) for name in ("n_kept", "largest_batch")}
        return replace(self, **of_group)


@dataclass(frozen=True)
class Job(Load):
    """A load, and the other facts that a model may use.

    Attributes
    ----------
    config
        The whole config.
    gpu
        Whether the workflow computes on a GPU.
    threads
        Threads of the job.
    grouping
        The grouping whose markers are computed; empty in other stages.
    part
        The pass that the job runs on one shard; empty if the job is the stage itself.
    """

    config: Mapping[str, Any]
    gpu: bool
    threads: int = 1
    grouping: str = ""
    part: str = ""

    @classmethod
    def of(cls, load: Load, config: Mapping[str, Any], gpu: bool, **more: Any) -> Job:
        """A job with this load."""
        return cls(**vars(load), config=config, gpu=gpu, **more)

    @property
    def device(self) -> str:
        """cpu or gpu."""
        return "gpu" if self.gpu else "cpu"

    @property
    def process(self) -> float:
        """Bytes of memory of a process and its threads."""
        return PYTHON + THREAD * (self.threads - 1)

    @property
    def chunk(self) -> float:
        """The share of a full chunk that the largest file fills, 0 to 1."""
        return min(1, self.largest / ROWS_NNZ[self.device])

    @property
    def store(self) -> float:
        """Bytes of the counts on disk, in all stores together."""
        return 1.6 * self.nnz + 150 * self.n_obs + 100 * self.n_samples * self.n_vars

    @property
    def places(self) -> float:
        """Bytes of the positions of each sample's cells and genes, which every pass over the cohort holds."""
        return 16 * self.n_obs + 8 * self.n_samples * self.n_vars

    @property
    def shards(self) -> int:
        """The number of shards of the passes over the cohort."""
        return self.config["shards"]

    @property
    def shard(self) -> Job:
        """A job of the size of one shard, as if that were the whole cohort."""
        parts = {name: ceil(getattr(self, name) / self.shards) for name in ("n_obs", "n_kept", "nnz")}
        return replace(self, **parts, part="", config={**self.config, "shards": 1})

    @property
    def n_top(self) -> int:
        """Highly variable genes. A cut by dispersion leaves some thousands: half of all genes is assumed at most."""
        wanted = self.config["hvg"]["n_top_genes"]
        return min(self.n_vars, self.n_vars // 2 if wanted is None else wanted)

    @property
    def features_nnz(self) -> float:
        """Non-zeros of the features."""
        return self.nnz * min(1, HVG_SHARE * self.n_top / max(1, self.n_vars))

    @property
    def features_store(self) -> float:
        """Bytes of the features, as they are read."""
        return 2.2 * self.nnz * self.n_top / max(1, self.n_vars)

    @property
    def n_comps(self) -> int:
        """Principal components."""
        return self.config["pca"]["n_comps"]

    @property
    def n_pcs(self) -> int:
        """Components that the neighbour search uses."""
        return self.config["neighbors"]["n_pcs"] or self.n_comps

    @property
    def k(self) -> int:
        """Neighbours stored per cell."""
        return max(self.config["neighbors"]["n_neighbors"] - 1, KEPT)

    @property
    def edges(self) -> float:
        """Non-zeros of the graph; about half of the neighbour relations are mutual."""
        return 1.8 * self.n_kept * self.config["neighbors"]["n_neighbors"]

    @property
    def n_groups(self) -> int:
        """The number of groups of the grouping."""
        if self.grouping == self.config["batch_key"]:
            return self.n_batches
        if self.grouping not in clustering_names(self.config):
            return N_GROUPS
        method, _, number = self.grouping.partition("_")
        return int(number) if method == "kmeans" else ceil(N_GROUPS * max(1, float(number)))

    @property
    def n_rankings(self) -> int:
        """The number of marker tables."""
        return len(groupings(self.config)) * len(self.config["markers"]["methods"])

    def pass_memory(self, chunk: float, tables: float, gpu_chunk: float = 0) -> dict[str, float]:
        """Bytes of memory of a pass over counts: `chunk` for full chunks (less for small files), and `tables`."""
        mem = self.process + chunk * self.chunk + tables
        return {"mem": mem, "gpu_mem": self.process + CUPY + gpu_chunk * self.chunk + tables}

    def claim(self, chunk: float, arrays: float = 0) -> float:
        """Bytes of GPU memory of a pass over counts: 200 MB for libraries, `chunk` for full chunks, and `arrays`."""
        return 200 * MB + chunk * self.chunk + arrays

    def drawn(self, base: float, per_cell: float, seconds: float) -> Need:
        """The need of figures of tables of cells: `base` bytes, `per_cell` bytes per cell, and some images."""
        drawers = DRAWER * (self.threads - 1)
        return Need(PYTHON + base + drawers + per_cell * self.n_kept, seconds + 2e-5 * self.n_kept, 20 * MB)

    def reduced(self, need: Need, held: float) -> Need:
        """The need of a stage: `need` if it runs its passes itself; `held` bytes and no GPU if shards have run them."""
        if self.shards == 1:
            return need
        return replace(need, mem=PYTHON + held, gpu_mem=None, seconds=10 + 2e-5 * self.n_kept, vram=0, reads=0)

    def of_shard(self, model: Model, per_cell: float) -> Need:
        """The need of a stage for one shard, plus the places and `per_cell` bytes of all cells."""
        need, held = model(self.shard), self.places + per_cell * self.n_kept
        reads = self.shard.store if need.reads is None else need.reads
        gpu_mem = None if need.gpu_mem is None else need.gpu_mem + held
        return replace(need, mem=need.mem + held, gpu_mem=gpu_mem, reads=reads)


@dataclass(frozen=True)
class Need:
    """The resources that a job needs.

    Attributes
    ----------
    mem
        Bytes of memory.
    seconds
        Seconds on two cores.
    disk
        Bytes that it writes, scratch included.
    vram
        Bytes of GPU memory if it runs on a GPU; 0: it never does.
    gpu_mem
        Bytes of host memory if it runs on a GPU; None: as `mem`.
    reads
        Bytes that several threads can read; None: the counts' stores.
    """

    mem: float
    seconds: float
    disk: float
    vram: float = 0
    gpu_mem: float | None = None
    reads: float | None = None


Model = Callable[[Job], Need]
