"""Shards: they divide the cells, and their sums equal the result of one pass over all cells."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import features
import hvg
import markers_ttest
import numpy as np
import pandas as pd
import pca
import pytest
import scipy.sparse as sp
from lib.inputs.config import hvg_passes
from lib.methods.scaling import Scaling
from lib.run.errors import UserError
from lib.store.cohort import Cohort
from lib.store.counts import Counts, CountsWriter, Stores
from lib.store.files import read_arrays, read_attrs, read_table, write_table
from lib.store.shards import cells_of_shard
from tables import read_markers

N_GENES = 300
HVG = {"per_batch": True, "n_top_genes": 60, "span": 0.5, "n_bins": 20, "theta": 100, "clip": None}
HVG |= {"n_samples": 1000, "include": [], "exclude": []}
FLAVORS = ["seurat_v3", "seurat_v3_paper", "seurat", "cell_ranger", "pearson_residuals", "poisson_gene_selection"]
OUTPUTS = ["hvg", "features", "pca", "markers"]


def names(n: int) -> list[str]:
    return [f"{i}-of-{n}" for i in range(1, n + 1)]


@pytest.fixture(params=[1, 3], ids=["one file", "three files"])
def files(tmp_path, request) -> dict:
    """400 cells, some not kept, of two donors, in one file or three; the last file's first cells are not kept."""
    rng = np.random.default_rng(0)
    depth, level = rng.gamma(4, 0.25, (400, 1)), rng.lognormal(-0.5, 1.2, N_GENES)
    X = sp.csr_matrix(rng.poisson(depth * level * rng.gamma(2, 0.5, (400, N_GENES))).astype(np.uint16))
    kept = rng.random(400) < 0.8
    kept[300:330] = False
    names_of_genes = [f"G{i}" for i in range(N_GENES)]
    var = pd.DataFrame({"gene_symbols": names_of_genes, "gene_ids": names_of_genes}, names_of_genes)
    obs = pd.DataFrame({"donor": pd.Categorical(rng.choice(["a", "b"], 400))}, [f"c{i}" for i in range(400)])
    obs["type"] = pd.Categorical(rng.choice(["x", "y", "z"], 400))
    obs["total_counts"] = np.asarray(X.sum(1)).ravel()
    paths: dict = {"counts": [], "cells": [], "genes": str(tmp_path / "genes.parquet"), "out": tmp_path}
    for i, at in enumerate([slice(0, 400)] if request.param == 1 else [slice(0, 90), slice(90, 300), slice(300, 400)]):
        writer = CountsWriter(tmp_path / f"{i}.h5ad", N_GENES)
        writer.append(X[at])
        writer.close(obs[at], var)
        write_table(obs[at].assign(kept=kept[at], reason=""), tmp_path / f"{i}.parquet")
        paths["counts"].append(str(tmp_path / f"{i}.h5ad"))
        paths["cells"].append(str(tmp_path / f"{i}.parquet"))
    write_table(var.assign(kept=True), paths["genes"])
    return paths


def job(files, path, shard=None, params=None, **inputs) -> SimpleNamespace:
    """A job on the cohort with more `inputs`; every name of an output gives `path`."""
    known = {name: files[name] for name in ("counts", "cells", "genes", "obs") if name in files}
    others = {
        "obs": f"{path}.parquet",
        **{name: f"{path}.{name}" for name in ("top", "shown", "panel")},
        "ranking": f"{path}.parquet.ranking",
        "batches": f"{path}.tsv",
    }
    return SimpleNamespace(
        input=SimpleNamespace(**known | {"parts": [], "shards": [], "grouping": [], "cell_cycle": []} | inputs),
        output=SimpleNamespace(**dict.fromkeys(OUTPUTS, path) | others),
        params=SimpleNamespace(**{"seed": 0, "gene_key": "gene_symbols", "grouping": "type"} | (params or {})),
        wildcards={} if shard is None else {"scatteritem": shard},
        resources={},
    )


def run(main, files, output, shard=None, params=None, **inputs) -> str:
    """Run a stage's main, and return the path of its output."""
    path = str(files["out"] / output)
    main(job(files, path, shard, params, **inputs))
    return path


