"""Every format gives the matrix, barcodes and genes that were written, block by block. All comparisons are exact."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from itertools import pairwise
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.inputs.formats import blocks, open_counts
from lib.inputs.formats.arrays import File
from lib.inputs.formats.base import as_counts
from lib.inputs.formats.blocks import NotSortedError, first_bad
from lib.run.errors import UserError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of about 60 non-zeros, or of 7 dense rows, so that every reader yields several."""
    monkeypatch.setattr(blocks, "BLOCK", 60)
    monkeypatch.setattr(blocks, "DENSE_BLOCK", 7 * 30 * 4)


@pytest.fixture
def truth():
    """40 cells x 30 genes; one cell and one gene without counts, a count beyond uint16, a repeated symbol."""
    rng = np.random.default_rng(1)
    X = rng.poisson(0.4, (40, 30))
    X[3], X[:, 5], X[7, 7] = 0, 0, 70_000
    symbols = np.array([f"G{i}" for i in range(30)], dtype=object)
    symbols[9] = "G8"
    ids = np.array([f"ENSG{i:05d}" for i in range(30)], dtype=object)
    barcodes = np.array([f"CELL{i}-1" for i in range(40)], dtype=object)
    return SimpleNamespace(X=X, symbols=symbols, ids=ids, barcodes=barcodes)


def read(path, *args, **kwargs):
    """The reader and all its chunks as one array; each chunk must be canonical uint32."""
    with open_counts(path, *args, scratch=path.parent, **kwargs) as reader:
        parts = list(reader.chunks())
    for X in parts:
        assert X.dtype == np.uint32
        assert X.has_canonical_format
        assert X.data.all()
    return reader, sp.vstack(parts).toarray()


def check(truth, reader, X, ids=None):
    np.testing.assert_array_equal(X, truth.X)
    assert list(reader.obs.index) == list(truth.barcodes)
    assert list(reader.gene_symbols) == list(truth.symbols)
    assert list(reader.gene_ids) == list(truth.ids if ids is None else ids)
    assert (reader.n_obs, reader.n_vars) == truth.X.shape


def adata_of(truth, convert=sp.csr_matrix, dtype=np.float32):
    obs = pd.DataFrame({"donor": ["a", "b"] * 20}, index=truth.barcodes)
    var = pd.DataFrame({"gene_symbols": truth.symbols}, index=truth.ids)
    return ad.AnnData(convert(truth.X.astype(dtype)), obs, var)


