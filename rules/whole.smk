# What is known of a whole run: its rules, their code, the jobs and what these ask for, their records and notices.

import hashlib
import json


def own_rules():
    """The rules of this workflow that run a script."""
    scripts = {path.name for path in (HOME / "scripts").glob("*.py")}
    mine = (rule for rule in workflow.rules if HOME in Path(rule.snakefile).parents)
    return [rule for rule in mine if rule.script and Path(rule.script).name in scripts]


def code_of(rule):
    """The version of the code that a rule runs."""
    return CODE["versions"][Path(rule.script).name]


def hash_of(params):
    """A hash of a rule's params by name; params that are functions of wildcards are left to Snakemake."""
    named = {name: value for name, value in params.items() if not callable(value)}
    text = json.dumps(named, default=str, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def make_literal(params):
    """Turn params with braces into functions: Snakemake takes `{sample}` in a text, or in a list, for a wildcard."""
    for name, value in list(params.items()):
        if isinstance(value, (str, list)) and "{" in str(value):
            setattr(params, name, lambda wildcards, value=value: value)


def jobs_of_all(targets):
    """The jobs of a whole run with these targets that run a script of this workflow, each after those of its inputs."""
    return planned(tuple(map(str, targets)))


@cache
def planned(targets):
    """See `jobs_of_all`."""
    return [job for job in plan(own_rules(), targets, PLANNED) if job.log]


PLANNED = {}  # the jobs that are known already (`lib.run.plan`)


def needs_of_all(targets):
    """The resources that each job of a whole run requests."""
    names = ("mem_mb", "vram_mb", "runtime", "disk_mb")
    return [
        {"rule": job.rule.name} | {name: job.resource(name) for name in names}
        for job in jobs_of_all(targets)
    ]


def whole_load(wildcards):
    """The load of the whole cohort, as a dict."""
    return vars(load_of(None))


def limits(wildcards):
    """The largest allowed request of a job, in the resources' units: from config, command line and this machine."""
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
        given = workflow.global_resources.get(name).value
        found[name] = min((n for n in (limit, given) if n is not None), default=None)
    return found


def only_looks():
    """Whether this run computes nothing: preflight and doctor run on machines of any kind."""
    looks = {"preflight", "doctor", "-n", "--dry-run", "--dryrun", "--lint"}
    return not looks.isdisjoint(sys.argv)


def check_device():
    """Refuse `device: gpu` if the jobs run on this machine and it has no usable GPU: there is no silent fallback."""
    if (
        GPU
        and workflow.local_exec
        and not only_looks()
        and (problem := diagnosis.unusable())
    ):
        raise WorkflowError(diagnosis.refusal(problem))


def warm_processes():
    """Name this Snakemake to the warm processes of its jobs, if it runs several on this machine."""
    several = workflow.local_exec or len(workflow.dag_settings.target_jobs) > 1
    os.environ.pop(start.VARIABLE, None)
    if config["warm"] and several:
        on_gpu = {Path(made.script).stem for made in own_rules() if uses_gpu(made)}
        os.environ[start.VARIABLE] = start.names_itself(os.getpid(), on_gpu, SPARES)
        alone = workflow.main_snakefile == str(HOME / "Snakefile")
        if start.LINUX and alone:  # the commands of others' rules are left alone
            shell.prefix(start.prefix())
        # beside Snakemake's plan of the jobs; a cluster's number of nodes says that they run elsewhere
        if workflow.resource_settings.nodes is None and not only_looks():
            start.begin_early()


def unlimited_rate():
    """Start jobs on this machine as soon as there are cores. Snakemake's usual limit, 100 jobs a second, has it look
    at all waiting jobs again each second, once more for each job that ended, and end a second late.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if workflow.local_exec and limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def run_records(targets):
    """The paths of the run records of all jobs of a whole run, beside their logs."""
    return [f"{Path(job.log).with_suffix('')}.run.json" for job in jobs_of_all(targets)]


def say_notices():
    """Print, at the end of a run, the notices of its jobs and of earlier jobs whose results are still valid."""
    if only_looks():
        return
    records = notices.read_records(run_records(rules.all.input))
    found = notices.notices(records, rules.runs.params.versions)
    print(notices.shown(found, NOTICES), file=sys.stderr)


def finished_jobs(wildcards, input):
    """What the report is told of each job of a whole run: its rule, its script, its wildcards and its files."""
    return [
        told_job(job) | {"script": Path(job.rule.script).stem, "output": job.output}
        for job in jobs_of_all(input.runs)
    ]


def marked_files(wildcards, input):
    """The files of a whole run that their rules mark for the report, with what the marks say."""
    return [
        told_job(job) | mark for job in jobs_of_all(input.runs) for mark in job.marks
    ]


def told_job(job):
    """The names of a job as users know them."""
    known = {name: unescape(value) for name, value in job.wildcards.items()}
    return {"rule": job.rule.name, "wildcards": known}
