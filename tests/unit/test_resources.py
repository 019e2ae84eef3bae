"""Compare the resource models with measured peaks of jobs, and check the sizes that are their input.

The rule of the models' module: never below a measured peak; at most twice as high from 20,000 cells on.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.inputs import config as settings
from lib.inputs import sizes
from lib.inputs.formats.base import Question
from lib.inputs.sizes import Sizes, examined, read_headers, sizes_of
from lib.run.models import GPU_SPEED, model_of, read_mb, resources_of
from lib.run.resources import N_GROUPS, Job, Load

HOME = Path(__file__).parents[2]
PEAKS = sorted((HOME / "tests" / "benchmarks" / "results").glob("peaks-*.json"))
DEFAULTS = settings.complete({})
SMALL = Sizes(n_obs=3000, n_vars=20_000, nnz=3_000_000, n_kept=3000, n_batches=1, largest_batch=3000)


STAGES = sorted(path.stem for path in (HOME / "scripts").glob("*.py") if "def needs(" in path.read_text())


RULES = "\n".join(path.read_text() for path in (HOME / "rules").glob("*.smk"))
SCRIPT_OF = dict(re.findall(r"^rule (\w+):\n(?:(?!^rule ).*\n)*?.*scripts/(\w+)\.py", RULES, re.M))
SAME = {new: rule for rule, new in re.findall(r"^use rule (\w+) as (\w+)", RULES, re.M)}


def stage_of(rule):
    """The stage whose model a rule asks."""
    return stage_of(SAME[rule]) if rule in SAME else SCRIPT_OF[rule]


def needed(stage, load, config=DEFAULTS, gpu=False, attempt=1, **more):
    """The resources that a stage's job requests."""
    job = Job.of(load, config, gpu, **more)
    return resources_of(model_of(stage)(job), job, attempt)


def apart(rule, threads):
    """Whether a model counts more than is measured: further processes, or a reference, whose size is not known."""
    stage = rule.split()[0]
    forks = stage in ("de", "trust_clusters") or stage.startswith("figures")
    return (threads > 1 and forks) or stage == "annotation_model"


def measured(path):
    """Per job of a run: its rule, what it requests, what was measured, the run's cells, and the model's seconds."""
    run = json.loads(path.read_text())
    config = settings.complete(run["config"])
    samples = {name: Sizes(**values) for name, values in run["samples"].items()}
    for job in run["jobs"]:
        of = job["wildcards"]
        if "subgroup" in of:  # the same stages, on a group's cells
            continue
        mine = of.get("sample") or of.get("patient")
        load = Load.of([samples[mine]] if mine else list(samples.values()))
        stage, *grouping, part = of["passed"].split("/") if "passed" in of else (stage_of(job["rule"]), "")
        part = "features" if job["rule"] == "features_shard" else part
        more = {"threads": job["threads"], "grouping": "".join(grouping) or of.get("grouping", ""), "part": part}
        on_gpu = run["device"] == "gpu"
        need, model = needed(stage, load, config, on_gpu, **more), model_of(stage)(Job.of(load, config, on_gpu, **more))
        seconds = model.seconds / (GPU_SPEED if on_gpu and model.vram else 1)
        yield f"{stage} {part}", need, job, sum(s.n_obs for s in samples.values()), seconds


def test_peaks_of_20000_and_100000_cells_and_of_a_gpu_are_stored():
    wanted = {"cpu-20000", "cpu-100000", "gpu-200000", "gpu-200000-forks"}
    assert {f"peaks-{name}" for name in wanted} <= {path.stem for path in PEAKS}


@pytest.mark.parametrize("path", PEAKS, ids=lambda path: path.stem)
def test_no_model_is_below_a_peak(path):
    for rule, need, job, *_ in measured(path):
        assert need["mem_mb"] >= job.get("peak_rss_mb", 0), (rule, job)
        assert need["vram_mb"] >= (job.get("peak_gpu_mb") or 0), (rule, job)


