"""What each stage needs, from the sizes of the samples: memory, GPU memory, time and disk.

One model a stage, a function from a `Job` to a `Need`. Its terms are the arrays that the stage holds: chunks of the
counts, whatever the cohort's size, and tables of cells, genes and neighbours. Bytes a cell or a chunk, copies and
libraries included, were fitted to measured peaks (tests/benchmarks/results/peaks-*.json), and a test holds the models
to them: never below a peak, and at most twice as high from 20,000 cells on. Of less, a process' own 150 to 250 MB are
the most. The claims on a GPU (`vram`) are wider, for what exceeds its claim fails.

The cells are those that may be kept: `cells: min_genes` is known from the non-zeros of each cell, where the file tells
them; what else removes cells only makes them fewer. Time is generous, for a job that ends early costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any

from lib.inputs.config import groupings
from lib.inputs.sizes import Sizes

KB, MB = 1e3, 1e6
SPARE = 1.3  # of memory, beyond the models' terms
SLOW = 3.0  # of time, beyond what was seen on two cores
AT_LEAST = 3  # minutes
GPU_SPEED = 4  # a GPU's, at least
CHUNK = {"cpu": 6e6, "gpu": 16e6}  # non-zeros that a pass reads at a time: counts.ROWS_NNZ
PYTHON = 150 * MB  # a process with NumPy, SciPy and pandas
CUPY, CUML = 350 * MB, 750 * MB  # what these take of the host's memory, with CUDA
THREAD = 15 * MB  # what each further thread of a pass holds
SNAKEMAKE_MB = 400  # Snakemake's own processes, beside the stage's in a job of a cluster: two of 175 MB
DRAWER = 100 * MB  # each further process that draws figures
EXACT_MAX = 50_000  # cells up to which a CPU compares all pairs: knn.EXACT_MAX
REFINED_MAX = 50_000  # cells up to which igraph's Leiden goes on from a GPU's: leiden.MAX_REFINED
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
    """

    config: Mapping[str, Any]
    gpu: bool
    threads: int
    grouping: str

    @property
    def chunk(self) -> float:
        """How much of a whole chunk the largest file fills, 0 to 1."""
        return min(1, self.largest / CHUNK["gpu" if self.gpu else "cpu"])

    @property
    def shards(self) -> int:
        """Into how many shards the passes over the cohort are cut."""
        return self.config["shards"]

    @property
    def shard(self) -> Job:
        """What one of the shards is given, as though it were all."""
        parts = {name: ceil(getattr(self, name) / self.shards) for name in ("n_obs", "n_kept", "nnz")}
        return replace(self, **parts, config={**self.config, "shards": 1})

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


def job_of(load: Load, config: Mapping[str, Any], gpu: bool, threads: int = 1, grouping: str = "") -> Job:
    """A job with this load."""
    return Job(**vars(load), config=config, gpu=gpu, threads=threads, grouping=grouping)


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
    """

    mem: float
    seconds: float
    disk: float
    vram: float = 0
    gpu_mem: float | None = None


Model = Callable[[Job], Need]


def needs(model: Model, job: Job, attempt: int = 1) -> dict[str, int]:
    """The resources of a job in Snakemake's units: `mem_mb`, `vram_mb`, `runtime` (minutes) and `disk_mb`.

    Every attempt asks for as much again of memory, GPU memory and time. `gpu: memory_gb` bounds `vram_mb`.
    """
    need = model(job)
    on_gpu = job.gpu and need.vram > 0
    mem = need.gpu_mem if on_gpu and need.gpu_mem is not None else need.mem
    minutes = SLOW * need.seconds / 60 / (GPU_SPEED if on_gpu else 1)
    most = (job.config["gpu"]["memory_gb"] or float("inf")) * 1024
    return {
        "mem_mb": ceil(SPARE * mem / MB) * attempt,
        "vram_mb": int(min(need.vram / MB * attempt, most)) if on_gpu else 0,
        "runtime": ceil(max(AT_LEAST, minutes)) * attempt,
        "disk_mb": ceil(need.disk / MB),
    }


def _pass(job: Job, chunk: float, tables: float, gpu_chunk: float = 0) -> dict[str, float]:
    """Memory of a pass over counts: what it holds of whole chunks (less, of small files) and its tables, in bytes."""
    threads = THREAD * (job.threads - 1)
    return {
        "mem": PYTHON + threads + chunk * job.chunk + tables,
        "gpu_mem": PYTHON + CUPY + threads + gpu_chunk * job.chunk + tables,
    }


def _claim(job: Job, chunk: float, arrays: float = 0) -> float:
    """GPU memory of a pass over counts: 300 MB of libraries' own, `chunk` of whole chunks, and arrays."""
    return 300 * MB + chunk * job.chunk + arrays


