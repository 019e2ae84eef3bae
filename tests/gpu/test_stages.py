"""Compare every stage on the GPU with the CPU's artifact from the same input, and with a second run on the GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from carried import STAGES, Carried
from lib.inputs import config as settings
from lib.methods.fuzzy import read_graph
from lib.store.files import read_arrays, read_table
from sklearn.manifold import trustworthiness
from sklearn.metrics import adjusted_rand_score
from tables import read_markers

# RAPIDS adds in no fixed order there: labels were seen to differ at 200,000 cells
NOT_REPEATABLE = {"leiden", "louvain", "kmeans"}


def equal_tables(gpu: Path, cpu: Path, rtol: float) -> None:
    """The same rows and columns; equal integers and strings, floats within `rtol`."""
    pd.testing.assert_frame_equal(read_table(gpu), read_table(cpu), rtol=rtol, atol=0, check_exact=False)


def content(path: Path) -> dict[str, np.ndarray]:
    """The content of an artifact, array by array."""
    if path.suffix == ".parquet":
        return {name: column.to_numpy() for name, column in read_table(path).items()}
    if path.name.endswith(".tsv.gz"):
        return {name: column.to_numpy() for name, column in read_markers(path).items()}
    if path.suffix == ".tsv":
        return {name: column.to_numpy() for name, column in pd.read_csv(path, sep="\t").items()}
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[...]} if isinstance(item, h5py.Dataset) else {}))
    return found


def representation(carried: Carried) -> np.ndarray:
    """The space of the CPU's neighbour search."""
    for path in carried.cpu("cohort/harmony.h5"):
        found = read_arrays(path)
        if found:
            return found["X_pca_harmony"][:, : carried.config.get("neighbors", {}).get("n_pcs", 40)]
    return read_arrays(carried.cpu("cohort/pca.h5")[0], "X_pca")["X_pca"][:, :40]


def truth(carried: Carried) -> np.ndarray | None:
    """The cells' known types, if the cohort has them."""
    key = carried.config.get("label_key")
    return read_table(carried.cpu("cohort/obs.parquet")[0])[key].astype(str).to_numpy() if key else None


def skip_without_cell_cycle(stage: str, carried: Carried) -> None:
    """Skip a test of the cell cycle on a cohort without its genes."""
    if stage == "cell_cycle" and carried.config["scores"]["cell_cycle"] == "none":
        pytest.skip("this cohort does not have the genes")


@pytest.mark.parametrize("stage", STAGES)
def test_twice_the_same(carried, stage):
    skip_without_cell_cycle(stage, carried)
    if not (carried.folder / f"{stage}-2").exists():
        pytest.skip("ran once on this cohort")
    if stage in NOT_REPEATABLE:
        pytest.skip("not repeatable to the bit")
    for artifact in STAGES[stage]:
        for one, two in zip(carried.gpu(stage, artifact, 1), carried.gpu(stage, artifact, 2), strict=True):
            first, second = content(one), content(two)
            assert first.keys() == second.keys()
            for name, values in first.items():
                np.testing.assert_array_equal(values, second[name], err_msg=f"{artifact}: {name}")


def test_every_stage_that_runs_on_a_gpu_is_compared_here():
    text = Path(__file__).read_text()
    assert [stage for stage in STAGES if f'"{stage}"' not in text] == []


def test_qc(carried):
    """Integers are exact; a percentage is one float64 division."""
    for n in (0, 1):
        for cpu, gpu in carried.both("qc", n):
            equal_tables(gpu, cpu, rtol=1e-14)


def test_doublets(carried):
    """The simulated doublets are the same; their coordinates are float32, so neighbours at nearly equal distances may
    change."""
    for cpu, gpu in carried.both("doublets"):
        cpu, gpu = read_table(cpu), read_table(gpu)
        scored = cpu["doublet_score"].notna()
        assert (scored == gpu["doublet_score"].notna()).all()
        assert np.corrcoef(cpu["doublet_score"][scored], gpu["doublet_score"][scored])[0, 1] > 0.999
        assert (cpu["predicted_doublet"] == gpu["predicted_doublet"]).mean() > 0.995


