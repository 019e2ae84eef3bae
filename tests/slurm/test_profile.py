"""The profiles, without a cluster: every entry has a comment, and every rule its group and partition."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from runs import HOME, Run, patients, sheet_of
from snakemake.profiles import ProfileConfigFileParser

PROFILE = HOME / "profiles" / "slurm" / "config.yaml"
RULES = {
    name: text
    for path in (HOME / "rules").glob("*.smk")
    for name, text in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), flags=re.M | re.S)
}
GROUPS = {group for text in RULES.values() for group in re.findall(r'^    group:\n        "(\w+)"', text, flags=re.M)}
# Of a cluster's jobs
ON_GPU = {name for name, text in RULES.items() if re.search(r"^\s+gpu=GPU(?! \* HERE)", text, flags=re.M)}


def read(path: Path) -> dict[str, Any]:
    """A profile as Snakemake reads it, with mappings as NAME=VALUE."""
    with path.open() as file:
        entries = ProfileConfigFileParser().parse(file)
    split = {key: dict(item.split("=", 1) for item in value) for key, value in entries.items() if type(value) is list}
    return {**entries, **split}


def filled(folder: Path, **variables: str) -> dict[str, Any]:
    """The profile with variables filled in."""
    text = PROFILE.read_text()
    for name, value in variables.items():
        text, n = re.subn(rf'^  {name}: ""', f"  {name}: {value}", text, flags=re.M)
        assert n == 1, name
    (folder / "config.yaml").write_text(text)
    return read(folder / "config.yaml")


@pytest.mark.parametrize("name", ["default", "slurm", "generic"])
def test_every_entry_has_a_comment(name):
    lines = ["", *(HOME / "profiles" / name / "config.yaml").read_text().splitlines()]
    bare = [b for a, b in pairwise(lines) if re.match(r"[\w?-]+.*:", b) and "#" not in a + b]
    assert not bare


@pytest.mark.parametrize("name", ["slurm", "generic"])
def test_packed_groups_are_groups_of_rules(name):
    assert set(read(HOME / "profiles" / name / "config.yaml")["group-components"]) <= GROUPS


def test_jobs_with_a_gpu_go_to_its_partition_with_all_that_share_them(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra: uv sync --extra slurm")
    profile = filled(tmp_path, gpu_partition="gpu", gpu_model="h100", partition="cpu", account="12345")
    assert profile["default-resources"]["slurm_account"] == "'12345'"
    run = Run(tmp_path)
    run.write(sheet_of(patients(tmp_path, n_patients=1, n_obs=50)), device="gpu")
    plan = run.snakemake("--dry-run", "--workflow-profile", str(tmp_path)).stdout
    asked = {}
    for rule, line in re.findall(r"^ *(?:local)?rule (\w+):\n(?:.*\n)*? *resources: (.*)", plan, flags=re.M):
        asked[rule] = dict(pair.split("=", 1) for pair in line.split(", "))
    shared = {"ingest", "cells", "density"}  # they share a job with qc and doublets, or with umap
    again = {"umap_again", "tsne_again"}  # `use rule` of umap and tsne
    on_gpu = {rule for rule, needed in asked.items() if needed["slurm_partition"] == "gpu"}
    assert on_gpu == (ON_GPU & asked.keys()) | shared | again
    assert {rule for rule, needed in asked.items() if needed.get("gpu_model") == "h100"} == on_gpu
    assert {rule for rule in on_gpu if asked[rule]["gpu"] == "0"} == shared
    assert {needed["slurm_partition"] for rule, needed in asked.items() if rule not in on_gpu} == {"cpu"}


def test_left_empty_the_profile_asks_for_nothing_of_the_clusters():
    profile = read(PROFILE)
    assert "set-resources" not in profile
    assert set(profile["default-resources"]) == {"mem_mb", "runtime", "packed"}


def test_dry_run_through_each_profile(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra: uv sync --extra slurm")
    run = Run(tmp_path)
    run.write(sheet_of(patients(tmp_path, n_patients=1, n_obs=50)))
    alone = run.jobs()
    for name in ("slurm", "generic"):
        assert run.jobs("--workflow-profile", str(HOME / "profiles" / name)) == alone


def test_shards_lie_between_the_chains_stages_and_travel_with_none(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra: uv sync --extra slurm")
    run = Run(tmp_path)
    run.write(sheet_of(patients(tmp_path, n_patients=1, n_obs=50)), shards=2)
    plan = run.snakemake("--dry-run", "--workflow-profile", str(HOME / "profiles" / "slurm")).stdout
    chain = plan.split("Group job cohort")[1].split("Group job")[0]
    assert set(re.findall(r"^    rule (\w+):", chain, flags=re.M)) == {"pca", "harmony", "neighbors"}


def test_the_tests_run_with_the_extras_plugin():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    assert set(project["project"]["optional-dependencies"]["slurm"]) <= set(project["dependency-groups"]["dev"])