@pytest.mark.parametrize("path", PEAKS, ids=lambda path: path.stem)
def test_no_model_is_far_above_the_highest_peak_of_its_rule(path):
    needed, peaks = {}, {}
    for rule, need, job, n_obs, _ in measured(path):
        if n_obs >= 20_000 and "peak_rss_mb" in job and not apart(rule, job["threads"]):
            needed[rule] = max(needed.get(rule, 0), need["mem_mb"])
            peaks[rule] = max(peaks.get(rule, 0), job["peak_rss_mb"])
    for rule, mem_mb in needed.items():
        assert mem_mb <= 2 * peaks[rule], rule


@pytest.mark.parametrize("path", PEAKS, ids=lambda path: path.stem)
def test_times_are_held_to_those_measured(path):
    """A model tells at least the seconds of every job, and on two cores at most five times those of its rule's longest.

    Requests are three times the models' seconds: other machines are slower. Five, as the models do not know how the
    cells cluster, and below ten seconds processes' starts count most.
    """
    longest: dict[str, float] = {}
    on_two_cores = path.stem.startswith("peaks-cpu")  # a machine with a GPU has more
    for rule, _, job, _, model in measured(path):
        if "seconds" in job:
            assert model >= job["seconds"], (rule, model, job)
            longest[rule] = max(longest.get(rule, 10), job["seconds"])
    for rule, _, job, _, model in measured(path):
        if "seconds" in job and on_two_cores and not rule.startswith("annotation_model"):
            assert model <= 5 * longest[rule], (rule, model, longest[rule])


def test_every_rule_asks_by_the_model_of_its_script():
    for rule in re.split(r"^rule ", RULES, flags=re.M)[1:]:
        name, script = rule.partition(":")[0], re.search(r"scripts/(\w+)\.py", rule)[1]
        expected = [] if name in ("preflight", "doctor") else [script]
        assert re.findall(r"^        \*\*needs\(\"(\w+)\"\)", rule.partition("\nuse rule")[0], re.M) == expected, name
    assert set(re.findall(r"needs\(\"(\w+)\"\)", RULES)) == {*STAGES, "shard"}


def test_a_model_is_read_without_what_its_stage_computes_with():
    code = f"import sys; sys.path.append({str(HOME / 'scripts')!r}); from lib.run.models import model_of\n"
    code += f"print([model_of(stage).__name__ for stage in {STAGES}], *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "scipy", "anndata", "sklearn"} & set(done.stdout.split())


@pytest.mark.parametrize("stage", STAGES)
def test_models_grow_with_the_cohort_and_by_attempt(stage):
    def of(n, gpu=False, attempt=1):
        return needed(stage, Load.of([SMALL] * n), gpu=gpu, attempt=attempt, grouping="leiden_0.6")

    one, more = of(1), of(100)
    for resource in ("mem_mb", "runtime", "disk_mb"):
        assert 0 < one[resource] <= more[resource]
    assert of(1, attempt=3) == {n: v * (1 if n == "disk_mb" else 3) for n, v in one.items()}
    assert one["vram_mb"] == 0
    if model_of(stage)(Job.of(Load.of([SMALL]), DEFAULTS, True)).vram:
        assert of(1, gpu=True)["vram_mb"] > 300
        assert of(1, gpu=True, attempt=2)["vram_mb"] >= 2 * of(1, gpu=True)["vram_mb"]


def test_the_configs_cap_bounds_what_is_claimed_on_a_card():
    config = DEFAULTS | {"gpu": {"memory_gb": 2, "pool": True}}
    load = Load.of([replace(SMALL, n_obs=10**6, n_kept=10**6)])
    assert needed("markers_logreg", load, config, gpu=True, attempt=3)["vram_mb"] == 2048


