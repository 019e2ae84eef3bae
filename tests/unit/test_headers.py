"""The headers of the samples' files show all problems, which one message lists; files without problems are cached."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.inputs import config as settings
from lib.inputs import sheet as sheets
from lib.inputs import sizes
from lib.inputs.formats import version_of_file
from lib.inputs.formats.base import Question
from lib.run.errors import UserError

N_OBS, N_VARS = 20, 12


@pytest.fixture
def adata():
    X = sp.csr_matrix(np.random.default_rng(3).poisson(1, (N_OBS, N_VARS)).astype(np.float32))
    obs = pd.DataFrame({"donor": ["d1", "d2"] * 10, "age": np.linspace(20, 60, N_OBS)})
    obs.index = [f"C{i}" for i in range(N_OBS)]
    adata = ad.AnnData(X, obs, pd.DataFrame(index=[f"G{i}" for i in range(N_VARS)]))
    adata.strings_to_categoricals()
    return adata


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The problems of a sheet's samples: a dict of lists of sentences."""
    monkeypatch.chdir(tmp_path)

    def ask(rows, **config):
        lines = pd.DataFrame([{"sample": name, **line} for name, line in rows.items()])
        lines.to_csv("samples.tsv", sep="\t", index=False)
        whole = settings.complete(config)
        sheet = sheets.read_sheet("samples.tsv", whole)
        _, found = sizes.read_headers(sizes.questions(sheet, whole), tmp_path / "sizes.json")
        for name, texts in sizes.column_problems(sheet, whole).items():
            found[name] = found.get(name, []) + texts
        return found

    return ask


def one(found):
    """The only problem of the only sample that has one."""
    [[text]] = found.values()
    return text


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_columns_that_the_config_names(adata, problems, form):
    adata.obs["empty"], adata.obs["kept"] = np.nan, 1
    adata.obs["donor_2"] = adata.obs["donor"].where(np.arange(N_OBS) != 3)
    write = adata.write_h5ad if form == "h5ad" else adata.write_zarr
    write(f"a.{form}")
    sheet = {"A": {"path": f"a.{form}"}}
    assert problems(sheet, batch_key="donor", label_key="kept_file", regress_out={"keys": ["age"]}) == {}
    text = one(problems(sheet, label_key="CellType"))
    assert text.startswith(
        f"label_key: neither a.{form} nor the sheet has a column CellType; there are sample, donor, age"
    )
    assert one(problems(sheet, harmony={"keys": ["site"]})).startswith("harmony: keys: neither")
    assert one(problems(sheet, density={"groupby": "site"})).startswith("density: groupby: neither")
    assert one(problems(sheet, markers={"groupings": ["site"]})).startswith("markers: groupings: neither")
    assert "column donor of a" in one(problems(sheet, regress_out={"keys": ["donor"]}))
    assert "is text, not numeric" in one(problems(sheet, regress_out={"keys": ["donor"]}))
    if form == "h5ad":
        assert "has no value: each" in one(problems(sheet, regress_out={"keys": ["empty"]}))
        text = one(problems(sheet, batch_key="donor_2"))
        assert "batch_key: the column donor_2 of a.h5ad is missing for 1 of 20 cells. Fill it" in text


def test_columns_of_the_sheet_that_the_config_names(adata, problems):
    adata.write_h5ad("a.h5ad")
    adata.write_h5ad("b.h5ad")
    sheet = {"A": {"path": "a.h5ad", "bmi": "20.5", "sex": "m"}, "B": {"path": "b.h5ad", "bmi": "", "sex": ""}}
    both = sheet | {"B": {"path": "b.h5ad", "bmi": "31", "sex": "f"}}
    assert problems(both, batch_key="sex", regress_out={"keys": ["bmi"]}) == {}
    same = {"A": sheet["A"], "B": sheet["A"] | {"path": "b.h5ad"}}
    assert (
        "bmi has the same value for all samples: nothing to regress out"
        in problems(same, regress_out={"keys": ["bmi"]})["B"][0]
    )
    assert problems(sheet, label_key="sex") == {}
    assert problems(sheet, regress_out={"keys": ["bmi"]}) == {
        "B": ["regress_out: keys: the sheet's column bmi is blank: fill it"]
    }
    assert problems(sheet, batch_key="sex") == {"B": ["batch_key: the sheet's column sex is blank: fill it"]}
    assert "sheet's column sex is text, not numeric" in problems(sheet, regress_out={"keys": ["sex"]})["A"][0]