def _store(job: Job) -> float:
    """Bytes on disk of the counts, in all stores together."""
    return 1.6 * job.nnz + 150 * job.n_obs + 100 * job.n_samples * job.n_vars


# Each sample by itself


def simulate(job: Job) -> Need:
    """A patient's expected expression, and its counts."""
    return Need(mem=PYTHON + 40 * MB + 40 * job.nnz, seconds=20, disk=8 * job.nnz)


def ingest(job: Job) -> Need:
    """Blocks of the file and of the store, tables of cells; by genes, 12 bytes a non-zero of scratch on disk."""
    block = (400 if job.turned else 300) * MB * job.chunk
    mem = PYTHON + THREAD * (job.threads - 1) + block + 0.8 * KB * job.n_obs + 1.0 * KB * job.n_vars
    return Need(mem, seconds=5 + 0.5e-6 * job.nnz, disk=_store(job) + 12 * job.turned)


def qc(job: Job) -> Need:
    """Each cell's counts by falling size, a chunk at a time; a row of metrics a cell."""
    memory = _pass(job, 320 * MB, 1.2 * KB * job.n_obs, gpu_chunk=220 * MB)
    disk = 100 * job.n_obs + 40 * job.n_vars
    return Need(**memory, seconds=5 + 0.2e-6 * job.nnz, disk=disk, vram=_claim(job, 1000 * MB))


def doublets(job: Job) -> Need:
    """A batch's counts where they are few, its cells' components and those of the simulated; the genes' covariance."""
    share = job.largest_batch / max(1, job.n_obs)
    held = min(share * job.nnz, 80e6 if job.gpu else 48e6)
    points = (1 + job.config["doublets"]["sim_doublet_ratio"]) * job.largest_batch
    tables = 0.7 * KB * points + 1.0 * KB * job.n_obs
    memory = _pass(job, 350 * MB, 20 * MB + tables + 10 * held * (not job.gpu), gpu_chunk=470 * MB)
    covariance = 8 * min(job.n_vars, 5_000) ** 2  # of highly variable genes, rarely more
    vram = 400 * MB + 4 * covariance + 16 * held + 500 * MB * job.chunk + 2 * KB * points
    return Need(**memory, seconds=5 + 1e-6 * job.nnz, disk=40 * points, vram=vram)


def cells(job: Job) -> Need:
    """Tables of cells, side by side."""
    return Need(mem=PYTHON + 30 * MB + 1.7 * KB * job.n_obs, seconds=5 + 2e-5 * job.n_obs, disk=200 * job.n_obs)


# All samples together


def _cohort(job: Job) -> float:
    """Where each sample's cells and genes are among all, which every pass over the cohort holds."""
    return 16 * job.n_obs + 8 * job.n_samples * job.n_vars


def _reduced(job: Job, need: Need, held: float) -> Need:
    """What a stage needs on its own or, where shards have run its passes: `held` bytes and no GPU."""
    if job.shards == 1:
        return need
    return replace(need, mem=PYTHON + held, gpu_mem=None, seconds=10 + 2e-5 * job.n_kept, vram=0)


