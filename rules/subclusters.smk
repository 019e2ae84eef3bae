# Groups of cells that are clustered again, each by itself (`subclusters`). The stages are those of the cohort, from highly
# variable genes on, on the counts of a group's cells. Nothing runs unless the config names groups.


rule subset:
    input:
        obs=f"{COHORT}/obs.parquet",
        grouping=SUBGROUPING_TABLE,
        cell_cycle=CELL_CYCLE,
    output:
        obs=f"{SUB}/obs.parquet",
    log:
        "logs/cohort/sub/{subgroup}/subset.log",
    group:
        "sub"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("subset"),
    params:
        grouping=SUBGROUPING,
        group=subgroup_of,
        groups=all_subgroups,
    script:
        "../scripts/subset.py"


use rule hvg as hvg_sub with:
    input:
        **of_group(rules.hvg.input, obs=rules.subset.output.obs, shards=[]),
    output:
        **of_group(rules.hvg.output),
    log:
        "logs/cohort/sub/{subgroup}/hvg.log",
    group:
        "sub"


use rule features as features_sub with:
    input:
        **of_group(rules.features.input, obs=rules.subset.output.obs, parts=[]),
    output:
        features=f"{SUB}/features.h5ad",
    log:
        "logs/cohort/sub/{subgroup}/features.log",
    group:
        "sub"
    resources:
        **needs("features"),
        gpu=GPU,


use rule pca as pca_sub with:
    input:
        features=[rules.features_sub.output.features],
        obs=rules.subset.output.obs,  # with the cell cycle
        cell_cycle=[],
        shards=[],
    output:
        **of_group(rules.pca.output),
    log:
        "logs/cohort/sub/{subgroup}/pca.log",
    group:
        "sub"
    resources:
        **needs("pca"),
        gpu=GPU,


use rule harmony as harmony_sub with:
    input:
        **of_group(rules.harmony.input),
    output:
        **of_group(rules.harmony.output),
    log:
        "logs/cohort/sub/{subgroup}/harmony.log",
    group:
        "sub"


use rule neighbors as neighbors_sub with:
    input:
        **of_group(rules.neighbors.input),
    output:
        **of_group(rules.neighbors.output),
    log:
        "logs/cohort/sub/{subgroup}/neighbors.log",
    group:
        "sub"


use rule umap as umap_sub with:
    input:
        **of_group(rules.umap.input),
    output:
        **of_group(rules.umap.output),
    log:
        "logs/cohort/sub/{subgroup}/umap.log",


use rule leiden as leiden_sub with:
    input:
        **of_group(rules.leiden.input),
    output:
        **of_group(rules.leiden.output),
    log:
        "logs/cohort/sub/{subgroup}/leiden/{resolution}.log",


use rule markers_logreg as markers_logreg_sub with:
    input:
        **of_group(
            rules.markers_logreg.input,
            features=[rules.features_sub.output.features],
            cell_cycle=[],
            grouping=[SUB_CLUSTERS],
        ),
    output:
        **of_group(rules.markers_logreg.output),
    log:
        "logs/cohort/sub/{subgroup}/markers_logreg/{grouping}.log",


use rule markers_ttest as markers_ttest_sub with:
    input:
        **of_group(rules.markers_ttest.input, grouping=[SUB_CLUSTERS], shards=[]),
    output:
        **of_group(rules.markers_ttest.output),
    log:
        "logs/cohort/sub/{subgroup}/markers_ttest/{grouping}.log",
    resources:
        **needs("markers_ttest"),
        gpu=GPU,
    params:
        reference="rest",


use rule markers_wilcoxon as markers_wilcoxon_sub with:
    input:
        **of_group(rules.markers_wilcoxon.input, grouping=[SUB_CLUSTERS]),
    output:
        **of_group(rules.markers_wilcoxon.output),
    log:
        "logs/cohort/sub/{subgroup}/markers_wilcoxon/{grouping}.log",
    params:
        reference="rest",


rule subclusters:
    input:
        obs=f"{COHORT}/obs.parquet",
        grouping=SUBGROUPING_TABLE,
        leiden=of_subgroups(SUB_CLUSTERS),
        umap=of_subgroups(rules.umap_sub.output.umap),
        tops=of_subgroups(f"{SUB_MARKERS}/{METHODS[0]}.top.tsv") if METHODS else [],
    output:
        labels=f"{COHORT}/subclusters.parquet",
        umap=f"{COHORT}/subclusters_umap.parquet",
        table=report(
            "results/tables/subclusters.tsv",
            caption="captions/subclusters.rst",
            category=SUB_CHAPTER,
            labels={"table": "all sub-clusters"},
        ),
    log:
        "logs/cohort/subclusters.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("subclusters"),
    params:
        grouping=SUBGROUPING,
        groups=SUBGROUPS,
        resolution=config["subclusters"]["resolution"],
        batch_key=BATCH_KEY,
    script:
        "../scripts/subclusters.py"


if SUBGROUPS:
    ARTIFACTS += [rules.subclusters.output.labels, rules.subclusters.output.umap]
