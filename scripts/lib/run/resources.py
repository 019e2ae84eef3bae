"""What each stage needs, from the sizes of the samples: memory, GPU memory, time and disk.

A stage's script has its model, `needs`, a function from a `Job` to a `Need`. Its terms are the arrays that the stage
holds: chunks of the counts, whatever the cohort's size, and tables of cells, genes and neighbours. Bytes a cell or a
chunk, copies and libraries included, were fitted to measured peaks (tests/benchmarks/results/peaks-*.json), and a test
holds the models to them: never below a peak, and at most twice as high from 20,000 cells on. Of less, a process' own
150 to 250 MB are the most. The claims on a GPU (`vram`) are wider, for what exceeds its claim fails.

The cells are those that may be kept: `cells: min_genes` is known from the non-zeros of each cell, where the file tells
them; what else removes cells only makes them fewer. Time is generous, for a job that ends early costs nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

from lib.inputs.config import groupings
from lib.run.code import SCRIPTS, syntax_tree
from lib.store.stream import ROWS_NNZ

if TYPE_CHECKING:
    from lib.inputs.sizes import Sizes

KB, MB = 1e3, 1e6
MARGIN = 1.3  # of memory, beyond the models' terms
SLOW = 3.0  # of time, beyond what was seen on two cores
AT_LEAST = 3  # minutes
GPU_SPEED = 4  # a GPU's, at least
PYTHON = 150 * MB  # a process with NumPy, SciPy and pandas
CUPY, CUML = 350 * MB, 750 * MB  # what these take of the host's memory, with CUDA
THREAD = 15 * MB  # what each further thread of a pass holds
SNAKEMAKE_MB = 400  # Snakemake's own processes, beside the stage's in a job of a cluster: two of 175 MB
DRAWER = 100 * MB  # each further process that draws figures
HVG_SHARE = 2.5  # highly variable genes hold this many times their share of the non-zeros, at most
N_GROUPS = 30  # groups of a label, or of a clustering at resolution 1, which nobody knows beforehand


@dataclass(frozen=True)
class Load:
    """What a stage is given: one sample, or all together.

    Attributes
    ----------
    n_obs, n_kept, nnz
        Cells, those that may be kept, and non-zeros.
    n_vars
        Genes, of the sample with most.
    n_samples, n_batches
        Files, and batches in all.
    largest, largest_batch
        Non-zeros of the largest file; cells of the largest batch.
    turned
        Non-zeros of the largest file that lies by genes.
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
        """Samples together."""
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


@dataclass(frozen=True)
class Job(Load):
    """A load, and what else a model may ask for.

    Attributes
    ----------
    config
        The whole config.
    gpu
        Whether the workflow computes on a GPU.
    threads
        Of the job.
    grouping
        What markers are sought for; empty in other stages.
    part
        The pass of the stage, of which the job has one shard; empty: the job is the stage's own.
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
        """Memory of a process and its threads."""
        return PYTHON + THREAD * (self.threads - 1)

    @property
    def chunk(self) -> float:
        """How much of a whole chunk the largest file fills, 0 to 1."""
        return min(1, self.largest / ROWS_NNZ[self.device])

    @property
    def store(self) -> float:
        """Bytes on disk of the counts, in all stores together."""
        return 1.6 * self.nnz + 150 * self.n_obs + 100 * self.n_samples * self.n_vars

    @property
    def places(self) -> float:
        """Where each sample's cells and genes are among all, which every pass over the cohort holds."""
        return 16 * self.n_obs + 8 * self.n_samples * self.n_vars

    @property
    def shards(self) -> int:
        """Into how many shards the passes over the cohort are cut."""
        return self.config["shards"]

    @property
    def shard(self) -> Job:
        """What one of the shards is given, as though it were all."""
        parts = {name: ceil(getattr(self, name) / self.shards) for name in ("n_obs", "n_kept", "nnz")}
        return replace(self, **parts, part="", config={**self.config, "shards": 1})

    @property
    def n_top(self) -> int:
        """Highly variable genes; where they are cut by dispersion, which leaves some thousands, half of all at most."""
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
        """Components in which neighbours are sought."""
        return self.config["neighbors"]["n_pcs"] or self.n_comps

    @property
    def k(self) -> int:
        """Neighbours that are kept of each cell; t-SNE wants most."""
        tsne, others = self.config["tsne"], self.config["neighbors"]["n_neighbors"] - 1
        return max(others, int(3 * tsne["perplexity"]) if tsne["enabled"] else 0)

    @property
    def edges(self) -> float:
        """Non-zeros of the graph: neighbours are so of each other about every other time."""
        return 1.8 * self.n_kept * self.config["neighbors"]["n_neighbors"]

    @property
    def n_groups(self) -> int:
        """Groups of the grouping."""
        method, _, number = self.grouping.partition("_")
        if self.grouping == self.config["batch_key"]:
            return self.n_batches
        if method == "kmeans":
            return int(number)
        return ceil(N_GROUPS * max(1, float(number))) if method in ("leiden", "louvain") else N_GROUPS

    @property
    def n_rankings(self) -> int:
        """Tables of markers."""
        return len(groupings(self.config)) * len(self.config["markers"]["methods"])

    def pass_memory(self, chunk: float, tables: float, gpu_chunk: float = 0) -> dict[str, float]:
        """Bytes of memory of a pass over counts: what it holds of whole chunks (of small files less), and tables."""
        mem = self.process + chunk * self.chunk + tables
        return {"mem": mem, "gpu_mem": self.process + CUPY + gpu_chunk * self.chunk + tables}

    def claim(self, chunk: float, arrays: float = 0) -> float:
        """GPU memory of a pass over counts: 300 MB of libraries' own, `chunk` of whole chunks, and arrays."""
        return 300 * MB + chunk * self.chunk + arrays

    def drawn(self, base: float, per_cell: float, seconds: float) -> Need:
        """What figures of tables of cells need: `base` and `per_cell` bytes, and some images."""
        drawers = DRAWER * (self.threads - 1)
        return Need(PYTHON + base + drawers + per_cell * self.n_kept, seconds + 1e-4 * self.n_kept, 20 * MB)

    def reduced(self, need: Need, held: float) -> Need:
        """What a stage needs on its own or, where shards have run its passes: `held` bytes and no GPU."""
        if self.shards == 1:
            return need
        return replace(need, mem=PYTHON + held, gpu_mem=None, seconds=10 + 2e-5 * self.n_kept, vram=0, reads=0)

    def of_shard(self, model: Model, per_cell: float) -> Need:
        """What a stage needs for a shard as though it were all; and of all cells their places, and `per_cell` bytes."""
        need, held = model(self.shard), self.places + per_cell * self.n_kept
        reads = self.shard.store if need.reads is None else need.reads
        gpu_mem = None if need.gpu_mem is None else need.gpu_mem + held
        return replace(need, mem=need.mem + held, gpu_mem=gpu_mem, reads=reads)


