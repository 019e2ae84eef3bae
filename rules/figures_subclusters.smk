# Figures of the groups of cells that are clustered again: their UMAPs and their markers.

SUB_SHOWN = [name for name in [SUB_LEIDEN, *ORIGINS, *LABELS] if name != SUBGROUPING]


use rule figures_embedding as figures_embedding_sub with:
    input:
        embedding=rules.umap_sub.output.umap,
        obs=rules.subset.output.obs,
        clusterings=[SUB_CLUSTERS],
        density=[],
    output:
        groupings=[
            path
            for name in SUB_SHOWN
            for path in of_subfigure(
                f"umap_{escape(name)}", "subclusters_umap", UMAP=f"by {name}"
            )
        ],
    log:
        "logs/cohort/sub/{subgroup}/figures_embedding.log",
    params:
        groupings=SUB_SHOWN,
        colours=colours_of(SUB_SHOWN) | {SUB_LEIDEN: "clusters"},


use rule panel as panel_sub with:
    input:
        **of_group(
            rules.panel.input,
            tops=[f"{SUB_MARKERS}/{method}.shown.tsv" for method in METHODS],
        ),
    output:
        **of_group(rules.panel.output),
    log:
        "logs/cohort/sub/{subgroup}/panel.log",


use rule figures_markers as figures_markers_sub with:
    input:
        tops=rules.panel_sub.input.tops,
        panel=rules.panel_sub.output.panel,
        embedding=rules.umap_sub.output.umap,
        obs=rules.subset.output.obs,
        clusterings=[SUB_CLUSTERS],
    output:
        scores=[
            path
            for method in METHODS
            for path in of_subfigure(
                method, "markers", markers=method, figure="scores"
            )
        ],
        dotplot=[
            path
            for method in METHODS
            for path in of_subfigure(
                f"{method}_dotplot", "dotplot", markers=method, figure="dot plot"
            )
        ],
        cells=[
            path
            for method in METHODS[:1]
            for path in of_subfigure(
                f"{method}_umap", "expression", markers=method, figure="on the UMAP"
            )
        ],
    log:
        "logs/cohort/sub/{subgroup}/figures_markers.log",
    params:
        groupings=[SUB_LEIDEN],
        clusterings=[SUB_LEIDEN],


use rule figures_volcano as figures_volcano_sub with:
    input:
        ranking=f"{SUB_MARKERS}/{{method}}.parquet",
        shown=f"{SUB_MARKERS}/{{method}}.shown.tsv",
    output:
        volcano=of_subfigure(
            "{method}_volcano", "volcano", markers="{method}", figure="volcano"
        ),
    log:
        "logs/cohort/sub/{subgroup}/figures_volcano/{method}.log",
    params:
        grouping=SUB_LEIDEN,


if SUBGROUPS:
    FIGURES += of_subgroups(rules.figures_embedding_sub.output)
    FIGURES += of_subgroups(rules.figures_markers_sub.output) if METHODS else []
    FIGURES += [
        path
        for method in TESTS
        for path in of_subgroups(
            expand(rules.figures_volcano_sub.output, method=method, allow_missing=True)
        )
    ]