def test_values_that_cannot_be_regressed_out_or_be_groups(adata, problems):
    adata.obs["gap"] = np.where(np.arange(N_OBS) == 3, np.nan, np.arange(N_OBS))
    adata.obs["infinite"] = np.where(np.arange(N_OBS) < 2, np.inf, np.arange(N_OBS))
    adata.obs["constant"] = 3
    adata.write_h5ad("a.h5ad")
    sheet = {"A": {"path": "a.h5ad"}}
    for name, text in (
        ("gap", "is missing or infinite for 1 of 20 cells. Fill it"),
        ("infinite", "is missing or infinite for 2 of 20 cells. Fill it"),
        ("constant", "has the value 3 in all cells: there is nothing to regress out"),
    ):
        assert text in one(problems(sheet, regress_out={"keys": [name]}))
        assert problems(sheet, label_key=name) == {}
    assert problems(sheet | {"B": sheet["A"]}, regress_out={"keys": ["constant"]}) == {}
    many = ad.concat([adata] * 6, index_unique="-")
    many.obs["score"] = np.linspace(0, 1, many.n_obs)
    many.obs["number"] = np.arange(many.n_obs) + 0.0
    many.write_h5ad("many.h5ad")
    for config in ({"label_key": "score"}, {"markers": {"groupings": ["score"]}}, {"density": {"groupby": "score"}}):
        text = one(problems({"A": {"path": "many.h5ad"}}, **config))
        assert "score of many.h5ad has 120 different values, not all of them whole: it is continuous" in text
    assert problems({"A": {"path": "many.h5ad"}}, label_key="number", regress_out={"keys": ["score"]}) == {}


def test_counts_and_layouts(adata, problems):
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    adata.write_h5ad("a.h5ad")
    adata.write_zarr("a.zarr")
    text = one(problems({"A": {"path": "a.h5ad"}}))
    assert "a.h5ad: X does not hold raw counts: its first values are not whole numbers. The file also has " in text
    assert "layers/counts (whole numbers): name the one" in text
    assert problems({"A": {"path": "a.h5ad", "counts": "layers/counts"}}) == {}
    for path in ("a.h5ad", "a.zarr"):
        text = one(problems({"A": {"path": path}}, ingest={"counts": "raw"}))
        assert text == f"{path} has no counts raw; it has X, layers/counts. Set the config key `ingest: counts`."
    adata[:0].copy().write_h5ad("empty.h5ad")
    assert "there are no cells" in one(problems({"A": {"path": "empty.h5ad", "counts": "layers/counts"}}))
    with h5py.File("a.h5ad", "a") as file:
        del file["obs"]
        file["obs"] = np.zeros(N_OBS, [("index", "S5")])
    assert "by anndata before version 0.7" in one(problems({"A": {"path": "a.h5ad"}}))


def test_files_that_cannot_be_read(adata, problems, tmp_path):
    adata.write_h5ad("a.h5ad")
    Path("cut.h5ad").write_bytes(Path("a.h5ad").read_bytes()[:3000])
    Path("a.rds").touch()
    Path("empty").mkdir()
    with h5py.File("short.h5ad", "w") as file, h5py.File("a.h5ad") as whole:
        for name in ("X", "var", "obs"):
            whole.copy(name, file)
        file["X"].attrs["shape"] = [N_OBS, N_VARS + 1]
        del file["obs"].attrs["_index"]
    found = problems({n: {"path": n} for n in ("cut.h5ad", "a.rds", "empty", "short.h5ad")})
    assert "truncated or damaged" in found["cut.h5ad"][0]
    assert "no format known here" in found["a.rds"][0]
    assert "needs one file matrix.mtx" in found["empty"][0]
    assert "is not laid out as its format is: " in found["short.h5ad"][0]
    assert json.loads((tmp_path / "sizes.json").read_text()) == {} if (tmp_path / "sizes.json").exists() else True
    with pytest.raises(UserError) as error:
        sizes.refuse_problems(found | {f"s{i}": ["the same"] for i in range(9)})
    assert str(error.value).count("\n  - ") == 5
    assert "  - samples s0, s1, s2, s3, s4 and 4 more: the same" in str(error.value)


