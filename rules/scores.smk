# Gene sets: their scores in cells, and the enrichment of markers; the cell cycle. Nothing runs unless the config asks for it.

SET_FILES = [spec for spec in config["gene_sets"].values() if isinstance(spec, str)]
SETS = list(map(escape, COLLECTIONS))  # as parts of paths
SCORED = config["scores"]["methods"]
WITH_PADJ = [method for method in SCORED if method in ("ulm", "mlm", "zscore")]
# The ranking whose genes are looked at in gene sets: the first of these
RANKED = next(filter(METHODS.count, ("wilcoxon", "t-test", "logreg")), "none")


wildcard_constraints:
    collection="|".join(map(re.escape, SETS)) or "none",
    scored="|".join(map(re.escape, SCORED)) or "none",


rule scores:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        sets=SET_FILES,
    output:
        scores=expand(
            f"{COHORT}/scores/{{collection}}/{{scored}}.parquet",
            collection=SETS,
            scored=SCORED,
        ),
        padj=expand(
            f"{COHORT}/scores/{{collection}}/{{scored}}_padj.parquet",
            collection=SETS,
            scored=WITH_PADJ,
        ),
    log:
        "logs/cohort/scores.log",
    conda:
        GPU_ENV
    threads: few_cores("scores")
    resources:
        **needs("scores"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        seed=config["seed"],
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        gene_sets=config["gene_sets"],
        scores={name: config["scores"][name] for name in ("methods", "tmin")},
    script:
        "../scripts/scores.py"


rule cell_cycle:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
    output:
        cell_cycle=f"{COHORT}/cell_cycle.parquet",
    log:
        "logs/cohort/cell_cycle.log",
    conda:
        GPU_ENV
    threads: few_cores("cell_cycle")
    resources:
        **needs("cell_cycle"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        seed=config["seed"],
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        organism=config["scores"]["cell_cycle"],
    script:
        "../scripts/cell_cycle.py"


rule enrichment:
    input:
        ranking=f"{COHORT}/markers/{{grouping}}/{RANKED}.parquet",
        genes=f"{COHORT}/genes.parquet",
        sets=SET_FILES,
    output:
        enrichment=f"{COHORT}/enrichment/{{grouping}}.tsv",
    log:
        "logs/cohort/enrichment/{grouping}.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("enrichment"),
    params:
        gene_sets=config["gene_sets"],
        scores={name: config["scores"][name] for name in ("marker_methods", "tmin")},
    script:
        "../scripts/enrichment.py"


if SETS and SCORED:
    ARTIFACTS += rules.scores.output
if CYCLE_SCORES:
    ARTIFACTS += rules.cell_cycle.output
if SETS and METHODS and config["scores"]["marker_methods"]:
    FIGURES += expand(rules.enrichment.output, grouping=GROUPING_PARTS)