@pytest.mark.parametrize("stage", ["genes", "hvg"])
def test_gene_tables(carried, stage):
    """Sums of counts are exact on both, so the fits start from the same numbers."""
    for cpu, gpu in carried.both(stage):
        equal_tables(gpu, cpu, rtol=1e-6)


def test_features(carried):
    """Counts are moved, not computed."""
    (cpu, gpu), *_ = carried.both("features")
    one, two = content(cpu), content(gpu)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    (cpu, gpu), *_ = carried.both("features", 1)
    equal_tables(gpu, cpu, rtol=0)


def test_pca(carried):
    """Products are float32: variances to 1e-4, and the first half of the components within the span of the GPU's.

    The variances of the last components are so close to each other that rounding rotates these components.
    """
    (cpu, gpu), *_ = carried.both("pca")
    cpu, gpu = read_arrays(cpu), read_arrays(gpu)
    np.testing.assert_allclose(gpu["variance_ratio"], cpu["variance_ratio"], rtol=1e-4)
    for name in ("mean", "std", "coefficients"):
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-6, atol=1e-9)
    half = cpu["PCs"].shape[1] // 2
    inside = np.linalg.svd(cpu["PCs"][:, :half].T.astype(np.float64) @ gpu["PCs"], compute_uv=False)
    assert inside.min() > 1 - 1e-4


def test_harmony(carried):
    """The same algorithm from the same random numbers: equal to 1e-4 of the largest value.

    On a CPU, a relative change of 3e-7 in the components changes the result by 2e-6 of its largest value; the rest of
    the tolerance is for cells that rounding moves to another cluster of k-means.
    """
    (cpu, gpu), *_ = carried.both("harmony")
    cpu, gpu = read_arrays(cpu), read_arrays(gpu)
    assert cpu.keys() == gpu.keys()
    if not cpu:
        pytest.skip("one batch: Harmony is skipped")
    (one,), (two,) = cpu.values(), gpu.values()
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4 * np.abs(one).max())


def test_neighbors(carried):
    """Both searches are exact; points at nearly equal distances may be swapped."""
    (cpu_path, gpu_path), *_ = carried.both("neighbors")
    names = "indices", "distances"
    cpu, gpu = read_arrays(cpu_path, *names), read_arrays(gpu_path, *names)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(cpu["indices"], gpu["indices"], strict=True)]
    assert np.mean(shared) / cpu["indices"].shape[1] >= 0.999
    np.testing.assert_allclose(gpu["distances"], cpu["distances"], rtol=1e-4, atol=1e-4)
    difference = abs(read_graph(cpu_path) - read_graph(gpu_path))
    assert difference.sum() / read_graph(cpu_path).sum() < 1e-3


@pytest.mark.parametrize("stage", ["umap", "tsne"])
def test_embeddings(carried, stage):
    """The trustworthiness is that of the CPU's libraries, within 0.01 (t-SNE: 0.02)."""
    (cpu, gpu), *_ = carried.both(stage)
    X = representation(carried)
    some = np.random.default_rng(0).permutation(len(X))[:5000]
    scores = [trustworthiness(X[some], read_table(path).to_numpy()[some], n_neighbors=15) for path in (cpu, gpu)]
    assert scores[1] > scores[0] - (0.01 if stage == "umap" else 0.02), scores


@pytest.mark.parametrize("stage", ["leiden", "louvain"])
def test_communities(carried, stage):
    """Another heuristic for the same modularity: as good within 0.01, and as close to the known types within 0.02."""
    import igraph

    (cpu, gpu), *_ = carried.both(stage)
    labels = [read_table(path).iloc[:, 0].cat.codes.to_numpy() for path in (cpu, gpu)]
    graph = read_graph(carried.cpu("cohort/neighbors.h5")[0]).tocoo()
    upper = graph.row < graph.col
    network = igraph.Graph(graph.shape[0], np.column_stack([graph.row[upper], graph.col[upper]]))
    quality = [network.modularity(x, weights=graph.data[upper].tolist(), resolution=0.6) for x in labels]
    assert quality[1] > quality[0] - 0.01, quality
    if (types := truth(carried)) is not None:
        scores = [adjusted_rand_score(types, x) for x in labels]
        assert scores[1] > scores[0] - 0.02, scores


