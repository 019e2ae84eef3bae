# Config, sample sheet, paths and resources: everything that the rules look up.

import os
import sys
from functools import cache
from pathlib import Path

HOME = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
sys.path.append(str(HOME / "scripts"))

from lib.inputs import config as settings
from lib.inputs import formats, sizes
from lib.inputs import sheet as sheets
from lib.run import cards, code, diagnosis, notices, resources
from lib.run.errors import UserError
from lib.run.plan import plan
from lib.store.names import escape, unescape
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

try:
    complete = settings.complete(config)
    SHEET = sheets.read_sheet(sheets.find_sheet(complete["samples"], HOME), complete)
except UserError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(complete)  # in the model's order, whatever the file's

DEVICE = diagnosis.choose(config["device"])
GPU = int(DEVICE == "gpu")  # what a rule that computes on it asks for
GPU_ENV = f"../envs/{DEVICE}.yaml"
if GPU and not diagnosis.unusable() and "vram_mb" not in workflow.global_resources:
    # Jobs side by side share this machine's cards as far as their memory goes
    workflow.register_resource("vram_mb", sum(map(cards.room, cards.visible())))

SAMPLES = list(SHEET.index)
BATCH_KEY, LABEL_KEY = config["batch_key"], config["label_key"]
CLUSTERINGS = settings.clustering_names(config)
GROUPINGS = settings.groupings(config)
GROUPING_PARTS = list(map(escape, GROUPINGS))  # of paths
METHODS = config["markers"]["methods"]
DENSITY_KEY = config["density"]["groupby"] or BATCH_KEY

# A patient of the demo: what `simulate` makes, and its size as long as it is not there
DEMO = {"n_obs": 1000, "n_genes": 8000, "n_types": 8, "umi": 3000}
DEMO_SIZES = sizes.Sizes(
    DEMO["n_obs"],
    DEMO["n_genes"],
    DEMO["n_obs"] * 1200,
    DEMO["n_obs"],
    1,
    DEMO["n_obs"],
)

SAMPLE = "results/samples/{sample}"
COHORT = "results/cohort"

WITH_HARMONY = lookup(dpath="harmony/enabled", within=config)
WITH_TSNE = lookup(dpath="tsne/enabled", within=config)
HARMONY = branch(WITH_HARMONY, then=[f"{COHORT}/harmony.h5"], otherwise=[])
TSNE = branch(WITH_TSNE, then=[f"{COHORT}/tsne.parquet"], otherwise=[])
BASES = ["umap", *branch(WITH_TSNE, then=["tsne"], otherwise=[])]

SHARDS = config["shards"]
WHOLE = int(SHARDS == 1)  # whether one job reads the whole cohort
HVG_PASSES = ["first", "second"][
    : settings.hvg_passes(config["hvg"]["flavor"], config["normalize"]["target_sum"])
]
# What travels as one job of a cluster: with shards, whose jobs lie between these stages, what comes after them
CHAIN = "cohort" if WHOLE else None


# What the files of the flow add to beside their rules: what the atlas gathers (`lib.store.slots`), and what people look at
ARTIFACTS, FIGURES = [], []


wildcard_constraints:
    patient=r"P\d+",
    sample="|".join(map(re.escape, SAMPLES)),
    method="|".join(map(re.escape, METHODS)) or "none",


def of_samples(name):
    """The artifact `name` of every sample, in the order of the sheet."""
    return expand(f"{SAMPLE}/{name}", sample=SAMPLES)


scattergather:
    shards=SHARDS,


FEATURE_FILES = branch(
    WHOLE,
    then=[f"{COHORT}/features.h5ad"],
    otherwise=gather.shards(f"{COHORT}/features/{{scatteritem}}.h5ad"),
)


def config_but(*keys):
    """The config but for what has no part in a result, and would only make it run again."""
    return {key: value for key, value in config.items() if key not in keys}


def patient_number(wildcards):
    """The demo's patient P3 is number 3."""
    return int(wildcards.patient[1:])


def of_line(function, *given):
    """What a sample's line of the sheet says, by a function of `lib.inputs.sheet`."""
    return lambda wildcards: function(SHEET, wildcards.sample, *given)


def file_version(wildcards):
    """Names, sizes and times of what is read of a sample's file; of the demo's, which a rule makes, nothing."""
    path = Path(SHEET.loc[wildcards.sample, "path"])
    made = path.parts[:1] == ("demo",)
    return [] if made else formats.version_of_file(path, config["ingest"]["genome"])


def coloured(name):
    """The figure of an embedding in one colouring, for the report."""
    return report(
        f"results/figures/{{basis}}/{escape(name)}.png",
        caption="captions/embedding.rst",
        category=EMBEDDINGS,
        subcategory=lambda wildcards: BASIS_NAMES[wildcards.basis],
        labels={"coloured by": name},
    )


