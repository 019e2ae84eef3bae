# Config, sample sheet, paths and resources: everything that the rules look up.

import hashlib
import json
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
from lib.store.names import escape, unescape
from snakemake.exceptions import WorkflowError

try:
    complete = settings.complete(config, HOME / "config/schemas/config.schema.yaml")
    SHEET = sheets.read_sheet(sheets.find_sheet(complete["samples"], HOME), complete)
except UserError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(complete)  # in the schema's order, whatever the file's

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
BASES = ["umap", "tsne"] if config["tsne"]["enabled"] else ["umap"]
DENSITY_KEY = config["density"]["groupby"] or BATCH_KEY
HARMONY = ["results/cohort/harmony.h5"] if config["harmony"]["enabled"] else []
TSNE = ["results/cohort/tsne.parquet"] if config["tsne"]["enabled"] else []

# Categories of the report
QC, FEATURES, EMBEDDINGS = "1 Quality control", "2 Features", "3 Embeddings"
MARKERS, TABLES, RUNS, NOTES = "4 Markers", "5 Tables", "6 Runs", "0 Worth a look"
BASIS_NAMES = {"umap": "UMAP", "tsne": "t-SNE"}

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

SHARDS = config["shards"]
WHOLE = int(SHARDS == 1)  # whether one job reads the whole cohort
HVG_PASSES = settings.hvg_passes(
    config["hvg"]["flavor"], config["normalize"]["target_sum"]
)
HVG_SUMS = f"{COHORT}/shards/hvg_sums"
# What travels as one job of a cluster: with shards, whose jobs lie between these stages, what comes after them
CHAIN = "cohort" if WHOLE else None


wildcard_constraints:
    patient=r"P\d+",
    sample="|".join(map(re.escape, SAMPLES)),
    shard=rf"\d+-of-{SHARDS}",
    method="|".join(map(re.escape, METHODS)) or "none",


def of_samples(name):
    """The artifact `name` of every sample, in the order of the sheet."""
    return expand(f"{SAMPLE}/{name}", sample=SAMPLES)


def of_shards(path):
    """What every shard makes, in the order of the cells; nothing where one job reads the whole cohort."""
    names = [] if WHOLE else [f"{i}-of-{SHARDS}" for i in range(1, SHARDS + 1)]
    return expand(path, shard=names, allow_missing=True)


FEATURE_FILES = of_shards(f"{COHORT}/features/{{shard}}.h5ad") or [
    f"{COHORT}/features.h5ad"
]


def sums_before(wildcards):
    """What the pass of hvg before this one has left."""
    first = of_shards(f"{HVG_SUMS}/1/{{shard}}.h5")
    return [] if wildcards.number == "1" else first


def sample_path(wildcards):
    """The file that the sheet names for a sample."""
    return SHEET.loc[wildcards.sample, "path"]


def config_but(*keys):
    """The config but for what has no part in a result, and would only make it run again."""
    return {key: value for key, value in config.items() if key not in keys}


def patient_number(wildcards):
    """The demo's patient P3 is number 3."""
    return int(wildcards.patient[1:])


def sheet_obs(wildcards):
    """What the sheet adds to a sample's obs."""
    return sheets.sheet_obs(SHEET, wildcards.sample)


def cell_suffix(wildcards):
    """What names a sample's cells."""
    return sheets.cell_suffix(SAMPLES, wildcards.sample)


def cell_limits(wildcards):
    """The `cells` section of the config with the sample's own limits."""
    return sheets.cell_limits(SHEET, wildcards.sample, config["cells"])


def doublet_options(wildcards):
    """The `doublets` section of the config with the sample's own rate and threshold."""
    return sheets.doublet_options(SHEET, wildcards.sample, config["doublets"])


def counts_slot(wildcards):
    """Where a sample's file keeps its counts."""
    return sheets.counts_slot(SHEET, wildcards.sample, config)


def orientation(wildcards):
    """Whether a sample's table of text has a line per cell or per gene."""
    return sheets.orientation(SHEET, wildcards.sample, config)


def file_version(wildcards):
    """Names, sizes and times of what is read of a sample's file; of the demo's, which a rule makes, nothing."""
    path = Path(sample_path(wildcards))
    made = path.parts[:1] == ("demo",)
    return [] if made else formats.version_of(path, config["ingest"]["genome"])


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


