# A page on which the cells can be explored in a browser.


rule explorer:
    input:
        artifacts=ARTIFACTS,
        obs=f"{COHORT}/obs.parquet",
        panel=rules.panel.output.panel,
    output:
        explorer="results/explorer.html",
    log:
        "logs/explorer.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("explorer"),
    params:
        seed=config["seed"],
        title=f"Cells of {len(SAMPLES)} sample{'s' * (len(SAMPLES) > 1)}",
        batch_key=BATCH_KEY,
        # columns of categories, also where these are numbers
        groupings=list(
            dict.fromkeys([*LABELS, *CLUSTERINGS, BATCH_KEY, *filter(None, GROUPED)])
        ),
        colours=colours_of([*GROUPED, *CLUSTERINGS]),
        target_sum=config["normalize"]["target_sum"],
        max_cells=config["explorer"]["max_cells"],
    script:
        "../scripts/explorer.py"


FIGURES += rules.explorer.output
