# Figures of differences between conditions.

DIFFERENCES = "5 Differences between conditions"


rule figures_pseudobulk:
    input:
        pseudobulk=f"{COHORT}/pseudobulk/{{grouping}}.h5ad",
    output:
        cells=figure(
            "results/figures/pseudobulk/{grouping}/cells",
            caption="pseudobulk_cells",
            category=DIFFERENCES,
            subcategory=grouping_of,
            labels={"figure": "cells of each sample"},
        ),
        pca=figure(
            "results/figures/pseudobulk/{grouping}/components",
            caption="pseudobulk_pca",
            category=DIFFERENCES,
            subcategory=grouping_of,
            labels={"figure": "principal components"},
        ),
        table="results/tables/pseudobulk/{grouping}/profiles.tsv",
    log:
        "logs/cohort/figures_pseudobulk/{grouping}.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_pseudobulk"),
    params:
        min_cells=config["pseudobulk"]["min_cells"],
        column=first_column,
        family=family_of,
    script:
        "../scripts/figures_pseudobulk.py"


rule figures_de:
    input:
        de=f"{COHORT}/de/{{grouping}}/{{contrast}}.parquet",
        overview="results/tables/de/{grouping}/{contrast}/overview.tsv",
    output:
        overview=figure(
            "results/figures/de/{grouping}/{contrast}/genes",
            caption="de",
            category=DIFFERENCES,
            subcategory=grouping_of,
            labels={"contrast": "{contrast}", "figure": "genes found"},
        ),
        volcano=figure(
            "results/figures/de/{grouping}/{contrast}/volcano",
            caption="de_volcano",
            category=DIFFERENCES,
            subcategory=grouping_of,
            labels={"contrast": "{contrast}", "figure": "volcano"},
        ),
    log:
        "logs/cohort/figures_de/{grouping}/{contrast}.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_de"),
    params:
        contrast=contrast_of,
    script:
        "../scripts/figures_de.py"


FIGURES += expand(rules.figures_pseudobulk.output, grouping=BULK_PARTS)
for path in rules.figures_de.output:
    FIGURES += of_tested(path)


rule figures_composition:
    input:
        tables=[
            f"{COHORT}/composition/{escape(name)}/shares.parquet" for name in COMPOSED
        ],
        tests=[
            f"{COHORT}/composition/{escape(name)}/tests.parquet" for name in COMPOSED
        ],
    output:
        bars=[
            path
            for name in COMPOSED
            for path in figure(
                f"results/figures/composition/{escape(name)}/samples",
                caption="shares",
                category=DIFFERENCES,
                subcategory=name,
                labels={"figure": "shares of each sample"},
            )
        ],
        levels=[
            path
            for name in COMPOSED
            for contrast in contrasts_of(name)
            for path in figure(
                f"results/figures/composition/{escape(name)}/levels/{escape(contrast['name'])}",
                caption="shares_by_level",
                category=DIFFERENCES,
                subcategory=name,
                labels={"contrast": contrast["name"], "figure": "shares by level"},
            )
        ],
    log:
        "logs/cohort/figures_composition.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_composition"),
    params:
        groupings=COMPOSED,
        contrasts=[contrasts_of(name) for name in COMPOSED],
        families=[colours_of([name]).get(name, "types") for name in COMPOSED],
        formats=len(FORMATS),
    script:
        "../scripts/figures_composition.py"


if COMPOSED:
    FIGURES += rules.figures_composition.output
