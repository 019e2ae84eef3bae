"""The jobs that run again after a change, from Snakemake's own list; and the files that a killed run leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from runs import COPIED, HOME, Run, patients, sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]


LAST = {"matrices", "atlas", "runs", "report"}  # the matrices are a temporary file


@pytest.fixture
def copy(finished, tmp_path) -> Run:
    """The finished run, to be changed."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished.folder), str(folder)], check=True)
    return Run(folder)


def test_one_more_resolution_runs_one_clustering_and_what_shows_it(copy, cohort_files):
    copy.write(sheet_of(cohort_files), leiden={"resolutions": [0.6, 1.0]}, markers={"groupings": ["CellType"]})
    before = set(copy.jobs())
    assert {"leiden", "atlas", "runs"} <= before
    assert not before & {"ingest", "qc", "doublets", "cells", "genes", "hvg", "features", "pca", "harmony", "neighbors"}
    assert not before & {"umap", "tsne", "louvain", "kmeans", "markers_ttest", "markers_logreg"}


def test_another_resolution_runs_one_clustering_and_what_hangs_on_it(copy, cohort_files):
    copy.write(sheet_of(cohort_files), leiden={"resolutions": [0.8]})
    jobs = {"leiden": 1, "markers_logreg": 1, "markers_ttest": 1, "panel": 1, "figures_markers": 1}
    jobs |= {"figures_clusters": 1, "figures_volcano": 1, "figures_embedding": 2, "explorer": 1}
    jobs |= dict.fromkeys(("trust_stages", "trust_embeddings", "trust_clusters", "trust_resolutions"), 1)
    jobs |= {"figures_stability": 1}
    assert Counter(copy.jobs()) == jobs | dict.fromkeys(LAST, 1)


def test_one_more_sample_runs_it_and_the_cohort(copy, cohort_files, tmp_path):
    more = patients(tmp_path, n_patients=4)[3:]
    copy.write(sheet_of([*cohort_files, *more]))
    jobs = Counter(copy.jobs())
    assert {jobs[name] for name in ("ingest", "qc", "doublets", "cells")} == {1}
    before = copy.snakemake("--dry-run", "--forceall").stdout
    assert {name for name, n in jobs.items() if n} == {
        name for name in before.split("Job stats:")[1].split("total")[0].split()[4::2] if name != "all"
    }


NOT_READ = [  # by the flavour seurat_v3, without `mad`, from h5ad files
    {"hvg": {"n_top_genes": 600, "span": 0.5, "theta": 50, "n_bins": 10, "n_samples": 100, "max_mean": 5}},
    {"cells": {"mad_metrics": ["log1p_total_counts"]}},
    {"ingest": {"genome": "GRCh38", "orientation": "cells_by_genes"}},
]


@pytest.mark.parametrize("change", NOT_READ, ids=lambda change: next(iter(change)))
def test_a_key_that_no_stage_reads_runs_none(copy, cohort_files, change):
    copy.write(sheet_of(cohort_files), **change)
    assert set(copy.jobs()) == LAST  # the atlas has the whole config


def test_another_perplexity_runs_the_tsne_alone(copy, cohort_files):
    copy.write(sheet_of(cohort_files), tsne={"n_iter": 250, "perplexity": 31})
    assert set(copy.jobs()) == LAST | {"tsne", "figures_embedding", "explorer", "trust_embeddings"}


def test_without_a_tsne_nothing_else_runs_again(copy, cohort_files):
    copy.write(sheet_of(cohort_files), tsne={"enabled": False})
    assert set(copy.jobs()) == LAST | {"explorer", "trust_embeddings"}


def test_another_seed_runs_what_is_random(copy, cohort_files):
    copy.write(sheet_of(cohort_files), seed=1)
    jobs = set(copy.jobs())
    assert {"doublets", "hvg", "harmony", "neighbors", "umap", "tsne", "leiden", "louvain", "kmeans", "atlas"} <= jobs
    assert not jobs & {"ingest", "qc"}


def test_samples_in_another_order_run_all_that_joins_them(copy, cohort_files):
    """Also after a run that stopped before the new order makes a difference: the table of genes has the same bytes."""
    copy.write(sheet_of(cohort_files[::-1]))
    joining = {"hvg", "features", "markers_ttest", "figures_markers", "figures_qc", "atlas"}
    assert joining | {"genes"} <= set(copy.jobs())
    copy.snakemake("results/cohort/genes.parquet")
    jobs = set(copy.jobs())
    assert joining <= jobs
    assert "genes" not in jobs
    # If Snakemake ran only these, the first would refuse it instead of joining wrong cells
    done = copy.snakemake("--allowed-rules", "matrices", "atlas", "--", "results/atlas.h5ad", check=False)
    assert done.returncode
    assert "not those of results/cohort/obs.parquet, or stand in another order" in done.stderr


def test_other_code_runs_the_stages_that_import_it(copy, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["cp", "-a", *(HOME / n for n in COPIED), home], check=True)
    assert copy.jobs("--snakefile", str(home / "Snakefile")) == []
    module = home / "scripts" / "lib" / "methods" / "fuzzy.py"
    module.write_text(module.read_text() + "\n# a comment\n")
    assert copy.jobs("--snakefile", str(home / "Snakefile")) == []
    module.write_text(module.read_text() + "\nMORE = 1\n")
    jobs = set(copy.jobs("--snakefile", str(home / "Snakefile")))
    assert {"neighbors", "leiden", "umap"} <= jobs
    assert not jobs & {"ingest", "genes", "hvg", "pca", "harmony"}


