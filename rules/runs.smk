# Times and resources of all jobs, from the run records beside the logs; these rules run last.

import hashlib
import json

NOTICES = "results/tables/notices.tsv"


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


def hash_of(params):
    """A hash of a rule's params by name; params that are functions of wildcards are left to Snakemake."""
    named = {name: value for name, value in params.items() if not callable(value)}
    text = json.dumps(named, default=str, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


rule runs:
    input:
        atlas=rules.atlas.output,
        figures=FIGURES,
    output:
        table=report(
            "results/tables/runs.tsv",
            caption="captions/runs_table.rst",
            category=RUNS,
            labels={"table": "what every job took"},
        ),
        timeline=report(
            "results/figures/runs.png",
            caption="captions/runs.rst",
            category=RUNS,
            labels={"figure": "what every job took"},
        ),
        notices=report(
            NOTICES,
            caption="captions/notices.rst",
            category=NOTES,
            labels={"table": "worth a look"},
        ),
    log:
        "logs/runs.log",
    benchmark:
        "benchmarks/runs.tsv"
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("runs"),
    params:
        # no input, so that a run record does not cause reruns
        records=lambda wildcards, input: run_records(input),
        versions={rule.name: code_of(rule) for rule in own_rules()},
    script:
        "../scripts/runs.py"


localrules:
    report,


rule report:
    input:
        rules.runs.output,
    output:
        "results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("report"),
    params:
        config=config_but("device", "gpu", "limits"),
    script:
        "../scripts/report.py"