def clustering_file(name):
    """The table of a clustering: leiden_0.6 is results/cohort/leiden/0.6.parquet."""
    return f"{COHORT}/{name.replace('_', '/', 1)}.parquet"


def grouping_of(wildcards):
    """The name of the grouping that a path is of."""
    return unescape(wildcards.grouping)


def grouping_file(wildcards):
    """The table that holds a grouping, none where it is a column of obs."""
    name = grouping_of(wildcards)
    return [clustering_file(name)] if name in CLUSTERINGS else []


@cache
def sample_sizes():
    """Each sample's sizes, from its file's header; of the demo's patients that are yet to be simulated: theirs."""
    asked = sizes.questions(SHEET, config)
    there = {name: file for name, file in asked.items() if os.path.exists(file.path)}
    known, problems = sizes.read_headers(
        there, Path(".snakemake/somersault/sizes.json")
    )
    for name, texts in sizes.column_problems(SHEET, config).items():
        problems[name] = problems.get(name, []) + texts
    sizes.refuse_problems(problems)
    return {name: known.get(name, DEMO_SIZES) for name in SAMPLES}


try:
    sample_sizes()
except UserError as error:
    raise WorkflowError(str(error)) from None


@cache
def load_of(sample):
    """What is known of a sample's size beforehand; None: of all together."""
    of_each = sample_sizes()
    return resources.Load.of([of_each[sample]] if sample else list(of_each.values()))


if not WHOLE and load_of(None).n_kept < SHARDS:
    raise WorkflowError(
        f"the config's shards are {SHARDS}, but there are {load_of(None).n_kept} cells at most. Set `shards` to 1."
    )


def asked(stage, wildcards, threads=1):
    """The model of a job's resources, and what it is told of the job."""
    part, given = "", wildcards
    if "passed" in wildcards.keys():
        made, given = rule_of_pass(wildcards)
        stage, part = made.name, Path(wildcards.passed).name
    elif "scatteritem" in wildcards.keys():
        part = "features"
    demo = "patient" in wildcards.keys()
    load = resources.Load.of([DEMO_SIZES]) if demo else load_of(given.get("sample"))
    grouping = unescape(given.get("grouping", ""))
    more = {"threads": threads, "grouping": grouping, "part": part}
    job = resources.Job.of(load, config, bool(GPU), **more)
    return resources.model_of(stage), job


def needs(stage):
    """The resources of a rule, `mem_mb`, `vram_mb`, `runtime` and `disk_mb`, by the model in its stage's script."""

    def need(name):
        def resource(wildcards, threads, attempt):
            model, job = asked(stage, wildcards, threads)
            beside = beside_mb() if name == "mem_mb" else 0
            return resources.resources_of(model(job), job, attempt)[name] + beside

        return resource

    found = {name: need(name) for name in ("mem_mb", "vram_mb", "runtime", "disk_mb")}
    return found | {"gpu_pool": int(config["gpu"]["pool"])}


def with_gpu_resources(ours):
    """Give rules whose jobs have a GPU, alone or in their group, what the profile has for these: `on_gpu_X` as X."""
    on_gpu = [
        made for made in ours if made.resources.get("gpu").raw not in (None, 0, "0")
    ]
    groups = {made._group for made in on_gpu} - {None}  # Snakemake tells no `group` yet
    for made in ours:
        if made not in on_gpu and made._group not in groups:
            continue
        given = workflow.resource_settings.overwrite_resources.get(made.name, {})
        for name, value in list(made.resources.items()):
            plain = name.removeprefix("on_gpu_")
            if name != plain and plain not in given:
                made.resources[plain] = value.with_name(plain)
        if made not in on_gpu:
            made.resources["gpu"] = 0  # a model alone asks for one


def beside_mb(wildcards=None):
    """Memory of a job beside its stage's: a cluster's also holds a Snakemake of its own."""
    return 0 if workflow.local_exec else resources.SNAKEMAKE_MB


def cores(stage):
    """Threads of a rule: one for small inputs, whose time goes into starting."""

    def threads(wildcards):
        read = resources.read_mb(*asked(stage, wildcards))
        return 1 if read < 100 else 8 if read < 500 else 16

    return threads


def few_cores(stage):
    """Threads of a rule that runs beside others, and whose work a GPU does where there is one."""
    return lambda wildcards: min(4 if GPU else 16, cores(stage)(wildcards))


def sample_cores(stage):
    """Threads of a sample's rule: many samples run side by side instead."""
    most = max(1, 16 // len(SAMPLES))
    return lambda wildcards: min(most, cores(stage)(wildcards))


def drawers(wildcards):
    """Processes that draw a job's figures: one for few cells, whose time goes into starting."""
    return 1 if load_of(wildcards.get("sample")).n_obs < 40_000 else 4