def genes(job: Job) -> Need:
    """Two sums a gene."""
    memory = _pass(job, 350 * MB, _cohort(job) + 0.5 * KB * job.n_obs + 1 * KB * job.n_vars)
    return Need(**memory, seconds=5 + 0.1e-6 * job.nnz, disk=100 * job.n_vars, vram=_claim(job, 1000 * MB))


def hvg(job: Job) -> Need:
    """Sums of each batch and gene, and statistics made of them."""
    sums = 64 * job.n_batches * job.n_vars
    chunk = 330 * MB * (job.shards == 1)
    memory = _pass(job, chunk, 40 * MB + _cohort(job) + sums + 0.6 * KB * job.n_kept + 1 * KB * job.n_vars)
    vram = _claim(job, 1900 * MB, sums)
    return Need(**memory, seconds=5 + 0.3e-6 * job.nnz, disk=200 * job.n_vars, vram=vram)


def features(job: Job) -> Need:
    """The kept cells' table, twice as it is joined."""
    memory = _pass(job, 360 * MB, _cohort(job) + 1.5 * KB * job.n_kept, gpu_chunk=250 * MB)
    disk = 2.5 * job.features_nnz + 200 * job.n_kept
    need = Need(**memory, seconds=5 + 0.1e-6 * job.nnz, disk=disk, vram=_claim(job, 1000 * MB))
    return _reduced(job, need, 30 * MB + 1.6 * KB * job.n_kept)


def pca(job: Job) -> Need:
    """The genes' covariance and its eigenvectors; dense chunks of 2,000 cells; the cells' components."""
    covariance, dense = 8 * job.n_top**2, 4 * 2_000 * job.n_top
    cells = (6 * job.n_comps + 500) * job.n_kept
    mem = PYTHON + THREAD * (job.threads - 1) + 40 * MB + 1.2 * covariance + 2 * dense + cells
    gpu_mem = PYTHON + CUPY + THREAD * (job.threads - 1) + 100 * MB + cells
    seconds = 10 + 2e-11 * job.n_kept * job.n_top**2 + 1e-8 * job.n_top**2 * job.n_comps
    disk = 4 * job.n_comps * (job.n_kept + job.n_top) + 64 * job.n_top
    vram = 1000 * MB + 4 * covariance
    held = 20 * MB + 8 * job.n_comps * job.n_kept + 16 * job.n_comps * job.n_top
    return _reduced(job, Need(mem, seconds, disk, vram, gpu_mem), held)


def harmony(job: Job) -> Need:
    """Some copies of the components, each cell's share in 100 clusters, and these clusters' sums in each batch."""
    sums = 5 * 8 * 100 * job.n_comps * job.n_batches
    tables = 4 * job.n_kept * (4 * job.n_comps + 100) + 700 * job.n_kept + sums
    mem = PYTHON + THREAD * (job.threads - 1) + 20 * MB + tables
    memory = {"mem": mem, "gpu_mem": PYTHON + CUPY + 4 * job.n_kept * (8 * job.n_comps + 2 * 100)}
    seconds = 5 + 1e-4 * job.n_kept * (1 + job.n_batches / 20)
    disk, vram = 4 * job.n_comps * job.n_kept, 600 * MB + 4 * job.n_kept * (6 * job.n_comps + 4 * 100)
    return Need(**memory, seconds=seconds, disk=disk, vram=vram)


def neighbors(job: Job) -> Need:
    """Of every cell its neighbours: all pairs in blocks, or NN-descent's heaps and trees; and the graph."""
    found = 8 * job.k * job.n_kept
    search = 2 * found if job.n_kept <= EXACT_MAX else 90 * MB + 70 * max(job.k, 30) * job.n_kept
    threads = THREAD * (job.threads - 1)
    graph = 24 * job.edges
    mem = PYTHON + threads + 50 * MB + search + graph
    gpu_mem = PYTHON + CUPY + threads + 2 * found + graph
    vram = 1200 * MB + 4 * found + 12 * job.n_pcs * job.n_kept
    seconds = 10 + 5e-7 * job.k * job.n_kept * log2(job.n_kept + 2)
    return Need(mem, seconds, found + 10 * job.edges, vram, gpu_mem)