def passed(stage, files, params, n=None, **inputs) -> list[str]:
    """Run the first `n` passes of a stage (default: all) with three shards, as `shard` does; return their files."""
    found: list[str] = []
    for name in list(stage.PASSES.run)[:n]:
        folder = files["out"] / stage.__name__ / name
        folder.mkdir(parents=True)
        done = []
        for shard in ["1-of-1"] if name == "components" else names(3):
            asked = job(files, "", shard, params, shards=found, **inputs)
            asked.output = [str(folder / f"{shard}.h5")]
            stage.PASSES.over_shard(asked, name, shard)
            done += asked.output
        found = [*found, *done]
    return found


def cohort(files, shard=None) -> Cohort:
    return Cohort(files["counts"], files["cells"], files["genes"], "gene_symbols", shard=shard)


def dense(stream) -> np.ndarray:
    return np.vstack([chunk.X.toarray() for chunk in stream.chunks()])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 299])
def test_shards_part_the_cells_evenly(n):
    rows = [cells_of_shard(name, 299) for name in names(n)]
    assert np.concatenate([np.arange(299)[part] for part in rows]).tolist() == list(range(299))
    sizes = {part.stop - part.start for part in rows}
    assert max(sizes) - min(sizes) <= 1


def test_more_shards_than_cells_are_refused():
    with pytest.raises(UserError, match="shards are 300, but there are 299 kept cells"):
        cells_of_shard("1-of-300", 299)


@pytest.mark.parametrize("n", [2, 5])
def test_shards_of_a_cohort_are_its_cells_in_its_order(files, n):
    whole, shards = cohort(files), [cohort(files, name) for name in names(n)]
    np.testing.assert_array_equal(np.vstack([dense(shard) for shard in shards]), dense(whole))
    pd.testing.assert_frame_equal(pd.concat([shard.obs() for shard in shards]), whole.obs())
    assert [shard.rows.start for shard in shards] == np.cumsum([0, *[shard.n_obs for shard in shards]])[:-1].tolist()
    # Samples without cells of a shard are not opened
    assert all(store.n_obs for shard in shards for store in shard.stores)
    assert sum(len(shard.stores) for shard in shards) < n + len(files["counts"])


def test_a_shard_reads_from_its_first_cell_to_its_last(tmp_path):
    writer = CountsWriter(tmp_path / "a.h5ad", 4)
    writer.append(sp.csr_matrix(np.ones((100, 4), np.uint16)))
    writer.close(pd.DataFrame(index=map(str, range(100))), pd.DataFrame(index=list("abcd")))
    store = Counts(tmp_path / "a.h5ad", cells=np.isin(np.arange(100), [30, 31, 50]))
    assert store.spans(10, 10**6) == [slice(30, 40), slice(50, 51)]


@pytest.mark.parametrize(("target_sum", "per_batch"), [(1e4, True), (None, True), (1e4, False)])
@pytest.mark.parametrize("flavor", FLAVORS)
def test_every_flavours_genes_are_those_of_one_job(files, flavor, target_sum, per_batch):
    """Sums of counts are integers and exact; float64 sums differ in their last digits."""
    settings = HVG | {"flavor": flavor, "per_batch": per_batch}
    params = {"batch_key": "donor", "target_sum": target_sum, "hvg": settings}
    one = read_table(run(hvg.main, files, "one.parquet", params=params))
    shards = passed(hvg, files, params, hvg_passes(flavor, target_sum))
    three = read_table(run(hvg.main, files, "three.parquet", params=params, shards=shards))
    pd.testing.assert_frame_equal(three, one, rtol=1e-9)


def test_what_cannot_be_chosen_is_refused_by_the_first_pass(files):
    params = {"batch_key": "donor", "target_sum": 1e4, "hvg": HVG | {"flavor": "seurat_v3", "n_top_genes": 1}}
    params["hvg"] |= {"include": ["G1", "G2"]}
    with pytest.raises(UserError, match="include forces 2 genes in, but hvg: n_top_genes is 1"):
        passed(hvg, files, params)


