"""Compare the workflow on a GPU with rapids-singlecell in memory: seconds, GPU memory, truth, parts of the wall time.

    python tests/benchmarks/gpu.py --cells 200000 --cells 1000000

Both run the article's steps with the parameters of config/config.yaml on a cohort of 30,000 genes, 20 cell types and
about 2,400 genes per cell: the workflow by Snakemake with all cores and one card, as users run it; rapids-singlecell in
one process (rapids_peer.py). Below 500,000 cells the cohort is one h5ad of eight patients, from there on one h5ad per
patient of 25,000 cells. Tables go to results/, as markdown and as JSON; with --only, the other side's numbers of the
same day stay in the file.

The workflow runs twice. The first run, with as many parallel jobs as fit, gives the wall time, and the seconds and
memory of the figures. The second run, up to the atlas with one job at a time, gives those of the other stages. Our
seconds are the sum over all jobs of a stage, from the run records: `compute` without process start, imports, reading
and writing, `all` with them. rapids-singlecell's are between two device synchronisations, without its imports;
`compute` is without the stages that read or write files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml
from run import HOME, PATIENTS, RESULTS, RULES, SAME, UP_TO_PCA, command_line, cpu, workflow_result, write_config
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

SPLIT_FROM = 500_000  # from this number of cells on each patient has its own file
PER_PATIENT = 25_000
FILES = ("ingest", "write")  # stages of rapids-singlecell that only read or write files
SAMPLE = 1000  # cells whose neighbours are checked
KINDS = ["import", "read", "compute", "write"]
PACKAGES = ["cupy", "rmm", "cuvs", "cuml", "pylibcugraph", "rapids-singlecell", "scanpy", "anndata", "numpy", "scipy"]
PACKAGES += ["h5py", "snakemake"]
PARTS = {
    "waited": "waiting for the scheduler, cores or GPU memory",
    "start": "from a job's submission to its process",
    "import": "imports, CUDA's start among them",
    "read": "reading",
    "compute": "computing",
    "write": "writing",
    "rest": "from a process's end to the job's end",
}


CLUSTERINGS = {"": "Leiden", "_louvain": "Louvain", "_unintegrated": "Leiden on the unintegrated components"}


def simulate(folder: Path, cells: int, args: argparse.Namespace) -> list[Path]:
    """The files of a cohort of the article's shape, simulated if they do not exist yet."""
    split = cells >= SPLIT_FROM
    n_patients = cells // PER_PATIENT if split else PATIENTS
    target = folder / "cohort" if split else folder / "cohort.h5ad"
    files = [target / f"P{i}.h5ad" for i in range(1, n_patients + 1)] if split else [target]
    if not all(file.exists() for file in files):
        command = [sys.executable, HOME / "scripts/simulate.py", target, f"--patients={n_patients}"]
        command += [f"--cells={cells // n_patients}", f"--processes={args.cores}", *["--split"] * split]
        command += [f"--umi={args.umi}", *["--compression=gzip"] * args.compressed]
        started = time.time()
        subprocess.run([str(c) for c in command], check=True)
        size = sum(file.stat().st_size for file in files) / 1e9
        print(f"simulated in {time.time() - started:.0f} s, {size:.1f} GB", flush=True)
    return files


def configure(folder: Path, files: list[Path], device: str, memory_gb: float | None) -> Path:
    """The default config with the article's keys and the device, and a sheet of the files."""
    path = write_config(folder, files[0])
    config = yaml.safe_load(path.read_text()) | {"device": device}
    if memory_gb is not None:
        config["gpu"] = config.get("gpu", {}) | {"memory_gb": memory_gb}
    path.write_text(yaml.safe_dump(config))
    (folder / "samples.tsv").write_text("sample\tpath\n" + "".join(f"{file.stem}\t{file}\n" for file in files))
    return path