def coloured(name):
    """The figure of an embedding in one colouring, for the report."""
    return report(
        f"results/figures/{{basis}}/{escape(name)}.png",
        caption="captions/embedding.rst",
        category=EMBEDDINGS,
        subcategory=lambda wildcards: BASIS_NAMES[wildcards.basis],
        labels={"coloured by": name},
    )


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
    sizes.check(problems)
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


def job_of(wildcards, threads=1):
    """What the models of resources are told of a job."""
    if "patient" in wildcards.keys():
        load = resources.Load.of([DEMO_SIZES])
    else:
        load = load_of(wildcards.get("sample"))
    grouping = unescape(wildcards.get("grouping", ""))
    return resources.job_of(load, config, bool(GPU), threads, grouping)


def needs(stage):
    """The resources of a rule, `mem_mb`, `vram_mb`, `runtime` and `disk_mb`, by the model of its stage."""

    def need(name):
        def resource(wildcards, threads, attempt):
            model, job = resources.MODELS[stage], job_of(wildcards, threads)
            beside = beside_mb() if name == "mem_mb" else 0
            return resources.needs(model, job, attempt)[name] + beside

        return resource

    found = {name: need(name) for name in ("mem_mb", "vram_mb", "runtime", "disk_mb")}
    return found | {"gpu_pool": int(config["gpu"]["pool"])}


def beside_mb(wildcards=None):
    """Memory of a job beside its stage's: a cluster's also holds a Snakemake of its own."""
    return 0 if workflow.local_exec else resources.SNAKEMAKE_MB


def whole_load(wildcards):
    """The size of the cohort."""
    return vars(load_of(None))


def limits(wildcards):
    """What no job may exceed, in the resources' units: the config's limits, those of the command line, this machine's."""
    asked = config["limits"]
    found = {
        "mem_mb": asked["mem_gb"] and asked["mem_gb"] * 1000,
        "vram_mb": asked["gpu_memory_gb"] and asked["gpu_memory_gb"] * 1024,
        "runtime": asked["runtime_h"] and asked["runtime_h"] * 60,
    }
    if workflow.local_exec and found["mem_mb"] is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["mem_mb"] = memory // 10**6
    for name, limit in found.items():
        # Snakemake has cut a job to what the command line gives: as much is too much
        given = workflow.global_resources.get(name).value
        if given is not None and given <= (limit or given):
            found[name] = given - 1
    return found


def only_looks():
    """Whether this run computes nothing: preflight and doctor are for machines of any kind."""
    return not {"preflight", "doctor"}.isdisjoint(sys.argv)


def check_device():
    """Refuse `device: gpu` where the jobs run on this machine and no GPU can be used; never fall back quietly."""
    if (
        GPU
        and workflow.local_exec
        and not only_looks()
        and (problem := diagnosis.unusable())
    ):
        raise WorkflowError(diagnosis.refusal(problem))


def cores(stage):
    """Threads of a rule: one for small inputs, whose time goes into starting."""

    def threads(wildcards):
        read = resources.read_mb(stage, job_of(wildcards))
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
    return 1 if job_of(wildcards).n_obs < 40_000 else 4


def same_command(*more):
    """This command line with `more`, and the folder where to run it: the shell's, where `--directory` led elsewhere."""
    elsewhere = any(word.startswith(("-d", "--directory")) for word in sys.argv)
    cwd = elsewhere and os.getenv("PWD") or os.getcwd()
    return {
        "args": [sys.executable, "-m", "snakemake", *sys.argv[1:], *more],
        "cwd": cwd,
    }


def own_rules():
    """The rules of this workflow that run a script."""
    scripts = {path.name for path in (HOME / "scripts").glob("*.py")}
    mine = (rule for rule in workflow.rules if HOME in Path(rule.snakefile).parents)
    return [rule for rule in mine if rule.script and Path(rule.script).name in scripts]


def code_of(rule):
    """The version of the code that a rule runs."""
    return code.version_of(HOME / "scripts" / Path(rule.script).name)


def hash_of(params):
    """A hash of a rule's params by name; those that are functions of wildcards are left to Snakemake."""
    named = {name: value for name, value in params.items() if not callable(value)}
    text = json.dumps(named, default=str, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def say_notices():
    """Tell, at the end of a run, what its jobs, and those whose results still hold, noted for the user."""
    if only_looks():
        return
    records = notices.read_records(rules.runs.params.records)
    found = notices.notices(records, rules.runs.params.versions)
    print(notices.shown(found, NOTICES), file=sys.stderr)
