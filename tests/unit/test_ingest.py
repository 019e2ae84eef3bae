"""The output of ingest, and its messages about files that it refuses. All comparisons are exact."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import ingest
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from ingest import cell_table, gene_table, make_unique
from lib.inputs.formats import blocks
from lib.run.errors import UserError
from lib.store.h5ad import storable


@pytest.fixture
def adata():
    """20 cells x 12 genes of counts below 100, cells of two donors, no explicit zeros."""
    X = sp.csr_matrix(np.random.default_rng(3).poisson(1, (20, 12)).astype(np.float32))
    obs = pd.DataFrame({"donor": ["d1"] * 10 + ["d2"] * 10, "type": ["T"] * 19 + [None], "age": range(20)})
    obs.index = [f"C{i}" for i in range(20)]
    return ad.AnnData(X, obs, pd.DataFrame(index=[f"G{i}" for i in range(12)]))


@pytest.fixture
def run(tmp_path):
    """Writes an AnnData, ingests it, and returns the store as read by plain anndata."""

    def ingest_it(adata, path=None, sheet=None, counts="X", batch_key="sample", keep=(), sample="s1", suffix="s1"):
        path = path or tmp_path / "in" / "a.h5ad"
        if adata is not None:
            path.parent.mkdir(exist_ok=True)
            adata.write_h5ad(path)
        output = tmp_path / "out" / "counts.h5ad"
        ingest.main(
            SimpleNamespace(
                input=SimpleNamespace(file=str(path)),
                params=SimpleNamespace(
                    sample=sample,
                    suffix=suffix,
                    sheet=sheet or {},
                    options={"counts": counts},
                    keep=keep,
                    batch_key=batch_key,
                ),
                output=SimpleNamespace(counts=str(output)),
            )
        )
        return ad.read_h5ad(output)

    return ingest_it


def test_the_store_is_a_plain_h5ad(adata, run, tmp_path):
    store = run(adata, sheet={"site": "Ghent"})
    np.testing.assert_array_equal(store.X.toarray(), adata.X.toarray())
    assert isinstance(store.X, sp.csr_matrix)
    assert store.X.dtype == np.uint16
    assert store.X.has_canonical_format
    assert list(store.obs) == ["sample", "donor", "type", "age", "site"]
    assert list(store.obs_names) == [f"C{i}-s1" for i in range(20)]
    assert set(store.obs["sample"]) == {"s1"}
    assert list(store.obs["donor"]) == list(adata.obs["donor"])
    assert store.obs["type"].isna().tolist() == [False] * 19 + [True]
    assert list(store.obs["age"]) == list(range(20))
    assert set(store.obs["site"]) == {"Ghent"}
    assert all(isinstance(store.obs[name].dtype, pd.CategoricalDtype) for name in ("sample", "donor", "type", "site"))
    assert list(store.var) == ["gene_symbols", "gene_ids"]
    assert list(store.var_names) == list(adata.var_names)
    with h5py.File(tmp_path / "out" / "counts.h5ad") as file:
        assert (file["obs"].attrs["_index"], file["var"].attrs["_index"]) == ("_index", "_index")


def test_the_source_is_unchanged_and_nothing_else_is_written(adata, run, tmp_path):
    adata.X = sp.csc_matrix(adata.X)  # needs a scratch file
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = hashlib.sha256((tmp_path / "a.h5ad").read_bytes()).hexdigest()
    store = run(None, tmp_path / "a.h5ad")
    np.testing.assert_array_equal(store.X.toarray(), adata.X.toarray())
    assert hashlib.sha256((tmp_path / "a.h5ad").read_bytes()).hexdigest() == before
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "a.h5ad",
        "out",
        "out/counts.h5ad",
    ]


def test_two_runs_write_the_same_matrix_bytes(adata, run, tmp_path):
    def stored():
        run(adata)
        with h5py.File(tmp_path / "out" / "counts.h5ad") as file:
            return [file[f"X/{name}"].id.read_direct_chunk((0,)) for name in ("data", "indices")]

    assert stored() == stored()


def test_counts_beyond_uint16(adata, run, caplog):
    adata.X[19, 3] = 65_535
    assert run(adata).X.dtype == np.uint16
    adata.X[19, 3] = 65_536
    with caplog.at_level("INFO"):
        store = run(adata)
    assert store.X.dtype == np.uint32
    np.testing.assert_array_equal(store.X.toarray(), adata.X.toarray())
    assert "written anew, as uint32" in caplog.text


def test_an_mtx_in_no_order_is_read_anew(adata, run, tmp_path, caplog):
    folder = tmp_path / "10x"
    folder.mkdir()
    X = sp.coo_matrix(adata.X)
    order = np.random.default_rng(0).permutation(X.nnz)
    lines = [f"{X.col[i] + 1} {X.row[i] + 1} {X.data[i]:.0f}" for i in order]
    header = ["%%MatrixMarket matrix coordinate integer general", f"12 20 {X.nnz}"]
    (folder / "matrix.mtx").write_text("\n".join(header + lines))
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names))
    (folder / "genes.tsv").write_text("\n".join(f"E{i}\tG{i}" for i in range(12)))
    with caplog.at_level("INFO"):
        store = run(None, folder)
    np.testing.assert_array_equal(store.X.toarray(), adata.X.toarray())
    assert "not sorted by cell" in caplog.text


def test_the_log_counts(adata, run, caplog):
    with caplog.at_level("INFO"):
        run(adata)
    assert f"20 cells, 12 genes, {adata.X.nnz} non-zeros, {int(adata.X.sum())} counts in" in caplog.text


# Tables


def table(obs=None, sheet=None, batch_key="sample", keep=(), suffix="s1"):
    obs = pd.DataFrame(index=["A", "B"]) if obs is None else obs
    return cell_table(obs, "s1", suffix, sheet or {}, batch_key, keep)


def test_the_sheet_wins_over_the_file(caplog):
    obs = pd.DataFrame({"sample": ["x", "y"], "site": ["p", "q"], "site_file": [1, 2]}, index=["A", "B"])
    cells = table(obs, {"site": "Ghent"})
    assert cells["sample"].tolist() == ["s1", "s1"]
    assert cells["site"].tolist() == ["Ghent", "Ghent"]
    assert cells["sample_file"].tolist() == ["x", "y"]
    assert cells["site_file_file"].tolist() == ["p", "q"]
    assert cells["site_file"].tolist() == [1, 2]
    assert "are kept: sample as sample_file, site as site_file_file" in caplog.text


def test_columns_that_the_workflow_writes_are_kept_aside(adata, run, caplog):
    """As in an earlier atlas; a column that the config takes from the file keeps its name."""
    names = [
        "leiden_0.6",
        "louvain_1",
        "kmeans_8",
        "umap_density_sample",
        "kept",
        "reason",
        "kept_counts",
        "doublet_score",
    ]
    names += ["predicted_doublet", "total_counts", "log1p_total_counts_MT", "pct_counts_in_top_50_genes"]
    others = ["leiden_annotation", "n_counts", "kept_by_me"]
    adata.obs[[*names, *others]] = np.arange(len(names) + len(others))
    store = run(adata, keep=["leiden_0.6"])
    aside = [f"{name}_file" for name in names[1:]]
    assert list(store.obs) == ["sample", "donor", "type", "age", "leiden_0.6", *aside, *others]
    assert store.obs["kept_file"].tolist() == [4] * 20
    assert caplog.text.count("are kept:") == 1
    again = ad.AnnData(adata.X, obs=store.obs)
    again.obs["kept"] = 1
    assert {"kept_file", "kept_file_file", "sample_file"} <= set(run(again).obs)


def test_types_of_the_sheets_columns(adata, run):
    sheet = {"age": 45, "dose": 0.5, "weight": float("nan"), "group": None, "id": "007"}
    obs = run(adata, sheet=sheet).obs
    assert obs.dtypes[["dose", "weight"]].tolist() == [np.float64] * 2
    assert set(obs["age"]) == {45}
    assert obs["age"].dtype == np.int64
    assert obs["weight"].isna().all()
    assert set(obs["id"]) == {"007"}
    assert obs["group"].isna().all()
    assert len(obs["group"].cat.categories) == 0


def test_columns_with_a_slash(adata, run, tmp_path):
    from lib.store.counts import Counts

    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:  # as AnnData below 0.13 writes it
        file["obs"].move("type", "cell/type")
        file["obs"].attrs["column-order"] = ["donor", "cell/type", "age"]
    run(None, tmp_path / "a.h5ad", batch_key="donor", sheet={"cell": 3, "a=b": "c", ".": 2.5})
    store = Counts(tmp_path / "out" / "counts.h5ad")
    assert list(store.obs()) == ["sample", "donor", "cell/type", "age", "cell", "a=b", "."]
    assert store.column("cell/type").tolist() == ["T"] * 19 + [""]
    assert store.column("cell").tolist() == [3] * 20
    assert store.obs()["cell/type"].isna().sum() == 1
    assert list(ad.read_h5ad(store.path).obs)[2] == "cell=2Ftype"


def test_flags_of_genes_are_kept(adata, run):
    adata.var["mt"] = np.arange(12) < 2
    adata.var["ribo"] = pd.array([True, False] * 6, dtype="boolean")
    adata.var["score"] = 1.5
    var = run(adata).var
    assert list(var) == ["gene_symbols", "gene_ids", "mt", "ribo"]
    assert var["mt"].dtype == var["ribo"].dtype == bool
    assert var["mt"].tolist() == [True] * 2 + [False] * 10


def test_types_of_columns(caplog):
    obs = pd.DataFrame(
        {
            "text": ["b", None],
            "mixed": [1, "x"],
            "strings": pd.array(["b", None], dtype="string"),
            "category": pd.Categorical(["y", "x"], categories=["y", "x", "z"]),
            "numbers": pd.Categorical([2, 1]),
            "bool": [True, False],
            "float32": np.array([1.5, 2], np.float32),
            "nullable": pd.array([1, None], dtype="Int64"),
            "whole": pd.array([1, 2], dtype="Int32"),
            "date": pd.to_datetime(["2024-01-01", "2024-01-02"]),
            "complex": [1j, 2j],
        },
        index=["A", "B"],
    )
    obs["lists"], obs["bytes"] = [[1], [2]], [b"x", b"y"]
    cells = table(obs)
    assert list(cells) == ["sample", *obs.columns.drop(["date", "complex", "lists"])]
    assert re.search(r"left out: date \(datetime64\[.*, complex \(complex128\), lists \(object\)", caplog.text)
    assert list(cells["bytes"]) == ["x", "y"]
    for name in ("text", "mixed", "strings", "category"):
        assert cells[name].cat.categories.dtype == object
    assert list(cells["category"].cat.categories) == ["y", "x", "z"]
    assert list(cells["mixed"]) == ["1", "x"]
    assert cells["strings"].isna().tolist() == [False, True]
    assert cells.dtypes[["bool", "float32", "nullable", "whole"]].tolist() == [bool, np.float32, np.float64, np.int32]
    assert storable(pd.Series(pd.Categorical(pd.to_datetime(["2024-01-01"])))) is None


def test_names_of_cells():
    obs = pd.DataFrame({"donor": ["d1", "d2", "d2"]}, index=["A", "A", "B"])
    assert list(table(obs, batch_key="donor").index) == ["A-d1-s1", "A-d2-s1", "B-d2-s1"]
    assert list(table(obs.iloc[1:], batch_key="donor").index) == ["A-s1", "B-s1"]
    with pytest.raises(UserError, match=r"1 cells have the barcode.*the first of them A \(batch s1\).*set `batch_key`"):
        table(obs)
    with pytest.raises(UserError, match=r"1 cells have the barcode.*A \(batch d1\)"):
        table(obs.assign(donor="d1"), batch_key="donor")


def test_names_of_cells_of_batches_that_look_alike():
    """Barcode A-1 of batch 2 and barcode A of batch 1-2."""
    obs = pd.DataFrame({"donor": ["2", "1-2", "1-2"]}, index=["A-1", "A", "A-1"])
    index = table(obs, batch_key="donor").index
    assert index.is_unique
    assert index[0] == "A-1::2-s1"


def test_the_batch_of_every_cell_is_known():
    obs = pd.DataFrame({"donor": ["d1", None]}, index=["A", "B"])
    with pytest.raises(
        UserError, match="batch_key: neither the file nor the sheet has a column Patient; there are sample, donor"
    ):
        table(obs, batch_key="Patient")
    with pytest.raises(UserError, match="batch_key: 1 of 2 cells have no donor"):
        table(obs, batch_key="donor")
    with pytest.raises(UserError, match="batch_key: 2 of 2 cells have no Patient"):
        table(obs, {"Patient": None}, "Patient")
    assert set(table(obs, {"Patient": "p1"}, "Patient")["Patient"]) == {"p1"}


def test_genes_that_share_a_symbol_are_named_by_their_ids():
    """Whatever their order, and whether AnnData has numbered them."""
    ids = np.array(["E1", "E2", "E3", "E4"], dtype=object)

    def names(*symbols, ids=ids):
        return dict(zip(ids, gene_table(np.array(symbols, dtype=object), ids).index, strict=True))

    expected = {"E1": "X-E1", "E2": "A", "E3": "X-E3", "E4": "HLA-1"}
    assert names("X", "A", "X", "HLA-1") == expected
    assert names("HLA-1", "X", "A", "X", ids=ids[::-1][[0, 1, 2, 3]]) == expected
    assert names("X", "A", "X-1", "HLA-1") == expected
    assert names("X-1", "A", "X", "HLA-1") == expected
    assert names("X", "X-1", "X", "X-2") == {"E1": "X-E1", "E2": "X-E2", "E3": "X-E3", "E4": "X-E4"}
    # Ids that do not tell them apart
    assert list(gene_table(*[np.array(["X", "X"], dtype=object)] * 2).index) == ["X", "X-1"]
    assert list(gene_table(np.array(["X", "X"], dtype=object), np.array(["E", "E"], dtype=object)).index) == [
        "X",
        "X-1",
    ]


def test_names_of_genes_are_made_unique_as_anndata_does(caplog):
    from anndata.utils import make_index_unique

    names = np.array(["a", "b", "a", "a-1", "a", "b", "c", "b-2", "b"], dtype=object)
    with caplog.at_level("INFO"):
        unique = make_unique(names, "symbols")
    with pytest.warns(UserWarning, match="Suffix used"):
        expected = make_index_unique(pd.Index(names))
    assert list(unique) == list(expected)
    assert "4 genes with repeated symbols" in caplog.text
    var = gene_table(names, names)
    assert list(var["gene_symbols"]) == list(names)
    assert var.index.is_unique
    assert var["gene_ids"].is_unique


# Refusals, which name the sample and leave no files


def refused(tmp_path, run, match, adata, **kwargs):
    with pytest.raises(UserError, match=match):
        run(adata, **kwargs)
    assert not list((tmp_path / "out").iterdir())


def test_a_value_that_is_no_count(adata, run, tmp_path):
    adata.X[7, 4] = 2.5
    match = r"^sample s1: .*a\.h5ad: X does not hold raw counts: the value of gene G4 in cell C7 is 2\.5"
    refused(tmp_path, run, match, adata)


def test_no_cells_and_no_counts(adata, run, tmp_path):
    refused(tmp_path, run, r"^sample s1: .*a\.h5ad: there are no cells", adata[:0].copy())
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    refused(tmp_path, run, r"^sample s1: .*a\.h5ad: all counts in X are zero", adata)


def test_a_missing_file_layer_and_column(adata, run, tmp_path):
    refused(tmp_path, run, r"^sample s1: .*b\.h5ad does not exist", None, path=tmp_path / "b.h5ad")
    refused(tmp_path, run, r"^sample s1: .*no counts layers/raw; it has X\.", adata, counts="layers/raw")
    match = r"^sample s1: .*a\.h5ad: batch_key: neither .* has a column Patient; there are sample, donor, type, age"
    refused(tmp_path, run, match, adata, batch_key="Patient")


def test_a_failed_run_keeps_the_store_that_there_was(adata, run, tmp_path):
    run(adata)
    before = (tmp_path / "out" / "counts.h5ad").read_bytes()
    adata.X[7, 4] = 2.5
    with pytest.raises(UserError):
        run(adata)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["counts.h5ad"]
    assert (tmp_path / "out" / "counts.h5ad").read_bytes() == before


def test_an_error_in_the_last_block_leaves_nothing(adata, run, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 30)
    adata.X[19, 11] = -1
    refused(tmp_path, run, "gene G11 in cell C19 is -1", adata)


# Real data


def test_pbmc3k(real_data, run, pbmc3k):
    path = real_data / "pbmc3k" / "pbmc3k_raw.h5ad"
    store = run(None, path)
    assert (store.X != pbmc3k.X).nnz == 0
    once = ~store.var["gene_symbols"].duplicated(keep=False).to_numpy()
    assert (store.var_names == pbmc3k.var_names)[once].sum() > 32_000
    assert list(store.var["gene_ids"]) == list(pbmc3k.var["gene_ids"])
    assert list(store.obs_names) == [f"{barcode}-s1" for barcode in pbmc3k.obs_names]
    assert store.obs["cell_type"].astype(str).tolist() == pbmc3k.obs["cell_type"].astype(str).tolist()
    assert store.obs["sample_file"].astype(str).tolist() == pbmc3k.obs["sample"].astype(str).tolist()


# Memory

MEASURED = """
import logging, resource, sys
from types import SimpleNamespace as NS
import anndata.io, ingest
from lib.inputs.formats import blocks
blocks.BLOCK = int(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = NS(sample="s1", suffix="s1", sheet={},
            options={"counts": "X"}, batch_key="sample", keep=())
ingest.main(NS(input=NS(file=sys.argv[1]), params=params, output=NS(counts=sys.argv[2])))
print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def simulate(path, n_obs, n_vars, per_cell, kind):
    """An uncompressed float32 h5ad, CSR or CSC, which repeats the same 500 rows (CSR) or columns (CSC)."""
    n_major, n_minor = (n_obs, n_vars) if kind == "csr" else (n_vars, n_obs)
    per_major = n_obs * per_cell // n_major
    rng = np.random.default_rng(0)
    edges = np.linspace(0, n_minor, per_major + 1).astype(np.int32)
    indices = (edges[:-1] + rng.integers(0, np.diff(edges), (500, per_major))).astype(np.int32).ravel()
    data = rng.geometric(0.6, len(indices)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": f"{kind}_matrix", "encoding-version": "0.1.0", "shape": [n_obs, n_vars]})
        for name, block in {"data": data, "indices": indices}.items():
            array = group.create_dataset(name, (n_major * per_major,), block.dtype)
            for start in range(0, len(array), len(block)):
                array[start : start + len(block)] = block
        group["indptr"] = np.arange(n_major + 1, dtype=np.int64) * per_major
        ad.io.write_elem(file, "obs", pd.DataFrame(index=[f"C{i}" for i in range(n_obs)]))
        ad.io.write_elem(file, "var", pd.DataFrame(index=[f"G{i}" for i in range(n_vars)]))


def peak_rss(tmp_path, block, *shape):
    """Resident memory (MB) of a process that ingests a simulated file: after the imports, and the peak."""
    simulate(tmp_path / "a.h5ad", *shape)
    arguments = [str(tmp_path / "a.h5ad"), str(tmp_path / "counts.h5ad"), str(block)]
    scripts = Path(ingest.__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(scripts)])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    (tmp_path / "a.h5ad").unlink()
    return map(float, done.stdout.split())


@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_memory_is_bounded_by_the_block(tmp_path, kind):
    """20 million non-zeros (160 MB in the file) in blocks of 400,000, about 40 bytes each in memory: within 80 MB."""
    before, peak = peak_rss(tmp_path, 400_000, 10_000, 20_000, 2000, kind)
    assert peak - before < 80


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_memory_at_100_000_cells(tmp_path, kind):
    """240 million non-zeros, blocks of the usual size: within 1.5 GB in total."""
    _, peak = peak_rss(tmp_path, 4_000_000, 100_000, 30_000, 2400, kind)
    assert peak < 1500
