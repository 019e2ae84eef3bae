import pandas as pd
import pytest
from lib.inputs import subgroups
from lib.run.errors import UserError
from subclusters import summary, with_subclusters, without_markers
from subset import cells_of


def test_labels_keep_the_place_of_their_group():
    labels = pd.Series(pd.Categorical(["B", "T", None, "T", "A", "T"], ["B", "T", "A"]))
    clusters = pd.Series(pd.Categorical(["1", "0", "0"], ["0", "1"]))
    found = with_subclusters(labels, {"T": clusters})
    assert found.tolist()[:2] + found.tolist()[3:] == ["B", "T,1", "T,0", "A", "T,0"]
    assert found.isna().tolist() == labels.isna().tolist()
    assert list(found.cat.categories) == ["B", "T,0", "T,1", "A"]


def test_summary_has_sizes_batches_and_markers():
    clusters = pd.Series(pd.Categorical(["0", "1", "0", "0"]))
    top = pd.DataFrame({"group": ["0", "0"], "rank": [1, 6], "gene_symbols": ["CD4", "CD8A"]})
    table = summary(clusters, pd.Series([1, 2, 1, 2]), top).set_index("subcluster")
    assert table.loc["0"].tolist() == [3, 75, "1", pytest.approx(200 / 3), "CD4"]
    assert table.loc["1"].tolist() == [1, 25, "2", 100, ""]


def test_all_groups_that_cannot_be_clustered_are_told():
    cells = {"T": 100, "T,0": 5, "B": 2, "NK": 3}
    subgroups.check(["NK"], cells, "type")
    with pytest.raises(UserError) as told:
        subgroups.check(["T", "B", "NKT", "NK"], cells, "type", "kept")
    for part in ("'T,0' would also be", "'B' has 2 kept cells, too few", "'NKT' is no group", "like 'NK'", "(100)"):
        assert part in str(told.value)
    assert "'NK' has" not in str(told.value)
    with pytest.raises(UserError, match="It has no kept cells"):
        subgroups.check(["T"], {}, "type", "kept")


def test_a_cluster_needs_a_marker_of_its_own():
    top = pd.DataFrame({"group": [*"aabbcc"], "pct_nz_group": [0.5, 0.9, 0.3, 0.4, 1, 1]})
    top["pct_nz_reference"] = [0.5, 0.5, 0.2, 0.35, 1, 0.99]
    top["logfoldchanges"] = [0, 1, 5, 0.1, 0.2, 1.5]
    (found,) = without_markers(top, "type T")
    assert found.where == "Cluster b of type T"
    assert "at most 10 points" in found.said
    assert found.beyond == pytest.approx(2.5)


def test_categories_without_cells_are_dropped():
    obs = pd.DataFrame({"batch": pd.Categorical(["P1", "P2", "P2"], ordered=True), "n": [1, 2, 3]})
    found = cells_of(obs, (obs["n"] > 1).to_numpy())
    assert list(found["batch"].cat.categories) == ["P2"]
    assert found["batch"].cat.ordered
    assert len(obs["batch"].cat.categories) == 2