def umap(job: Job) -> Need:
    """The graph in several orders, and the layout; compiled by Numba on a CPU."""
    graph = 115 * job.edges
    epochs = job.config["umap"]["n_epochs"] or (500 if job.n_kept <= 10_000 else 200)
    seconds = 15 + 4e-6 * job.n_kept * epochs
    vram = 1000 * MB + 48 * job.edges
    return Need(PYTHON + 190 * MB + graph, seconds, 20 * job.n_kept, vram, PYTHON + CUML + 0.5 * graph)


def tsne(job: Job) -> Need:
    """The neighbours' affinities, made symmetric."""
    affinities = 52 * job.k * job.n_kept
    seconds = 20 + 2e-6 * job.n_kept * job.config["tsne"]["n_iter"]
    gpu_mem = PYTHON + CUML + THREAD * (job.threads - 1) + 0.5 * affinities
    return Need(PYTHON + 90 * MB + affinities, seconds, 20 * job.n_kept, 800 * MB + 110 * job.k * job.n_kept, gpu_mem)


def density(job: Job) -> Need:
    """The cells' table, and a grid."""
    return Need(mem=PYTHON + 50 * MB + 0.8 * KB * job.n_kept, seconds=10 + 5e-5 * job.n_kept, disk=20 * job.n_kept)


def leiden(job: Job) -> Need:
    """The graph, and igraph's or cuGraph's copies of it."""
    n_iterations = job.config["leiden"]["n_iterations"]
    seconds = 5 + 1e-6 * job.edges * (n_iterations if n_iterations > 0 else 20)
    igraph = 95 * job.edges
    gpu_mem = PYTHON + CUML + 30 * job.edges + igraph * (job.n_kept <= REFINED_MAX)
    mem = PYTHON + 30 * MB + igraph
    return Need(mem, seconds, 20 * job.n_kept, 800 * MB + 160 * job.edges, gpu_mem)


def louvain(job: Job) -> Need:
    """As Leiden's, all of it on a GPU where there is one."""
    return replace(leiden(job), gpu_mem=PYTHON + CUML + 30 * job.edges)


def kmeans(job: Job) -> Need:
    """The components, and their distances to the centres."""
    points = 4 * job.n_pcs * job.n_kept
    threads = THREAD * (job.threads - 1)
    mem = PYTHON + 75 * MB + threads + 5 * points
    vram = 500 * MB + 6 * points
    return Need(mem, 10 + 2e-4 * job.n_kept, 20 * job.n_kept, vram, PYTHON + CUPY + threads + 5 * points)


def markers_logreg(job: Job) -> Need:
    """The scaled features: as float32 or float16 where they fit 1 GiB, or a GPU's memory; dense chunks of them."""
    values = job.n_kept * job.n_top
    held = 4 * values if 4 * values <= 1 << 30 else min(2 * values, 1 << 30)
    chunk = min(20e6, values)
    threads = THREAD * (job.threads - 1)
    mem = PYTHON + threads + 14 * chunk + held
    gpu_mem = PYTHON + CUPY + threads + 100 * MB + 0.6 * KB * job.n_kept
    seconds = 10 + 1.5e-9 * values * job.config["markers"]["logreg"]["max_iter"]
    return Need(mem, seconds, 40 * job.n_groups * job.n_top, 2000 * MB + 2.2 * values, gpu_mem)


def markers_ttest(job: Job) -> Need:
    """Sums of each group and gene, statistics made of them, and a table with a row for each."""
    table = 120 * job.n_groups * job.n_vars
    memory = _pass(job, 340 * MB, _cohort(job) + table + 0.8 * KB * job.n_kept)
    seconds = 10 + 0.2e-6 * job.nnz + 2e-5 * job.n_groups * job.n_vars
    vram = _claim(job, 1200 * MB, 48 * job.n_groups * job.n_vars)
    need = Need(**memory, seconds=seconds, disk=40 * job.n_groups * job.n_vars, vram=vram)
    return _reduced(job, need, 80 * MB + 48 * job.n_groups * job.n_vars + table + 0.8 * KB * job.n_kept)


