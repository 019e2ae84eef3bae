# Config, sample sheet, paths and resources: everything that the rules look up.

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
sys.path.append(str(HOME / "scripts"))

from lib import cards
from lib import config as settings
from lib import device as devices
from lib.errors import UserError
from snakemake.exceptions import WorkflowError

try:
    complete = settings.complete(config, HOME / "config/schemas/config.schema.yaml")
    SHEET = settings.read_sheet(
        settings.find_sheet(complete["samples"], HOME), complete
    )
except UserError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(complete)  # in the schema's order, whatever the file's

DEVICE = devices.choose(config["device"])
GPU = int(DEVICE == "gpu")  # what a rule that computes on it asks for
GPU_ENV = f"../envs/{DEVICE}.yaml"
if GPU and not devices.unusable() and "vram_mb" not in workflow.global_resources:
    # Jobs side by side share this machine's cards as far as their memory goes
    workflow.register_resource("vram_mb", sum(map(cards.room, cards.visible())))

SAMPLES = list(SHEET.index)
BATCH_KEY, LABEL_KEY = config["batch_key"], config["label_key"]
CLUSTERINGS = settings.clustering_names(config)
GROUPINGS = settings.groupings(config)
METHODS = config["markers"]["methods"]
BASES = ["umap", "tsne"] if config["tsne"]["enabled"] else ["umap"]
DENSITY_KEY = config["density"]["groupby"] or BATCH_KEY
HARMONY = ["results/cohort/harmony.h5"] if config["harmony"]["enabled"] else []
TSNE = ["results/cohort/tsne.parquet"] if config["tsne"]["enabled"] else []

# Categories of the report
QC, FEATURES, EMBEDDINGS = "1 Quality control", "2 Features", "3 Embeddings"
MARKERS, TABLES, RUNS = "4 Markers", "5 Tables", "6 Runs"
BASIS_NAMES = {"umap": "UMAP", "tsne": "t-SNE"}

SAMPLE = "results/samples/{sample}"
COHORT = "results/cohort"


wildcard_constraints:
    patient=r"P\d+",
    sample="|".join(map(re.escape, SAMPLES)),
    method="|".join(map(re.escape, METHODS)) or "none",


def of_samples(name):
    """The artifact `name` of every sample, in the order of the sheet."""
    return expand(f"{SAMPLE}/{name}", sample=SAMPLES)


def sample_path(wildcards):
    """The file that the sheet names for a sample."""
    return SHEET.loc[wildcards.sample, "path"]


def recorded_config():
    """The config as the atlas records it: what has no part in the result would only re-run it."""
    return {key: value for key, value in config.items() if key not in ("device", "gpu")}


def patient_number(wildcards):
    """The demo's patient P3 is number 3."""
    return int(wildcards.patient[1:])


def sheet_obs(wildcards):
    """What the sheet adds to a sample's obs."""
    return settings.sheet_obs(SHEET, wildcards.sample)


def cell_limits(wildcards):
    """The `cells` section of the config with the sample's own limits."""
    return settings.cell_limits(SHEET, wildcards.sample, config["cells"])


def counts_slot(wildcards):
    """Where a sample's file keeps its counts."""
    return settings.counts_slot(SHEET, wildcards.sample, config)


def clustering_file(name):
    """The table of a clustering: leiden_0.6 is results/cohort/leiden/0.6.parquet."""
    return f"{COHORT}/{name.replace('_', '/', 1)}.parquet"


def grouping_file(wildcards):
    """The table that holds a grouping, none where it is a column of obs."""
    return (
        [clustering_file(wildcards.grouping)]
        if wildcards.grouping in CLUSTERINGS
        else []
    )


def coloured(name):
    """The figure of an embedding in one colouring, for the report."""
    return report(
        f"results/figures/{{basis}}/{name}.png",
        caption="captions/embedding.rst",
        category=EMBEDDINGS,
        subcategory=lambda wildcards: BASIS_NAMES[wildcards.basis],
        labels={"coloured by": name},
    )


def megabytes(files):
    """The size of a rule's input; what does not exist yet counts as nothing."""
    return sum(os.path.getsize(f) for f in files if os.path.exists(f)) / 1e6


def memory(base, factor):
    """`mem_mb` of a rule: `base` MB and `factor` MB for every MB of input; more at a second attempt."""

    def mem_mb(wildcards, input, attempt):
        return int((base + factor * megabytes(input)) * attempt)

    return mem_mb


def check_device():
    """Refuse `device: gpu` where the jobs run on this machine and no GPU can be used; never fall back quietly."""
    if GPU and workflow.local_exec and (problem := devices.unusable()):
        raise WorkflowError(devices.refusal(problem))


def gpu_memory(base, factor):
    """`vram_mb` of a rule, like `memory`: what its job claims on a card, and may not exceed; none on the CPU."""

    def vram_mb(wildcards, input, attempt):
        return claim_mb((base + factor * megabytes(input)) * attempt)

    return vram_mb


def gpu_memory_of_fit(wildcards, input, attempt):
    """`vram_mb` of the logistic regression, which keeps the scaled features on the card in half precision."""
    return claim_mb(
        (2000 + 2.2 * settings.dense_values(input.features) / 1e6) * attempt
    )


def claim_mb(need):
    """What a GPU job claims of a need in MB: at most `gpu: memory_gb`, and nothing on the CPU."""
    most = (config["gpu"]["memory_gb"] or float("inf")) * 1024
    return GPU * int(min(need, most))


def cores(wildcards, input):
    """Threads of a rule: one for small inputs, whose time goes into starting."""
    return 1 if megabytes(input) < 100 else 8 if megabytes(input) < 500 else 16


def few_cores(wildcards, input):
    """Threads of a rule that runs beside others, and whose work a GPU does where there is one."""
    return min(4, cores(wildcards, input)) if GPU else cores(wildcards, input)


def sample_cores(wildcards, input):
    """Threads of a sample's rule: many samples run side by side instead."""
    return max(1, min(cores(wildcards, input), 16 // len(SAMPLES)))


def write_report():
    """Snakemake's own report of the run that just ended: the same command line, asked for the report."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        *sys.argv[1:],
        "--report",
        "results/report.html",
    ]
    done = subprocess.run([*command, "--nolock"], capture_output=True, text=True)
    print(
        done.stderr if done.returncode else "Report: results/report.html",
        file=sys.stderr,
    )
