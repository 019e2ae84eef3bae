# Config, sample sheet, paths and resources, which all rules look up.

import gc
import os
import sys
from functools import cache
from pathlib import Path

# Jobs and rules live on as long as Snakemake, so that the collection of what does not would look at them in vain
gc.freeze()
gc.set_threshold(100_000)

HOME = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
sys.path.append(str(HOME / "scripts"))

from lib import start
from lib.inputs import config as settings
from lib.inputs import contrasts, demo, formats, genesets, reference, sizes
from lib.inputs import sheet as sheets
from lib.run import cards, diagnosis, models, notices, resources
from lib.run.errors import UserError
from lib.run.plan import plan
from lib.store.names import escape, unescape
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

try:
    complete = settings.complete(demo.without_demo(config, HOME))
    SHEET = sheets.read_sheet(sheets.find_sheet(complete["samples"], HOME), complete)
    COLLECTIONS = genesets.read_collections(complete["gene_sets"])
except UserError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(complete)  # in the order of the model instead of the file

DEVICE = diagnosis.choose(config["device"])
GPU = int(DEVICE == "gpu")  # the request of a rule that computes on it
GPU_ENV = f"../envs/{DEVICE}.yaml"
# Whether jobs run on this machine, and not as jobs of a cluster
HERE = not workflow.remote_exec and workflow.resource_settings.nodes is None
TURNS = 60  # for jobs with long kernels on this machine's cards; what most wait for takes all
SPARES = 1  # forks that wait for jobs with CUDA started; a cluster job's stages come one by one
if GPU and not diagnosis.unusable():
    if not workflow.remote_exec:
        given = workflow.global_resources.get("vram_mb").value or float("inf")
        SPARES = min(
            cards.spares(min(given, card.memory_mb)) for card in cards.visible()
        )
    # Parallel jobs share this machine's cards, within their memory
    shared = {"vram_mb": sum(map(cards.room, cards.visible())), "turns": TURNS}
    for name in shared:
        if name not in workflow.global_resources:
            workflow.register_resource(name, shared[name])

# What most wait for goes first on a card; cores are used best if jobs that take all of them come first
SPINE, CLUSTERED, MARKED = (10, 8, 4) if GPU else (1, 3, 1)

CODE = models.of_scripts()
SAMPLES = list(SHEET.index)
BATCH_KEY, LABEL_KEY = config["batch_key"], config["label_key"]
CLUSTERINGS = settings.clustering_names(config)
GROUPINGS = settings.groupings(config)
GROUPING_PARTS = list(map(escape, GROUPINGS))  # as parts of paths
METHODS = config["markers"]["methods"]
DENSITY_KEY = config["density"]["groupby"] or BATCH_KEY

# A patient of the demo: the settings of `simulate`, and its size while the file does not exist
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
SUB = f"{COHORT}/sub/{{subgroup}}"  # a group of cells that is clustered again

# Categories of the report
QC, FEATURES, EMBEDDINGS = "1 Quality control", "2 Features", "3 Embeddings"
MARKERS, TABLES, RUNS, NOTES = "4 Markers", "5 Tables", "6 Runs", "0 Worth a look"

WITH_HARMONY = lookup(dpath="harmony/enabled", within=config)
WITH_TSNE = lookup(dpath="tsne/enabled", within=config)
HARMONY = branch(WITH_HARMONY, then=[f"{COHORT}/harmony.h5"], otherwise=[])
TSNE = branch(WITH_TSNE, then=[f"{COHORT}/tsne.parquet"], otherwise=[])
BASES = ["umap", *branch(WITH_TSNE, then=["tsne"], otherwise=[])]

# The cell cycle's scores, if they are regressed out
CYCLE_TABLE = f"{COHORT}/cell_cycle.parquet"
CYCLE_SCORES = settings.cycle_scores(config)
CELL_CYCLE = [CYCLE_TABLE] if {*config["regress_out"]["keys"]} & {*CYCLE_SCORES} else []