def atlas(job: Job) -> Need:
    """Chunks that wait to be deflated; tables, components and graph of the cells; all marker tables."""
    n_tables = len(groupings(job.config)) * len(job.config["markers"]["methods"])
    markers = 60 * n_tables * N_GROUPS * job.n_vars
    cells = job.n_kept * (8 * job.n_comps + 8 * job.k + 500) + 16 * job.edges
    memory = _pass(job, 500 * MB, 40 * MB + _cohort(job) + markers + cells, gpu_chunk=700 * MB)
    disk = 6 * job.nnz + job.n_kept * (8 * job.n_comps + 500) + 16 * job.edges + markers
    return Need(**memory, seconds=15 + 0.2e-6 * job.nnz, disk=disk, vram=_claim(job, 1100 * MB))


# Shards of the cells, where the config wants more than one


def _shard(job: Job, model: Model, table: float) -> Need:
    """What a stage needs for a shard as though it were all cells; and of all cells their places, and `table` bytes."""
    need, held = model(job.shard), _cohort(job) + table * job.n_kept
    return replace(need, mem=need.mem + held, gpu_mem=None if need.gpu_mem is None else need.gpu_mem + held)


def hvg_sums(job: Job) -> Need:
    """As hvg; each cell's batch."""
    return replace(_shard(job, hvg, 0.6 * KB), disk=40 * job.n_batches * job.n_vars + 8 * job.n_kept)


def features_part(job: Job) -> Need:
    """As features; one sample's table may be that of all cells."""
    return _shard(job, features, 1.0 * KB)


def pca_sums(job: Job) -> Need:
    """Chunks of the features, and some sums a gene; each cell's totals and regressors."""
    per_cell = job.features_nnz / max(1, job.n_kept)
    mem = PYTHON + THREAD * (job.threads - 1) + 50 * MB + 2_000 * 50 * per_cell + 0.3 * KB * job.n_kept
    seconds, vram = 10 + 0.2e-6 * job.shard.features_nnz, 1000 * MB + 8_192 * 100 * per_cell
    return Need(mem, seconds, 64 * job.n_top, vram, mem + CUPY)


def pca_gram(job: Job) -> Need:
    """As pca, whose covariance is written; each cell's totals and regressors."""
    need, covariance = _shard(job, pca, 0.2 * KB), 8 * job.n_top**2
    return replace(need, disk=covariance + 64 * job.n_top, gpu_mem=need.gpu_mem + covariance)


def pca_components(job: Job) -> Need:
    """The covariances of two shards and their sum, and its eigenvectors."""
    covariance, vectors = 8 * job.n_top**2, 16 * job.n_comps * job.n_top
    mem = PYTHON + 40 * MB + 3.3 * covariance + vectors + 0.1 * KB * job.n_kept
    seconds = 10 + 1e-8 * job.n_top**2 * job.n_comps
    return Need(mem, seconds, vectors + 64 * job.n_top, 1000 * MB + 4 * covariance, mem + CUPY)


def pca_projection(job: Job) -> Need:
    """Dense chunks of 2,000 cells; each cell's totals and regressors."""
    need, part = _shard(job, pca, 0.2 * KB), job.shard
    covariance, X_pca = 8 * job.n_top**2, 4 * job.n_comps * part.n_kept
    seconds = 10 + 1e-10 * part.n_kept * job.n_top * job.n_comps + 0.2e-6 * part.features_nnz
    return replace(need, mem=need.mem - 1.1 * covariance, seconds=seconds, disk=X_pca)