def test_an_error_of_any_kind_about_one_file_hides_no_problem_of_another(adata, problems, monkeypatch):
    adata.write_h5ad("a.h5ad")
    Path("b.h5ad").write_text("no HDF5")
    whole = sizes.header_of

    def failing(question, tell):
        if question.path == "a.h5ad":
            raise AssertionError("odd")
        return whole(question, tell)

    monkeypatch.setattr(sizes, "header_of", failing)
    found = problems({"A": {"path": "a.h5ad"}, "B": {"path": "b.h5ad"}})
    assert "a.h5ad is not laid out as its format is (AssertionError: odd)" in found["A"][0]
    assert "b.h5ad is no HDF5 file" in found["B"][0]


def test_what_the_reader_would_refuse_is_told(adata, problems):
    """Names and arrays that do not fit together are found in the header."""
    for name, change in {"X/indices": None, "X/indptr": lambda x: x[::-1], "obs/_index": lambda x: x[1:]}.items():
        adata.write_h5ad("a.h5ad")
        with h5py.File("a.h5ad", "a") as file:
            element = f"{name}/values" if isinstance(file[name], h5py.Group) else name  # anndata 0.13
            values = file[element][...]
            del file[element]
            if change:
                file[element] = change(values)
        expected = {
            "X/indices": "is not laid out as its format is: .*indices",
            "X/indptr": "indptr does not fit the matrix",
            "obs/_index": r"X is 20 x 12 \(cells x genes\), but obs has 19 names and var 12",
        }[name]
        assert re.search(expected, one(problems({"A": {"path": "a.h5ad"}})))
    with h5py.File("a.loom", "w") as file:
        file["matrix"], file["col_attrs/CellID"], file["row_attrs/Chromosome"] = (
            np.ones((3, 2)),
            [b"a", b"b"],
            [1, 2, 3],
        )
    assert "a.loom: /row_attrs has none of Gene, var_names" in one(problems({"A": {"path": "a.loom"}}))
    with h5py.File("a.h5", "w") as file:
        for name, values in {"indptr": [0, 1], "indices": [0], "data": [1], "barcodes": [b"a"]}.items():
            file[f"matrix/{name}"] = values
    assert (
        one(problems({"A": {"path": "a.h5"}})) == "a.h5 is not laid out as its format is: it has no matrix/features/id."
    )


def folder_of(path, n_barcodes=2, header="%%MatrixMarket matrix coordinate integer general", value="1 1 1"):
    path.mkdir(parents=True)
    (path / "matrix.mtx").write_text(f"{header}\n3 2 1\n{value}\n")
    (path / "features.tsv").write_text("E1\tA\nE2\tB\nE3\tC\n")
    (path / "barcodes.tsv").write_text("".join(f"C{i}\n" for i in range(n_barcodes)))


def test_10x_folders_and_text(problems, tmp_path):
    folder_of(tmp_path / "good")
    folder_of(tmp_path / "long", 3)
    folder_of(tmp_path / "velocyto", value="1 1 1 0 2")
    for genome in ("hg19", "mm10"):
        folder_of(tmp_path / "two" / genome)
    (tmp_path / "t.csv").write_text(",AAACCCTG-1,AAACCCTC-1\nACTB,1,2\nGAPDH,3,4\n")
    found = problems({n: {"path": n} for n in ("good", "long", "velocyto", "two", "t.csv")})
    assert set(found) == {"long", "velocyto", "two", "t.csv"}
    assert "3 genes and 3 barcodes beside it. Does a file of names begin with" in found["long"][0]
    assert "has 5 fields, '1 1 1 0 2'" in found["velocyto"][0]
    assert "more than one genome; it has hg19, mm10" in found["two"][0]
    assert "look like genes" in found["t.csv"][0]
    assert problems({"two": {"path": "two"}}, ingest={"genome": "mm10"}) == {}
    assert problems({"t": {"path": "t.csv", "orientation": "genes_by_cells"}}) == {}
    text = one(problems({"good": {"path": "good"}}, label_key="CellType"))
    assert text.startswith("label_key: neither good nor the sheet has a column CellType; there are sample. Correct")


def test_sizes_of_genes_by_cells(tmp_path):
    X = np.random.default_rng(0).poisson(0.5, (40, 30))
    pd.DataFrame(X.T, [f"G{i}" for i in range(30)], [f"CELL{i}" for i in range(40)]).to_csv(tmp_path / "a.csv")
    found = sizes.sizes_of(Question(str(tmp_path / "a.csv"), "X", None, "sample", 0, "genes_by_cells"))
    assert (found.n_obs, found.turned) == (40, True)
    assert found.n_vars == pytest.approx(30, rel=0.1)
    assert found.nnz == pytest.approx((X > 0).sum(), rel=0.15)