def test_results_of_other_code_that_stay_are_told(copy, tmp_path):
    record = copy.folder / "logs" / "cohort" / "pca.run.json"
    record.write_text(record.read_text().replace('"code": "', '"code": "0'))
    done = copy.snakemake("--forcerun", "runs")
    assert "results of pca were made by another version of Somersault's code" in done.stderr
    assert "results of pca were made" in (copy.folder / "results" / "tables" / "notices.tsv").read_text()


def test_a_run_of_one_target_leaves_the_report(copy):
    report = copy.folder / "results" / "report.html"
    before = report.read_bytes()
    copy.snakemake("--forcerun", "qc", "--", "results/samples/P1/qc.parquet")
    assert report.read_bytes() == before
    report.unlink()
    assert copy.jobs() == ["report"]


def test_files_that_changed_unseen_are_read_again(run, cohort_files, tmp_path):
    """An h5ad replaced by an older one, and a matrix overwritten within its folder; one sample each."""
    shutil.copytree(cohort_files[0].parent, tmp_path / "in")
    folder = tmp_path / "in" / "tenx"
    folder.mkdir()
    rows = "".join(f"{gene + 1} {cell + 1} 1\n" for cell in range(30) for gene in range(cell % 3, 40))
    names = {"features": [f"E{i}\tMT-{i}" if i < 5 else f"E{i}\tRPS{i}" for i in range(40)]}
    for name, lines in {**names, "barcodes": [f"C{i}" for i in range(30)]}.items():
        (folder / f"{name}.tsv").write_text("\n".join(lines))
    header = f"%%MatrixMarket matrix coordinate integer general\n40 30 {rows.count(chr(10))}\n"
    (folder / "matrix.mtx").write_text(header + rows)
    files = [tmp_path / "in" / "P1.h5ad", folder]
    run.write(sheet_of(files), label_key=None)
    targets = [f"results/samples/{file.stem}/counts.h5ad" for file in files]
    run.snakemake(*targets)
    assert run.jobs(*targets) == []
    stat = files[0].stat()
    shutil.copy(cohort_files[1], files[0])
    os.utime(files[0], (stat.st_atime, stat.st_mtime - 1000))
    assert run.jobs(*targets) == ["ingest"]
    run.snakemake(*targets)
    (folder / "matrix.mtx").write_text(header + rows.replace(" 1\n", " 2\n"))
    assert run.jobs(*targets) == ["ingest"]


def test_what_jobs_ask_for_runs_nothing(copy, cohort_files):
    """Limits, caps, other resources and threads, and sizes read again."""
    copy.write(sheet_of(cohort_files), limits={"mem_gb": 64, "runtime_h": 24}, gpu={"memory_gb": 8})
    assert copy.jobs() == []
    sizes = copy.folder / ".snakemake" / "somersault" / "sizes.json"
    assert len(sizes.read_text()) > 100
    sizes.unlink()
    assert copy.jobs("--set-resources", "pca:mem_mb=9000", "ingest:runtime=99", "--set-threads", "hvg=2") == []


def test_a_comment_or_a_new_order_of_keys_runs_nothing(copy, cohort_files):
    path = copy.folder / "config" / "config.yaml"
    lines = path.read_text()
    path.write_text("# a comment\n" + lines + "\nseed: 0\n")
    assert copy.jobs() == []


def test_a_record_that_is_gone_or_new_runs_nothing(copy):
    (copy.folder / "logs" / "cohort" / "pca.run.json").unlink()
    (copy.folder / "logs" / "atlas.run.json").touch()
    assert copy.jobs() == []


def test_a_new_column_of_the_sheet_reads_no_file_again(copy, cohort_files):
    copy.write([line | {"site": "Ghent"} for line in sheet_of(cohort_files)])
    jobs = copy.jobs()
    assert jobs.count("cells") == 3
    assert not {"ingest", "qc", "doublets"} & set(jobs)


def test_one_samples_limits_run_that_sample_and_the_cohort(copy, cohort_files):
    sheet = sheet_of(cohort_files)
    copy.write([{**line, "max_genes": "700" if line["sample"] == "P2" else ""} for line in sheet])
    jobs = copy.jobs()
    assert jobs.count("cells") == jobs.count("doublets") == 1
    assert "ingest" not in jobs
    assert {"genes", "hvg", "features", "pca"} <= set(jobs)


def test_killed_midway_leaves_nothing_that_a_rerun_trusts(run, cohort_files):
    """SIGKILL to Snakemake and all its processes, in the middle of a run; the next run ends normally."""
    run.write(sheet_of(cohort_files))
    target = "results/cohort/genes.parquet"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOME / "Snakefile")]
    command += ["--directory", str(run.folder), "--cores", "2", target]
    process = subprocess.Popen(command, cwd=run.folder, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(run.folder.glob("results/samples/*/counts.h5ad")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(run.folder / ".snakemake" / "locks")
    run.snakemake(target)
    other = Run(run.folder / "other")
    other.folder.mkdir()
    other.write(sheet_of(cohort_files))
    other.snakemake(target)
    assert (run.folder / target).read_bytes() == (other.folder / target).read_bytes()


def test_every_table_up_to_the_clusterings_has_the_same_bytes_again(finished, run, cohort_files):
    run.write(sheet_of(cohort_files))
    tables = ["hvg.parquet", "obs.parquet", "genes.parquet", "pca.h5", "harmony.h5", "neighbors.h5", "umap.parquet"]
    tables += ["leiden/0.6.parquet", "louvain/0.6.parquet", "kmeans/8.parquet", "density.parquet"]
    run.snakemake(*(f"results/cohort/{name}" for name in tables))
    samples = [path.relative_to(run.folder) for path in run.folder.glob("results/samples/*/*.parquet")]
    assert len(samples) == 12
    for path in [*samples, *(f"results/cohort/{name}" for name in tables)]:
        assert (run.folder / path).read_bytes() == (finished.folder / path).read_bytes(), path
