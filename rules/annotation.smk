# Cell types: by a reference or a model, and by sets of markers. Nothing runs unless the config asks for it.

REFERENCE = config["annotation"]["reference"]
MARKER_SETS = config["annotation"]["markers"]
TRAINED = f"{COHORT}/annotation/model.h5"
# The model: the file that is named if it is one, else what is trained
MODEL = REFERENCE if REFERENCE_IS_MODEL else TRAINED
FINE = settings.over_clustering(config, load_of(None).n_kept)


rule annotation_model:
    input:
        reference=REFERENCE or [],
        genes=f"{COHORT}/genes.parquet",
    output:
        model=f"{COHORT}/annotation/model.h5",
    log:
        "logs/cohort/annotation_model.log",
    conda:
        GPU_ENV
    threads: few_cores("annotation_model")
    resources:
        **needs("annotation_model"),
        gpu=GPU,
    params:
        annotation={
            name: config["annotation"][name]
            for name in (
                "reference_key",
                "reference_counts",
                "n_genes",
                "C",
                "max_iter",
            )
        },
    script:
        "../scripts/annotation_model.py"


rule annotation:
    input:
        model=MODEL,
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        over_clustering=f"{COHORT}/leiden/{FINE}.parquet",
    output:
        annotation=f"{COHORT}/annotation.parquet",
    log:
        "logs/cohort/annotation.log",
    conda:
        GPU_ENV
    threads: few_cores("annotation")
    resources:
        **needs("annotation"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        reference=REFERENCE,
        threshold=config["annotation"]["threshold"],
    script:
        "../scripts/annotation.py"


rule annotation_markers:
    input:
        scores=f"{COHORT}/scores/{escape(MARKER_SETS or '')}/{(SCORED or ['none'])[0]}.parquet",
        clustering=TABLE_OF[CLUSTERINGS[0]] if CLUSTERINGS else [],
    output:
        annotation=f"{COHORT}/annotation_markers.parquet",
        table="results/tables/annotation_markers_of_clusters.tsv",
    log:
        "logs/cohort/annotation_markers.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("annotation_markers"),
    params:
        collection=MARKER_SETS,
    script:
        "../scripts/annotation_markers.py"


ARTIFACTS += rules.annotation.output if REFERENCE else []
ARTIFACTS += rules.annotation_markers.output[:1] if MARKER_SETS else []