def test_jobs_of_a_cluster_open_no_file(adata, problems, monkeypatch):
    adata.write_h5ad("a.h5ad")
    adata.write_h5ad("b.h5ad")
    sheet = {"A": {"path": "a.h5ad"}, "B": {"path": "b.h5ad"}}
    assert problems(sheet, batch_key="donor") == {}
    monkeypatch.setattr(sizes, "header_of", lambda *_: pytest.fail("a file was opened"))
    assert problems(sheet, batch_key="donor") == {}
    with pytest.raises(pytest.fail.Exception):
        problems(sheet, batch_key="age")


def test_versions_tell_what_changed_unseen(adata, tmp_path):
    """Older times, equal sizes, files in folders: every file that is read counts."""
    folder_of(tmp_path / "tenx")
    adata.write_zarr(tmp_path / "a.zarr")
    adata.write_h5ad(tmp_path / "a.h5ad")
    changes = {
        "a.h5ad": lambda path: os.utime(path, ns=(1, 1)),
        "tenx": lambda path: (path / "matrix.mtx").write_text("x"),
        "a.zarr": lambda path: shutil.rmtree(path / "var"),
    }
    for name, change in changes.items():
        before = version_of_file(tmp_path / name)
        assert before == version_of_file(tmp_path / name)
        assert json.loads(json.dumps(before)) == before
        change(tmp_path / name)
        assert version_of_file(tmp_path / name) != before, name
    (tmp_path / "tenx" / "notes.txt").write_text("not read")
    before = version_of_file(tmp_path / "tenx")
    (tmp_path / "tenx" / "notes.txt").write_text("still not read")
    assert version_of_file(tmp_path / "tenx") == before
    assert version_of_file(tmp_path / "gone.h5ad") == []


@pytest.mark.parametrize("kind", ["link", "storage", "virtual", "missing"])
def test_data_in_other_files_are_refused_outside_the_folder(tmp_path, problems, kind):
    (tmp_path / "in").mkdir()
    path, secret = tmp_path / "in" / "a.h5ad", tmp_path / "secret"
    counts = sp.random(20, 10, 0.5, "csr", random_state=0, data_rvs=lambda n: np.ones(n, np.float32))
    ad.AnnData(counts).write_h5ad(path)
    secret.write_bytes(bytes(8 * 20))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(20.0)
    with h5py.File(path, "a") as file:
        columns = file["obs"]
        if kind == "link":
            columns["stolen"] = h5py.ExternalLink("../other.h5", "x")
        elif kind == "storage":
            columns.create_dataset("stolen", (20,), np.int64, external=[(str(secret), 0, 160)])
        else:
            layout = h5py.VirtualLayout((20,), np.float64)
            layout[:] = h5py.VirtualSource("../other.h5" if kind == "virtual" else "gone.h5", "x", (20,))
            columns.create_virtual_dataset("stolen", layout)
    found = problems({"a": {"path": str(path)}})["a"]
    assert len(found) == 1
    expected = {"missing": "which does not exist", "storage": "external storage"}.get(kind, "outside its folder")
    assert "obs/stolen is not in this file" in found[0]
    assert expected in found[0]


def test_data_in_files_beside_it_are_read(tmp_path, problems):
    counts = sp.random(20, 10, 0.5, "csr", random_state=0, data_rvs=lambda n: np.ones(n, np.float32))
    ad.AnnData(counts).write_h5ad(tmp_path / "data.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "w") as file, h5py.File(tmp_path / "data.h5ad") as data:
        file.attrs.update(dict(data.attrs))
        for name in data:
            file[name] = h5py.ExternalLink("data.h5ad", name)
    assert problems({"a": {"path": str(tmp_path / "a.h5ad")}}) == {}


def test_columns_to_integrate_over_have_a_value_for_every_cell(tmp_path, adata, problems):
    adata.obs["site"] = pd.Categorical(["a", "b", None, None] * (N_OBS // 4))
    adata.write_h5ad(tmp_path / "a.h5ad")
    text = one(problems({"a": {"path": str(tmp_path / "a.h5ad")}}, harmony={"keys": ["donor", "site"]}))
    assert re.search(r"^harmony: keys: the column site of .* is missing for 10 of 20 cells", text)
    found = problems({"a": {"path": str(tmp_path / "a.h5ad"), "lab": ""}}, harmony={"keys": ["lab"]})
    assert one(found) == "harmony: keys: the sheet's column lab is blank: fill it"
