"""HDF5 1.10 reads all files that users open, and old versions of anndata and scanpy read the atlas."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import doublets
import numpy as np
import pytest
from atlases import build, numbered, slashed

SCRIPT = Path(__file__).parents[1] / "takes_atlas.py"
ENVIRONMENTS = {  # the oldest anndata allowed, and h5py with HDF5 1.12; the last 0.10, and HDF5 1.14
    "anndata 0.10.0": "anndata==0.10.0 h5py==3.8.* scanpy==1.9.6 numpy<1.25 pandas<2.1 scipy<1.12 matplotlib<3.8 "
    "zarr<2.17 numcodecs<0.16 igraph",
    "anndata 0.10.9": "anndata==0.10.9 h5py==3.11.* scanpy==1.10.* numpy<2 pandas<2.3 scipy<1.14 matplotlib<3.10 "
    "zarr<3 igraph",
}
ATLASES = {  # how each is made, then its label and its batch by their names in it
    "numbers": ((numbered, "seurat_clusters", "PatientNumber"), "seurat_clusters", "PatientNumber"),
    "slashes": ((slashed, "cell/type"), "cell_type-1", "sample"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return {name: build(folder / name, *how) for name, (how, _, _) in ATLASES.items()}


def test_hdf5_1_10_reads_every_value(built):
    """h5dump prints all values of the stores, the arrays and the atlas; for a file in a newer format it fails."""
    if not shutil.which("h5dump"):
        pytest.skip("needs h5dump (Debian: hdf5-tools)")
    atlas = built["slashes"].atlas
    simulated = atlas.with_name("simulated.h5")
    doublets.write_simulated({"a/b": doublets.Doublets(np.zeros(3), np.arange(5.0), 0.5)}, simulated)
    files = [*atlas.parent.glob("*.h5ad"), *atlas.parent.glob("*.h5")]
    assert {"atlas.h5ad", "a.h5ad", "pca.h5", "neighbors.h5", "simulated.h5"} <= {path.name for path in files}
    for path in files:
        done = subprocess.run(["h5dump", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path
        assert "DATA {" in done.stdout


def taken(built, folder, *python) -> list[dict]:
    """What a Python's anndata reads of each atlas."""
    atlases = [part for name, (_, *columns) in ATLASES.items() for part in (built[name].atlas, *columns)]
    done = subprocess.run(
        [*python, SCRIPT, folder / "copies", *atlases], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def ours(built, tmp_path_factory):
    return taken(built, tmp_path_factory.mktemp("ours"), sys.executable)


@pytest.mark.slow
@pytest.mark.xdist_group("old versions")
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_old_anndata_and_scanpy_take_the_atlas(built, ours, environment, tmp_path):
    """They read the same as our versions in every slot, and can draw, join and copy the atlas."""
    if not (uv := shutil.which("uv")):
        pytest.skip("needs uv, to make an environment of old versions")
    old = [uv, "run", "--quiet", "--isolated", "--no-project", "--python", "3.11"]
    old += [word for package in ENVIRONMENTS[environment].split() for word in ("--with", package)]
    ready = subprocess.run([*old, "python", "-c", ""], capture_output=True, text=True, check=False)
    if ready.returncode:
        pytest.skip(f"no environment of old versions: {ready.stderr[-300:]}")
    assert taken(built, tmp_path, *old, "python") == ours
    for found, (_, label, _) in zip(ours, ATLASES.values(), strict=True):
        assert found["obs"][label][0] == "category"