@pytest.fixture
def parted(files) -> dict:
    """The cohort with its features and table of cells: by one job, and by three shards."""
    params = {"batch_key": "donor", "target_sum": 1e4, "hvg": HVG | {"flavor": "seurat_v3"}}
    genes = run(hvg.main, files, "hvg.parquet", params=params)
    one = run(features.main, files, "features.h5ad", hvg=genes)
    parts = [run(features.main, files, f"{name}.h5ad", name, hvg=genes) for name in names(3)]
    joined = run(features.main, files, "joined", hvg=genes, parts=parts)
    return files | {"features": [one], "parts": parts, "obs": f"{one}.parquet", "joined": f"{joined}.parquet"}


def test_parts_of_the_features_are_the_features(parted):
    one, three = ([Counts(path) for path in parted[name]] for name in ("features", "parts"))
    np.testing.assert_array_equal(dense(Stores(three)), dense(Stores(one)))
    assert [chunk.start for chunk in Stores(three).chunks(50)][-1] > sum(store.n_obs for store in three[:2])
    whole, parts = ad.read_h5ad(parted["features"][0]), [ad.read_h5ad(path) for path in parted["parts"]]
    pd.testing.assert_frame_equal(parts[1].var, whole.var)
    np.testing.assert_array_equal(np.concatenate([part.obs_names for part in parts]), whole.obs_names)
    with open(parted["obs"], "rb") as one, open(parted["joined"], "rb") as joined:
        assert one.read() == joined.read()


@pytest.mark.parametrize("keys", [["total_counts"], []])
def test_pca_by_shards_is_pca(parted, keys):
    """Float32 products over other chunks: the tolerance is that between two chunk sizes of one job."""
    scale = {"enabled": True, "max_value": 10}
    params = {"n_comps": 8, "target_sum": 1e4, "regress_keys": keys, "scale": scale}
    one = read_arrays(run(pca.main, parted, "one.h5", params=params, features=parted["features"]))
    shards = passed(pca, parted, params, features=parted["parts"])
    three = read_arrays(run(pca.main, parted, "three.h5", params=params, features=parted["parts"], shards=shards))
    assert {name: array.dtype for name, array in three.items()} == {name: array.dtype for name, array in one.items()}
    for name in ("coefficients", "mean", "std"):
        np.testing.assert_allclose(three[name], one[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(three["variance"], one["variance"], rtol=1e-5)
    np.testing.assert_allclose(three["X_pca"], one["X_pca"], atol=1e-3)
    assert pca.PASSES.gathered(shards)["sums"]["RX"].shape == (1 + len(keys), 60)


def test_components_and_regressors_are_cut_by_shards_as_by_one_job(parted, notices):
    obs = read_table(parted["obs"])
    write_table(obs.assign(pct_counts_MT=np.where(np.arange(len(obs)) < 5, np.nan, 1.0)), parted["obs"])
    keys = ["total_counts", "pct_counts_MT", "pct_counts_HB"]
    scale = {"enabled": True, "max_value": 10}
    params = {"n_comps": 80, "target_sum": None, "regress_keys": keys, "scale": scale}
    one = run(pca.main, parted, "one.h5", params=params, features=parted["features"])
    said = list(notices)
    notices.clear()
    shards = passed(pca, parted, params, features=parted["parts"])
    assert not notices, "of the stage, not of its shards"
    three = run(pca.main, parted, "three.h5", params=params, features=parted["parts"], shards=shards)
    assert read_arrays(three)["X_pca"].shape == read_arrays(one)["X_pca"].shape == (len(obs), 59)
    assert read_attrs(three) == read_attrs(one)
    assert Scaling.read(one).regress_keys == ("total_counts",)
    assert sorted(notices) == sorted(said)
    assert len(said) == 2


@pytest.mark.parametrize("target_sum", [1e4, None])
def test_t_test_by_shards_is_the_t_test(parted, target_sum):
    params = {"target_sum": target_sum, "n_genes": 5, "reference": "rest", "hidden_families": {}}
    one = run(markers_ttest.main, parted, "one.tsv.gz", params=params)
    shards = passed(markers_ttest, parted, params)
    three = run(markers_ttest.main, parted, "three.tsv.gz", params=params, shards=shards)
    # Sums in float64 in another order
    pd.testing.assert_frame_equal(read_markers(three), read_markers(one), rtol=1e-9)
