"""Odd `.h5ad` files: see `odd_files`."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from odd_files import N_OBS, N_VARS, Cases

CASES = Cases()
BOMB = 800 << 20  # bytes, more than the judge allows
TEXT = h5py.string_dtype()
Change = Callable[[h5py.File, SimpleNamespace], None]


def element(file: h5py.Group, name: str, values: Any, kind: str, version: str = "0.2.0", **how: Any) -> None:
    """Write an element with AnnData's encoding."""
    file.create_dataset(name, data=values, **how).attrs.update({"encoding-type": kind, "encoding-version": version})


def table(file: h5py.Group, name: str, names: np.ndarray, **columns: Any) -> h5py.Group:
    """Write a table of AnnData: its index, and plain columns."""
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs["column-order"] = np.array(list(columns), TEXT)
    element(group, "_index", np.array(names, object), "string-array", dtype=TEXT)
    for column, values in columns.items():
        text = np.asarray(values).dtype.kind == "O"
        element(group, column, values, "string-array" if text else "array", dtype=TEXT if text else None)
    return group


def sparse(file: h5py.Group, name: str, X: Any, **how: Any) -> None:
    """Write a sparse matrix of AnnData."""
    group = file.create_group(name)
    group.attrs.update({"encoding-type": f"{X.format}_matrix", "encoding-version": "0.1.0", "shape": X.shape})
    for part in ("data", "indices", "indptr"):
        group.create_dataset(part, data=getattr(X, part), **how)