LABEL_TABLES = {"phase": "cell_cycle"}
LABEL_TABLES |= {name: name for name in ("annotation_markers", "subclusters")}
# Columns of cells that stages write as groupings -> their tables
TABLE_OF = {
    name: f"{COHORT}/{name.replace('_', '/', 1)}.parquet" for name in CLUSTERINGS
}
TABLE_OF |= {
    name: f"{COHORT}/{LABEL_TABLES.get(name, 'annotation')}.parquet"
    for name in settings.label_names(config)
}

SUBGROUPS = config["subclusters"]["groups"]
SUBGROUP_PARTS = list(map(escape, SUBGROUPS))  # as parts of paths

SHARDS = config["shards"]
WHOLE = int(SHARDS == 1)  # whether one job reads the whole cohort
HVG_PASSES = ["first", "second"][
    : settings.hvg_passes(config["hvg"]["flavor"], config["normalize"]["target_sum"])
]
# The group of stages that are one cluster job; none with shards, whose jobs run between these stages
CHAIN = "cohort" if WHOLE else None


# The other files add to these: artifacts that the atlas collects (`lib.store.slots`), and figures for readers
ARTIFACTS, FIGURES = [], []


wildcard_constraints:
    patient=r"P\d+(-treated)?",
    sample="|".join(map(re.escape, SAMPLES)),
    subgroup="|".join(map(re.escape, SUBGROUP_PARTS)) or "none",
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
    """The config without keys that do not affect a result and would only cause reruns."""
    return {key: value for key, value in config.items() if key not in keys}


def patient_number(wildcards):
    """The number of the demo's patient: 3 for P3, and for P3-treated."""
    return int(wildcards.patient[1:].removesuffix("-treated"))


def is_treated(wildcards):
    """Whether the demo's patient has planted effects."""
    return wildcards.patient.endswith("-treated")


def of_line(function, *given):
    """A param from the sample's line of the sheet, by a function of `lib.inputs.sheet`."""
    return lambda wildcards: function(SHEET, wildcards.sample, *given)


def ingest_options(wildcards):
    """The options of a sample's file that the reader of its format reads."""
    path = Path(sheets.path_of(SHEET, wildcards.sample))
    given = sheets.file_options(SHEET, wildcards.sample, config)
    return formats.options_of(path, given)


def file_version(wildcards):
    """Names, sizes and times of the files read for a sample; empty for the demo's files, which a rule makes."""
    path = Path(SHEET.loc[wildcards.sample, "path"])
    made = path.parts[:1] == ("demo",)
    return [] if made else formats.version_of_file(path, config["ingest"]["genome"])


def colours_of(names):
    """The family of each column's colours (`lib.store.categories`); columns that are not named have those of types."""
    families = dict.fromkeys(["sample", BATCH_KEY], "batches")
    families |= dict.fromkeys(CLUSTERINGS, "clusters")
    return {name: families[name] for name in names if name in families}


def grouping_of(wildcards):
    """The name of the grouping in a path."""
    return unescape(wildcards.grouping)


def grouping_file(wildcards):
    """The table that holds a grouping; none if it is a column of obs."""
    name = grouping_of(wildcards)
    return [TABLE_OF[name]] if name in TABLE_OF else []


def marker_tables(method):
    """What a method writes: all tested genes, the first of each group (also without hidden families), and a panel."""
    at = f"{COHORT}/markers/{{grouping}}/{method}"
    top = report(
        f"{at}.top.tsv",
        caption="captions/markers_table.rst",
        category=MARKERS,
        subcategory=grouping_of,
        labels={"method": method, "table": "first markers"},
    )
    files = {"markers": f"{at}.tsv.gz", "top": top, "ranking": f"{at}.parquet"}
    return files | {name: f"{at}.{name}.tsv" for name in ("shown", "panel")}


def reference_of(wildcards):
    """What the groups of a grouping are compared with."""
    return settings.reference_of(config, grouping_of(wildcards))


@cache
def sample_sizes():
    """Each sample's sizes, from its file's header; for demo patients not yet simulated, the expected sizes."""
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
    contrasts.check(SHEET, config)
    sample_sizes()
    genesets.check(COLLECTIONS, SHEET, config)
    REFERENCE_IS_MODEL = reference.look_at(SHEET, config)
    GROUP_SIZES = sizes.group_sizes(SHEET, config, sample_sizes())
except UserError as error:
    raise WorkflowError(str(error)) from None


