"""Read gene sets from files of all kinds, and find their genes in a cohort."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from lib.inputs import genesets
from lib.inputs.genesets import large_enough, match, matched_in, read_collections, read_file
from lib.run.errors import UserError

GMT = "T cells\thttp://x y\tCD3D\tCD3E\t\nB\t\tMS4A1\n"
TSV = "source\ttarget\tweight\nT\tCD3D\t1\nT\tMS4A1\t-0.5\nB\tMS4A1\t2\n"
GENES = ["CD3D", "CD3E", "MS4A1", "LYZ", "NKG7", "GNLY"]
TABLE = pd.DataFrame({"gene_symbols": GENES, "gene_ids": GENES}, index=GENES)


def read(tmp_path, content, name="x.gmt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(path, "gene_sets: x")


@pytest.mark.parametrize(
    "content",
    [
        GMT,
        GMT.replace("\n", "\r\n"),
        "\ufeff" + GMT,
        "\n# a comment\n" + GMT + "\n\n",
        GMT.encode() + b"B\tagain\tMS4A1\n",
        gzip.compress(GMT.encode(), mtime=0),
    ],
    ids=["plain", "CRLF", "BOM", "blank lines", "the same set twice", "gzip"],
)
def test_gmt(tmp_path, content):
    assert read(tmp_path, content) == {"T cells": {"CD3D": 1, "CD3E": 1}, "B": {"MS4A1": 1}}


@pytest.mark.parametrize(
    "content",
    [
        TSV,
        TSV.partition("\n")[2],
        "\ufeff" + TSV.replace("\n", "\r\n"),
        "weight\tother\tTarget\tSource\n1\t.\tCD3D\tT\n-0.5\t.\tMS4A1\tT\n2\t.\tMS4A1\tB\n",
    ],
    ids=["header", "no header", "BOM and CRLF", "columns by name"],
)
def test_tsv(tmp_path, content):
    assert read(tmp_path, content, "x.tsv") == {"T": {"CD3D": 1, "MS4A1": -0.5}, "B": {"MS4A1": 2}}


def test_tsv_without_weights(tmp_path):
    assert read(tmp_path, "source\ttarget\nT\tCD3D\nT\tCD3D\nB\tMS4A1\n", "x.txt") == {
        "T": {"CD3D": 1},
        "B": {"MS4A1": 1},
    }


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.gmt", "", "is empty"),
        ("x.gmt", "\n  \n# only a comment\n", "is empty"),
        ("x.gmt", "T cells CD3D CD3E\n", "line 1: 'T cells CD3D CD3E' has no tab"),
        ("x.gmt", "T\tdescription\nB\tx\tMS4A1\n", "sets without genes: T"),
        ("x.gmt", "T\tx\tCD3D\nB\tx\tMS4A1\nT\tx\tCD3E\n", "lines 1 and 3 are two sets of the name 'T'"),
        ("x.gmt", "\tx\tCD3D\n", "line 1: the set has no name"),
        ("x.gmt", b"\x89PNG\r\n\x1a\n\0\xff", "is no text in UTF-8"),
        ("x.gmt", b"T\tx\tCD3D\0\n", "bytes of zero"),
        ("x.gmt.gz", gzip.compress(GMT.encode(), mtime=0)[:20], "is no text in UTF-8|is damaged"),
        ("x.gmt.gz", b"\x1f\x8b\x08\0garbage in the place of a stream", "is no text in UTF-8|is damaged"),
        ("x.tsv", "source,target\nT,CD3D\n", "has no tab"),
        ("x.tsv", "T\tCD3D\thigh\n", "line 1: the weight 'high' is no number"),
        ("x.tsv", "T\tCD3D\tnan\n", "the weight 'nan' is no number"),
        ("x.tsv", "T\tCD3D\t1\nT\tCD3D\t2\n", "line 2: CD3D is in T twice"),
        ("x.tsv", "T\tdescription\tCD3D\tCD3E\n", "name it .gmt"),
        ("x.tsv", "T\t\n", "line 1: target is missing"),
        ("x.tsv", "T\tCD3D\t0\n", "sets without genes: T"),
    ],
)
def test_files_that_are_not_right(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says) as error:
        read(tmp_path, content, name)
    assert str(error.value).startswith(f"gene_sets: x: {tmp_path / name}")


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.gmt", tmp_path, "\0"):
        with pytest.raises(UserError, match=r"gene_sets: x: .* cannot be read"):
            read_file(path, "gene_sets: x")


def test_collections(tmp_path):
    (tmp_path / "x.gmt").write_text(GMT)
    found = read_collections({"mine": ["LYZ", "LYZ"], "x": str(tmp_path / "x.gmt"), "other": ["GNLY"]})
    assert list(found) == ["lists", "x"]
    assert found["lists"] == {"mine": {"LYZ": 1}, "other": {"GNLY": 1}}
    assert genesets.n_sets({"mine": ["LYZ"], "x": str(tmp_path / "x.gmt"), "other": ["GNLY"]}) == 4


def test_genes_are_found_by_name_symbol_or_id():
    names, symbols = ["A-1", "A-2", "B"], ["A", "A", "B"]
    ids = ["ENSG00000000001", "ENSG00000000002.3", "ENSG00000000003"]
    known = pd.DataFrame({"gene_symbols": symbols, "gene_ids": ids}, index=names)
    for genes, places in (
        (["A", "B"], [0, 1, 2]),
        (["ENSG00000000002", "ENSG00000000003.9"], [1, 2]),
        (["A-2", "B", "nothing"], [1, 2]),
    ):
        found = match({"s": dict.fromkeys(genes, 2.0)}, known, "x")
        assert found.genes.tolist() == places
        assert (found.weights == 2).all()
        assert found.n_genes.tolist() == [len(genes)]
    assert match({"s": {"A": 1.0, "B": 1.0}}, known, "x").n_found.tolist() == [2]


def test_little_of_a_collection_in_the_cohort_is_refused_with_numbers():
    sets = {"T": dict.fromkeys(["Cd3d", "Cd3e", "Cd3g", "Lck"], 1.0), "B": {"Ms4a1": 1.0}}
    with pytest.raises(UserError) as error:
        match(sets, TABLE, "gene_sets: x", genesets.SHARE)
    for part in ("gene_sets: x: 0 of its 5 genes are in the cohort (0%)", "Cd3d", "CD3D", "3 are if upper and lower"):
        assert part in str(error.value)
    unknown = {"T": dict.fromkeys([f"AT1G{i:05d}" for i in range(5)] + ["LYZ"], 1.0)}
    with pytest.raises(UserError, match=r"1 of its 6 genes are in the cohort .17%.*of other names"):
        match(unknown, TABLE, "gene_sets: x", genesets.SHARE)


def test_small_sets_are_left_out():
    sets = {"T": dict.fromkeys(["CD3D", "CD3E", "x"], 1.0), "B": {"MS4A1": 1.0}}
    found, lost = large_enough(match(sets, TABLE, "x"), 2, "x")
    assert (found.names, found.columns.tolist(), found.genes.tolist()) == (["T"], [0, 0], [0, 1])
    assert lost == ["B (1 of 1)"]
    with pytest.raises(UserError, match=r"no set has 3 genes in the cohort .*T .2 of 3., B .1 of 1."):
        large_enough(match(sets, TABLE, "x"), 3, "x")


def test_hallmark_sets_in_pbmc(real_data, pbmc3k):
    """The 50 sets of MSigDB, of which pbmc3k has nearly all genes; the mouse's sets are refused."""
    folder = real_data / "gene_sets"
    names = pbmc3k.var_names
    genes = pd.DataFrame({"gene_symbols": names, "gene_ids": names}, index=names)
    collections = read_collections({"hallmark": str(folder / "h.all.v7.5.1.symbols.gmt")})
    found, lost = matched_in(collections, genes, 5)
    assert len(found["hallmark"].names) == 50
    assert not lost
    assert (found["hallmark"].n_found / found["hallmark"].n_genes).min() > 0.8
    cycle = read_file(folder / "cell_cycle_human.gmt", "x")
    assert list(cycle) == ["G1/S", "G2/M"]
    mouse = read_collections({"cycle": str(folder / "cell_cycle_mouse.gmt")})
    with pytest.raises(UserError, match="are if upper and lower case count as the same: they are of another organism"):
        matched_in(mouse, genes, 5, genesets.SHARE)


def test_sets_of_which_filters_leave_little_are_used():
    """Of a collection's genes a tenth may have been kept; it is refused if no set has enough."""
    collections = {"x": {"few": dict.fromkeys(["CD3D", "CD3E", *(f"U{i}" for i in range(18))], 1.0)}}
    found, _ = matched_in(collections, TABLE, 2)
    assert found["x"].n_found.tolist() == [2]
    with pytest.raises(UserError, match=r"2 of its 20 genes are in the cohort \(10%\); 25% are needed"):
        matched_in(collections, TABLE, 2, genesets.SHARE)
    with pytest.raises(UserError, match="no set has 3 genes"):
        matched_in(collections, TABLE, 3)


def test_sets_of_the_demo_are_those_of_the_simulation():
    import yaml
    from runs import HOME
    from simulate import TYPES

    given = yaml.safe_load((HOME / "config" / "config.yaml").read_text())["gene_sets"]
    assert given == {name: TYPES[name][1].split() for name in given}
    assert np.array_equal(sorted(given), sorted(list(TYPES)[:8]))
