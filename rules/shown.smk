# What figures show and where the report shows them, which the files of figures look up.

BASIS_NAMES = {"umap": "UMAP", "tsne": "t-SNE"}

FORMATS = config["figures"]["format"]
FAMILIES = list(config["qc"]["gene_families"])
METRICS = [
    "total_counts",
    "n_genes_by_counts",
    *(f"pct_counts_{family}" for family in FAMILIES),
    *(["doublet_score"] if config["doublets"]["enabled"] else []),
]
LABELS = [LABEL_KEY] if LABEL_KEY else []
N_BATCHES = load_of(None).n_batches
# Columns that tell the cells' origin, as far as there are several
ORIGINS = {BATCH_KEY: N_BATCHES, "sample": len(SAMPLES)}
ORIGINS = [name for name, n in ORIGINS.items() if n > 1]
CATEGORIES = list(dict.fromkeys([*LABELS, *TABLE_OF, *ORIGINS]))
SPLIT_BY = list(
    dict.fromkeys([*(ORIGINS[:1]), *LABELS])
)  # what clusters are composed of
# Clusterings whose clusters are looked at: those with markers
LOOKED_AT = [name for name in CLUSTERINGS if name in GROUPINGS] or CLUSTERINGS[:1]
TREES = {
    method: [name for name in CLUSTERINGS if name.startswith(f"{method}_")]
    for method in ("leiden", "louvain", "kmeans")
}
TREES = {
    method: sorted(names, key=lambda name: float(name.split("_")[1]))
    for method, names in TREES.items()
    if len(names) > 1
}
TILES, ROWS = 36, 80  # batches on a page of panels, or of rows


def figure(path, caption, category, **about):
    """The files of a figure, `path` without suffix, in each format; the PNG has its place in the report."""
    mark = {"caption": f"captions/{caption}.rst", "category": category, **about}
    others = [f"{path}.{suffix}" for suffix in FORMATS if suffix != "png"]
    return [report(f"{path}.png", **mark), *others]


def pages(path, each, caption, labels, **about):
    """The files of a figure with a part for each batch: of many, pages with `each` parts at most."""
    n = -(-N_BATCHES // each)
    if n == 1:
        return figure(path, caption, QC, labels=labels, **about)
    made = []
    for i in range(1, n + 1):
        about["labels"] = labels | {"page": f"{i} of {n}"}
        made += figure(f"{path}_{i}", caption, QC, **about)
    return made


def coloured(name):
    """The files of an embedding's figure in one colouring."""
    return figure(
        f"results/figures/{{basis}}/{escape(name)}",
        caption="embedding",
        category=EMBEDDINGS,
        subcategory=lambda wildcards: BASIS_NAMES[wildcards.basis],
        labels={"coloured by": name},
    )


def of_clusters(name, what, caption, labels):
    """The files of a figure of a clustering."""
    return figure(
        f"results/figures/clusters/{escape(name)}_{escape(what)}",
        caption=caption,
        category=EMBEDDINGS,
        subcategory="Clusters",
        labels=labels,
    )


def of_markers(part, caption, shown, methods=METHODS):
    """The files of a figure of each grouping's markers by each method; `part` ends their names."""
    return [
        path
        for grouping in GROUPINGS
        for method in methods
        for path in figure(
            f"results/figures/markers/{escape(grouping)}/{method}{part}",
            caption=caption,
            category=MARKERS,
            subcategory=grouping,
            labels={"method": method, "figure": shown},
        )
    ]
