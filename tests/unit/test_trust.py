"""Evidence on results: right ones pass, and each wrong one is found by name; odd cohorts say what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import trust_clusters
import trust_resolutions
from lib.inputs import config as settings
from lib.inputs.sheet import read_sheet
from lib.methods import repeats
from lib.methods.tolerances import Tolerance
from lib.report import facts
from lib.report.parts import Done, Finding, Finished, Paragraph
from lib.store.files import read_table
from sklearn.metrics import silhouette_score
from stage_runs import TINY, merged, run_step, script, steps, write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trust")]

DRAWN = ("figures", "atlas", "panel", "matrices", "density", "markers_logreg", "trust")


class Cohort:
    """A run without figures in a folder; a copy of it has results that a test spoils."""

    def __init__(self, folder: Path, base: Path, **config) -> None:
        self.folder, self.base = folder, base
        self.config = settings.complete(merged(TINY | {"samples": str(base / "samples.tsv")}, config))
        self.steps = steps(self.config, read_sheet(str(base / "samples.tsv"), self.config))
        folder.mkdir(exist_ok=True)

    def run(self) -> Cohort:
        for step in self.steps.values():
            if not step.stage.startswith(DRAWN):
                run_step(step, self.folder, self.base)
        return self

    def told(self, *names: str) -> list:
        """Run stages of trust, all by default; what they tell the report."""
        facts.tsv.cache_clear()
        parts = []
        mine = [
            step for step in self.steps.values() if step.stage.startswith("trust") and step.stage.endswith(names or "")
        ]
        jobs = [Done("features", "features", {}, {"obs": str(self.place("obs.parquet"))})]
        for step in mine:
            run_step(step, self.folder, self.base)
            output = {name: self.paths(path) for name, path in step.output.items()}
            jobs.append(Done(step.stage, step.stage, {}, output))
        for step in mine:
            parts += script(step.stage).tells(Finished(self.config, jobs))
        return parts

    def paths(self, given):
        return str(self.folder / given) if isinstance(given, str) else [str(self.folder / path) for path in given]

    def place(self, path: str) -> Path:
        return self.folder / path if (self.folder / path).exists() else self.base / path

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"trust_{name}.tsv", sep="\t", dtype={"group": str, "cluster": str})

    def spoil(self, path: str, name: str, change) -> None:
        """Change an array of an artifact, or a table."""
        target = self.folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.base / path, target)
        if path.endswith(".h5"):
            with h5py.File(target, "r+") as file:
                file[name][...] = change(file[name][...])
        else:
            change(read_table(target)).to_parquet(target)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    write_cohort(folder)
    return Cohort(folder, folder).run().folder


@pytest.fixture
def cohort(base, tmp_path) -> Cohort:
    return Cohort(tmp_path / "spoilt", base)


def findings(parts: list) -> dict[str, str]:
    return {part.where: part.said for part in parts if isinstance(part, Finding)}


def shuffled(values):
    return np.random.default_rng(0).permutation(values)


def test_a_right_run_has_no_finding(cohort):
    assert findings(cohort.told()) == {}
    stages = cohort.table("stages")
    assert stages["within"].all()
    assert set(stages["stage"]) == {
        *("qc", "features", "hvg", "pca", "harmony", "neighbors", "umap", "tsne", "markers_ttest"),
    }
    assert cohort.table("clusterings")["within"].all()
    metrics = cohort.table("metrics")
    assert metrics["left_out"].isna().all()
    assert (metrics.set_index("metric").loc["iLISI", "integrated"]) > 0.7
    stable = read_table(cohort.folder / "stability.parquet")["stability_leiden_0.6"]
    assert stable.between(0, 1).all()


def test_a_batch_that_is_moved_is_named(cohort):
    second = (read_table(cohort.base / "obs.parquet")["sample"] == "P2").to_numpy()
    cohort.spoil("harmony.h5", "X_pca_harmony", lambda X: X + 30 * second[:, None])
    found = findings(cohort.told("integration"))
    assert "does not mix" in found["Batch P2"]
    assert "Batch P1" not in found


def test_swapped_cells_of_a_batch_are_found(cohort):
    """The integrated rows of one batch are those of its other cells."""
    second = np.flatnonzero(read_table(cohort.base / "obs.parquet")["sample"] == "P2")

    def swap(X):
        X[second] = X[shuffled(second)]
        return X

    cohort.spoil("harmony.h5", "X_pca_harmony", swap)
    found = findings(cohort.told("integration", "stages"))
    assert "correlation" in found["Stage harmony"]
    assert any("over-corrects" in said or "mixed with others" in said for said in found.values())


def test_over_correction_is_found(cohort):
    cohort.spoil("harmony.h5", "X_pca_harmony", lambda X: np.random.default_rng(0).normal(size=X.shape))
    found = findings(cohort.told("integration"))
    assert "over-corrects" in found["Integration"]
    assert "mixed with others" in found["B of CellType"]


def test_shuffled_neighbours_are_found(cohort):
    cohort.spoil("neighbors.h5", "indices", lambda X: shuffled(X))
    found = findings(cohort.told("stages"))
    assert "Stage neighbors" in found
    bad = cohort.table("stages").set_index("check")["within"]
    assert not bad["recall"]
    assert not bad["connectivities"]


@pytest.mark.parametrize("broken", ["PCs", "X_pca", "variance"])
def test_a_broken_pca_is_found(cohort, broken):
    spoil = {"PCs": lambda X: np.linalg.qr(np.random.default_rng(0).normal(size=X.shape))[0], "X_pca": shuffled}
    cohort.spoil("pca.h5", broken, spoil.get(broken, lambda X: 1.1 * X))
    assert "Stage pca" in findings(cohort.told("stages"))


def test_components_that_capture_little_are_found():
    """Cells projected on random components: consistent, and wrong."""
    rng = np.random.default_rng(1)
    Z = (rng.normal(size=(200, 100)) + 3 * rng.normal(size=(200, 5)) @ rng.normal(size=(5, 100))).astype(np.float32)
    Z -= Z.mean(0)
    random = np.linalg.qr(rng.normal(size=(100, 5)))[0].astype(np.float32)
    X = Z @ random
    arrays = {"PCs": random, "variance": X.var(0, ddof=1)}
    found = script("trust_stages").check_pca(Z, np.arange(200), X, arrays)
    limits = script("trust_stages").limits_of("pca")
    assert [check for check, value in found.items() if not limits[check].holds(value)] == ["captured variance"]


@pytest.mark.parametrize("name", ["leiden_0.6", "louvain_0.6", "kmeans_8"])
def test_a_clustering_at_random_is_found(cohort, name):
    path = f"{name.replace('_', '/')}.parquet"

    def at_random(table):
        return table.assign(**{name: pd.Categorical(shuffled(table[name].to_numpy()), table[name].cat.categories)})

    cohort.spoil(path, "", at_random)
    found = findings(cohort.told("clusters"))
    assert "of the quality" in found[f"Clustering {name}"]
    if name == "leiden_0.6":
        assert "is not stable" in found["Cluster 0 of leiden_0.6"]


@pytest.mark.parametrize("name", ["umap", "tsne"])
def test_a_shuffled_embedding_is_found(cohort, name):
    cohort.spoil(f"{name}.parquet", "", lambda table: pd.DataFrame(shuffled(table), table.index, table.columns))
    assert f"Stage {name}" in findings(cohort.told("stages"))


def test_genes_chosen_at_random_are_found(cohort):
    names = ["highly_variable", "highly_variable_rank"]
    cohort.spoil("hvg.parquet", "", lambda table: table.assign(**{name: shuffled(table[name]) for name in names}))
    assert "overlap" in findings(cohort.told("stages"))["Stage hvg"]


@pytest.mark.parametrize(("each", "per_batch", "checked"), [(60, True, False), (250, True, True), (60, False, True)])
def test_genes_are_ranked_again_where_each_batch_has_enough_cells(base, each, per_batch, checked):
    """Of 20 batches of 300 cells a sample of 60 cells each ranks by chance; it is enough if all rank together."""
    X = sp.csr_matrix(np.random.default_rng(0).poisson(np.random.default_rng(1).lognormal(0, 1, 80), (6000, 80)))
    batches = np.repeat(np.arange(20), 300)
    rows = np.flatnonzero(np.arange(6000) % 300 < each)
    hvg = settings.complete(TINY | {"samples": str(base / "samples.tsv")})["hvg"] | {"n_top_genes": 30}
    params = SimpleNamespace(batch_key="batch", hvg=hvg | {"per_batch": per_batch}, target_sum=1e4, seed=0)
    given = SimpleNamespace(rows=rows, obs=pd.DataFrame({"batch": batches}), params=params, counts=(None, X[rows]))
    table = pd.DataFrame({"highly_variable": np.arange(80) < 30, "highly_variable_rank": np.arange(80.0)})
    assert bool(script("trust_stages").of_selection(given, table)) == checked


def test_an_embedding_that_another_seed_does_not_repeat_is_found(base):
    """A layout against itself, against a rotation of itself, and against a shuffled one."""
    check, X = script("trust_stages").check_embedding, read_table(base / "umap.parquet").to_numpy()
    turn = np.array([[0, 1], [-1, 0]])
    found = [check(X, X, other)["neighbours with another seed"] for other in (X, X @ turn, shuffled(X))]
    assert found[:2] == [1, 1]
    limit = script("trust_stages").limits_of("umap")["neighbours with another seed"]
    assert limit.holds(1)
    wide = 50 / (len(X) - 1)  # the share by chance of so few cells
    assert found[2] == pytest.approx(wide, abs=0.05)


def test_embeddings_are_computed_again(base, tmp_path):
    cohort = Cohort(tmp_path / "run", base, trust={"embeddings_again": True})
    for step in cohort.steps.values():
        if "again" in step.wildcards:
            run_step(step, cohort.folder, base)
    assert not [where for where in findings(cohort.told("stages")) if where.startswith("Stage")]
    table = cohort.table("stages")
    assert set(table[table["check"] == "neighbours with another seed"]["stage"]) == {"umap", "tsne"}


def test_metrics_and_totals_of_other_cells_are_found(cohort):
    names = ["pct_counts_MT", "kept_counts"]
    cohort.spoil("obs.parquet", "", lambda table: table.assign(**{name: shuffled(table[name]) for name in names}))
    found = findings(cohort.told("stages"))
    assert {"Stage qc", "Stage features"} <= set(found)


def test_markers_of_other_groups_are_found(cohort):
    path = cohort.steps["trust_stages"].input["ranking"][0]

    def turned(table):
        groups = list(table["group"].unique())
        return table.assign(group=table["group"].map(dict(zip(groups, groups[1:] + groups[:1], strict=True))))

    cohort.spoil(path, "", turned)
    assert "Stage markers_ttest" in findings(cohort.told("stages"))


def test_a_type_that_a_limit_takes_is_found(cohort):
    """B cells are lost to the limit of MT; those of them that lie among others are few."""
    for name in ("P1", "P2", "P3"):

        def lose(cells):
            lost = (cells["CellType"] == "B").to_numpy()
            reason = cells["reason"].astype(str).mask(lost, "max_pct_counts_MT")
            return cells.assign(kept=cells["kept"] & ~lost, reason=reason.astype("category"))

        cohort.spoil(f"{name}/cells.parquet", "", lose)
    assert any("most of them B, are lost to one limit" in said for said in findings(cohort.told("filters")).values())


def test_doublets_that_cannot_be_told_are_found(cohort):
    cohort.spoil("P1/doublets_simulated.h5", "scores/P1", lambda scores: 0 * scores)
    found = findings(cohort.told("filters"))
    assert "cannot be told" in found["Batch P1"]
    assert "Batch P2" not in found


NO_CLUSTERS = {"leiden": {"resolutions": []}, "louvain": {"resolutions": []}, "kmeans": {"n_clusters": []}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"harmony": {"enabled": False}}, "there is no integrated space"),
        ({"label_key": None}, "clusters of this run"),
        ({"label_key": None} | NO_CLUSTERS, "neither labels nor clusters"),
        ({"trust": {"n_cells": 60, "seeds": 1, "resolutions": []}}, "1 repetition"),
    ],
)
def test_what_a_run_lacks_is_said(base, tmp_path, config, said):
    cohort = Cohort(tmp_path / "run", base, **config)
    for step in cohort.steps.values():
        changed = "harmony" in config and step.stage in ("neighbors", "umap", "tsne", "leiden", "louvain", "kmeans")
        new = any(not cohort.place(path).exists() for path in step.files("output"))
        if not step.stage.startswith(DRAWN) and (changed or new):
            run_step(step, cohort.folder, base)
    parts = cohort.told()
    assert said in " ".join(part.said for part in parts if isinstance(part, Paragraph))
    assert not [where for where in findings(parts) if where.startswith("Stage")]


def test_thetas_are_measured_side_by_side(base, tmp_path):
    cohort = Cohort(tmp_path / "run", base, trust={"thetas": [0, 2]})
    parts = cohort.told("integration")
    table = pd.read_csv(cohort.folder / "trust_thetas.tsv", sep="\t").set_index("theta")
    metrics = cohort.table("metrics").set_index("metric")["integrated"]
    pd.testing.assert_series_equal(table.loc[2], metrics, check_names=False, rtol=1e-5)
    assert table.loc[0, "iLISI"] != table.loc[2, "iLISI"]
    assert any("trust_thetas" in getattr(part, "path", "") for part in parts)


def test_stability_of_clusters_and_cells():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    of_clusters, of_cells = trust_clusters.stability(labels, [np.array([5, 5, 5, 6, 7, 7, 7]), labels])
    np.testing.assert_allclose(of_clusters, [(0.5 + 1) / 2, 1, 1])
    np.testing.assert_allclose(of_cells, [5 / 6, 5 / 6, 5 / 6, 0.5, 1, 1, 1])


def test_consensus_is_where_most_repetitions_have_a_cell():
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    moved = np.array([7, 7, 7, 3, 3, 3, 3])  # other names; the fourth cell is with the second cluster
    assert trust_clusters.consensus(labels, [labels]).tolist() == labels.tolist()
    assert trust_clusters.consensus(labels, [moved, labels]).tolist() == labels.tolist()
    assert trust_clusters.consensus(labels, [moved, moved, labels]).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_scan_prefers_the_true_number_of_groups():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(400, 10)) + 6 * np.eye(10)[np.arange(400) % 5]).astype(np.float32)
    found = repeats.nearest_neighbors(X, 14, exact=True)
    space = repeats.Space(X, repeats.fuzzy_graph(*found, trust_clusters.CPU), np.arange(400))
    table = trust_resolutions.scan(space, [0.05, 0.5, 1.0, 20.0], 0)
    (best,) = table[table["suggested"] == "yes"].to_dict("records")
    assert best["clusters"] == 5
    labels = trust_clusters.cluster(space, f"leiden_{best['resolution']}", 0, 2)
    assert best["silhouette"] == pytest.approx(silhouette_score(X, labels), abs=1e-3)
    assert trust_resolutions.scan(space, [], 0).empty


def test_tolerances_hold_up_to_their_limit_and_never_for_nan():
    most, least = Tolerance(0.1, ""), Tolerance(0.9, "", True)
    assert most.holds(0.1)
    assert not most.holds(0.2)
    assert least.holds(0.9)
    assert not least.holds(0.8)
    assert not most.holds(np.nan)
    assert not least.holds(np.nan)
    assert most.beyond(0.2) == pytest.approx(2)
    assert least.beyond(0.7) == pytest.approx(3)
    assert most.beyond(np.inf) == 5


def test_samples_of_clusterings_know_the_sampled_cells_alone(base, tmp_path):
    cohort = Cohort(tmp_path / "few", base, trust={"n_cells": 50})
    cohort.told("clusters")
    stable = read_table(cohort.folder / "stability.parquet")["stability_leiden_0.6"]
    assert 190 < stable.notna().sum() < 230
    assert (cohort.table("clusterings")["cells"] == stable.notna().sum()).all()
