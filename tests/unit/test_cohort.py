"""The cohort's cells: those without counts leave it; artifacts of other cells, or in another order, are refused."""

from types import SimpleNamespace

import features
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.run import stage
from lib.run.errors import UserError
from lib.store.cohort import Cohort
from lib.store.counts import Counts, CountsWriter
from lib.store.files import read_table, write_table
from lib.store.shards import cells_of_part

GENES = [f"G{i}" for i in range(20)]
EMPTY = ["c3-A", "c8-A", "c0-B"]  # cells with counts only in the gene that is not kept


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two samples of ten cells, one of them not kept; the last gene is not kept."""
    monkeypatch.setattr(stage, "_NOTICES", [])
    rng = np.random.default_rng(0)
    paths = SimpleNamespace(counts=[], cells=[], parts=[], hvg=tmp_path / "hvg.parquet", genes=tmp_path / "g.parquet")
    for sample in "AB":
        X = rng.poisson(2, (10, 20)) + 1
        obs = pd.DataFrame({"sample": pd.Categorical([sample] * 10)}, [f"c{i}-{sample}" for i in range(10)])
        X[obs.index.isin(EMPTY), :-1] = 0
        writer = CountsWriter(tmp_path / f"{sample}.h5ad", 20)
        writer.append(sp.csr_matrix(X))
        writer.close(obs, pd.DataFrame({"gene_symbols": GENES, "gene_ids": GENES}, GENES))
        kept = obs.index != "c5-A"
        write_table(obs.assign(kept=kept, reason=""), tmp_path / f"{sample}.parquet", "sample")
        paths.counts.append(tmp_path / f"{sample}.h5ad")
        paths.cells.append(tmp_path / f"{sample}.parquet")
    write_table(
        pd.DataFrame({"gene_symbols": GENES, "gene_ids": GENES, "kept": [True] * 19 + [False]}, GENES), paths.genes
    )
    write_table(pd.DataFrame({"highly_variable": [True, False] * 9 + [True]}, GENES[:19]), paths.hvg)
    return paths


def made(files, folder, shard=None, parts=()):
    """The paths of the files that features writes."""
    folder.mkdir()
    output = SimpleNamespace(features=folder / "features.h5ad", obs=folder / "obs.parquet")
    job = SimpleNamespace(
        input=SimpleNamespace(**vars(files) | {"parts": list(parts)}),
        output=output,
        params=SimpleNamespace(gene_key="gene_symbols"),
        wildcards={} if shard is None else {"scatteritem": shard},
        resources={},
    )
    features.main(job)
    return output


def test_cells_without_counts_in_kept_genes_leave_and_it_is_said(files, tmp_path):
    output = made(files, tmp_path / "one")
    obs = read_table(output.obs)
    everyone = [f"c{i}-{sample}" for sample in "AB" for i in range(10)]
    assert list(obs.index) == [name for name in everyone if name not in [*EMPTY, "c5-A"]]
    assert (obs["kept_counts"] > 0).all()
    assert list(Counts(output.features).names("obs")) == list(obs.index)
    assert stage._NOTICES == ["3 cells without counts in the kept genes are left out: A 2, B 1"]


def test_what_follows_streams_the_cohorts_cells(files, tmp_path):
    obs = made(files, tmp_path / "one").obs
    cohort = Cohort(files.counts, files.cells, files.genes, "gene_symbols", obs=obs)
    sums = np.concatenate([np.asarray(chunk.X.sum(1)).ravel() for chunk in cohort.chunks()])
    np.testing.assert_array_equal(sums, read_table(obs)["kept_counts"])


def test_shards_leave_the_same_cells(files, tmp_path):
    one = made(files, tmp_path / "one")
    shards = ["1-of-2", "2-of-2"]
    parts = [made(files, tmp_path / shard, shard).features for shard in shards]
    both = made(files, tmp_path / "both", parts=parts)
    pd.testing.assert_frame_equal(read_table(both.obs), read_table(one.obs))
    rows = [cells_of_part(Counts(part), one.obs) for part in parts]
    assert [(r.start, r.stop) for r in rows] == [(0, 7), (7, 16)]


def test_samples_in_another_order_are_refused(files, tmp_path):
    obs = made(files, tmp_path / "one").obs
    with pytest.raises(UserError, match=r"not those of .*obs.parquet, or stand in another order"):
        Cohort(files.counts[::-1], files.cells[::-1], files.genes, "gene_symbols", obs=obs)


def test_a_part_of_other_cells_is_refused(files, tmp_path):
    part = Counts(made(files, tmp_path / "part", "2-of-2").features)
    write_table(pd.DataFrame({"x": 0}, [f"c{i}-B" for i in range(9, -1, -1)]), tmp_path / "obs.parquet", "cohort")
    with pytest.raises(UserError, match="not of the same cells"):
        cells_of_part(part, tmp_path / "obs.parquet")