def test_kmeans(carried):
    """Both take the best of ten starts: within 1 % of the same sum of squares."""
    (cpu, gpu), *_ = carried.both("kmeans")
    X = representation(carried)

    def inertia(path: Path) -> float:
        codes = read_table(path).iloc[:, 0].cat.codes.to_numpy()
        return sum(((X[codes == k] - X[codes == k].mean(0)) ** 2).sum() for k in range(codes.max() + 1))

    assert inertia(gpu) < 1.01 * inertia(cpu)


@pytest.mark.parametrize(
    ("stage", "shared"), [("markers_logreg", 0.95), ("markers_ttest", 1.0), ("markers_wilcoxon", 1.0)]
)
def test_markers(carried, stage, shared):
    """t-tests use float64 sums; rank sums are exact, of values rounded to float32, where devices may differ by a bit.

    The regression stops near its optimum, on float32 features.
    """
    (cpu, gpu), *_ = carried.both(stage)
    cpu, gpu = read_markers(cpu), read_markers(gpu)
    assert list(cpu["group"].unique()) == list(gpu["group"].unique())
    for group in cpu["group"].unique():
        tops = [set(table[table["group"] == group]["names"].head(20)) for table in (cpu, gpu)]
        assert len(tops[0] & tops[1]) >= shared * 20, group
    if stage != "markers_logreg":
        keys = ["group", "names"]
        cpu, gpu = cpu.set_index(keys).sort_index(), gpu.set_index(keys).sort_index()
        np.testing.assert_allclose(gpu["scores"], cpu["scores"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gpu["pvals"], cpu["pvals"], rtol=1e-4, atol=1e-12)


def test_matrices(carried):
    """The same X and counts as in the CPU's atlas; X is computed in float64 and rounded to float32."""
    cpu = ad.read_h5ad(carried.cpu("atlas.h5ad")[0])
    gpu = read_arrays(*carried.gpu("matrices", STAGES["matrices"][0]), "X/data", "layers/counts/data", "X/indices")
    np.testing.assert_array_equal(cpu.layers["counts"].data, gpu["layers/counts/data"])
    np.testing.assert_array_equal(cpu.layers["counts"].indices, gpu["X/indices"])
    np.testing.assert_allclose(cpu.X.data, gpu["X/data"], rtol=1e-6)


def test_scores(carried):
    """float64 sums in another order, then float32; p-values of scores that differ by one bit."""
    pairs = carried.both("scores")
    assert pairs
    for cpu, gpu in pairs:
        cpu, gpu = read_table(cpu), read_table(gpu)
        assert list(cpu) == list(gpu)
        np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-5)


def test_pseudobulk(carried):
    """Sums of counts and numbers of cells are exact; means and variances are float32 of sums in another order."""
    ((cpu, gpu),) = carried.both("pseudobulk")
    one, two = content(cpu), content(gpu)
    assert one.keys() == two.keys()
    for name, values in one.items():
        if name in ("layers/mean", "layers/var"):
            np.testing.assert_allclose(two[name], values, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(two[name], values, err_msg=name)


def test_cell_cycle(carried):
    """The same control genes, hence the same scores to float32; a cell at a limit may change its phase."""
    skip_without_cell_cycle("cell_cycle", carried)
    for cpu, gpu in carried.both("cell_cycle"):
        cpu, gpu = read_table(cpu), read_table(gpu)
        for name in ("S_score", "G2M_score"):
            np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-4, atol=1e-5)
        S, G2M = cpu["S_score"].abs(), cpu["G2M_score"].abs()
        margin = np.minimum.reduce([S, G2M, (cpu["S_score"] - cpu["G2M_score"]).abs()])  # from a limit between phases
        assert (margin[gpu["phase"] != cpu["phase"]] < 1e-4).all()