def run_workflow(
    folder: Path, config: Path, cores: int, memory_gb: float | None, one_by_one: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Run the workflow; with `memory_gb`, on a card that has no more memory left.

    Parameters
    ----------
    one_by_one
        One job at a time, each with the cores that it requests, up to the atlas, without figures and report.
    resume
        Continue a run that was ended. The wall seconds are then from the first job's start to the end, and without
        the parts.

    Returns
    -------
    `stages`: seconds and memory of each stage's jobs (`stage_costs`). `parts`, `path`: the parts of the wall time
    (`wall_profile`). Wall seconds, the card's peak memory, and the quality of the result.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", HOME / "Snakefile", "--directory", folder]
    command += ["--configfile", config, "--cores", cores]
    command += ["--default-resources", "jobs=1"] if one_by_one else []
    last = ["--no-hooks", "--", "results/atlas.h5ad"] if one_by_one else []
    for name in () if resume else ("results", "logs", ".snakemake"):  # of earlier runs
        shutil.rmtree(folder / name, ignore_errors=True)
    lines: list[tuple[float, str]] = []
    with occupied(memory_gb) as room, card_memory() as card, (folder / "snakemake.log").open("w") as log:
        limits = ["jobs=1"] * one_by_one + ([] if room is None else [f"vram_mb={room}"])
        command = [str(c) for c in [*command, *(["--resources", *limits] if limits else []), *last]]
        launched = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            lines.append((time.time(), line.rstrip("\n")))
            log.write(line)
        process.wait()
    exited = time.time()
    records = read_records(folder)
    result = {"seconds": exited - launched, "jobs": len(records), "card": card, "notes": []}
    result["stages"] = stage_costs(records)
    if process.returncode:
        result["log"] = [line for _, line in lines[-100:]]
        print("\n".join(result["log"]), file=sys.stderr)
        said = [line for line in result["log"] if line.startswith("Somersault, ")]
        result["notes"].append(f"the workflow failed: {said[0] if said else ' '.join(result['log'][-3:])}")
        return result
    if resume:
        result["seconds"] = exited - records["started"].min()
        result["notes"].append("resumed: the wall time includes the time between the calls")
    else:
        jobs = records.join(read_log(lines))
        result["at_once"] = float((jobs["finished"] - jobs["submitted"]).sum() / result["seconds"])
        result["parts"], result["path"] = wall_profile(jobs, launched, exited)
    result = workflow_result(folder) | result
    truth = pd.read_parquet(folder / "results/cohort/obs.parquet", columns=["CellType"])["CellType"]
    louvain = pd.read_parquet(next((folder / "results/cohort/louvain").glob("*.parquet"))).iloc[:, 0]
    result |= {"ari_louvain": adjusted_rand_score(truth.astype(str), louvain.astype(str))}
    return result | {"clusters_louvain": int(louvain.nunique()), "recall": our_recall(folder / "results/cohort")}


def read_records(folder: Path) -> pd.DataFrame:
    """The run records by the path of the job's log: rule, seconds in total and by kind, start, end, memory."""
    rows = {}
    for path in sorted((folder / "logs").rglob("*.run.json")):
        record = json.loads(path.read_text())
        rows[str(path.relative_to(folder)).removesuffix(".run.json") + ".log"] = record | record.get("seconds_by", {})
    columns = ["rule", "started", "ended", "seconds", *KINDS, "peak_gpu_mb", "peak_rss_mb"]
    table = pd.DataFrame.from_dict(rows, "index").reindex(columns=columns)
    return table.astype({"rule": str} | dict.fromkeys(columns[1:], float))


def stage_costs(records: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Per stage the number of jobs, the sum of their seconds, and the largest memory of a job."""
    stage = records["rule"].mask(records["rule"].str.startswith("figures"), "figures").replace(SAME)
    groups = records.groupby(stage)
    costs = groups[["seconds", *KINDS]].sum(min_count=1)
    costs = costs.join(groups[["peak_gpu_mb", "peak_rss_mb"]].max()).join(groups.size().rename("jobs"))
    costs = costs.rename(columns={"peak_gpu_mb": "gpu_mb", "peak_rss_mb": "mb"})
    return json.loads(costs.to_json(orient="index"))


def read_log(lines: list[tuple[float, str]]) -> pd.DataFrame:
    """Snakemake's jobs by the path of their log: times of submission and end, input and output files."""
    jobs, blocks, block = {}, {}, {}
    for at, line in lines:
        if re.fullmatch(r"(local)?(rule|checkpoint) \w+:", line):
            block = {"submitted": at, "input": "", "output": ""}
        elif found := re.fullmatch(r" {4}(\w+): (.*)", line):
            block[found[1]] = found[2]
            if found[1] == "jobid":
                blocks[found[2]] = block
        elif found := re.match(r"Finished jobid: (\d+)", line):
            job = blocks[found[1]]
            files = {name: re.sub(r" \([^)]*\)", "", job[name]).split(", ") for name in ("input", "output")}
            if "log" in job:
                jobs[job["log"]] = {"submitted": job["submitted"], "finished": at, **files}
    return pd.DataFrame.from_dict(jobs, "index")


def wall_profile(jobs: pd.DataFrame, launched: float, exited: float) -> list[list[dict]]:
    """The parts of the wall time.

    A job's time, from the end of the last job that it waits for to its own end, is divided into PARTS. The critical
    path goes from the job that ends last to the last job that it waits for, and so on: its parts add up to the wall
    time.

    Parameters
    ----------
    jobs
        From `read_records` and `read_log`.
    launched, exited
        Snakemake's start and end.

    Returns
    -------
    Seconds of each part on the critical path and of all jobs together; and the jobs of the path, with their parts.
    """
    maker = {file: log for log, files in jobs["output"].items() for file in files}
    awaited = {log: {maker[file] for file in files if file in maker} for log, files in jobs["input"].items()}
    before = {log: jobs.loc[list(logs), "finished"].max() if logs else launched for log, logs in awaited.items()}
    parts, started = jobs[KINDS].fillna(0), jobs["started"].fillna(jobs["submitted"])
    parts["waited"] = jobs["submitted"] - pd.Series(before)
    parts["start"] = started - jobs["submitted"]
    parts["rest"] = jobs["finished"] - started - parts[KINDS].sum(axis=1)
    path = [jobs["finished"].idxmax()]
    while awaited[path[-1]]:
        path.append(jobs.loc[list(awaited[path[-1]]), "finished"].idxmax())
    parts = parts[list(PARTS)]
    steps = parts.loc[path[::-1]]
    first, last = jobs["submitted"].min() - launched, exited - jobs["finished"].max()
    rows = [{"part": "Snakemake, until it submits the first job", "path": first}]
    rows += [{"part": what, "path": steps[name].sum(), "jobs": parts[name].sum()} for name, what in PARTS.items()]
    # The waiting time of a job that runs beside others delayed nothing
    rows[1] = {"part": PARTS["waited"], "path": steps["waited"].sum() - first}
    rows.append({"part": "after the last job: the report", "path": last})
    jobs_in_all = parts.drop(columns="waited").sum().sum()
    rows.append({"part": "**in all**", "path": exited - launched, "jobs": jobs_in_all})
    steps.insert(0, "job", [log.removeprefix("logs/").removesuffix(".log") for log in steps.index])
    return [json.loads(frame.round(2).to_json(orient="records")) for frame in (pd.DataFrame(rows), steps)]


def our_recall(cohort: Path) -> float:
    """The recall of the neighbours in `neighbors.h5`, for those that the graph uses."""
    with h5py.File(cohort / "neighbors.h5", "r") as file:
        use_rep, n_pcs, metric = (file.attrs[name] for name in ("use_rep", "n_pcs", "metric"))
        cells = sampled(len(file["indices"]))
        found = file["indices"][cells, : file.attrs["n_neighbors"] - 1]
    with h5py.File(cohort / ("pca.h5" if use_rep == "X_pca" else "harmony.h5"), "r") as file:
        X = file[use_rep][:, :n_pcs]
    return knn_recall(X, cells, list(found), metric)


def sampled(n_obs: int) -> np.ndarray:
    """SAMPLE cells of `n_obs`, sorted; all if there are fewer."""
    return np.sort(np.random.default_rng(0).choice(n_obs, min(SAMPLE, n_obs), replace=False))


def knn_recall(X: np.ndarray, cells: np.ndarray, found: list[np.ndarray], metric: str = "euclidean") -> float:
    """The fraction of the cells' nearest neighbours in X, by brute force, that were found.

    Parameters
    ----------
    X
        All cells x dimensions.
    cells
        Rows of X.
    found
        The neighbours found for each of them, without itself.
    """
    k = max(len(neighbors) for neighbors in found)
    exact = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric=metric).fit(X)
    nearest = exact.kneighbors(X[cells], return_distance=False)
    hits = [
        len(np.intersect1d(mine, others[others != cell][: len(mine)])) / len(mine)
        for cell, mine, others in zip(cells, found, nearest, strict=True)
    ]
    return float(np.mean(hits))


@contextmanager
def occupied(memory_gb: float | None) -> Iterator[int | None]:
    """Hold all but `memory_gb` of the card's memory, and claim it; yields the MB that the workflow's jobs may claim."""
    if memory_gb is None:
        yield None
        return
    with subprocess.Popen(
        [sys.executable, __file__, "--hold", str(memory_gb)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        yield int(holder.stdout.readline())
        holder.stdin.close()


def hold(memory_gb: float) -> None:
    """See `occupied`; holds until the end of the standard input."""
    sys.path.append(str(HOME / "scripts"))
    import cupy
    from lib.run import cards

    (card,) = cards.visible()
    left = int(memory_gb * 1024)
    room = cards.room(cards.Card(0, "", left))
    cards.claim(cards.room(card) - room - cards.CONTEXT_MB, [card])
    cupy.zeros(1)
    free, _ = cupy.cuda.runtime.memGetInfo()
    held = cupy.cuda.alloc(free - left * 2**20)
    print(room, flush=True)
    sys.stdin.read()
    del held


@contextmanager
def card_memory() -> Iterator[dict[str, float]]:
    """Measure the memory in use on the card, or on the fullest of several, in MB, five times a second.

    Yields
    ------
    `before` and, after the block, `peak`, the most that was used beside that; nothing without a card.
    """
    card: dict[str, float] = {}
    if shutil.which("nvidia-smi") is None:
        yield card
        return
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    card["before"] = max(map(float, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))
    watching = subprocess.Popen([*query, "-lms", "200"], stdout=subprocess.PIPE, text=True)
    seen = [card["before"]]

    def watch() -> None:
        for line in watching.stdout:
            seen.append(max(seen.pop(), float(line)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield card
    finally:
        watching.terminate()
        watcher.join()
        card["peak"] = seen[0] - card["before"]


def run_peer(folder: Path, files: list[Path], config: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run rapids-singlecell; end it if a stage takes more than `args.timeout` seconds."""
    out, log = folder / "peer.jsonl", folder / "peer.log"
    command = [sys.executable, Path(__file__).with_name("rapids_peer.py"), config, out, folder / "peer.h5ad", *files]
    command += ["--skip", *args.skip] if args.skip else []
    command += [] if args.memory_gb is None else ["--memory-gb", args.memory_gb]
    out.write_text("")
    launched = time.time()
    with card_memory() as card, log.open("w") as file:
        process = subprocess.Popen([str(c) for c in command], stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.1)
            if time.time() - out.stat().st_mtime > args.timeout:
                process.kill()
                process.wait()
    result: dict[str, Any] = {"seconds": time.time() - launched, "card": card, "notes": []}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    result["stages"] = [line for line in lines if "seconds" in line]
    for line in lines:
        result |= line.get("result", {})
        if "ready" in line:
            result["import_seconds"] = line["ready"] - launched
        if "error" in line:
            result["notes"].append(
                f"{line['stage']} died after {line['seconds']:.1f} s at {line['gpu_mb']:,.0f} MB: {line['error']}"
            )
    ended, last = {line["stage"] for line in result["stages"]}, (log.read_text().splitlines() or [""])[-1]
    if open_stages := [line["stage"] for line in lines if line.get("stage", "") not in ended and "stage" in line]:
        result["notes"].append(f"{open_stages[0]} did not end (exit status {process.returncode}): {last}")
    elif process.returncode:
        result["notes"].append(f"it failed (exit status {process.returncode}): {last}")
    return result


def peer_costs(peer: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Per rule of our workflow the seconds and the highest peak of rapids-singlecell's finished stages."""
    costs: dict[str, dict[str, float]] = {}
    for stage in (stage for stage in peer.get("stages", []) if "error" not in stage):
        cost = costs.setdefault(stage["rule"], {"seconds": 0.0, "compute": 0.0, "gpu_mb": 0.0})
        cost["seconds"] += stage["seconds"]
        cost["compute"] += stage["seconds"] * (stage["stage"] not in FILES)
        cost["gpu_mb"] = max(cost["gpu_mb"], stage["gpu_mb"])
    return costs


def table(ours: dict[str, dict], peer: dict[str, dict]) -> pd.DataFrame:
    """One row per stage and two of totals, over the stages that both have; the total of memory is the maximum."""
    columns = ["jobs", "seconds", *KINDS, "gpu_mb"]
    mine = pd.DataFrame.from_dict(ours, "index").reindex(index=RULES, columns=columns).astype(float)
    columns = ["seconds", "compute", "gpu_mb"]
    theirs = pd.DataFrame.from_dict(peer, "index").reindex(index=RULES, columns=columns).astype(float)
    # Our stages normalise when they read, so only rapids-singlecell has normalize. If it died, only ours has totals
    died = "pca" not in peer
    compared = [rule for rule in RULES if rule in (ours if died else peer) and rule != "figures"]
    for name, rules in {"up to PCA": RULES[:UP_TO_PCA], "in all": RULES}.items():
        both = [rule for rule in rules if rule in compared]
        for frame in (mine, theirs):
            sums = frame.loc[both].sum(min_count=1)
            sums["gpu_mb"] = frame.loc[both, "gpu_mb"].max()
            frame.loc[f"**{name}**"] = np.nan if frame is theirs and died else sums
    rows = pd.DataFrame({"stage": mine.index, "jobs": mine["jobs"].values, "compute s": mine["compute"].values})
    rows["rapids compute s"] = theirs["compute"].values
    rows["compute: rapids / ours"] = rows["rapids compute s"] / rows["compute s"].where(rows["compute s"] > 0)
    rows["all s"], rows["rapids all s"] = mine["seconds"].values, theirs["seconds"].values
    rows["all: rapids / ours"] = rows["rapids all s"] / rows["all s"]
    rows["GPU MB"], rows["rapids GPU MB"] = mine["gpu_mb"].values, theirs["gpu_mb"].values
    rows["GPU MB: rapids / ours"] = rows["rapids GPU MB"] / rows["GPU MB"].where(rows["GPU MB"] > 0)
    return rows


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Cards, driver, CUDA, processor, memory and versions."""
    about: dict[str, Any] = {"cores": cores(), "cpu": cpu()}
    about["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        about["cards"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
        about["cuda"] = next(iter(re.findall(r"CUDA Version: *([\d.]+)", shown)), None)
    plain = {re.sub(r"-cu(da)?1\dx?$", "", d.name.lower().replace("_", "-")): d.version for d in distributions()}
    about["versions"] = {"python": platform.python_version()} | {p: plain[p] for p in PACKAGES if p in plain}
    return about


def markdown(measured: dict[str, Any], rows: pd.DataFrame) -> str:
    """The tables, with the facts needed to judge them."""
    sides = {name: measured[name] for name in ("ours", "peer") if measured[name]}
    lines = [f"# {measured['cells']:,} cells x 30,000 genes: GPU benchmark", ""]
    for name, side in sides.items():
        about = side["machine"]
        cards = f"{'; '.join(about['cards'])}; CUDA {about['cuda']}; " if "cards" in about else ""
        lines += [f"`{side['command']}`", ""]
        if name == "ours" or not measured["ours"] or about != measured["ours"]["machine"]:
            lines += [f"{side['date']}, {cards}{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB."]
            lines += [", ".join(f"{package} {v}" for package, v in about["versions"].items()) + ".", ""]
    lines += [*_markdown_table(rows, [0, 2, 2, 1, 2, 2, 1, 0, 0, 1]), ""]
    for name, side in sides.items():
        lines += [f"- {'ours' if name == 'ours' else 'rapids-singlecell'}: {_summary(side)}"]
        lines += [f"- {note}" for note in side["notes"]]
    if measured["ours"].get("parts"):
        lines += ["", "## Where the workflow's wall time goes", "", "Seconds, on the critical path and of all jobs."]
        lines += ["", *_markdown_table(pd.DataFrame(measured["ours"]["parts"]), [1, 1]), ""]
        lines += ["The critical path, job by job.", ""]
        lines += _markdown_table(pd.DataFrame(measured["ours"]["path"]), [1] * len(PARTS))
    return "\n".join(lines) + "\n"


def _summary(side: dict[str, Any]) -> str:
    words = []
    if "n_obs" in side:
        words.append(f"{side['n_obs']:,} cells x {side['n_vars']:,} genes kept")
    for key, what in CLUSTERINGS.items():
        if f"ari{key}" in side:
            found = f"{side['clusters' + key]} clusters, adjusted Rand index {side['ari' + key]:.3f}"
            words.append(f"{what}: {found} against the true types")
    if "recall" in side:
        words.append(f"{100 * side['recall']:.2f} % of the nearest neighbours of {SAMPLE:,} cells found")
    if "import_seconds" in side:
        words.append(f"{side['import_seconds']:.1f} s of imports before the first stage")
        stages = [stage for stage in side["stages"] if stage["rule"] in ("ingest", "normalize", "pca", "unintegrated")]
        words.append(", ".join(f"{stage['stage']} {stage['seconds']:.2f} s" for stage in stages))
    if "alone_seconds" in side:
        words.append(f"{side['alone_seconds']:.1f} s to the atlas, one job at a time")
    if "at_once" in side:
        words.append(f"{side['jobs']} jobs, {side['at_once']:.1f} at once")
    words.append(f"{side['seconds']:.1f} s from start to end, all included")
    if "peak" in side["card"]:
        words.append(f"at most {side['card']['peak']:,.0f} MB in use on the card, {side['card']['before']:,.0f} before")
    return "; ".join(words)


def _markdown_table(rows: pd.DataFrame, digits: list[int]) -> list[str]:
    lines = ["| " + " | ".join(rows.columns) + " |", "|---" + "|---:" * (len(rows.columns) - 1) + "|"]
    for row in rows.itertuples(index=False):
        cells = ["–" if pd.isna(v) else f"{v:,.{d}f}" for v, d in zip(row[1:], digits, strict=True)]
        lines.append("| " + " | ".join([row[0], *cells]) + " |")
    return lines


def benchmark(cells: int, args: argparse.Namespace, folder: Path) -> bool:
    """Simulate, run one or both, write and print the tables; return whether all went well."""
    folder.mkdir(parents=True, exist_ok=True)
    files = simulate(folder, cells, args)
    if args.sim_only:
        return True
    config = configure(folder, files, args.device, args.memory_gb)
    date = time.strftime("%Y-%m-%d")
    capped = f"-{args.memory_gb:g}gb" if args.memory_gb else ""
    target = args.out / f"{date}-gpu-{cells}{capped}.json"
    measured: dict[str, Any] = {"cells": cells, "ours": {}, "peer": {}}
    if args.only and target.exists():
        measured = json.loads(target.read_text())
    about = {"command": command_line("python"), "date": date, "machine": machine()}
    # Written after each part, so that a failure of the next part does not lose it
    if args.only != "peer":
        measured["ours"] = about | run_workflow(folder, config, args.cores, args.memory_gb, resume=args.resume)
        write_tables(measured, target)
    if args.only != "ours":
        measured["peer"] = about | run_peer(folder, files, config, args)
        write_tables(measured, target)
    if args.only != "peer" and not args.wall_only:
        alone = run_workflow(folder, config, args.cores, args.memory_gb, one_by_one=True)
        measured["ours"]["notes"] += alone["notes"]
        if "parts" in alone:
            measured["ours"]["stages"] |= alone["stages"]
            measured["ours"]["alone_seconds"] = alone["seconds"]
        write_tables(measured, target)
    return not measured["ours"] or "n_obs" in measured["ours"]


def write_tables(measured: dict[str, Any], target: Path) -> None:
    """Write the measurements so far, as JSON and as markdown, and print them."""
    rows = table(measured["ours"].get("stages", {}), peer_costs(measured["peer"]))
    measured["table"] = json.loads(rows.to_json(orient="records"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(measured, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(measured, rows))
    print(markdown(measured, rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, action="append", help="of the cohort; may repeat (default: 200000)")
    parser.add_argument("--memory-gb", type=float, help="GPU memory that each side may take (default: the card's)")
    parser.add_argument("--only", choices=["ours", "peer"])
    parser.add_argument("--umi", type=float, default=6000, help="median UMIs of a simulated cell")
    parser.add_argument("--compressed", action="store_true", help="simulate gzipped files")
    parser.add_argument("--resume", action="store_true", help="continue the workflow's run that was ended")
    parser.add_argument("--sim-only", action="store_true", help="simulate the cohort into --folder, and no more")
    parser.add_argument("--wall-only", action="store_true", help="leave out the workflow's run with one job at a time")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="of the workflow")
    parser.add_argument("--cores", type=int, default=cores())
    parser.add_argument("--skip", nargs="*", default=[], help="rules that rapids-singlecell shall not run: tsne ...")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one of its stages may take")
    parser.add_argument("--folder", type=Path, help="where to run, and what to keep (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--hold", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hold is not None:
        return hold(args.hold)
    went_well = []
    for cells in args.cells or [200_000]:
        if args.folder:
            went_well.append(benchmark(cells, args, args.folder.resolve() / str(cells)))
        else:
            with tempfile.TemporaryDirectory() as folder:
                went_well.append(benchmark(cells, args, Path(folder)))
    sys.exit(not all(went_well))


if __name__ == "__main__":
    main()