def write(path: Path, truth: SimpleNamespace, **how: Any) -> Path:
    """Write the truth as `.h5ad`, its X as CSR of float32."""
    with h5py.File(path, "w", **how) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        sparse(file, "X", sp.csr_matrix(truth.X.astype(np.float32)))
        donors = np.array(["d1", "d2"] * (N_OBS // 2), object)
        table(file, "obs", truth.barcodes, donor=donors, age=np.arange(N_OBS))
        table(file, "var", truth.ids, gene_symbols=truth.symbols)
    return path


def put(file: h5py.Group, name: str, values: Any, **how: Any) -> h5py.Dataset:
    """Replace an array, or write one; the attributes stay."""
    attrs = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    made = file.create_dataset(name, data=values, **how)
    made.attrs.update(attrs)
    return made


def dense(file: h5py.File, values: Any, **how: Any) -> h5py.Dataset:
    """Replace X by an array."""
    del file["X"]
    made = file.create_dataset("X", data=values, **how)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


def odd(name: str, about: str, expected: str = "", **more: Any) -> Callable[[Change], Change]:
    """A decorator of the function that changes a right `.h5ad`."""

    def added(change: Change) -> Change:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            path = write(folder / "a.h5ad", truth)
            with h5py.File(path, "a") as file:
                change(file, truth)
            return path

        CASES.add(f"h5ad_{name}", about, expected, **more)(build)
        return change

    return added


def values_of(name: str, about: str, change: Callable[[np.ndarray], Any], *expected: str, **more: Any) -> None:
    """A case in which one array of the file is another: `name` is its path, a dash, and what is odd."""
    where = name.split("-")[0]

    @odd(name.replace("/", "_").replace("-", "_"), about, *expected, **more)
    def _(file, truth):
        put(file, where, change(file[where][...]))


# X


def x_is(name: str, about: str, change: Callable[[np.ndarray], Any], *expected: str, **more: Any) -> None:
    """A case in which X is an array, made from the truth's."""

    @odd(f"x_{name}", about, *expected, **more)
    def _(file, truth):
        dense(file, change(truth.X))


def spoilt(value: float, dtype: Any = np.float64) -> Callable[[np.ndarray], np.ndarray]:
    """A function that puts a value into cell 8 and gene 3."""

    def change(X: np.ndarray) -> np.ndarray:
        X = X.astype(dtype)
        X[8, 3] = value
        return X

    return change


x_is("text", "X is an array of text", lambda X: X.astype("S5"), "X is no array of numbers, but of text")
x_is(
    "references",
    "X is an array of references to objects",
    lambda X: np.full(X.shape, h5py.Reference(), h5py.ref_dtype),
    "X is no array of numbers, but of text or objects",
)
x_is(
    "compound",
    "X is an array of pairs",
    lambda X: np.zeros(X.shape, [("a", int), ("b", int)]),
    "X is no array of numbers, but of records",
)
x_is("complex", "X is complex", lambda X: X.astype(complex), "X is no array of numbers, but of complex")
x_is("3d", "X has three dimensions", lambda X: X[..., None], "X has 3 dimensions, not 2")
x_is("1d", "X has one dimension", lambda X: X[0], "X has 1 dimension, not 2")
x_is("scalar", "X is one number", lambda X: 5.0, "X has 0 dimensions, not 2")
x_is("big_endian", "X is in the byte order of other machines", lambda X: X.astype(">f8"))
x_is("float16", "X is of half precision", lambda X: X.astype("f2"))
x_is("long_double", "X is of 80-bit numbers", lambda X: X.astype(np.longdouble))
x_is("int64", "X is dense, of 64-bit integers", lambda X: X.astype(np.int64))
x_is("negative", "a value is negative", spoilt(-1), "gene Gene3 in cell CELL8-1 is -1.0, not a whole", late=True)
x_is("nan", "a value is no number", spoilt(np.nan), "gene Gene3 in cell CELL8-1 is nan, not a whole", late=True)
x_is("inf", "a value is infinite", spoilt(np.inf), "gene Gene3 in cell CELL8-1 is inf, not a whole", late=True)
x_is("half", "a value is 0.5", spoilt(0.5), "gene Gene3 in cell CELL8-1 is 0.5, not a whole number", late=True)
x_is("2_to_31", "a value is 2^31", spoilt(2**31), "gene Gene3 in cell CELL8-1 is 2147483648.0, not a", late=True)
x_is("2_to_32", "a value is 2^32 + 1, which 32 bits cut to 1", spoilt(2**32 + 1, int), "is 4294967297, not", late=True)
x_is(
    "transposed",
    "X is genes x cells",
    lambda X: X.T,
    "X is 20 x 30 (cells x genes), but obs has 30 names and var 20. They seem to be swapped",
)
x_is("normalised", "X is log-normalised", lambda X: np.log1p(X / 3), "does not hold raw counts")


@odd("x_bool", "X is of booleans")
def _(file, truth):
    truth.X = (truth.X > 0).astype(int)
    dense(file, truth.X > 0)


@odd("x_largest", "a count is the largest that fits, 2^31 - 1")
def _(file, truth):
    truth.X[8, 3] = 2**31 - 1
    dense(file, truth.X)


@odd("x_empty_group", "X is an empty group", "X is neither an array nor a sparse matrix")
def _(file, truth):
    del file["X"]
    file.create_group("X")


@odd("x_missing", "there is no X", "a.h5ad has no counts X; it has none")
def _(file, truth):
    del file["X"]


@odd("x_null", "X is an HDF5 null", "its format is: X is empty")
def _(file, truth):
    del file["X"]
    file["X"] = h5py.Empty("f4")


@odd("obs_missing", "there is no obs", "is not an AnnData file: it has no obs")
def _(file, truth):
    del file["obs"]


@odd("var_missing", "there is no var", "is not an AnnData file: it has no var")
def _(file, truth):
    del file["var"]


@odd(
    "obs_compound", "obs is a table as anndata 0.6 wrote it", "was written by anndata before version 0.7. Write it anew"
)
def _(file, truth):
    put(file, "obs", np.zeros(N_OBS, [("index", "S9"), ("n", "i4")]))


@odd(
    "var_compound", "var is a table as anndata 0.6 wrote it", "was written by anndata before version 0.7. Write it anew"
)
def _(file, truth):
    put(file, "var", np.zeros(N_VARS, [("index", "S9"), ("n", "i4")]))


@odd("x_h5sparse", "X is sparse as anndata 0.6 wrote it", "was written by anndata before version 0.7. Write it anew")
def _(file, truth):
    del file["X"].attrs["encoding-type"]
    file["X"].attrs.update({"h5sparse_format": "csr", "h5sparse_shape": truth.X.shape})


@odd("x_coo", "X is sparse in a way that AnnData has not", "its attribute encoding-type is coo_matrix")
def _(file, truth):
    file["X"].attrs["encoding-type"] = "coo_matrix"


@odd("x_version", "the version of X's encoding is of the future, its layout as now")
def _(file, truth):
    file["X"].attrs["encoding-version"] = "9.9.9"


@odd("obs_version", "the version of obs' encoding is of the future, its layout as now")
def _(file, truth):
    file["obs"].attrs["encoding-version"] = "9.9.9"


@odd("obs_unknown", "the encoding of obs is unknown, its layout that of a table")
def _(file, truth):
    file["obs"].attrs["encoding-type"] = "tibble"


@odd("no_attrs", "X has the parts of a sparse matrix, and no attributes", "its attribute encoding-type is none")
def _(file, truth):
    for name in list(file["X"].attrs):
        del file["X"].attrs[name]


@odd("attrs_bytes", "attributes are bytes of fixed length, as other languages write them")
def _(file, truth):
    for name in ("X", "obs", "var", "obs/_index", "obs/donor", "obs/age", "var/_index", "var/gene_symbols"):
        for key in ("encoding-type", "encoding-version", "_index"):
            if key in file[name].attrs:
                file[name].attrs[key] = np.bytes_(file[name].attrs[key])


# Sparse


def _wrapping(values: np.ndarray) -> np.ndarray:
    return np.r_[values[:-1].astype("u8"), np.uint64(2**64 - 1)]


BAD_INDPTR = "a.h5ad cannot be read: X/indptr "
values_of("X/indptr-short", "indptr lacks its end", lambda x: x[:-1], BAD_INDPTR, damaged=True)
values_of("X/indptr-falls", "indptr falls", lambda x: np.r_[x[:5], x[5] + 50, x[6:]], BAD_INDPTR, damaged=True)
values_of(
    "X/indptr-beyond", "indptr ends beyond the values", lambda x: np.r_[x[:-1], x[-1] + 9], BAD_INDPTR, damaged=True
)
values_of("X/indptr-inside", "indptr ends before the values do", lambda x: np.minimum(x, 99), BAD_INDPTR, damaged=True)
values_of("X/indptr-start", "indptr starts at 1", lambda x: np.maximum(x, 1), BAD_INDPTR, damaged=True)
values_of(
    "X/indptr-negative", "indptr has a negative value", lambda x: np.r_[x[:5], -9, x[6:]], BAD_INDPTR, damaged=True
)
values_of("X/indptr-float", "indptr is of floats, all whole", lambda x: x.astype(float))
values_of(
    "X/indptr-half", "indptr has a value of 0.5", lambda x: np.r_[0, 0.5, x[2:]], "X/indptr holds 0.5", damaged=True
)
values_of("X/indptr-wraps", "indptr has 2^64 - 1", _wrapping, "X/indptr holds 18446744073709551615", damaged=True)
values_of("X/indptr-2d", "indptr has two dimensions", lambda x: x[None], "X/indptr has 2 dimensions")
values_of("X/indptr-text", "indptr is text", lambda x: x.astype("S5"), "X/indptr is no array of numbers")
values_of("X/indptr-scalar", "indptr is one number", lambda x: 5, "X/indptr has 0 dimensions")
values_of("X/indptr-big_endian", "indptr is in the byte order of other machines", lambda x: x.astype(">i8"))
BAD_INDEX = "X/indices holds"
values_of("X/indices-negative", "an index is negative", lambda x: np.r_[-1, x[1:]], BAD_INDEX, damaged=True, late=True)
values_of("X/indices-beyond", "an index is one beyond", lambda x: np.r_[x[:-1], 20], BAD_INDEX, damaged=True, late=True)
values_of(
    "X/indices-wraps",
    "indices are 2^32 larger, which 32 bits cut to right ones",
    lambda x: x.astype(np.int64) + 2**32,
    BAD_INDEX,
    damaged=True,
    late=True,
)
values_of(
    "X/indices-unsigned",
    "an index is 2^64 - 1",
    lambda x: np.r_[x[:-1].astype("u8"), np.uint64(2**64 - 1)],
    BAD_INDEX,
    damaged=True,
    late=True,
)
values_of(
    "X/indices-half", "an index is 0.5", lambda x: np.r_[0.5, x[1:]], "X/indices holds 0.5", late=True, damaged=True
)
values_of("X/indices-nan", "an index is no number", lambda x: np.r_[np.nan, x[1:]], BAD_INDEX, late=True, damaged=True)
values_of("X/indices-float", "indices are floats, all whole", lambda x: x.astype(float))
values_of("X/indices-uint8", "indices are of 8 bits", lambda x: x.astype(np.uint8))
values_of("X/indices-uint64", "indices are unsigned, of 64 bits", lambda x: x.astype(np.uint64))
values_of("X/indices-big_endian", "indices are in the byte order of other machines", lambda x: x.astype(">i8"))
values_of("X/indices-short", "there are fewer indices than values", lambda x: x[:-9], "X/indices", damaged=True)
values_of("X/indices-text", "indices are text", lambda x: x.astype("S3"), "X/indices is no array of numbers")
values_of("X/indices-bool", "indices are booleans", lambda x: x > 0, "X/indices is no array of numbers")
values_of("X/indices-2d", "indices have two dimensions", lambda x: x[:, None], "X/indices has 2 dimensions")
values_of("X/data-long", "there are more values than indices", lambda x: np.r_[x, 1.0], "X/in", damaged=True)
values_of("X/data-text", "values are text", lambda x: x.astype("S5"), "X/data is no array of numbers, but of text")
values_of("X/data-complex", "values are complex", lambda x: x.astype(complex), "X/data is no array of numbers")
values_of("X/data-2d", "values have two dimensions", lambda x: x[:, None], "X/data has 2 dimensions")
values_of("X/data-float16", "values are of half precision", lambda x: x.astype("f2"))
values_of("X/data-long_double", "values are 80-bit numbers", lambda x: x.astype(np.longdouble))
values_of(
    "X/data-nan",
    "the last value is no number",
    lambda x: np.r_[x[:-1], np.nan],
    "X does not hold raw counts",
)


@odd("x_data_missing", "X has no data", "it has no X/data")
def _(file, truth):
    del file["X/data"]


@odd("x_indices_missing", "X has no indices", "it has no X/indices")
def _(file, truth):
    del file["X/indices"]


@odd("x_indices_group", "X/indices is a group", "X/indices is no array")
def _(file, truth):
    del file["X/indices"]
    file.create_group("X/indices")


def shape_is(name: str, about: str, shape: Any, expected: str, **more: Any) -> None:
    """A case in which X has another shape attribute."""

    @odd(f"shape_{name}", about, expected, **more)
    def _(file, truth):
        file["X"].attrs["shape"] = shape


UNEQUAL = "(cells x genes), but obs has 30 names and var 20"
shape_is("wide", "the shape has a gene too many", [N_OBS, N_VARS + 1], "X is 30 x 21 " + UNEQUAL)
shape_is("swapped", "the shape is swapped", [N_VARS, N_OBS], "X is 20 x 30 " + UNEQUAL)
shape_is("negative", "the shape is negative", [-N_OBS, N_VARS], "X is -30 x 20 " + UNEQUAL)
shape_is("huge", "the shape is huge", [2**62, 2**62], "X is 4611686018427387904 x 4611686018427387904 " + UNEQUAL)
shape_is("short", "the shape has one number", [N_OBS], "X has the shape [30]")
shape_is("scalar", "the shape is one number", N_OBS, "X has the shape 30")
shape_is("text", "the shape is text", "30x20", "X has the shape 30x20")
shape_is("float", "the shape has fractions", [30.5, 20.5], "X has the shape [30.5 20.5]")


@odd("shape_missing", "X has no shape", "X has no attribute shape")
def _(file, truth):
    del file["X"].attrs["shape"]


def csc(name: str, about: str, expected: str = "", change: Any = None, **more: Any) -> None:
    """A case of an X stored gene by gene."""

    @odd(f"csc_{name}", about, expected, **more)
    def _(file, truth):
        del file["X"]
        sparse(file, "X", sp.csc_matrix(truth.X.astype(np.float32)))
        if change:
            put(file, "X/indices", change(file["X/indices"][...].astype(np.int64)))


csc("right", "X is stored gene by gene")
csc("beyond", "a row is beyond the cells", BAD_INDEX, lambda x: np.r_[x[:-1], N_OBS], damaged=True, late=True)
csc("negative", "a row is negative", BAD_INDEX, lambda x: np.r_[-5, x[1:]], damaged=True, late=True)
csc("wraps", "rows are 2^32 larger", BAD_INDEX, lambda x: x + 2**32, damaged=True, late=True)
csc("far", "all rows are far beyond the cells", BAD_INDEX, lambda x: x + 2**30, damaged=True, late=True)


@odd("duplicates", "each value stands twice, in halves: they add up")
def _(file, truth):
    X = sp.csr_matrix(truth.X)
    truth.X = truth.X * 2
    put(file, "X/data", np.repeat(X.data, 2))
    put(file, "X/indices", np.repeat(X.indices, 2))
    put(file, "X/indptr", X.indptr * 2)


@odd("unsorted", "indices fall within each cell")
def _(file, truth):
    X = sp.csr_matrix(truth.X[:, ::-1])
    put(file, "X/data", X.data)
    put(file, "X/indices", N_VARS - 1 - X.indices)
    put(file, "X/indptr", X.indptr)


@odd("zeros_stored", "zeros are stored as values")
def _(file, truth):
    put(file, "X/data", truth.X.ravel())
    put(file, "X/indices", np.tile(np.arange(N_VARS), N_OBS))
    put(file, "X/indptr", np.arange(N_OBS + 1) * N_VARS)


# obs and var


@odd("obs_short", "a column of obs has fewer values than there are cells")
def _(file, truth):
    put(file, "obs/age", np.arange(N_OBS - 1))


@odd("obs_long", "a column of obs has more values than there are cells")
def _(file, truth):
    put(file, "obs/age", np.arange(N_OBS + 5))


@odd(
    "obs_index_short",
    "obs has fewer names than X cells",
    "X is 30 x 20 (cells x genes), but obs has 29 names and var 20",
)
def _(file, truth):
    put(file, "obs/_index", truth.barcodes[1:], dtype=TEXT)


def category(name: str, about: str, expected: str = "", codes: Any = None, categories: Any = ("a", "b"), **more: Any):
    """A case of a categorical column of obs."""

    @odd(f"category_{name}", about, expected, **more)
    def _(file, truth):
        group = file.create_group("obs/kind")
        group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        values = np.arange(N_OBS, dtype=np.int8) % 2 if codes is None else codes
        element(group, "codes", values, "array")
        if categories is not None:
            text = np.asarray(categories).dtype.kind == "U"
            values = np.array(categories, object if text else None)
            element(group, "categories", values, "string-array" if text else "array", dtype=TEXT if text else None)
        file["obs"].attrs["column-order"] = np.array(["donor", "age", "kind"], TEXT)
        if more.get("told"):
            truth.obs = {"kind": more["told"]}


category("right", "a column of categories")
category("beyond", "codes beyond the categories: the column is left out", codes=np.arange(N_OBS, dtype=np.int8))
category("negative", "codes below -1: the column is left out", codes=np.full(N_OBS, -7, np.int8))
category("missing", "a column without its categories is left out", categories=None)
category("float", "codes are floats: the column is left out", codes=np.arange(N_OBS) % 2 + 0.5)
category("numbers", "categories are numbers", categories=(1, 2))
category("bool", "categories are booleans", categories=(False, True))
category("twice", "a category stands twice: the column is left out", categories=("a", "a"))
category("short", "codes are fewer than the cells: the column is left out", codes=np.zeros(3, np.int8))


@odd("obs_2d", "a column of obs has two dimensions: it is left out")
def _(file, truth):
    put(file, "obs/age", np.zeros((N_OBS, 2)))


@odd("obs_scalar", "a column of obs is one number: it is left out")
def _(file, truth):
    put(file, "obs/age", 5)


@odd("obs_nested", "a column of obs is a group of others: it is left out")
def _(file, truth):
    del file["obs/age"]
    table(file["obs"], "age", truth.barcodes, x=np.arange(N_OBS))


@odd("obs_references", "a column of obs holds references to objects: it is left out")
def _(file, truth):
    put(file, "obs/age", np.full(N_OBS, file["X"].ref, h5py.ref_dtype))


@odd("obs_compound_column", "a column of obs holds pairs: it is left out")
def _(file, truth):
    put(file, "obs/age", np.zeros(N_OBS, [("a", int), ("b", float)]))


@odd("obs_ragged", "a column of obs holds lists: it is left out")
def _(file, truth):
    ragged = np.empty(N_OBS, object)
    ragged[:] = [np.arange(i % 4) for i in range(N_OBS)]
    put(file, "obs/age", ragged, dtype=h5py.vlen_dtype(np.int64))


@odd("obs_opaque", "a column of obs holds NumPy's dates: it is left out or kept")
def _(file, truth):
    dates = np.arange(N_OBS).astype("M8[s]")
    put(file, "obs/age", dates.astype(h5py.opaque_dtype(dates.dtype)))


@odd("obs_complex", "a column of obs is complex: it is left out")
def _(file, truth):
    put(file, "obs/age", np.zeros(N_OBS, complex))


@odd("obs_enum", "a column of obs is an enumeration")
def _(file, truth):
    put(file, "obs/age", np.arange(N_OBS) % 2, dtype=h5py.enum_dtype({"m": 0, "f": 1}, np.int8))


@odd("obs_nullable", "columns of obs have missing values in masks")
def _(file, truth):
    for name, values, kind in (
        ("n", np.arange(N_OBS), "nullable-integer"),
        ("b", np.arange(N_OBS) % 2 == 0, "nullable-boolean"),
    ):
        group = file.create_group(f"obs/{name}")
        group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0"})
        element(group, "values", values, "array")
        element(group, "mask", np.arange(N_OBS) == 3, "array")
    file["obs"].attrs["column-order"] = np.array(["donor", "n", "b"], TEXT)
    truth.obs = {"n": ["nan" if i == 3 else f"{i}.0" for i in range(N_OBS)]}


@odd("obs_nullable_text", "columns of obs are text with a mask, and categories of such text (pandas 3)")
def _(file, truth):
    def masked(name, values, mask):
        group = file.create_group(name)
        group.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        element(group, "values", np.array(values, object), "string-array", dtype=TEXT)
        element(group, "mask", np.array(mask), "array")

    masked("obs/text", [f"t{i}" for i in range(N_OBS)], np.arange(N_OBS) == 3)
    group = file.create_group("obs/types")
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    element(group, "codes", np.arange(N_OBS, dtype=np.int8) % 2, "array")
    masked("obs/types/categories", ["T", "B"], [False, False])
    file["obs"].attrs["column-order"] = np.array(["donor", "text", "types"], TEXT)
    truth.obs = {"text": ["nan" if i == 3 else f"t{i}" for i in range(N_OBS)], "types": ["T", "B"] * (N_OBS // 2)}


@odd("obs_mask_short", "the mask of a column is too short: the column is left out")
def _(file, truth):
    group = file.create_group("obs/n")
    group.attrs.update({"encoding-type": "nullable-integer", "encoding-version": "0.1.0"})
    element(group, "values", np.arange(N_OBS), "array")
    element(group, "mask", np.zeros(3, bool), "array")
    file["obs"].attrs["column-order"] = np.array(["donor", "n"], TEXT)


@odd("columns_twice", "the order of columns names one twice: it is kept once")
def _(file, truth):
    file["obs"].attrs["column-order"] = np.array(["donor", "age", "donor"], TEXT)
    truth.obs = {"donor": ["d1", "d2"] * 15}


@odd("columns_gone", "the order of columns names one that is not there: it is left out")
def _(file, truth):
    file["obs"].attrs["column-order"] = np.array(["donor", "gone", "age"], TEXT)


@odd("columns_index", "the order of columns names the index too")
def _(file, truth):
    file["obs"].attrs["column-order"] = np.array(["_index", "donor"], TEXT)


@odd("columns_path", "the order of columns names a path to X")
def _(file, truth):
    file["obs"].attrs["column-order"] = np.array(["donor", "../X/data", "/X/indptr", "."], TEXT)


@odd("columns_untold", "there is no order of columns")
def _(file, truth):
    del file["obs"].attrs["column-order"]


@odd("columns_numbers", "the order of columns holds numbers")
def _(file, truth):
    file["obs"].attrs["column-order"] = np.arange(3)


@odd("columns_scalar", "the order of columns is one name, no list")
def _(file, truth):
    file["obs"].attrs["column-order"] = "donor"


@odd("columns_empty", "obs has only names; the order of columns is empty, of floats")
def _(file, truth):
    del file["obs/donor"], file["obs/age"]
    file["obs"].attrs["column-order"] = np.array([], float)


@odd("index_untold", "obs does not say which column holds the names", "obs has no attribute _index")
def _(file, truth):
    del file["obs"].attrs["_index"]


@odd("index_gone", "obs names a column of names that is not there", "it has no obs/barcode")
def _(file, truth):
    file["obs"].attrs["_index"] = "barcode"


@odd("index_number", "obs has a number as the name of the column of names", "it has no obs/5")
def _(file, truth):
    file["obs"].attrs["_index"] = 5


@odd("index_path", "var says that the names are elsewhere in the file", "it has no var/../obs/_index")
def _(file, truth):
    file["var"].attrs["_index"] = "../obs/_index"


@odd("index_group", "the names of cells are a group", "obs/_index is no array")
def _(file, truth):
    del file["obs/_index"]
    file.create_group("obs/_index")


@odd("index_categorical", "the names of genes are categories")
def _(file, truth):
    del file["var/_index"], file["var/gene_symbols"]
    group = file.create_group("var/_index")
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    element(group, "codes", np.arange(N_VARS, dtype=np.int8)[::-1].copy(), "array")
    element(group, "categories", truth.symbols, "string-array", dtype=TEXT)
    file["var"].attrs["column-order"] = np.array([], TEXT)
    truth.symbols = truth.ids = truth.symbols[::-1]


@odd("index_2d", "the names of cells have two dimensions", "obs/_index has 2 dimensions")
def _(file, truth):
    put(file, "obs/_index", np.array([truth.barcodes] * 2).T, dtype=TEXT)


@odd("index_integers", "the names of cells are integers")
def _(file, truth):
    put(file, "obs/_index", np.arange(N_OBS)).attrs["encoding-type"] = "array"
    truth.barcodes = np.arange(N_OBS).astype(str)


@odd("index_twice", "two cells have the same name", "1 cells have the barcode of an earlier cell", late=True)
def _(file, truth):
    put(file, "obs/_index", np.r_[truth.barcodes[1:2], truth.barcodes[1:]], dtype=TEXT)


@odd("genes_twice", "two genes have the same symbol and no ids: they are numbered")
def _(file, truth):
    truth.symbols = truth.ids = np.r_[truth.ids[1:2], truth.ids[1:]]
    put(file, "var/_index", truth.ids, dtype=TEXT)
    del file["var/gene_symbols"]
    truth.ids = np.r_[truth.ids[:1], ["ENSG00001-1"], truth.ids[2:]]
    file["var"].attrs["column-order"] = np.array([], TEXT)


def names_are(name: str, about: str, value: Any, expected: str = "", read_as: Any = None, **more: Any) -> None:
    """A case in which the name of cell 2 is odd."""

    @odd(f"name_{name}", about, expected, **more)
    def _(file, truth):
        truth.barcodes[2] = value
        kind = h5py.string_dtype("utf-8") if not isinstance(value, bytes) else None
        names = (
            truth.barcodes if kind else np.array([x if isinstance(x, bytes) else x.encode() for x in truth.barcodes])
        )
        put(file, "obs/_index", names, dtype=kind)
        truth.barcodes[2] = value if read_as is None else read_as


names_are("newline", "a cell's name has a line break", "a\nb\tc")
names_are("long", "a cell's name has 200,000 characters", "x" * 200_000)
names_are("emoji", "a cell's name is Unicode", "细胞🧬")
names_are("empty", "a cell's name is empty", "")
names_are("slash", "a cell's name is a path", "../../x")
names_are("nul", "a cell's name has a NUL within", b"A\0B", "obs/_index: the name number 3 has a NUL", late=True)
names_are("latin1", "a cell's name is not UTF-8", b"caf\xe9", "obs/_index: the name number 3 is no UTF-8", late=True)


@odd("gene_latin1", "a gene's name is Latin-1", "var/gene_symbols: the name number 1 is no UTF-8", late=True)
def _(file, truth):
    put(file, "var/gene_symbols", np.array([b"\xb5", *[x.encode() for x in truth.symbols[1:]]], "S9"))


@odd("column_latin1", "a column of obs holds text that is not UTF-8: it is left out")
def _(file, truth):
    put(file, "obs/donor", np.array([b"caf\xe9"] * N_OBS))


@odd("column_nul", "a column of obs has a NUL in its values: it is left out")
def _(file, truth):
    put(file, "obs/donor", np.array([b"a\0b", b"c"] * (N_OBS // 2)))


@odd("column_slash", "a column of obs has a line break and dots in its name")
def _(file, truth):
    file["obs"].move("donor", "do\nnor ..")
    file["obs"].attrs["column-order"] = np.array(["do\nnor ..", "age"], TEXT)


@odd("gene_nameless", "a gene's name is empty", "1 genes have neither a symbol nor an id", late=True)
def _(file, truth):
    del file["var/gene_symbols"]
    put(file, "var/_index", np.r_[[""], truth.ids[1:]].astype(object), dtype=TEXT)
    file["var"].attrs["column-order"] = np.array([], TEXT)


@odd("gene_missing", "a gene's symbol is missing: its id stands for it")
def _(file, truth):
    truth.symbols[3] = ""
    put(file, "var/gene_symbols", truth.symbols, dtype=TEXT)
    truth.symbols[3] = truth.ids[3]


@odd(
    "symbols_short",
    "there are fewer symbols than genes",
    "var/gene_symbols cannot be read",
    late=True,
)
def _(file, truth):
    put(file, "var/gene_symbols", truth.symbols[:5], dtype=TEXT)


@odd("fixed_strings", "all text is of fixed length, without AnnData's attributes")
def _(file, truth):
    for name in ("obs/_index", "var/_index", "var/gene_symbols", "obs/donor"):
        values = file[name].asstr()[...].astype("S")
        del file[name]
        file[name] = values


@odd("zero_cells", "there are no cells", "there are no cells")
def _(file, truth):
    del file["X"], file["obs"]
    sparse(file, "X", sp.csr_matrix((0, N_VARS), dtype=np.float32))
    table(file, "obs", truth.barcodes[:0])


@odd("zero_genes", "there are no genes", "there are no genes")
def _(file, truth):
    del file["X"], file["var"]
    sparse(file, "X", sp.csr_matrix((N_OBS, 0), dtype=np.float32))
    table(file, "var", truth.ids[:0])


@odd("zero_genes_dense", "there are no genes, and X is dense", "there are no genes")
def _(file, truth):
    del file["var"]
    dense(file, np.zeros((N_OBS, 0)))
    table(file, "var", truth.ids[:0])


@odd("all_zero", "all counts are zero", "all counts in X are zero", late=True)
def _(file, truth):
    dense(file, truth.X * 0)


# raw and layers


def raw_of(file: h5py.File, truth: SimpleNamespace) -> None:
    """Put the counts into raw, and log-normalised values of ten genes into X."""
    file.create_group("raw")
    file.copy("X", "raw/X")
    table(file, "raw/var", truth.ids)
    symbols = truth.symbols[:10]
    del file["X"], file["var"]
    sparse(file, "X", sp.csr_matrix(np.log1p(truth.X[:, :10]).astype(np.float32)))
    table(file, "var", truth.ids[:10], gene_symbols=symbols)
    truth.symbols = np.r_[symbols, truth.ids[10:]]


@odd("raw", "raw has no symbols, and var has some: these are taken", options={"counts": "raw"})
def _(file, truth):
    raw_of(file, truth)


@odd("raw_no_var", "raw has no var", "it has no raw/var", options={"counts": "raw"})
def _(file, truth):
    raw_of(file, truth)
    del file["raw/var"]


@odd(
    "raw_short",
    "raw has other genes than its var",
    "raw is 30 x 20 (cells x genes), but obs has 30 names and raw/var 9",
    options={"counts": "raw"},
)
def _(file, truth):
    raw_of(file, truth)
    put(file, "raw/var/_index", truth.ids[:9], dtype=TEXT)


@odd("raw_array", "raw is an array", "has no counts raw; it has X", options={"counts": "raw"})
def _(file, truth):
    file["raw"] = truth.X


@odd("raw_old", "raw is laid out as before anndata 0.7", "before version 0.7", options={"counts": "raw"})
def _(file, truth):
    file["raw.X"], file["raw.var"] = truth.X, np.zeros(N_VARS, [("index", "S5")])


@odd("raw_missing", "there is no raw", "has no counts raw; it has X", options={"counts": "raw"})
def _(file, truth):
    pass


@odd("layer_missing", "there is no such layer", "has no counts layers/n; it has X", options={"counts": "layers/n"})
def _(file, truth):
    pass


@odd("layers_array", "layers is an array", "has no counts layers/n; it has X", options={"counts": "layers/n"})
def _(file, truth):
    file["layers"] = truth.X


@odd(
    "layer_other",
    "a layer has fewer genes",
    "layers/n is 30 x 3 (cells x genes), but obs has 30",
    options={"counts": "layers/n"},
)
def _(file, truth):
    element(file, "layers/n", truth.X[:, :3], "array")


@odd("layer_broken", "another layer than the one that is read is broken")
def _(file, truth):
    file.create_group("layers/bad").attrs["encoding-type"] = "csr_matrix"


@odd(
    "layer_path", "the config names a layer by a path out of layers", "has no counts", options={"counts": "layers/../X"}
)
def _(file, truth):
    element(file, "layers/n", truth.X, "array")


# Links


@odd("soft_loop", "X is a soft link to itself", "has no counts X; it has none")
def _(file, truth):
    del file["X"]
    file["X"] = h5py.SoftLink("/X")


@odd("soft_dangling", "X is a soft link to nothing", "has no counts X; it has none")
def _(file, truth):
    file["X"].move("/X", "/gone")
    file["X"] = h5py.SoftLink("/nothing")


@odd("soft_column", "a column of obs is a soft link to nothing: it is left out")
def _(file, truth):
    del file["obs/age"]
    file["obs/age"] = h5py.SoftLink("/nothing")


@odd("soft_raw", "X is a soft link to raw/X, which has the counts")
def _(file, truth):
    file.create_group("raw")
    file.move("X", "raw/X")
    table(file, "raw/var", truth.ids)
    file["X"] = h5py.SoftLink("/raw/X")


@odd("hard_cycle", "groups contain each other by hard links")
def _(file, truth):
    file["obs/again"] = file["obs"]
    file.create_group("layers")["loop"] = file["/"]
    file["layers/loops"] = file["layers"]


@odd("hard_deep", "groups are nested 3000 deep")
def _(file, truth):
    group = file.create_group("layers/deep")
    for _ in range(3000):
        group = group.create_group("d")


def beside(folder: Path, truth: SimpleNamespace, name: str = "b.h5ad") -> Path:
    """A right file beside the odd one."""
    return write(folder / name, truth)


def outside(name: str, about: str, expected: str = "", **more: Any) -> Callable[..., Any]:
    """A decorator of a function (file, truth, folder) whose folder has the file secret.h5ad above it."""

    def added(change: Callable[..., None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            inside = folder / "cohort"
            inside.mkdir()
            write(folder / "secret.h5ad", truth)
            path = write(inside / "a.h5ad", truth)
            with h5py.File(path, "a") as file:
                change(file, truth, inside)
            return path

        CASES.add(f"h5ad_{name}", about, expected, **more)(build)

    return added


@outside("link_outside", "X is a link to a file outside the folder", "X is not in this file but in ../secret.h5ad")
def _(file, truth, folder):
    del file["X"]
    file["X"] = h5py.ExternalLink("../secret.h5ad", "X")


@outside("link_inside", "X is a link to a file beside it")
def _(file, truth, folder):
    beside(folder, truth)
    del file["X"]
    file["X"] = h5py.ExternalLink("b.h5ad", "X")


@outside("link_missing", "X is a link to a file that is not there", "in gone.h5ad, which does not exist")
def _(file, truth, folder):
    del file["X"]
    file["X"] = h5py.ExternalLink("gone.h5ad", "X")


@outside("link_nowhere", "X is a link to nothing in a file beside it", "has no counts X; it has none")
def _(file, truth, folder):
    beside(folder, truth)
    del file["X"]
    file["X"] = h5py.ExternalLink("b.h5ad", "nothing")


@outside("link_chain", "X is a link to a file beside it, where it is one to outside", "../secret.h5ad")
def _(file, truth, folder):
    with h5py.File(folder / "b.h5", "w") as other:
        other["X"] = h5py.ExternalLink("../secret.h5ad", "X")
    del file["X"]
    file["X"] = h5py.ExternalLink("b.h5", "X")


@outside(
    "link_chain_group",
    "layers are in a file beside it, with one from outside",
    "../secret.h5ad",
    options={"counts": "layers/n"},
)
def _(file, truth, folder):
    with h5py.File(folder / "b.h5", "w") as other:
        other["l/n"] = h5py.ExternalLink("../secret.h5ad", "X")
    file["layers"] = h5py.ExternalLink("b.h5", "l")


@outside("link_soft", "X is a soft link to one in uns that leads outside", "../secret.h5ad")
def _(file, truth, folder):
    file["uns/x"] = h5py.ExternalLink("../secret.h5ad", "X")
    del file["X"]
    file["X"] = h5py.SoftLink("/uns/x")


@outside("link_soft_group", "X is a soft link through one in uns that leads outside", "../secret.h5ad")
def _(file, truth, folder):
    file["uns/x"] = h5py.ExternalLink("../secret.h5ad", "/")
    del file["X"]
    file["X"] = h5py.SoftLink("uns/./x/X")


@outside("link_uns", "uns has a link to outside, which nobody reads")
def _(file, truth, folder):
    file["uns/x"] = h5py.ExternalLink("../secret.h5ad", "X")


@outside("link_symlink", "X is a link to a symbolic link that leads outside", "outside its folder")
def _(file, truth, folder):
    (folder / "b.h5ad").symlink_to(folder.parent / "secret.h5ad")
    del file["X"]
    file["X"] = h5py.ExternalLink("b.h5ad", "X")


@outside("link_fifo", "X is a link to a pipe, which would wait for ever", "pipe, which is no file")
def _(file, truth, folder):
    os.mkfifo(folder / "pipe")
    del file["X"]
    file["X"] = h5py.ExternalLink("pipe", "X")


@outside("link_column", "a column is a link to a file outside", "obs/stolen is not in this file but in ../secret.h5ad")
def _(file, truth, folder):
    file["obs/stolen"] = h5py.ExternalLink("../secret.h5ad", "obs/donor")


@outside("link_categories", "the categories of a column are in a file outside", "../secret.h5ad")
def _(file, truth, folder):
    group = file.create_group("obs/kind")
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    element(group, "codes", np.zeros(N_OBS, np.int8), "array")
    group["categories"] = h5py.ExternalLink("../secret.h5ad", "obs/donor")


@outside("storage", "a column is the bytes of another file", "external storage")
def _(file, truth, folder):
    file["obs"].create_dataset("stolen", (N_OBS,), np.int64, external=[("../secret.h5ad", 0, 8 * N_OBS)])


@outside("storage_x", "X is the bytes of another file", "external storage")
def _(file, truth, folder):
    del file["X"]
    made = file.create_dataset("X", truth.X.shape, np.uint8, external=[("/etc/passwd", 0, truth.X.size)])
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def virtual(file: h5py.File, source: str, where: str = "x") -> None:
    """Make X a virtual dataset of `source`."""
    layout = h5py.VirtualLayout((N_OBS, N_VARS), np.int64)
    layout[:] = h5py.VirtualSource(source, where, (N_OBS, N_VARS))
    del file["X"]
    made = file.create_virtual_dataset("X", layout, fillvalue=1)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@outside("virtual_outside", "X is a view of a file outside", "X is not in this file but in ../b.h5, outside its folder")
def _(file, truth, folder):
    with h5py.File(folder.parent / "b.h5", "w") as other:
        other["x"] = truth.X
    virtual(file, "../b.h5")


@outside("virtual_missing", "X is a view of a file that is not there", "in gone.h5, which does not exist")
def _(file, truth, folder):
    virtual(file, "gone.h5")


@outside("virtual_nothing", "X is a view of an array that is not there", "b.h5, where x does not exist")
def _(file, truth, folder):
    with h5py.File(folder / "b.h5", "w") as other:
        other["y"] = truth.X
    virtual(file, "b.h5")


@outside("virtual_inside", "X is a view of a file beside it")
def _(file, truth, folder):
    with h5py.File(folder / "b.h5", "w") as other:
        other["x"] = truth.X
    virtual(file, "b.h5")


@outside("virtual_chain", "X is a view of a file beside it, of a view of one outside", "../c.h5")
def _(file, truth, folder):
    with h5py.File(folder.parent / "c.h5", "w") as other:
        other["x"] = truth.X
    with h5py.File(folder / "b.h5", "w") as other:
        layout = h5py.VirtualLayout((N_OBS, N_VARS), np.int64)
        layout[:] = h5py.VirtualSource("../c.h5", "x", (N_OBS, N_VARS))
        other.create_virtual_dataset("x", layout)
    virtual(file, "b.h5")


@outside("virtual_self", "X is a view of another array of the file")
def _(file, truth, folder):
    file["x"] = truth.X
    virtual(file, ".")


@outside("virtual_partial", "X is a view that leaves out a part: HDF5 fills it with ones, as the file says")
def _(file, truth, folder):
    truth.X[10:] = 1
    with h5py.File(folder / "b.h5", "w") as other:
        other["x"] = truth.X
    layout = h5py.VirtualLayout((N_OBS, N_VARS), np.int64)
    layout[:10] = h5py.VirtualSource("b.h5", "x", (N_OBS, N_VARS))[:10]
    del file["X"]
    made = file.create_virtual_dataset("X", layout, fillvalue=1)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


# Files


def file_is(name: str, about: str, expected: str = "", **more: Any) -> Callable[..., Any]:
    """A decorator of a function (path of a right file) that spoils the file."""

    def added(change: Callable[[Path], Path | None]) -> None:
        def build(folder: Path, truth: SimpleNamespace) -> Path:
            path = write(folder / "a.h5ad", truth)
            return change(path) or path

        CASES.add(f"h5ad_{name}", about, expected, **more)(build)

    return added


@file_is("symlink", "the file is a symbolic link to one elsewhere")
def _(path):
    there = path.with_name("elsewhere.bin")
    path.rename(there)
    path.symlink_to(there)


@file_is("symlink_dangling", "the file is a symbolic link to nothing", "a.h5ad does not exist")
def _(path):
    path.unlink()
    path.symlink_to("gone")


@file_is("symlink_loop", "the file is a symbolic link to itself", "a.h5ad")
def _(path):
    path.unlink()
    path.symlink_to(path)


@file_is("folder", "the file is an empty folder", "a.h5ad is a folder")
def _(path):
    path.unlink()
    path.mkdir()


@file_is("fifo", "the file is a pipe, which would wait for ever", "a.h5ad is no file")
def _(path):
    path.unlink()
    os.mkfifo(path)


@file_is("device", "the file is a link to a device", "a.h5ad is no file")
def _(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@file_is("empty", "the file is empty", "a.h5ad is empty", damaged=True)
def _(path):
    path.write_bytes(b"")


@file_is("html", "the file is a web page", "a.h5ad is no HDF5 file: it begins with '<!DOCTYPE html>")
def _(path):
    path.write_text("<!DOCTYPE html><html>404: Not Found</html>")


@file_is("gzipped", "the file is gzipped", "it is gzipped. Unpack it")
def _(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


@file_is("zip", "the file is a zip archive", "it is a zip archive")
def _(path):
    path.write_bytes(b"PK\x03\x04" + bytes(100))


@file_is("lfs", "the file is a pointer of Git LFS", "a.h5ad is no HDF5 file: it begins with 'version https://git")
def _(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")


@file_is("noise", "the file is random bytes", "a.h5ad is no HDF5 file")
def _(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


@file_is("signature", "the file has HDF5's signature, and then nothing", "a.h5ad cannot be read", damaged=True)
def _(path):
    path.write_bytes(path.read_bytes()[:8] + bytes(500))


@file_is("truncated", "the second half of the file is missing", "a.h5ad cannot be read", damaged=True)
def _(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@file_is("zeroed", "the second half of the file is zeros, as after a crash", "it has no obs and var")
def _(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


@file_is("head_zeroed", "the first 4 kB of the file are zeros", "a.h5ad is no HDF5 file")
def _(path):
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])


@file_is("appended", "bytes are appended to the file")
def _(path):
    path.write_bytes(path.read_bytes() + b"x" * 999)


@file_is("not_readable", "the file is in the old format of HDF4", "a.h5ad is no HDF5 file")
def _(path):
    path.write_bytes(b"\x0e\x03\x13\x01" + bytes(1000))


@CASES.add("h5ad_user_block", "the file has a block of the user before its HDF5")
def _(folder, truth):
    return write(folder / "a.h5ad", truth, userblock_size=512)


@CASES.add("h5ad_latest", "the file is in HDF5's latest format")
def _(folder, truth):
    return write(folder / "a.h5ad", truth, libver="latest")


@CASES.add("h5ad_upper", "the suffix is upper case")
def _(folder, truth):
    return write(folder / "A.H5AD", truth)


@CASES.add("h5ad_writing", "a writer has not closed the file", "another process writes it, or was killed")
def _(folder, truth):
    path = write(folder / "a.h5ad", truth, libver="latest")
    raw = bytearray(path.read_bytes())
    raw[11] |= 1  # the flag of files that are open for writing, in the superblock of version 3
    raw[44:48] = struct.pack("<I", _lookup3(bytes(raw[:44])))
    path.write_bytes(raw)
    return path


def _lookup3(data: bytes) -> int:
    """HDF5's checksum of metadata, Jenkins' lookup3."""
    mask = 0xFFFFFFFF

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    while len(data) > 12:
        x, y, z = struct.unpack("<III", data[:12])
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for k in (4, 6, 8, 16, 19, 4):
            a = (a - c) & mask ^ rotated(c, k)
            c = (c + b) & mask
            a, b, c = b, c, a
        data = data[12:]
    x, y, z = struct.unpack("<III", data.ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - rotated(b, 14)) & mask
    a = ((a ^ c) - rotated(c, 11)) & mask
    b = ((b ^ a) - rotated(a, 25)) & mask
    c = ((c ^ b) - rotated(b, 16)) & mask
    a = ((a ^ c) - rotated(c, 4)) & mask
    b = ((b ^ a) - rotated(a, 14)) & mask
    return ((c ^ b) - rotated(b, 24)) & mask


def chunk_damaged(name: str, about: str, how: dict[str, Any], late: bool = True) -> None:
    """A case of one flipped byte in the middle of an array's only chunk."""

    @file_is(name.replace("/", "_").replace("-", "_"), about, "a.h5ad cannot be read", damaged=True, late=late)
    def _(path):
        where = name.split("-")[0]
        with h5py.File(path, "a") as file:
            values = (
                file[where].asstr()[...].astype("S") if h5py.check_string_dtype(file[where].dtype) else file[where][...]
            )
            made = put(file, where, values, chunks=values.shape, **how)
            at = made.id.get_chunk_info(0)
        raw = bytearray(path.read_bytes())
        raw[at.byte_offset + at.size // 2] ^= 0x10
        path.write_bytes(raw)


chunk_damaged("X/data-flipped", "a byte of a compressed chunk of X is flipped", {"compression": "gzip"}, late=False)
chunk_damaged(
    "X/indices-flipped",
    "a byte of a compressed and shuffled chunk is flipped",
    {"compression": "gzip", "shuffle": True},
)
chunk_damaged("X/indptr-flipped", "a byte of a compressed indptr is flipped", {"compression": "gzip"}, late=False)
chunk_damaged("obs/_index-flipped", "a byte of the compressed names is flipped", {"compression": "gzip"})
chunk_damaged("obs/age-flipped", "a byte of a compressed column is flipped", {"compression": "gzip"})
chunk_damaged("X/data-checksum", "a chunk does not have the checksum that it says", {"fletcher32": True}, late=False)


def bomb(size: int, twice: bool = False) -> bytes:
    """`size` zeros, deflated once or twice; pieces of the stream repeat."""
    deflater, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 24)
    piece = deflater.compress(block) + deflater.flush(zlib.Z_FULL_FLUSH)
    end = struct.pack(">I", (size % 65521) << 16 | 1)
    small = b"\x78\x9c" + piece * (size >> 24) + deflater.flush() + end
    return zlib.compress(small, 9) if twice else small


def bombed(where: str, filters: int, late: bool, expected: str) -> None:
    """A case of a chunk that inflates to 800 MB."""

    @odd(
        f"bomb_{where.replace('/', '_')}_{filters}",
        f"a chunk of {where}, deflated {'twice' * (filters > 1)}, inflates to 800 MB",
        expected,
        late=late,
        damaged=filters == 1,
    )
    def _(file, truth):
        values = file[where][...]
        attrs = dict(file[where].attrs)
        del file[where]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(values.shape)
        for _ in range(filters):
            created.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
        group, name = where.split("/")
        kind = h5py.h5t.py_create(values.dtype)
        made = h5py.h5d.create(file[group].id, name.encode(), kind, h5py.h5s.create_simple(values.shape), created)
        made.write_direct_chunk((0,), bomb(BOMB, filters > 1), 0)
        file[where].attrs.update(attrs)


bombed("X/data", 1, False, "a.h5ad cannot be read")
bombed("X/indptr", 1, False, "a.h5ad cannot be read")
bombed("obs/age", 1, True, "a.h5ad cannot be read")
bombed("X/data", 2, False, "X/data is compressed twice")
bombed("obs/age", 2, False, "")


@odd("huge_obs", "obs says that it has 3 billion rows, and holds no data", "says that it holds", damaged=False)
def _(file, truth):
    for name in ("_index", "donor", "age"):
        attrs = dict(file[f"obs/{name}"].attrs)
        del file[f"obs/{name}"]
        made = file["obs"].create_dataset(name, (3_000_000_000,), "S9" if name == "_index" else "i8", chunks=(1 << 16,))
        made.attrs.update(attrs)
    file["X"].attrs["shape"] = [3_000_000_000, N_VARS]


@odd("huge_names", "names are of a billion characters each, of which none is written", "says that it holds")
def _(file, truth):
    attrs = dict(file["obs/_index"].attrs)
    del file["obs/_index"]
    file["obs"].create_dataset("_index", (N_OBS,), "S1000000000").attrs.update(attrs)


@odd("huge_indptr", "indptr says that it has a billion values, and holds none", "says that it holds")
def _(file, truth):
    del file["X/indptr"]
    file["X"].create_dataset("indptr", (1_000_000_001,), "i8", chunks=(1 << 16,))


@odd("huge_column", "a column of obs says that it has a billion values: it is left out")
def _(file, truth):
    attrs = dict(file["obs/age"].attrs)
    del file["obs/age"]
    file["obs"].create_dataset("age", (1_000_000_000,), "i8", chunks=(1 << 16,)).attrs.update(attrs)


@odd("huge_categories", "a column says that it has a billion categories: it is left out")
def _(file, truth):
    group = file.create_group("obs/kind")
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    element(group, "codes", np.zeros(N_OBS, np.int8), "array")
    group.create_dataset("categories", (1_000_000_000,), "i8", chunks=(1 << 16,))
    file["obs"].attrs["column-order"] = np.array(["donor", "kind"], TEXT)


@odd("huge_data", "X says that it has a billion values, and holds none", "X", damaged=True)
def _(file, truth):
    for name, kind in (("data", "f4"), ("indices", "i4")):
        del file[f"X/{name}"]
        file["X"].create_dataset(name, (1_000_000_000,), kind, chunks=(1 << 16,))
    file["X/indptr"][-1] = 1_000_000_000


@odd("huge_dense", "X is of a million cells and genes, and holds no data", "says that it holds")
def _(file, truth):
    n = 1_000_000
    del file["X"], file["obs"], file["var"]
    made = file.create_dataset("X", (n, n), "f4", chunks=(1000, 1000))
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for name in ("obs", "var"):
        group = file.create_group(name)
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        group.attrs["column-order"] = np.array([], TEXT)
        names = np.char.add(b"x", np.arange(n).astype("S8"))
        group.create_dataset("_index", data=names, compression="gzip")


@odd("fill_values", "a part of X was never written: HDF5 fills it with zeros")
def _(file, truth):
    truth.X[10:] = 0
    del file["X"]
    made = file.create_dataset("X", truth.X.shape, "i4", chunks=(10, 20))
    made[:10] = truth.X[:10]
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@odd("fill_ones", "a part of X was never written: HDF5 fills it with ones, as the file says")
def _(file, truth):
    truth.X[10:] = 1
    del file["X"]
    made = file.create_dataset("X", truth.X.shape, "i4", chunks=(10, 20), fillvalue=1)
    made[:10] = truth.X[:10]
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@odd("fill_indices", "the values of a sparse X were never written", "X/data", damaged=True)
def _(file, truth):
    n = len(file["X/data"])
    del file["X/data"]
    file["X"].create_dataset("data", (n,), "f4", chunks=(64,), fillvalue=1)


@odd("fill_names", "the names of cells were never written", "obs/_index lacks", damaged=True)
def _(file, truth):
    del file["obs/_index"]
    element(file["obs"], "_index", None, "string-array", shape=(N_OBS,), dtype=TEXT)


def filtered(code: int, name: str) -> None:
    """A case of a filter of HDF5 that is not there."""

    @odd(
        f"filter_{name}", f"X is compressed with {name}, which HDF5 has not", "compressed in a way that needs a plugin"
    )
    def _(file, truth):
        values = file["X/data"][...]
        del file["X/data"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(values.shape)
        created.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, space, created)
        made.write_direct_chunk((0,), b"\0" * 99, 0)


filtered(32001, "blosc")
filtered(32015, "zstd")


@odd("lzf_x", "X is compressed with LZF, and shuffled")
def _(file, truth):
    put(file, "X/data", file["X/data"][...], compression="lzf", shuffle=True, chunks=(64,))


@odd("gzip_mixed", "a chunk of X is stored without its filter")
def _(file, truth):
    values = file["X/data"][...]
    made = put(file, "X/data", values, compression="gzip", shuffle=True, chunks=values.shape)
    made.id.write_direct_chunk((0,), values.tobytes(), 3)


@odd("chunk_short", "a chunk of X inflates to fewer bytes than it should", "a.h5ad", damaged=True)
def _(file, truth):
    values = file["X/data"][...]
    made = put(file, "X/data", values, compression="gzip", chunks=values.shape)
    made.id.write_direct_chunk((0,), zlib.compress(values[:-9].tobytes()), 0)


@odd("column_short_chunk", "a chunk of a column is shorter than it should be", "a.h5ad", damaged=True, late=True)
def _(file, truth):
    values = file["obs/age"][...]
    made = put(file, "obs/age", values, compression="gzip", chunks=values.shape)
    made.id.write_direct_chunk((0,), zlib.compress(values[:-9].tobytes()), 0)