@dataclass(frozen=True)
class Need:
    """What a job needs.

    Attributes
    ----------
    mem
        Bytes of memory.
    seconds
        On two cores.
    disk
        Bytes that it writes, scratch included.
    vram
        Bytes of GPU memory, where it runs on a GPU; 0: it never does.
    gpu_mem
        Bytes of memory where it runs on a GPU, if these are others.
    reads
        Bytes that it reads, of what threads can share; None: the counts' stores.
    """

    mem: float
    seconds: float
    disk: float
    vram: float = 0
    gpu_mem: float | None = None
    reads: float | None = None


Model = Callable[[Job], Need]


def resources_of(need: Need, job: Job, attempt: int = 1) -> dict[str, int]:
    """What a job needs in Snakemake's units: `mem_mb`, `vram_mb`, `runtime` (minutes) and `disk_mb`.

    Every attempt asks for as much again of memory, GPU memory and time. `gpu: memory_gb` bounds `vram_mb`.
    """
    on_gpu = job.gpu and need.vram > 0
    mem = need.gpu_mem if on_gpu and need.gpu_mem is not None else need.mem
    minutes = SLOW * need.seconds / 60 / (GPU_SPEED if on_gpu else 1)
    most = (job.config["gpu"]["memory_gb"] or float("inf")) * 1024
    return {
        "mem_mb": ceil(MARGIN * mem / MB) * attempt,
        "vram_mb": int(min(need.vram / MB * attempt, most)) if on_gpu else 0,
        "runtime": ceil(max(AT_LEAST, minutes)) * attempt,
        "disk_mb": ceil(need.disk / MB),
    }


@cache
def model_of(stage: str) -> Model:
    """The model of a stage: the function `needs` of its script.

    Of the script only that is executed which `needs` depends on: the libraries that stages compute with take seconds to
    import, and Snakemake asks the models of all stages whenever it starts.
    """
    path = SCRIPTS / f"{stage}.py"
    namespace: dict[str, Any] = {"__name__": f"needs of {path.name}"}
    body = list(_depended_on(syntax_tree(path).body, "needs"))
    exec(compile(ast.Module(body, []), str(path), "exec"), namespace)
    return namespace["needs"]


def _depended_on(statements: Sequence[ast.stmt], name: str) -> Iterator[ast.stmt]:
    """The statements of a module, in order, that bind a name, and those that bind what these use."""
    needed, wanted = set(), {name}
    while wanted:
        name = wanted.pop()
        for number, statement in enumerate(statements):
            if number not in needed and name in _bound(statement):
                needed.add(number)
                wanted |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return (statements[number] for number in sorted(needed))


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module gives a meaning to."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def read_mb(model: Model, job: Job) -> float:
    """Megabytes that a stage reads, of what threads can share: how many of them are worth having follows from it."""
    reads = model(job).reads
    return (job.store if reads is None else reads) / MB