def test_keys_of_the_config_count():
    def mem(stage, size=SMALL, **config):
        return needed(stage, Load.of([size]), DEFAULTS | config)["mem_mb"]

    large = replace(SMALL, n_obs=200_000, n_kept=200_000, nnz=400_000_000, largest_batch=200_000)
    assert mem("pca", hvg=DEFAULTS["hvg"] | {"n_top_genes": 10_000}) > mem("pca")
    assert mem("harmony", large, pca={"n_comps": 200}) > mem("harmony", large)
    assert mem("neighbors", large, neighbors=DEFAULTS["neighbors"] | {"n_neighbors": 200}) > mem("neighbors", large)
    assert mem("tsne", large, tsne=DEFAULTS["tsne"] | {"perplexity": 100}) > mem("tsne", large)


def test_shards_share_the_time_and_leave_the_rest_no_gpu():
    load = Load.of([replace(SMALL, n_obs=10**6, n_kept=10**6, nnz=3 * 10**9)] * 2)

    def of(stage, shards, part=""):
        return needed(stage, load, DEFAULTS | {"shards": shards}, gpu=True, part=part)

    passes = [("hvg", "first"), ("features", "features"), ("markers_ttest", "sums")]
    passes += [("pca", part) for part in ("gram", "projection")]
    for stage, part in passes:
        one, eight = of(stage, 1, part), of(stage, 8, part)
        assert 0 < eight["mem_mb"] <= one["mem_mb"], stage
        assert eight["runtime"] < one["runtime"], stage
        assert eight["vram_mb"] > 0, stage
    for stage in ("features", "pca", "markers_ttest"):
        assert (of(stage, 1)["vram_mb"] > 0, of(stage, 8)["vram_mb"]) == (True, 0), stage
    assert read_mb(model_of("pca"), Job.of(load, DEFAULTS | {"shards": 8}, True)) == 0


def test_groups_are_counted_where_they_are_known():
    load = Load.of([replace(SMALL, n_batches=8)])
    config = DEFAULTS | {"kmeans": {"n_clusters": [50]}, "leiden": {**DEFAULTS["leiden"], "resolutions": [2.0]}}
    names = ("sample", "kmeans_50", "leiden_2.0", "leiden_2.0_file", "kmeans_9")  # the last two are the file's
    groups = {name: Job.of(load, config, False, grouping=name).n_groups for name in names}
    assert list(groups.values()) == [8, 50, 2 * N_GROUPS, N_GROUPS, N_GROUPS]


# Sizes


@pytest.fixture
def X():  # noqa: N802
    """60 cells x 40 genes of counts; 20 cells have none."""
    X = np.random.default_rng(0).poisson(1.0, (60, 40))
    X[40:] = 0
    return X


def adata_of(X, convert):
    donors = pd.Categorical((["a"] * 15 + ["b"] * 45)[: len(X)])
    obs = pd.DataFrame({"donor": donors}, index=[f"c{i}" for i in range(len(X))])
    return ad.AnnData(convert(X.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(X.shape[1])]))


def asked(path, counts="X", batch_key="sample", min_genes=5):
    return Question(str(path), counts, None, batch_key, min_genes)


def write_10x_h5(path, X):
    sparse = sp.csr_matrix(X)
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(sparse, name)
        file["matrix/features/id"] = np.array([f"g{i}" for i in range(X.shape[1])], "S")
        file["matrix/barcodes"] = np.array([f"c{i}" for i in range(len(X))], "S")


def write_10x_folder(path, X):
    sparse = sp.coo_matrix(X.T)
    path.mkdir()
    text = f"%%MatrixMarket matrix coordinate integer general\n%\n{X.shape[1]} {X.shape[0]} {sparse.nnz}\n1 1 1\n"
    (path / "matrix.mtx.gz").write_bytes(gzip.compress(text.encode()))
    for name, n in {"barcodes": X.shape[0], "features": X.shape[1]}.items():
        (path / f"{name}.tsv").write_text("".join(f"{name}{i}\n" for i in range(n)))


