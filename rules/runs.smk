# Times and resources of all jobs, from the run records beside the logs; these rules run last.

import tomllib

NOTICES = "results/tables/notices.tsv"


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
        runs=rules.runs.output,
        explorer=rules.explorer.output,
        logo=config["report"]["logo"] or [],
    output:
        report="results/report.html",
    log:
        "logs/report.log",
    conda:
        "../envs/cpu.yaml"
    threads: 4
    resources:
        **needs("report"),
    params:
        config=config_but("device", "gpu", "limits", "warm"),
        version=tomllib.loads((HOME / "pyproject.toml").read_text())["project"][
            "version"
        ],
        sheet=SHEET.astype(str).to_dict("list"),
        # no inputs, so that the job of one file does not wait for those of others
        jobs=finished_jobs,
        marks=marked_files,
        records=lambda wildcards, input: run_records(input.runs),
    script:
        "../scripts/report.py"