@cache
def load_of(sample):
    """The load of a sample, known before the run; None: of all samples together."""
    of_each = sample_sizes()
    return resources.Load.of([of_each[sample]] if sample else list(of_each.values()))


def load_of_group(group):
    """The load of a group of cells: the counts of all samples, and its cells as far as the headers tell them."""
    cohort = load_of(None)
    return cohort.of_group((GROUP_SIZES or {}).get(group, cohort.n_kept))


if not WHOLE and load_of(None).n_kept < SHARDS:
    raise WorkflowError(
        f"the config's shards are {SHARDS}, but there are {load_of(None).n_kept} cells at most. Set `shards` to 1."
    )


def asked(stage, wildcards, threads=1):
    """The model of a job's resources, and its input, the job."""
    part, given = "", wildcards
    if "passed" in wildcards.keys():
        made, given = rule_of_pass(wildcards)
        stage, part = made.name, Path(wildcards.passed).name
    elif "scatteritem" in wildcards.keys():
        part = "features"
    demo = "patient" in wildcards.keys()
    load = resources.Load.of([DEMO_SIZES]) if demo else load_of(given.get("sample"))
    told = config
    if "subgroup" in wildcards.keys():
        load = load_of_group(unescape(wildcards.subgroup))
        told = config | {"shards": 1}  # of a group's jobs each reads all its cells
    grouping = unescape(given.get("grouping", ""))
    more = {"threads": threads, "grouping": grouping, "part": part}
    job = resources.Job.of(load, told, bool(GPU), **more)
    return models.model_of(stage, CODE["models"][stage]), job


@cache
def needed(stage, named, threads, attempt):
    """The resources of a job, whose wildcards are given as pairs; Snakemake asks often."""
    model, job = asked(stage, Wildcards(fromdict=dict(named)), threads)
    return models.resources_of(model(job), job, attempt)


def needs(stage):
    """The resources of a rule (`mem_mb`, `vram_mb`, `runtime`, `disk_mb`), by the model in its stage's script."""

    def need(name):
        def resource(wildcards, threads, attempt):
            beside = beside_mb() if name == "mem_mb" else 0
            named = tuple(wildcards.items())
            return needed(stage, named, threads, attempt)[name] + beside

        return resource

    found = {name: need(name) for name in ("mem_mb", "vram_mb", "runtime", "disk_mb")}
    return found | {"gpu_pool": int(config["gpu"]["pool"])}


def uses_gpu(made):
    """Whether the jobs of a rule use a GPU."""
    return made.resources.get("gpu").raw not in (None, 0, "0")


def with_gpu_resources(ours):
    """Set resource X to the profile's `on_gpu_X` in rules whose jobs, or whose group, use a GPU."""
    on_gpu = list(filter(uses_gpu, ours))
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
            made.resources["gpu"] = 0  # `gpu_model` alone would request a GPU


def beside_mb(wildcards=None):
    """Memory of a job in addition to its stage's: a cluster job also runs its own Snakemake and warm processes."""
    warm = config["warm"] * (models.WARM_MB + GPU * models.WARM_GPU_MB)
    return 0 if workflow.local_exec else models.SNAKEMAKE_MB + warm


def cores(stage):
    """Threads of a rule: one for small inputs, which spend their time on starting; beside a GPU some are left free."""

    def threads(wildcards):
        read = models.read_mb(*asked(stage, wildcards))
        return 1 if read < 100 else 8 if read < 500 else 16 - 4 * GPU

    return threads


def few_cores(stage, most=4):
    """Threads of a rule that runs beside others, at most half of this machine's cores; `most` beside a GPU."""
    if not GPU:
        given = HERE and workflow.resource_settings.cores
        most = max(1, given // 2) if given else 16
    return lambda wildcards: min(most, cores(stage)(wildcards))


def sample_cores(stage):
    """Threads of a sample's rule: few if there are many samples, which run in parallel instead."""
    most = max(1, 16 // len(SAMPLES))
    return lambda wildcards: min(most, cores(stage)(wildcards))


def forks(wildcards):
    """Processes that draw a job's figures, or cluster: one for few cells, as starting others takes longer."""
    return 1 if load_of(wildcards.get("sample")).n_obs < 40_000 else 4