def test_sparse_files_tell_cells_genes_and_nonzeros(tmp_path, X):
    nnz, cells = int((X > 0).sum()), 40
    adata_of(X, sp.csr_matrix).write_h5ad(tmp_path / "csr.h5ad")
    adata_of(X, sp.csc_matrix).write_h5ad(tmp_path / "csc.h5ad")
    write_10x_h5(tmp_path / "tenx.h5", X)
    exact = Sizes(60, 40, nnz, cells, 1, 60)
    assert sizes_of(asked(tmp_path / "csr.h5ad")) == exact
    assert sizes_of(asked(tmp_path / "tenx.h5")) == exact
    # If the file does not tell each cell's non-zeros, their total limits the kept cells: each has more than min_genes
    bound = replace(exact, n_kept=min(60, nnz // 6))
    assert sizes_of(asked(tmp_path / "csc.h5ad")) == replace(bound, turned=True)
    write_10x_folder(tmp_path / "folder", X)
    assert sizes_of(asked(tmp_path / "folder")) == bound


def test_zarr_and_layers_and_raw_and_batches(tmp_path, X):
    adata = adata_of(X, sp.csr_matrix)
    adata.layers["counts"] = sp.csr_matrix(np.triu(X))
    adata.raw = adata
    adata = adata[:, :10].copy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        assert sizes_of(asked(path)).nnz == (X[:, :10] > 0).sum()
        assert sizes_of(asked(path, "raw")).n_vars == 40
        assert sizes_of(asked(path, "layers/counts")).nnz == (np.triu(X)[:, :10] > 0).sum()
    found = sizes_of(asked(tmp_path / "a.h5ad", batch_key="donor"))
    assert (found.n_batches, found.largest_batch) == (2, 45)


def test_dense_files_and_text_are_estimated(tmp_path, X):
    nnz = (X[:40] > 0).sum()
    full = X[:40]
    adata_of(full, np.asarray).write_h5ad(tmp_path / "dense.h5ad")
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = full.T
        file["col_attrs/CellID"] = np.array([f"c{i}" for i in range(len(full))], "S")
        file["row_attrs/Gene"] = np.array([f"g{i}" for i in range(full.shape[1])], "S")
    table = pd.DataFrame(full, [f"c{i}" for i in range(40)], [f"g{i}" for i in range(40)])
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv.gz", sep="\t")
    for name in ("dense.h5ad", "a.loom", "a.csv", "a.tsv.gz"):
        found = sizes_of(asked(tmp_path / name))
        assert found.n_vars == 40, name
        # Text: the length of lines is estimated to a few percent, with gene names in the first line
        assert found.n_obs == pytest.approx(40, rel=0.1), name
        assert found.nnz == pytest.approx(nnz, rel=0.1), name


def test_what_cannot_be_read_is_estimated_from_its_bytes(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"no HDF5" * 10_000)
    found = sizes_of(asked(tmp_path / "a.h5ad"))
    assert found.nnz == int(70_000 / sizes.BYTES_PER_NONZERO)
    assert found.n_obs >= 1
    assert sizes_of(asked(tmp_path / "none.h5ad")).n_obs == 1


def test_sizes_are_read_once_and_again_when_a_file_or_the_question_changes(tmp_path, X, monkeypatch):
    adata_of(X, sp.csr_matrix).write_h5ad(tmp_path / "a.h5ad")
    opened = []
    monkeypatch.setattr(sizes, "examined", lambda question: opened.append(question) or examined(question))
    question, cache = {"A": asked(tmp_path / "a.h5ad")}, tmp_path / "deep" / "sizes.json"
    first = read_headers(question, cache)
    assert read_headers(question, cache) == first
    assert len(opened) == 1
    read_headers({"A": asked(tmp_path / "a.h5ad", min_genes=0)}, cache)
    adata_of(X[:20], sp.csr_matrix).write_h5ad(tmp_path / "a.h5ad")
    assert read_headers(question, cache)[0]["A"].n_obs == 20
    assert len(opened) == 3
    cache.write_text("{half")
    assert read_headers(question, cache)[0]["A"].n_obs == 20


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, X):
    adata_of(X, sp.csr_matrix).write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "file").touch()
    found, _ = read_headers({"A": asked(tmp_path / "a.h5ad")}, tmp_path / "file" / "sizes.json")
    assert found["A"].n_obs == 60
