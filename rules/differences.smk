# Differences between conditions: pseudobulks, tests of genes and of shares. Nothing runs unless the config asks for it.


rule pseudobulk:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
        shards=passes("pseudobulk", of="{grouping}/", sums=SHARDS),
    output:
        pseudobulk=f"{COHORT}/pseudobulk/{{grouping}}.h5ad",
    log:
        "logs/cohort/pseudobulk/{grouping}.log",
    conda:
        GPU_ENV
    threads: few_cores("pseudobulk")
    resources:
        **needs("pseudobulk"),
        gpu=GPU * WHOLE,
    params:
        grouping=grouping_of,
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        sample_key=SAMPLE_KEY,
        min_cells=config["pseudobulk"]["min_cells"],
    script:
        "../scripts/pseudobulk.py"


rule pseudobulk_scores:
    input:
        pseudobulk=f"{COHORT}/pseudobulk/{{grouping}}.h5ad",
        sets=SET_FILES,
    output:
        scores="results/tables/pseudobulk/{grouping}/scores.tsv",
    log:
        "logs/cohort/pseudobulk_scores/{grouping}.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("pseudobulk_scores"),
    params:
        seed=config["seed"],
        target_sum=config["normalize"]["target_sum"],
        gene_sets=config["gene_sets"],
        scores={name: config["scores"][name] for name in ("methods", "tmin")},
    script:
        "../scripts/pseudobulk_scores.py"


rule de:
    input:
        pseudobulk=f"{COHORT}/pseudobulk/{{grouping}}.h5ad",
        obs=f"{COHORT}/obs.parquet",
    output:
        de=f"{COHORT}/de/{{grouping}}/{{contrast}}.parquet",
        overview="results/tables/de/{grouping}/{contrast}/overview.tsv",
        top="results/tables/de/{grouping}/{contrast}/top.tsv",
        tables=directory("results/tables/de/{grouping}/{contrast}/groups"),
    log:
        "logs/cohort/de/{grouping}/{contrast}.log",
    conda:
        "../envs/cpu.yaml"
    threads: 16
    resources:
        **needs("de"),
    params:
        grouping=grouping_of,
        sample_key=SAMPLE_KEY,
        min_cells=config["pseudobulk"]["min_cells"],
        contrast=contrast_of,
    script:
        "../scripts/de.py"


rule de_enrichment:
    input:
        de=f"{COHORT}/de/{{grouping}}/{{contrast}}.parquet",
        genes=f"{COHORT}/genes.parquet",
        sets=SET_FILES,
    output:
        enrichment="results/tables/de/{grouping}/{contrast}/enrichment.tsv",
    log:
        "logs/cohort/de_enrichment/{grouping}/{contrast}.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("de_enrichment"),
    params:
        gene_sets=config["gene_sets"],
        scores={name: config["scores"][name] for name in ("marker_methods", "tmin")},
    script:
        "../scripts/de_enrichment.py"


rule composition:
    input:
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
    output:
        composition=f"{COHORT}/composition/{{grouping}}/shares.parquet",
        tests=f"{COHORT}/composition/{{grouping}}/tests.parquet",
        table="results/tables/composition/{grouping}/shares.tsv",
        tests_table="results/tables/composition/{grouping}/tests.tsv",
    log:
        "logs/cohort/composition/{grouping}.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("composition"),
    params:
        grouping=grouping_of,
        sample_key=SAMPLE_KEY,
        contrasts=lambda wildcards: contrasts_of(grouping_of(wildcards)),
    script:
        "../scripts/composition.py"


FIGURES += expand(rules.pseudobulk.output, grouping=BULK_PARTS)
if BULK_SCORES:
    FIGURES += expand(rules.pseudobulk_scores.output, grouping=BULK_PARTS)
ARTIFACTS += of_tested(rules.de.output.de)
if SETS and config["scores"]["marker_methods"]:
    FIGURES += of_tested(rules.de_enrichment.output.enrichment)
ARTIFACTS += expand(
    [rules.composition.output.composition, rules.composition.output.tests],
    grouping=list(map(escape, COMPOSED)),
)