def test_annotation_model(carried):
    """The same genes; both fits stop near the optimum: weights correlate above 0.99."""
    for cpu, gpu in carried.both("annotation_model"):
        cpu, gpu = read_arrays(cpu), read_arrays(gpu)
        for name in ("labels", "universe"):
            np.testing.assert_array_equal(gpu[name], cpu[name])
        shared = np.intersect1d(cpu["genes"], gpu["genes"])
        assert len(shared) >= 0.99 * len(cpu["genes"])
        one, two = (found["weights"][:, np.isin(found["genes"], shared)].ravel() for found in (cpu, gpu))
        assert np.corrcoef(one, two)[0, 1] > 0.99


def test_annotation(carried):
    """The same model: float32 products, so that a cell between two labels may change."""
    for cpu, gpu in carried.both("annotation"):
        cpu, gpu = read_table(cpu), read_table(gpu)
        np.testing.assert_allclose(gpu["annotation_probability"], cpu["annotation_probability"], atol=1e-3)
        for name in ("annotation_label", "annotation_majority"):
            assert (gpu[name].astype(str) == cpu[name].astype(str)).mean() > 0.999


@pytest.mark.parametrize("stage", STAGES)
def test_record_names_the_card(carried, stage):
    import json

    skip_without_cell_cycle(stage, carried)
    if stage == "harmony" and not content(carried.cpu("cohort/harmony.h5")[0]):
        pytest.skip("one batch: Harmony is skipped")
    logs = (carried.folder / f"{stage}-1" / "logs").rglob("*.run.json")
    records = [json.loads(path.read_text()) for path in logs]
    mine = [record for record in records if record["rule"] == stage and record["device"] == "gpu"]
    assert mine
    for record in mine:
        assert record["card"]
        assert record["driver"]
        assert 0 < record["peak_gpu_mb"] <= record["cap_mb"]


def test_trust_integration(carried):
    """Distances are float32; a neighbour at nearly equal distance can change a cell's test of kBET, 1 of 2,000."""
    for n in range(3):
        for cpu, gpu in carried.both("trust_integration", n):
            cpu, gpu = pd.read_csv(cpu, sep="\t"), pd.read_csv(gpu, sep="\t")
            pd.testing.assert_frame_equal(gpu, cpu, rtol=0, atol=5e-3, check_exact=False)


@pytest.mark.parametrize("name", ["pca", "harmony", "neighbors", "umap", "tsne"])
def test_gpu_results_are_within_the_tolerances_of_trust(carried, name):
    """The checks of `trust_stages`, on the GPU's artifact of one stage and the CPU's of the others."""
    import trust_stages

    def one(artifact):
        return [str(path) for path in carried.cpu(artifact)]

    files = {key: one(f"cohort/{key}.h5")[0] for key in ("pca", "neighbors")} | {"harmony": one("cohort/harmony.h5")}
    files |= {"obs": one("cohort/obs.parquet")[0], "features": one("cohort/features.h5ad"), "cell_cycle": []}
    files |= {"umap": one("cohort/umap.parquet")[0], "tsne": one("cohort/tsne.parquet"), "clusters": []}
    artifact = str(carried.gpu(name, STAGES[name][0])[0])
    files[name] = [artifact] if isinstance(files[name], list) else artifact
    config = settings.complete({key: value for key, value in carried.config.items() if key != "annotation"})
    batch_key = config["batch_key"]
    params = {"batch_key": batch_key, "batch_keys": [batch_key], "n_cells": 5000, "seed": 0, "target_sum": 1e4}
    given = trust_stages.Sampled(SimpleNamespace(**files), SimpleNamespace(**params, harmony=config["harmony"]))
    embedding = {"umap": [given.files.umap], "tsne": given.files.tsne}
    if name in embedding:
        found = trust_stages.of_embedding(given, embedding[name])
    else:
        found = getattr(trust_stages, f"of_{name}")(given)
    for check, value in found.items():
        limit = trust_stages.limits_of(name)[check]
        assert limit.holds(value), (check, value, limit.said)
