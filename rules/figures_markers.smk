# Figures of the tests of markers, of the scores of gene sets, and of the names of cell types.


SCORES_OF_SETS = "4 Gene sets and cell types"


rule figures_volcano:
    input:
        ranking=f"{COHORT}/markers/{{grouping}}/{{method}}.parquet",
        shown=f"{COHORT}/markers/{{grouping}}/{{method}}.shown.tsv",
    output:
        volcano=figure(
            "results/figures/markers/{grouping}/{method}_volcano",
            caption="volcano",
            category=MARKERS,
            subcategory=grouping_of,
            labels={"method": "{method}", "figure": "volcano"},
        ),
    log:
        "logs/cohort/figures_volcano/{grouping}/{method}.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_volcano"),
    params:
        grouping=grouping_of,
    script:
        "../scripts/figures_volcano.py"


TESTS = [method for method in METHODS if method != "logreg"]
FIGURES += expand(rules.figures_volcano.output, grouping=GROUPING_PARTS, method=TESTS)


rule figures_scores:
    input:
        scores=f"{COHORT}/scores/{{collection}}/{{scored}}.parquet",
        umap=f"{COHORT}/umap.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
    output:
        heatmap=figure(
            "results/figures/scores/{collection}/{scored}_{grouping}",
            caption="scores",
            category=SCORES_OF_SETS,
            subcategory="{collection}",
            labels={"method": "{scored}", "figure": "means by {grouping}"},
        ),
        umaps=figure(
            "results/figures/scores/{collection}/{scored}_{grouping}_umap",
            caption="scores_umap",
            category=SCORES_OF_SETS,
            subcategory="{collection}",
            labels={"method": "{scored}", "figure": "UMAP"},
        ),
        means="results/tables/scores/{collection}/{scored}_{grouping}.tsv",
    log:
        "logs/cohort/figures_scores/{collection}/{scored}_{grouping}.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_scores"),
    params:
        seed=config["seed"],
        grouping=grouping_of,
        label=lambda wildcards: f"{wildcards.scored} score",
    script:
        "../scripts/figures_scores.py"


FIGURES += expand(
    rules.figures_scores.output,
    collection=SETS,
    scored=SCORED,
    grouping=(GROUPING_PARTS or [escape("sample")])[:1],
)


# What the names of types are compared with: the known ones, else a clustering
TYPES = [
    name
    for name in settings.label_names(config)
    if name not in ("phase", "subclusters")
]
KNOWN = LABEL_KEY or (CLUSTERINGS or ["sample"])[0]


rule figures_annotation:
    input:
        names=[TABLE_OF[name] for name in TYPES],
        known=[TABLE_OF[KNOWN]] if KNOWN in TABLE_OF else [],
        obs=f"{COHORT}/obs.parquet",
    output:
        figures=[
            path
            for name in TYPES
            for path in figure(
                f"results/figures/annotation/{name}",
                caption="annotation",
                category=SCORES_OF_SETS,
                subcategory="Cell types",
                labels={"figure": f"confusion of {name}"},
            )
        ],
        tables=expand("results/tables/{name}.tsv", name=TYPES),
    log:
        "logs/cohort/figures_annotation.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_annotation"),
    params:
        names=TYPES,
        known=KNOWN,
        formats=len(FORMATS),
    script:
        "../scripts/figures_annotation.py"


FIGURES += rules.figures_annotation.output