def markers_ttest_sums(job: Job) -> Need:
    """As markers_ttest; each cell's group and totals."""
    return replace(_shard(job, markers_ttest, 0.3 * KB), disk=16 * job.n_groups * job.n_vars)


# Figures and tables


def _figures(base: float, per_cell: float, seconds: float = 30) -> Model:
    """Figures of tables of cells: `base` and `per_cell` bytes, and some images."""

    def model(job: Job) -> Need:
        drawers = DRAWER * (job.threads - 1)
        return Need(PYTHON + base + drawers + per_cell * job.n_kept, seconds + 1e-4 * job.n_kept, 20 * MB)

    model.__doc__ = f"{per_cell / KB:g} kB of tables a cell."
    return model


def figures_markers(job: Job) -> Need:
    """On the CPU whatever the device: 1,000 cells a thread, of all genes where the features lack one that is drawn."""
    chunk = 45 * 1000 * job.nnz / max(1, job.n_obs)
    sums = 48 * job.n_groups * job.n_vars
    mem = PYTHON + 70 * MB + (chunk + sums) * job.threads + _cohort(job) + 0.3 * KB * job.n_kept
    return Need(mem, 30 + 0.4e-6 * job.nnz, 20 * MB)


def runs(job: Job) -> Need:
    """A line for every job."""
    return Need(PYTHON + 60 * MB + 50 * KB * job.n_samples, 30 + 0.02 * job.n_samples, 20 * MB)


def report(job: Job) -> Need:
    """A Snakemake of its own, and every figure as text."""
    return Need(PYTHON + 300 * MB + 3 * MB * job.n_samples, 60 + 2 * job.n_samples, 50 * MB + 2 * MB * job.n_samples)


MODELS: dict[str, Model] = {
    **{model.__name__: model for model in (simulate, ingest, qc, doublets, cells)},
    **{model.__name__: model for model in (genes, hvg, features, pca, harmony, neighbors, umap, tsne, density)},
    **{model.__name__: model for model in (leiden, louvain, kmeans, markers_logreg, markers_ttest, atlas)},
    **{model.__name__: model for model in (hvg_sums, features_part, pca_sums, pca_gram, pca_components)},
    **{model.__name__: model for model in (pca_projection, markers_ttest_sums)},
    "figures_sample": _figures(75 * MB, 0.6 * KB),
    "figures_qc": _figures(90 * MB, 0.8 * KB, seconds=60),
    "figures_hvg": _figures(110 * MB, 0),
    "figures_pca": _figures(100 * MB, 1.3 * KB, seconds=60),
    "figures_embedding": _figures(110 * MB, 1.0 * KB, seconds=90),
    "figures_density": _figures(110 * MB, 0.8 * KB),
    "figures_markers": figures_markers,
    "runs": runs,
    "report": report,
}


OF_SHARDS = {  # the passes of which stage they are
    "hvg_sums": "hvg",
    "features_part": "features",
    **dict.fromkeys(("pca_sums", "pca_gram", "pca_projection"), "pca"),
    "markers_ttest_sums": "markers_ttest",
}


def read_mb(stage: str, job: Job) -> float:
    """Megabytes that a stage reads, of what threads can share: how many of them are worth having follows from it."""
    if stage in OF_SHARDS:
        return read_mb(OF_SHARDS[stage], job.shard)
    if job.shards > 1 and stage in OF_SHARDS.values():  # what shards have made of the counts
        return 0
    points = 4 * job.n_comps * job.n_kept
    of = {
        "ingest": 8 * job.nnz,
        "pca": 2.2 * job.nnz * job.n_top / max(1, job.n_vars),
        "harmony": points,
        "neighbors": 2 * points,
        "kmeans": 2 * points,
        "tsne": 2 * points + 8 * job.k * job.n_kept,
        "pca_components": 32 * job.n_top**2,  # nothing of the cells, but eigenvectors for the threads to find
        "markers_logreg": 2.2 * job.nnz * job.n_top / max(1, job.n_vars) + points,
    }
    return of.get(stage, _store(job)) / MB