def write_10x_h5(path, truth, version, groups=("GRCh38",), types=None):
    X = sp.csr_matrix(truth.X)
    with h5py.File(path, "w") as file:
        for name in ("matrix",) if version == 3 else groups:
            group = file.create_group(name)
            for key, values in {"data": X.data.astype(np.int32), "indices": X.indices.astype(np.int64)}.items():
                group.create_dataset(key, data=values, chunks=(50,), compression="gzip", shuffle=True)
            group["indptr"], group["shape"] = X.indptr.astype(np.int64), X.shape[::-1]
            group["barcodes"] = truth.barcodes.astype("S")
            if version == 2:
                group["genes"], group["gene_names"] = truth.ids.astype("S"), truth.symbols.astype("S")
                continue
            group["features/id"], group["features/name"] = truth.ids.astype("S"), truth.symbols.astype("S")
            group["features/feature_type"] = np.array(types or ["Gene Expression"] * 30, dtype="S")
            group["features/genome"] = np.array([groups[i * len(groups) // 30] for i in range(30)], dtype="S")


def write_10x_folder(folder, truth, genes="features.tsv", zipped=True, prefix="", types=None, order=None):
    folder.mkdir(parents=True)
    X = sp.coo_matrix(truth.X)
    order = order(X.nnz) if order else np.arange(X.nnz)
    lines = [f"{c + 1} {r + 1} {v}" for r, c, v in zip(X.row[order], X.col[order], X.data[order], strict=True)]
    types = types or ["Gene Expression"] * 30
    columns = [truth.ids, truth.symbols] + ([types] if genes == "features.tsv" else [])
    texts = {
        "matrix.mtx": ["%%MatrixMarket matrix coordinate integer general", "%", f"30 40 {X.nnz}", *lines],
        "barcodes.tsv": truth.barcodes,
        genes: ["\t".join(fields) for fields in zip(*columns, strict=True)],
    }
    for name, text in texts.items():
        content = "".join(f"{line}\n" for line in text).encode()
        if zipped:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{prefix}{name}").write_bytes(content)


def write_loom(path, truth, row_attrs=("Gene", "Accession"), **layers):
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=truth.X.T.astype(np.float32), chunks=(8, 8), compression="gzip")
        for name, layer in layers.items():
            file[f"layers/{name}"] = layer.T
        names = {"Gene": truth.symbols, "var_names": truth.symbols, "Accession": truth.ids, "Chromosome": ["1"] * 30}
        for name in row_attrs:
            file[f"row_attrs/{name}"] = np.array(names[name], "S")
        file["col_attrs/CellID"] = truth.barcodes
        file["col_attrs/depth"] = truth.X.sum(1)
        file["col_attrs/embedding"] = np.zeros((40, 2))


# HDF5 and zarr of AnnData


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("place", ["X", "raw", "layers/counts"])
@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_h5ad(tmp_path, truth, convert, place, compression):
    adata = adata_of(truth, convert)
    if place == "raw":
        adata.raw = adata.copy()
        adata = adata[:, 3:20].copy()
    elif place == "layers/counts":
        adata.layers["counts"] = adata.X.copy()
    if place != "X":
        adata.X = np.log1p(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    reader, X = read(tmp_path / "a.h5ad", place)
    check(truth, reader, X)
    assert list(reader.obs["donor"]) == ["a", "b"] * 20


@pytest.mark.parametrize("dtype", ["u1", "u4", "i8", "f2", "f8", ">f4", ">i4"])
@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_h5ad_of_any_dtype(tmp_path, truth, convert, dtype):
    truth.X[7, 7] = 200
    adata_of(truth, convert).write_h5ad(tmp_path / "a.h5ad")
    name = "X" if convert is np.asarray else "X/data"
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        values, attrs = file[name][...], dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values.astype(dtype)).attrs.update(attrs)
    check(truth, *read(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_deflated_chunks_that_do_not_align_with_blocks(tmp_path, truth, shuffle):
    X = sp.csr_matrix(truth.X.astype(np.float64))
    adata_of(truth).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        for name, values in {"data": X.data, "indices": X.indices.astype(np.int64)}.items():
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(37,), compression="gzip", shuffle=shuffle)
    check(truth, *read(tmp_path / "a.h5ad"))


def test_unsorted_rows_duplicates_and_explicit_zeros(tmp_path, truth):
    X = sp.csr_matrix(truth.X.astype(np.float32))
    # Each non-zero twice, one of the two zero, columns in falling order
    data = np.stack([X.data, np.zeros_like(X.data)], 1).ravel()
    indices, indptr = np.repeat(X.indices, 2), X.indptr * 2
    for low, high in pairwise(indptr):
        data[low:high], indices[low:high] = data[low:high][::-1].copy(), indices[low:high][::-1].copy()
    adata = adata_of(truth)
    adata.X = sp.csr_matrix((data, indices, indptr), shape=X.shape)
    adata.write_h5ad(tmp_path / "a.h5ad")
    check(truth, *read(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_zarr(tmp_path, truth, convert, version):
    adata = adata_of(truth, convert)
    adata.layers["counts"] = adata.X.copy()
    with ad.settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "a.zarr", chunks=(9, 30) if convert is np.asarray else None)
    check(truth, *read(tmp_path / "a.zarr"))
    check(truth, *read(tmp_path / "a.zarr", "layers/counts"))


def test_names_of_genes_in_var(tmp_path, truth):
    def names(**var):
        index = var.pop("index")
        adata = ad.AnnData(sp.csr_matrix((1, 2), dtype=np.float32), var=pd.DataFrame(var, index=index))
        adata.write_h5ad(tmp_path / "a.h5ad")
        with open_counts(tmp_path / "a.h5ad") as reader:
            return list(reader.gene_symbols), list(reader.gene_ids)

    assert names(index=["A", "B"]) == (["A", "B"], ["A", "B"])
    assert names(index=["A", "B"], gene_ids=["E1", "E2"]) == (["A", "B"], ["E1", "E2"])
    assert names(index=["E1", "E2"], feature_name=["A", "A"]) == (["A", "A"], ["E1", "E2"])
    assert names(index=["A", "A-1"], gene_symbols=["A", "A"], gene_ids=["E1", "E2"]) == (["A", "A"], ["E1", "E2"])
    assert names(index=["E1", "E2"], gene_symbols=pd.Categorical(["A", None])) == (["A", "E2"], ["E1", "E2"])


def test_other_feature_types_are_left_out(tmp_path, truth, caplog):
    types = ["Gene Expression"] * 26 + ["Antibody Capture"] * 4
    adata = adata_of(truth)
    adata.var["feature_types"] = types
    adata.write_h5ad(tmp_path / "a.h5ad")
    write_10x_h5(tmp_path / "a.h5", truth, 3, types=types)
    write_10x_folder(tmp_path / "a", truth, types=types)
    for name in ("a.h5ad", "a.h5", "a"):
        caplog.clear()
        with caplog.at_level("INFO"):
            reader, X = read(tmp_path / name)
        np.testing.assert_array_equal(X, truth.X[:, :26])
        assert list(reader.gene_ids) == list(truth.ids[:26])
        assert "4 features of type Antibody Capture" in caplog.text


def test_features_whose_type_is_not_known_are_genes(tmp_path, truth):
    """As after anndata.concat(join="outer"), and in CellBender's files: NA for all, or no types."""
    adata = adata_of(truth)
    adata.var["feature_types"] = pd.Categorical(["Gene Expression"] * 20 + [None] * 6 + ["Antibody Capture"] * 4)
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read(tmp_path / "a.h5ad")[1], truth.X[:, :26])
    adata.var["feature_types"] = ["protein_coding"] * 20 + ["lncRNA"] * 10
    adata.write_h5ad(tmp_path / "a.h5ad")
    check(truth, *read(tmp_path / "a.h5ad"))
    write_10x_h5(tmp_path / "a.h5", truth, 3, types=["NA"] * 30)
    check(truth, *read(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/features/feature_type"], file["matrix/features/genome"]
    check(truth, *read(tmp_path / "a.h5"))
    write_10x_h5(tmp_path / "a.h5", truth, 3, types=["Peaks"] * 10 + ["Antibody Capture"] * 20)
    with pytest.raises(UserError, match="no features of type Gene Expression, but Peaks, Antibody Capture"):
        read(tmp_path / "a.h5")


def test_biotypes_beside_the_genes_are_no_feature_types(tmp_path, truth):
    """Such as Ensembl's biotypes, which some pipelines write as the third column of features.tsv."""
    write_10x_folder(tmp_path / "a", truth, types=["protein_coding"] * 10 + ["lncRNA"] * 10 + ["antisense", "TEC"] * 5)
    check(truth, *read(tmp_path / "a"))


def test_raw_without_symbols_takes_them_of_var(tmp_path, truth):
    """As in CELLxGENE's files: raw.var has only ids, var has `feature_name`; var may lack some of raw's genes."""
    adata = adata_of(truth)
    adata.var = pd.DataFrame(index=truth.ids)
    adata.raw = adata.copy()
    adata = adata[:, ::-1].copy()
    adata.var["feature_name"], adata.var["mt"] = pd.Categorical(truth.symbols[::-1]), np.arange(30) < 3
    adata.X = np.log1p(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    reader, X = read(tmp_path / "a.h5ad", "raw")
    check(truth, reader, X)
    assert list(reader.flags) == ["mt"]
    assert reader.flags["mt"].tolist() == [False] * 27 + [True] * 3
    adata[:, 5:].copy().write_h5ad(tmp_path / "a.h5ad")
    truth.symbols[25:] = truth.ids[25:]
    check(truth, *read(tmp_path / "a.h5ad", "raw"))


def test_columns_that_hold_no_single_values_are_left_out(tmp_path, truth, caplog):
    adata = adata_of(truth)
    adata.obs["text"] = pd.Categorical(["x", None] * 20)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        obs = file["obs"]
        obs.create_dataset("wide", data=np.zeros((40, 2))).attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
        nested = obs.create_group("nested")
        nested.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        nested["x"] = 1
        obs["pairs"] = np.zeros(40, [("a", int), ("b", float)])
        obs.attrs["column-order"] = ["donor", "wide", "nested", "pairs", "gone", "text"]
    reader, X = read(tmp_path / "a.h5ad")
    check(truth, reader, X)
    assert {"donor", "text"} <= set(reader.obs)
    assert not {"wide", "nested", "gone"} & set(reader.obs)
    assert reader.obs["text"].isna().tolist() == [False, True] * 20
    assert "left out of /obs: wide, nested" in caplog.text


def test_columns_as_anndata_writes_them_are_read_without_it(tmp_path, truth, monkeypatch):
    """AnnData takes seconds to import."""
    adata = adata_of(truth)
    n = adata.n_obs
    obs = {
        "whole": np.arange(n),
        "flag": np.arange(n) % 2 == 0,
        "text": [f"t{i % 3}" for i in range(n)],
        "types": pd.Categorical([f"t{i % 3}" for i in range(n)], ordered=True),
        "numbers": pd.Categorical(np.arange(n) % 3),
        "missing": pd.array([None, *range(1, n)], dtype="Int32"),
        "maybe": pd.array([None, *[True] * (n - 1)], dtype="boolean"),
        "masked": pd.array([None, *["x"] * (n - 1)], dtype="string"),
    }
    adata.obs = adata.obs.assign(**obs)
    with ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "a.h5ad")
    expected = ad.read_h5ad(tmp_path / "a.h5ad").obs[list(obs)]
    monkeypatch.setattr("lib.inputs.formats.anndata_files.import_lean", lambda name: pytest.fail(name))
    with open_counts(tmp_path / "a.h5ad") as reader:
        found = reader.obs[list(obs)]
    for name in obs:
        values, truths = (column.astype(object).where(column.notna(), None) for column in (found[name], expected[name]))
        assert values.tolist() == truths.tolist(), name
    assert found["types"].cat.ordered


def test_values_of_other_features_need_not_be_counts(tmp_path, truth):
    adata = adata_of(truth)
    adata.var["feature_types"] = ["Gene Expression"] * 26 + ["Antibody Capture"] * 4
    values = truth.X.astype(np.float32)
    values[:, 26:] += 0.5
    adata.X = sp.csr_matrix(values)
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read(tmp_path / "a.h5ad")[1], truth.X[:, :26])


# 10x


@pytest.mark.parametrize("version", [2, 3])
def test_10x_h5(tmp_path, truth, version):
    write_10x_h5(tmp_path / "a.h5", truth, version)
    check(truth, *read(tmp_path / "a.h5"))
    check(truth, *read(tmp_path / "a.h5", genome="GRCh38"))


def test_10x_h5_of_several_genomes(tmp_path, truth):
    write_10x_h5(tmp_path / "v2.h5", truth, 2, groups=("hg19", "mm10"))
    check(truth, *read(tmp_path / "v2.h5", genome="mm10"))
    write_10x_h5(tmp_path / "v3.h5", truth, 3, groups=("hg19", "mm10"))
    check(truth, *read(tmp_path / "v3.h5"))
    reader, X = read(tmp_path / "v3.h5", genome="mm10")
    np.testing.assert_array_equal(X, truth.X[:, 15:])
    assert list(reader.gene_symbols) == list(truth.symbols[15:])
    with pytest.raises(UserError, match=r"more than one genome; it has hg19, mm10.*ingest: genome"):
        read(tmp_path / "v2.h5")
    for name in ("v2.h5", "v3.h5"):
        with pytest.raises(UserError, match="no genome rat; it has hg19, mm10"):
            read(tmp_path / name, genome="rat")


@pytest.mark.parametrize("prefix", ["", "GSM1_"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("genes", ["genes.tsv", "features.tsv"])
def test_10x_folder(tmp_path, truth, genes, zipped, prefix):
    write_10x_folder(tmp_path / "a", truth, genes, zipped, prefix)
    check(truth, *read(tmp_path / "a"))


def test_10x_folder_per_genome(tmp_path, truth):
    write_10x_folder(tmp_path / "a" / "hg19", truth, "genes.tsv")
    check(truth, *read(tmp_path / "a"))
    shutil.copytree(tmp_path / "a" / "hg19", tmp_path / "a" / "mm10")
    check(truth, *read(tmp_path / "a", genome="mm10"))
    with pytest.raises(UserError, match="more than one genome; it has hg19, mm10"):
        read(tmp_path / "a")


def shuffled(nnz):
    return np.random.default_rng(0).permutation(nnz)


def first_one_last(nnz):
    return np.roll(np.arange(nnz), -1)


@pytest.mark.parametrize("order", [shuffled, first_one_last])
def test_10x_folder_in_no_order(tmp_path, truth, order):
    write_10x_folder(tmp_path / "a", truth, order=order)
    with open_counts(tmp_path / "a", scratch=tmp_path) as reader:
        with pytest.raises(NotSortedError):
            list(reader.chunks())
        check(truth, reader, sp.vstack(list(reader.chunks())).toarray())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_10x_folder_of_one_cell_and_of_none(tmp_path, truth):
    one = SimpleNamespace(**vars(truth))
    write_10x_folder(tmp_path / "a", one, zipped=False)
    header = "%%MatrixMarket matrix coordinate real general\n30 1 2\n1 1 4\n30 1 2\n"
    (tmp_path / "a" / "matrix.mtx").write_text(header)
    (tmp_path / "a" / "barcodes.tsv").write_text("CELL\n")
    reader, X = read(tmp_path / "a")
    assert list(reader.obs.index) == ["CELL"]
    assert X[0, [0, 29]].tolist() == [4, 2]
    assert X.sum() == 6
    (tmp_path / "a" / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate real general\n30 0 0\n")
    (tmp_path / "a" / "barcodes.tsv").write_text("")
    with open_counts(tmp_path / "a") as reader:
        assert reader.n_obs == 0


def test_10x_folder_that_does_not_fit_together(tmp_path, truth):
    write_10x_folder(tmp_path / "a", truth, zipped=False)
    matrix = tmp_path / "a" / "matrix.mtx"
    text = matrix.read_text()
    matrix.write_text(text.replace("30 40", "40 30", 1))
    with pytest.raises(UserError, match=r"40 x 30, but there are 30 genes and 40 barcodes.*cells x genes"):
        read(tmp_path / "a")
    matrix.write_text("\n".join(text.splitlines()[:-3]))
    with pytest.raises(UserError, match="truncated or damaged"):
        read(tmp_path / "a")
    matrix.write_text(text.replace("\n2 1 ", "\n31 1 ", 1).replace("\n3 1 ", "\n31 1 ", 1))
    with pytest.raises(UserError, match=r"matrix\.mtx: line \d+: gene number 31, but they go from 1 to 30"):
        read(tmp_path / "a")
    matrix.write_text("%%MatrixMarket matrix coordinate real general\n")
    with pytest.raises(UserError, match="ends in its header"):
        read(tmp_path / "a")
    matrix.write_text("%%MatrixMarket matrix array real general\n")
    with pytest.raises(
        UserError, match=r"a matrix array real general in Matrix Market's format; counts are a matrix coo"
    ):
        read(tmp_path / "a")
    for header, expected in {
        "%%MatrixMarket matrix coordinate pattern general\n30 40 1\n1 1\n": "is a matrix coordinate pattern general",
        "%%MatrixMarket matrix coordinate integer symmetric\n30 40 1\n1 1 1\n": "coordinate integer symmetric in",
        "30 40 1\n1 1 1\n": "first line is not %%MatrixMarket",
        "%%MatrixMarket matrix coordinate integer general\n30 40\n1 1 1\n": "line 2 should hold the numbers of genes",
        "%%MatrixMarket matrix coordinate integer general\n30 40 1\n1 1 1 2 3\n": "5 fields, '1 1 1 2 3'; it needs",
        "%%MatrixMarket matrix coordinate integer general\n30 40 1\n1 1\n": "has 2 fields",
        "%%MatrixMarket matrix coordinate integer general\n30 40 2\n1 1 1\n1 2 1 1\n": "line 4: it has 4 fields",
        "%%MatrixMarket matrix coordinate integer general\n30 40 2\n1 1 1\n1 2\n": "line 4: it has 2 fields",
        "%%MatrixMarket matrix coordinate integer general\n30 40 2\n1 1 1\n1 2 x\n": "line 4: the count is no .*x",
        "%%MatrixMarket matrix coordinate integer general\n30 40 1\n0 1 1\n": "gene number 0, but they go from 1 to 30",
        "%%MatrixMarket matrix coordinate integer general\n30 40 1\n1 41 1\n": "cell number 41, but they go .* 40",
        "%%MatrixMarket matrix coordinate integer general\n30 40 1\n1 1 1\n2 1 1\n": "2 lines of values, but says .* 1",
    }.items():
        matrix.write_text(header)
        with pytest.raises(UserError, match=expected):
            read(tmp_path / "a")
    (tmp_path / "a" / "barcodes.tsv").write_text("\n".join(["barcode", *truth.barcodes]))
    with pytest.raises(UserError, match=r"30 genes and 41 barcodes.*a line of headings"):
        read(tmp_path / "a")
    (tmp_path / "a" / "features.tsv").write_text("a\tb\nc\td\te\n")
    with pytest.raises(UserError, match=r"features\.tsv is no file of names.*Expected 2 fields in line 2, saw 3"):
        read(tmp_path / "a")
    (tmp_path / "a" / "barcodes.tsv").unlink()
    with pytest.raises(
        UserError, match=r"needs one file barcodes.tsv \(or .gz\), and has only features.tsv, matrix.mtx"
    ):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    "header",
    [
        "%%MatrixMarket Matrix Coordinate Integer General\n%\n{}",
        "%%MATRIXMARKET MATRIX COORDINATE REAL GENERAL\r\n{}",
        "%%MatrixMarket matrix coordinate double general\n\n% a comment\n\n{}\n\n",
    ],
)
def test_headers_of_mtx_that_others_write(tmp_path, truth, header):
    write_10x_folder(tmp_path / "a", truth, zipped=False)
    matrix = tmp_path / "a" / "matrix.mtx"
    _, _, sizes, values = matrix.read_text().split("\n", 3)
    matrix.write_text(header.format(sizes) + "\n" + values.replace(" ", "\t"))
    check(truth, *read(tmp_path / "a"))


def test_names_of_genes_in_text_stay_as_they_are_and_empty_ones_fall_back(tmp_path, truth, caplog):
    symbols = ["nan", "NA", "", " ", "Sep-2", "None", *truth.symbols[6:]]
    truth.symbols = np.array(symbols, dtype=object)
    write_10x_folder(tmp_path / "a", truth)
    write_10x_h5(tmp_path / "a.h5", truth, 3)
    adata = adata_of(truth)
    adata.write_h5ad(tmp_path / "a.h5ad")
    truth.symbols = np.array([*symbols[:2], *truth.ids[2:4], *symbols[4:]], dtype=object)
    for name in ("a", "a.h5", "a.h5ad"):
        check(truth, *read(tmp_path / name))
    write_10x_folder(tmp_path / "b", truth, "genes.tsv", zipped=False)
    genes = tmp_path / "b" / "genes.tsv"
    genes.write_bytes(genes.read_bytes().replace(b"Sep-2", b"CD3\xb5"))
    truth.symbols[4] = "CD3µ"
    check(truth, *read(tmp_path / "b"))
    assert "genes.tsv is not UTF-8: its names are read as Latin-1" in caplog.text
    genes.write_text("\t\n" * 30)
    with pytest.raises(UserError, match=r"genes\.tsv: 30 genes have neither a symbol nor an id, the first is number 1"):
        read(tmp_path / "b")


# Loom and text


def test_loom(tmp_path, truth):
    write_loom(tmp_path / "a.loom", truth, spliced=truth.X + 1)
    reader, X = read(tmp_path / "a.loom")
    check(truth, reader, X)
    assert list(reader.obs) == ["depth"]
    np.testing.assert_array_equal(read(tmp_path / "a.loom", "layers/spliced")[1], truth.X + 1)
    with pytest.raises(UserError, match="no counts raw; it has X, layers/spliced"):
        read(tmp_path / "a.loom", "raw")


def test_names_of_genes_in_loom(tmp_path, truth):
    write_loom(tmp_path / "a.loom", truth, ["var_names"])
    check(truth, *read(tmp_path / "a.loom"), ids=truth.symbols)
    write_loom(tmp_path / "b.loom", truth, ["Accession"])
    assert list(read(tmp_path / "b.loom")[0].gene_symbols) == list(truth.ids)
    write_loom(tmp_path / "c.loom", truth, ["Chromosome"])
    with pytest.raises(UserError, match=r"has none of Gene, .*, to name its cells or genes; it has Chromosome\. Name"):
        read(tmp_path / "c.loom")


def test_attributes_of_a_loom_that_the_config_names(tmp_path, truth):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = truth.X.T.astype(np.float32)
        file["col_attrs/CellID"], file["col_attrs/mine"] = [f"other{i}" for i in range(40)], truth.barcodes
        file["row_attrs/gene_name"], file["row_attrs/mine"] = [f"other{i}" for i in range(30)], truth.symbols
        file["row_attrs/Accession"] = truth.ids
    named = {"obs_names": "mine", "var_names": "mine"}
    with open_counts(tmp_path / "a.loom", **named) as reader:
        check(truth, reader, sp.vstack(list(reader.chunks())).toarray())
    with (
        pytest.raises(UserError, match=r"has none of yours, .* it has Accession, gene_name, mine.*ingest: var_names"),
        open_counts(tmp_path / "a.loom", var_names="yours"),
    ):
        pass


@pytest.mark.parametrize(
    ("cells", "genes"),
    [("barcode", "gene_name"), ("barcode", "target_name"), ("CellID", "Gene"), ("cell_names", "gene_names")],
)
def test_loom_of_kb_python_seurat_and_loomr(tmp_path, truth, cells, genes):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = truth.X.T.astype(np.float32)
        file[f"col_attrs/{cells}"] = truth.barcodes
        file["row_attrs/gene_id"], file[f"row_attrs/{genes}"] = truth.ids, truth.symbols
    check(truth, *read(tmp_path / "a.loom"))


def test_loom_whose_attributes_do_not_fit(tmp_path, truth):
    write_loom(tmp_path / "a.loom", truth)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        file["col_attrs/short"] = np.zeros(39)
    with pytest.raises(UserError, match=r"col_attrs/short has 39 values, and col_attrs/CellID 40. It may be truncated"):
        read(tmp_path / "a.loom")


@pytest.mark.parametrize("corner", ["", "cell"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz"])
def test_text(tmp_path, truth, name, corner):
    table = pd.DataFrame(truth.X, truth.barcodes, truth.symbols)
    table.to_csv(tmp_path / name, sep="," if "csv" in name else "\t", index_label=corner)
    check(truth, *read(tmp_path / name), ids=truth.symbols)


def test_text_of_r(tmp_path, truth):
    """R's write.table: quoted names, and no name above the barcodes."""
    lines = ["\t".join(f'"{gene}"' for gene in truth.symbols)]
    lines += ["\t".join([f'"{cell}"', *map(str, row)]) for cell, row in zip(truth.barcodes, truth.X, strict=True)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    check(truth, *read(tmp_path / "a.tsv"), ids=truth.symbols)


def test_text_as_scanpy_reads_it(tmp_path, truth):
    import scanpy as sc

    pd.DataFrame(truth.X, truth.barcodes, truth.ids).to_csv(tmp_path / "a.csv")
    expected = sc.read_csv(tmp_path / "a.csv")
    reader, X = read(tmp_path / "a.csv")
    np.testing.assert_array_equal(X, expected.X)
    assert list(reader.obs.index) == list(expected.obs_names)
    assert list(reader.gene_symbols) == list(expected.var_names)


def test_text_that_is_no_table_of_counts(tmp_path, truth):
    table = pd.DataFrame(truth.X, truth.barcodes, truth.symbols)
    for odd in ("many", None, "1.2.3"):
        table.astype(object).where(table < 70_000, odd).to_csv(tmp_path / "a.csv")
        with pytest.raises(UserError, match=r"a\.csv: line 9, of cell CELL7-1, does not hold 30 numbers"):
            read(tmp_path / "a.csv")
    table.astype(object).where(table < 70_000, "nan").to_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match="gene G7 in cell CELL7-1 is nan"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("GAPDH,ACTB,MT-CO1\nAAACCCTG,1\n")
    with pytest.raises(UserError, match="first line has 3 fields, the next 2"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("GAPDH,ACTB\n")
    with pytest.raises(UserError, match="no line of counts"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("AAACCCTG,0,1,1\nAAACCCTT,2,0,0\n")
    with pytest.raises(UserError, match="first line holds counts"):
        read(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t", encoding="utf-16")
    with pytest.raises(UserError, match=r"UTF-16.* Save it as UTF-8"):
        read(tmp_path / "a.tsv")


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.txt", "\t"), ("a.txt.gz", " ")])
def test_text_with_other_separators(tmp_path, truth, name, separator):
    pd.DataFrame(truth.X, truth.barcodes, truth.symbols).to_csv(tmp_path / name, sep=separator, index_label="cell")
    check(truth, *read(tmp_path / name), ids=truth.symbols)


def test_text_of_excel_and_r(tmp_path, truth):
    """A byte order mark, CRLF, quoted names with commas, quoted numbers, a line of comments, Latin-1, no corner."""
    truth.symbols[[0, 4]], truth.barcodes[2] = ("HLA-A,B", 'a "b"'), "CELL2,1"
    table = pd.DataFrame(truth.X.astype(str), truth.barcodes, truth.symbols)
    text = table.to_csv(quoting=csv.QUOTE_ALL, lineterminator="\r\n").replace('"",', "", 1)
    for head, encoding in (("", "utf-8-sig"), ("# made by\r\n", "utf-8")):
        (tmp_path / "a.csv").write_bytes((head + text).encode(encoding))
        check(truth, *read(tmp_path / "a.csv"), ids=truth.symbols)
    truth.symbols[1] = "CD3µ"
    text = pd.DataFrame(truth.X, truth.barcodes, truth.symbols).to_csv()
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    check(truth, *read(tmp_path / "a.csv"), ids=truth.symbols)
    (tmp_path / "a.csv").write_text("#cell" + text)
    check(truth, *read(tmp_path / "a.csv"), ids=truth.symbols)


def test_latin_1_far_down(tmp_path):
    """After the lines that tell the table's layout."""
    genes = [f"GENE{i}" for i in range(300)]
    text = pd.DataFrame(np.eye(300, 3, dtype=int), [*genes[:-1], "CD3µ"], BARCODES).to_csv()
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    reader, X = read(tmp_path / "a.csv", orientation="genes_by_cells")
    assert list(reader.gene_symbols) == [*genes[:-1], "CD3µ"]
    np.testing.assert_array_equal(X, np.eye(3, 300))


@pytest.mark.parametrize("names", ["as they are", "swapped"])
def test_gzipped_or_not_whatever_the_name_says(tmp_path, truth, names):
    """Browsers may inflate a download and keep the name, or change the name only."""
    write_10x_folder(tmp_path / "a", truth, zipped=names == "as they are")
    pd.DataFrame(truth.X, truth.barcodes, truth.symbols).to_csv(tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "b.tsv.gz").write_bytes(text.replace(b",", b"\t"))
    (tmp_path / "a.csv").write_bytes(gzip.compress(text))
    if names == "swapped":
        for file in (tmp_path / "a").iterdir():
            file.rename(f"{file}.gz")
    else:
        for file in (tmp_path / "a").iterdir():
            file.rename(file.with_suffix(""))
    check(truth, *read(tmp_path / "a"))
    for name in ("a.csv", "b.tsv.gz"):
        check(truth, *read(tmp_path / name), ids=truth.symbols)


BARCODES = [f"{code}-1" for code in ("AAACCTGAGAAACCAT", "ACGTACGTACGTACGT", "TTTGTCATCTTTACGT")]
ORGANISMS = {
    "human": ["MT-CO1", "RPL13", "KLF4", "TP53"],
    "mouse": ["mt-Co1", "Rpl13", "Klf4", "Trp53"],
    "zebrafish": ["rpl13", "actb1", "klf4", "tp53"],
    "fly": ["FBgn0000001", "FBgn0000008", "FBgn0000014", "FBgn0000015"],
    "worm": ["WBGene00000001", "WBGene00000002", "WBGene00000003", "WBGene00000004"],
    "yeast": ["YAL001C", "YAL002W", "YBR001C", "YPR204W"],
    "Arabidopsis": ["AT1G01010", "AT1G01020", "AT5G01030", "ATCG00010"],
    "Ensembl": ["ENSMUSG00000000001.5", "ENSMUSG00000000003", "ENSDARG00000000001", "ENSG00000000003.14"],
    "unknown": ["foo", "bar", "baz", "qux"],
}


@pytest.mark.parametrize("genes", ORGANISMS.values(), ids=ORGANISMS)
@pytest.mark.parametrize(
    "cells", [BARCODES, ["run1:AAACCTGAGAAACCATx", "s2_ACGTACGTACGT", "x.TTTGTCATCT.1"], ["P1.A01", "P1.B01", "P2.A01"]]
)
def test_which_way_round_a_table_lies(tmp_path, genes, cells):
    table = pd.DataFrame(np.arange(12).reshape(3, 4), cells, genes)
    table.to_csv(tmp_path / "a.csv")
    table.T.to_csv(tmp_path / "b.csv")
    expected = "lines look like genes.* to genes_by_cells, and it is read so"
    if genes is ORGANISMS["unknown"] and cells[0] == "P1.A01":
        expected = "neither names nor counts tell"
        with pytest.raises(UserError, match=expected):
            read(tmp_path / "a.csv")
    else:
        assert list(read(tmp_path / "a.csv")[0].gene_symbols) == genes
    with pytest.raises(UserError, match=expected):
        read(tmp_path / "b.csv")
    reader, X = read(tmp_path / "b.csv", orientation="genes_by_cells")
    assert (list(reader.obs.index), list(reader.gene_symbols)) == (cells, genes)
    np.testing.assert_array_equal(X, table)
    np.testing.assert_array_equal(read(tmp_path / "b.csv", orientation="cells_by_genes")[1], table.T)


def test_sums_tell_which_way_round_a_table_lies(tmp_path):
    """Cells of similar depth, genes of very different means; names tell nothing."""
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(0.2, 5, 100) * rng.lognormal(0, 0.3, (60, 1)))
    table = pd.DataFrame(X, [f"x{i}" for i in range(60)], [f"y{i}" for i in range(100)])
    table.to_csv(tmp_path / "a.csv")
    np.testing.assert_array_equal(read(tmp_path / "a.csv")[1], X)
    table.T.to_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"lines look like genes.* as their sums vary as those of genes do"):
        read(tmp_path / "a.csv")


def test_genes_by_cells_in_blocks(tmp_path, truth):
    pd.DataFrame(truth.X.T, truth.symbols, truth.barcodes).to_csv(tmp_path / "a.csv")
    check(truth, *read(tmp_path / "a.csv", orientation="genes_by_cells"), ids=truth.symbols)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


# Refusals


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, 2.0**31])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_no_counts(value, dtype):
    values = np.array([0, 1, value, 3, value], dtype)
    assert as_counts(values) is None
    assert first_bad(values) == 2
    assert as_counts(values[:2]).tolist() == [0, 1]


def test_values_that_are_counts():
    for dtype in (bool, np.uint8, np.int16, np.int64, np.float16, np.float32):
        assert as_counts(np.array([0, 1, 1], dtype)).tolist() == [0, 1, 1]
    assert as_counts(np.array([2**31 - 1], np.int64)).tolist() == [2**31 - 1]
    assert as_counts(np.array([], np.float32)).dtype == np.uint32
    for refused in (
        np.array([1, -1], np.int8),
        np.array([2**31]),
        np.array([2**32 + 1]),
        np.array(["1"]),
        np.array([1j]),
    ):
        assert as_counts(refused) is None


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix])
def test_duplicates_that_sum_past_a_count_are_refused(tmp_path, truth, convert):
    """Three entries of 2^31 - 1 for one cell and gene, which would overflow to 2^31 - 3 in uint32."""
    X = convert(truth.X.astype(np.float64))
    major, minor = (21, 33) if convert is sp.csc_matrix else (33, 21)
    at = X.indptr[major + 1]
    data, indices = (np.insert(a, at, [v] * 3) for a, v in ((X.data, 2**31 - 1), (X.indices, minor)))
    indptr = X.indptr + 3 * (np.arange(len(X.indptr)) > major)
    adata = adata_of(truth)
    adata.X = convert((data, indices, indptr), shape=X.shape)
    adata.write_h5ad(tmp_path / "a.h5ad")
    value = 3 * (2**31 - 1) + truth.X[33, 21]
    with pytest.raises(UserError, match=f"the value of gene G21 in cell CELL33-1 is {value}"):
        read(tmp_path / "a.h5ad")


def test_lines_of_an_mtx_that_sum_past_a_count_are_refused(tmp_path, truth):
    write_10x_folder(tmp_path / "a", truth, zipped=False)
    matrix = tmp_path / "a" / "matrix.mtx"
    lines = matrix.read_text().splitlines()
    n = int(lines[2].split()[2]) + 2
    more = ["22 34 2000000000"] * 2
    for place in (len(lines), 3):  # at the end, out of order; or first
        text = [*lines[:2], f"30 40 {n}", *lines[3:place], *more, *lines[place:]]
        matrix.write_text("\n".join(text))
        with open_counts(tmp_path / "a", scratch=tmp_path) as reader:
            with pytest.raises(NotSortedError):
                list(reader.chunks())
            with pytest.raises(UserError, match=r"gene G21 in cell CELL33-1 is 400000000[01]"):
                list(reader.chunks())


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_the_first_bad_value_is_named(tmp_path, truth, convert):
    values = truth.X.astype(np.float32)
    values[33, 21] = -2
    adata = adata_of(truth)
    adata.layers["odd"] = convert(values)
    adata.write_h5ad(tmp_path / "a.h5ad")
    expected = r"a\.h5ad: layers/odd does not hold raw counts: the value of gene G21 in cell CELL33-1 is -2\.0"
    with pytest.raises(UserError, match=expected + r".*X \(whole numbers\): name the one with the raw counts"):
        read(tmp_path / "a.h5ad", "layers/odd")


def test_log_normalised_values_are_recognised(tmp_path, truth):
    adata = adata_of(truth)
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = sp.csr_matrix(np.log1p(truth.X / 3).astype(np.float32))
    adata.write_h5ad(tmp_path / "a.h5ad")
    advice = r"look log-normalised.*raw \(whole numbers\), layers/counts \(whole numbers\).*`ingest: counts`"
    with pytest.raises(UserError, match=advice):
        read(tmp_path / "a.h5ad")
    del adata.layers["counts"], adata.raw
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(UserError, match="no other matrix"):
        read(tmp_path / "a.h5ad")


def test_counts_that_the_file_does_not_have(tmp_path, truth):
    adata = adata_of(truth)
    adata.layers["spliced"] = adata.X.copy()
    adata.X = None
    adata.write_h5ad(tmp_path / "a.h5ad")
    for place in ("X", "raw", "layers/counts"):
        with pytest.raises(UserError, match=f"a.h5ad has no counts {place}; it has layers/spliced. Set"):
            read(tmp_path / "a.h5ad", place)


def test_what_a_layout_lacks_is_named(tmp_path, truth):
    write_10x_h5(tmp_path / "a.h5", truth, 3)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["matrix/barcodes"]
    write_loom(tmp_path / "a.loom", truth)
    with h5py.File(tmp_path / "a.loom", "a") as file:
        del file["col_attrs"]
    adata_of(truth).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["X/indices"]
    for name, lacks in {"a.h5": "barcodes", "a.loom": "col_attrs", "a.h5ad": "indices"}.items():
        with pytest.raises(UserError, match=rf"{name} is not laid out as its format is: .*{lacks}"):
            read(tmp_path / name)
    adata_of(truth).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        del file["obs"]
        file["obs"] = np.zeros(40, [("index", "S5")])
    with pytest.raises(UserError, match=r"by anndata before version 0\.7\. Write it anew"):
        read(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").chmod(0)
    if os.geteuid():
        with pytest.raises(UserError, match="permission denied"):
            read(tmp_path / "a.h5ad")


def test_a_filter_that_is_not_there_is_no_damage(tmp_path, truth):
    adata_of(truth).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        n = len(file["X/data"])
        del file["X/data"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((n,))
        created.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # zstd's
        space = h5py.h5s.create_simple((n,))
        data = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, space, created)
        data.write_direct_chunk((0,), b"\0" * 4 * n, 0)
    with pytest.raises(UserError, match=r"compressed in a way that needs a plugin .* import hdf5plugin; anndata"):
        read(tmp_path / "a.h5ad")


def test_wide_tables_and_what_is_no_text(tmp_path):
    """Lines longer than csv's 131,072 characters, with another separator than the suffix says."""
    X = np.random.default_rng(0).poisson(0.1, (3, 80_000))
    genes = [f"GENE{i}" for i in range(80_000)]
    pd.DataFrame(X, BARCODES, genes).to_csv(tmp_path / "a.csv", sep="\t")
    with open_counts(tmp_path / "a.csv") as reader:
        assert (reader.n_obs, list(reader.gene_symbols)) == (3, genes)
    (tmp_path / "a.csv").write_bytes(b"\x89HDF\n\0\0\n")
    with pytest.raises(UserError, match=r"a\.csv is no text: it is an HDF5 file. Correct its suffix"):
        read(tmp_path / "a.csv")


def test_missing_and_unknown_files(tmp_path, truth):
    with pytest.raises(UserError, match=r"b\.h5ad does not exist. Correct its path"):
        read(tmp_path / "b.h5ad")
    (tmp_path / "a.rds").write_text("")
    with pytest.raises(UserError, match=r"a\.rds has no format known here. Formats: a 10x folder"):
        read(tmp_path / "a.rds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folder of a 10x matrix"):
        read(tmp_path / "empty")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a 10x"):
        read(tmp_path / "a.h5")
    shutil.copy(tmp_path / "a.h5", tmp_path / "a.h5ad")
    with pytest.raises(UserError, match="not an AnnData file"):
        read(tmp_path / "a.h5ad")


def test_truncated_and_damaged_files(tmp_path, truth):
    damaged = "cannot be read: .* truncated or damaged: copy or download it again"
    adata_of(truth).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    whole = (tmp_path / "a.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=damaged):
        read(tmp_path / "cut.h5ad")
    (tmp_path / "text.h5ad").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"text\.h5ad is no HDF5 file: it begins with '<html>404</html>'"):
        read(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        at = file["X/data"].id.get_chunk_info(0)
    overwritten = bytearray(whole)
    overwritten[at.byte_offset : at.byte_offset + at.size] = b"\xff" * at.size
    (tmp_path / "bad.h5ad").write_bytes(overwritten)
    with pytest.raises(UserError, match=damaged):
        read(tmp_path / "bad.h5ad")
    for name, change in {"indices": lambda x: x + 30, "indptr": lambda x: x[::-1]}.items():
        for convert in (sp.csr_matrix, sp.csc_matrix):  # SciPy writes past its arrays if a CSC has too many rows
            adata_of(truth, convert).write_h5ad(tmp_path / "a.h5ad")
            with h5py.File(tmp_path / "a.h5ad", "a") as file:
                file[f"X/{name}"][...] = change(file[f"X/{name}"][...])
            with pytest.raises(UserError, match=damaged):
                read(tmp_path / "a.h5ad")
    write_10x_folder(tmp_path / "b", truth)
    matrix = tmp_path / "b" / "matrix.mtx.gz"
    matrix.write_bytes(matrix.read_bytes()[:-40])
    with pytest.raises(UserError, match=damaged):
        read(tmp_path / "b")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/_index", "obs/donor/categories"])
def test_damaged_chunks_of_a_zarr(tmp_path, truth, name, version):
    with ad.settings.override(zarr_write_format=version):
        adata = adata_of(truth)
        adata.strings_to_categoricals()
        adata.write_zarr(tmp_path / "a.zarr")
    array = tmp_path / "a.zarr" / name
    array = array / "values" if (array / "values").exists() else array  # anndata 0.13
    chunk = array / ("0" if version == 2 else "c/0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.zarr cannot be read: .* truncated or damaged: copy or download it again"):
        read(tmp_path / "a.zarr")


# Real files, against scanpy's readers


@pytest.fixture
def whole_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 500_000)


def same_as_scanpy(expected, reader, X):
    """scanpy's matrix, cells, ids and unique symbols: exactly."""
    import ingest

    assert X.shape == expected.shape
    assert (sp.csr_matrix(expected.X) != X).nnz == 0
    assert list(reader.obs.index) == list(expected.obs_names)
    assert list(reader.gene_ids) == list(expected.var["gene_ids"].astype(str))
    names = pd.Series(reader.gene_symbols)
    expected.var_names_make_unique()
    ours = ingest.gene_table(reader.gene_symbols, reader.gene_ids).index
    assert ours.is_unique
    # Repeated symbols have their ids in our names
    once = ~(names.duplicated(keep=False) | names.str.fullmatch(r".+-\d+") | names.isin(names.str.removesuffix("-1")))
    assert list(ours[once]) == list(expected.var_names[once])


@pytest.mark.parametrize(
    ("name", "genome"),
    [
        ("heart_1k_10x_h5/filtered_gene_bc_matrices_h5.h5", None),
        ("10x_formats/1.2.0/filtered_gene_bc_matrices_h5.h5", None),
        ("10x_formats/1.2.0/multiple_genomes.h5", "hg19_chr21"),
        ("10x_formats/1.2.0/multiple_genomes.h5", "another_genome"),
        ("10x_formats/3.0.0/filtered_feature_bc_matrix.h5", None),
        ("10x_formats/3.0.0/filtered_feature_bc_matrix.h5", "GRCh38_chr21"),
    ],
)
@pytest.mark.usefixtures("whole_blocks")
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_10x_h5_as_scanpy_reads_it(real_data, name, genome):
    import scanpy as sc

    expected = sc.read_10x_h5(real_data / name, genome=genome)
    same_as_scanpy(expected, *read_real(real_data / name, genome=genome))


@pytest.mark.parametrize(
    "name", ["1.2.0/filtered_gene_bc_matrices/hg19_chr21", "3.0.0/filtered_feature_bc_matrix", "int-ids"]
)
@pytest.mark.usefixtures("whole_blocks")
def test_10x_folder_as_scanpy_reads_it(real_data, tmp_path, name):
    import scanpy as sc

    folder = real_data / "10x_formats" / name
    zipped = folder
    if name == "int-ids":  # files of version 3, which scanpy reads only zipped
        zipped = tmp_path
        for file in folder.iterdir():
            (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    same_as_scanpy(sc.read_10x_mtx(zipped), *read_real(folder))


@pytest.mark.usefixtures("whole_blocks")
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_pbmc3k_in_two_formats(real_data, tmp_path):
    import scanpy as sc

    folder = real_data / "pbmc3k" / "filtered_gene_bc_matrices" / "hg19"
    for file in folder.iterdir():  # scanpy reads files of version 1 only unzipped
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    reader, X = read_real(folder)
    assert (X.shape[0], X.nnz, X.sum()) == (2700, 2_286_884, 6_390_631)
    same_as_scanpy(sc.read_10x_mtx(tmp_path), reader, X)
    path = real_data / "pbmc3k" / "pbmc3k_raw.h5ad"
    same_as_scanpy(sc.read_h5ad(path), *read_real(path))


def read_real(path, **kwargs):
    with open_counts(path, **kwargs) as reader:
        return reader, sp.vstack(list(reader.chunks()))


@pytest.mark.parametrize("name", ["whole", "chunks", "swapped", "flags", "lzf", "empty", "compact"])
def test_vectors_without_filters_are_read_as_h5py_reads_them(tmp_path, name):
    """Threads read their bytes from the file; whatever has filters or lies elsewhere is left to HDF5."""
    values = np.random.default_rng(0).integers(0, 99, 2_500_017).astype(np.int32)
    with h5py.File(tmp_path / "vectors.h5", "w") as file:
        file["whole"], file["empty"] = values, values[:0]
        file.create_dataset("chunks", data=values, chunks=(1000,))
        file.create_dataset("swapped", data=values.astype(">f8"))
        file.create_dataset("flags", data=values > 50, chunks=(777,))
        file.create_dataset("lzf", data=values, compression="lzf")
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((5,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_INT32, space, layout)
        file["compact"][...] = values[:5]
    with h5py.File(tmp_path / "vectors.h5") as file:
        elements, array = File(tmp_path / "vectors.h5", file, 1 << 30), file[name]
        for start, stop in ((0, None), (0, 0), (5, 17), (999, 2001), (1_048_570, 2_100_001), (2_500_000, None)):
            found = elements.read(name, array, slice(start, stop))
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array[start:stop])
