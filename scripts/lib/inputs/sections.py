"""The config: every key with its type, range, default and meaning, in the order of config.yaml.

From these declarations config/generate.py makes config.yaml, the tables of config/README.md, the schema for editors and
`lib.inputs.computed`.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lib.inputs.keys import (
    Clustering,
    Column,
    Count,
    Distinct,
    Integer,
    Name,
    Number,
    Percent,
    Positive,
    Section,
    Text,
    Texts,
    key,
)

Resolution = Annotated[Number, Field(gt=0, le=100)]  # above, cells are clusters of their own
WHOLE, INPUT, CELLS = "The whole", "Input", "Cells and genes"
VERSUS = " vs "  # between the groups of a pair
FamilyName = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z0-9_]*$")]
CUTOFFS = ("seurat", "cell_ranger")  # flavours that can select by cut-offs
FEATURES, GRAPH, MARKERS = "Features and components", "Graph, embeddings, clusters", "Markers"
FIGURES = "Figures and explorer"
SETS = "Gene sets and cell types"
EVIDENCE = "Evidence"
SUBCLUSTERS = "Sub-clusters"
DIFFERENCES = "Differences between conditions"
Level = Text | Number  # of a column: numbers are names too


class Gpu(Section):
    """GPU memory."""

    heading = WHOLE

    memory_gb: Number | None = key(
        None,
        ge=2,
        le=1e6,
        means="GPU memory of a job at most, a hard cap; null: its rule's `vram_mb`, from the samples' sizes",
        elsewhere="article's `rmm.reinitialize`",
    )
    pool: bool = key(
        True,
        means="take GPU memory from CUDA's pool, which keeps freed memory; false: from `cudaMalloc`",
        elsewhere="`pool_allocator`",
    )


class Limits(Section):
    """Limits that `snakemake preflight` checks for each job."""

    heading = WHOLE

    mem_gb: Positive | None = key(
        None,
        le=1e6,
        means="memory of a node; `snakemake preflight` names the jobs that request more. null: not checked",
        comment="memory of a node",
    )
    gpu_memory_gb: Positive | None = key(
        None, le=1e6, means="memory of a card; null: not checked", comment="memory of a card"
    )
    runtime_h: Positive | None = key(
        None,
        le=1e5,
        means="hours that the cluster allows a job to run; null: not checked",
        comment="hours that the cluster allows a job to run",
    )


class Ingest(Section):
    """Reading the samples' files."""

    heading = INPUT

    counts: str = key(
        "X",
        pattern="^(X|raw|layers/.+)$",
        kind="X, raw, layers/NAME",
        means="raw counts in h5ad, zarr and loom files: X, raw or layers/NAME; the sheet's `counts` overrides it",
        elsewhere="`layer`, `use_raw`",
    )
    gene_key: Literal["gene_symbols", "gene_ids"] = key(
        "gene_symbols",
        means="the key that joins genes across samples, and the atlas' `var_names`",
        elsewhere="`var_names` of `sc.read_10x_mtx`",
    )
    genome: str | None = key(
        None, means="the genome to take from a 10x `.h5` with several", elsewhere="`genome` of `sc.read_10x_h5`"
    )
    orientation: Literal["auto", "cells_by_genes", "genes_by_cells"] = key(
        "auto",
        means="whether a line of a table of text is a cell or a gene. auto: a cell; the table is refused if its names "
        "(barcodes, genes of many organisms), or, if these do not tell, its sums look otherwise or leave it open",
        comment="tables of text: auto (lines are cells, else refused) | cells_by_genes | genes_by_cells",
        elsewhere="`.T` of `sc.read_csv`",
    )
    obs_names: Text | None = key(
        None,
        kind="loom attribute",
        means="the attribute of looms that names cells; null: CellID, or another name that programs write",
        elsewhere="`obs_names` of `sc.read_loom`",
    )
    var_names: Text | None = key(
        None,
        kind="loom attribute",
        means="the attribute of looms that names genes; null: Gene, or another name that programs write",
        elsewhere="`var_names` of `sc.read_loom`",
    )


class Qc(Section):
    """Quality metrics of cells and genes."""

    heading = CELLS
    writes = r"(?:log1p_)?total_counts(?:_.+)?|(?:log1p_)?n_genes_by_counts|pct_counts_.+"

    gene_families: dict[FamilyName, Texts | Text | None] = key(
        {"MT": ["MT-"], "RIBO": ["RPS", "RPL"]},
        kind="name -> prefixes, or a file",
        means="genes whose share of a cell's counts is computed, `pct_counts_{name}`. The case of prefixes is ignored "
        "(`mt-` of mouse, `MT.` of R). If no symbol has a prefix, the genes are found by Ensembl ids (human, mouse), "
        "or by a boolean column of the file's `var` (`mt`, `mito`, `ribo` ...). A file has one symbol or id per line. "
        "A family without genes is left out with its limits, its regression and its figures, and a notice says so. The "
        "article's ribosomal family is only `[RPS]`. null removes a family with its limits, regression and figures",
        comment="name -> symbol prefixes, in any case, or a file with one symbol or id per line",
        elsewhere="`qc_vars` of `sc.pp.calculate_qc_metrics`",
    )
    percent_top: Distinct[Count] = key(
        [50, 100, 200, 500],
        means="share of the N most abundant genes, `pct_counts_in_top_N_genes`",
        elsewhere="`percent_top`",
    )


class Doublets(Section):
    """Doublets by scrublet."""

    heading = CELLS
    writes = "doublet_score|predicted_doublet"

    enabled: bool = key(
        True,
        means="score doublets with scrublet, per batch, among the cells within the limits of `cells`",
        elsewhere="`sc.pp.scrublet`",
    )
    remove: bool = key(
        True,
        means="remove predicted doublets; false: only flag them in obs. Unreliable calls are only flagged, with a "
        "notice: if more than three times the expected rate is called, or if cells exceed the threshold nearly as "
        "often as simulated doublets (all cells similar, continua)",
        comment="false: only flag them, as in batches with unreliable calls",
    )
    expected_doublet_rate: Number = key(0.05, ge=1e-4, lt=1, means="used for the score", elsewhere="same")
    sim_doublet_ratio: Number = key(2.0, ge=0.1, le=100, means="simulated doublets per cell", elsewhere="same")
    n_prin_comps: Integer = key(
        30, ge=1, le=1000, means="components of the space in which neighbours are searched", elsewhere="same"
    )
    n_neighbors: Integer | None = key(
        None,
        ge=1,
        means="neighbours of a cell in that space; null: round(0.5 sqrt(cells of the batch))",
        elsewhere="same",
    )
    threshold: Number | None = key(
        None,
        ge=0,
        le=1,
        means="score above which a cell is a doublet; null: the minimum between the two modes of the simulated scores. "
        "Calls by a threshold that is set here count as reliable",
        comment="doublet_score above which a cell is a doublet; null: the minimum between the modes",
        elsewhere="same",
    )
    min_cells: Integer = key(100, ge=10, means="batches with fewer cells are not scored, with a notice")


class Cells(Section):
    """Limits for the kept cells."""

    heading = CELLS
    writes = "kept|reason"

    min_genes: Number | None = key(
        200,
        ge=0,
        means="keep cells with more genes than this; null: no limit",
        elsewhere="`min_genes` of `sc.pp.filter_cells` (which keeps >=)",
    )
    max_genes: Number | None = key(5000, ge=0, means="keep cells with fewer genes than this")
    min_counts: Number | None = key(None, ge=0, means="keep cells with more counts than this")
    max_counts: Number | None = key(None, ge=0, means="keep cells with fewer counts than this")
    max_pct_counts: dict[str, Percent | None] = key(
        {"MT": 20},
        kind="family -> percent",
        means="keep cells with less than this share of their counts in a family; null removes a limit. Any limit that "
        "removes 30 % of a batch, or 15 points more than of the median batch, gets a notice at the end of the run",
        comment="keep cells with less than this percentage of their counts in a gene family",
        elsewhere="article's MT < 20 %",
    )
    mad: Number | None = key(
        None,
        gt=0,
        means="also remove cells more than this many median absolute deviations from the median of their batch in "
        "their sample (percentages: above it); 5 is usual. null: no such limit",
        comment="median absolute deviations, per batch, beyond which a cell is an outlier; null: fixed limits only",
        elsewhere="`is_outlier` of sc-best-practices",
    )
    mad_metrics: list[str] = key(
        ["log1p_total_counts", "log1p_n_genes_by_counts", "pct_counts_MT"],
        kind="list of metrics",
        means="the metrics that `mad` limits",
    )

    def contradictions(self) -> Iterator[str]:
        """Lower limits that are not below the upper ones."""
        for low, high in (("min_genes", "max_genes"), ("min_counts", "max_counts")):
            limits = getattr(self, low), getattr(self, high)
            if None not in limits and limits[0] >= limits[1]:
                yield f"`cells: {low}` ({limits[0]}) is not below `cells: {high}` ({limits[1]}): no cell would be kept"


class Genes(Section):
    """Limits for the kept genes."""

    heading = CELLS
    writes = "kept_counts"

    join: Literal["inner", "outer"] = key(
        "inner",
        means="inner: genes that every sample has; outer: that any sample has, missing genes count as zero",
        elsewhere="`join` of `anndata.concat`",
    )
    min_counts: Number = key(
        3, ge=0, means="keep genes with at least this many counts over the kept cells", elsewhere="`sc.pp.filter_genes`"
    )
    min_cells: Integer = key(
        0, ge=0, means="keep genes seen in at least this many kept cells", elsewhere="`sc.pp.filter_genes`"
    )
    min_shared: Number = key(
        0.5,
        ge=0,
        le=1,
        means="inner join: stop if the samples share a smaller part of the smallest sample's genes, as with mixed "
        "references",
        comment="inner join: stop if the samples share a smaller part of the smallest sample's genes",
    )


class Normalize(Section):
    """Normalisation of the counts."""

    heading = FEATURES

    target_sum: Number | None = key(
        1e4,
        ge=1,
        le=1e9,
        means="counts per cell after normalisation, before log1p; null: the median of the cells' totals",
        elsewhere="`sc.pp.normalize_total`",
    )


class Hvg(Section):
    """Highly variable genes."""

    heading = FEATURES

    flavor: Literal[
        "seurat_v3", "seurat_v3_paper", "seurat", "cell_ranger", "pearson_residuals", "poisson_gene_selection"
    ] = key(
        "seurat_v3",
        means="the method that selects highly variable genes; seurat and cell_ranger use log-normalised values, the "
        "others counts",
        comment="",
        elsewhere="`sc.pp.highly_variable_genes`, `sc.experimental.pp`, scvi-tools",
    )
    n_top_genes: Integer | None = key(
        5000,
        ge=3,
        means="number of genes, all if there are fewer; null (only seurat, cell_ranger): by the cutoffs below",
        elsewhere="same",
    )
    per_batch: bool = key(True, means="rank genes in each batch, then combine the ranks", elsewhere="`batch_key`")
    span: Number = key(
        0.3,
        gt=0,
        le=1,
        means="share of the genes in the loess window of seurat_v3. A batch too small for it gets a wider window (0.4 "
        "... 1), or else the fit of all batches together: see `results/cohort/hvg_batches.tsv`",
        comment="seurat_v3: fraction of the genes in the loess window; wider for batches too small for it",
        elsewhere="same",
        only=("seurat_v3", "seurat_v3_paper"),
    )
    n_bins: Integer = key(
        20, ge=2, le=1000, means="bins of mean expression, seurat", elsewhere="same", only=("seurat",)
    )
    min_mean: Number = key(
        0.0125, means="cutoff of seurat and cell_ranger without n_top_genes", elsewhere="same", only=CUTOFFS
    )
    max_mean: Number | None = key(3, means="same kind of cutoff; null: none", elsewhere="same", only=CUTOFFS)
    min_disp: Number = key(0.5, means="same kind of cutoff", elsewhere="same", only=CUTOFFS)
    max_disp: Number | None = key(None, means="same kind of cutoff; null: none", elsewhere="same", only=CUTOFFS)
    theta: Number = key(
        100, ge=0.01, means="overdispersion of pearson_residuals", elsewhere="same", only=("pearson_residuals",)
    )
    clip: Number | None = key(
        None,
        ge=0.1,
        means="clip of pearson_residuals; null: sqrt(cells)",
        elsewhere="same",
        only=("pearson_residuals",),
    )
    n_samples: Integer | None = key(
        10000,
        ge=100,
        le=10**9,
        means="draws of poisson_gene_selection; null: the exact probability",
        elsewhere="`n_samples` of scvi-tools",
        only=("poisson_gene_selection",),
    )
    include: list[str] | str = key(
        [],
        kind="list, or a file",
        means="genes always selected, instead of the lowest ranked: symbols, or a file with one per line",
    )
    exclude: list[str] | str = key(
        [], kind="list, or a file", means="genes never selected: symbols, or a file with one per line"
    )

    def contradictions(self) -> Iterator[str]:
        """A missing number of genes, if the flavour needs one; cut-offs that no gene passes."""
        if self.n_top_genes is None and self.flavor not in CUTOFFS:
            yield f"`hvg: n_top_genes` is null, which only seurat and cell_ranger can do; {self.flavor} needs a number"
        for low, high in (("min_mean", "max_mean"), ("min_disp", "max_disp")):
            cuts = getattr(self, low), getattr(self, high)
            if self.n_top_genes is None and None not in cuts and cuts[0] >= cuts[1]:
                yield f"`hvg: {low}` ({cuts[0]}) is not below `hvg: {high}` ({cuts[1]}): no gene would be selected"


class RegressOut(Section):
    """Columns regressed out of the features."""

    heading = FEATURES

    keys: Distinct[str] = key(
        ["total_counts", "pct_counts_MT"],
        kind="list of numeric obs columns",
        means="regressed out of the log-normalised features, if all kept cells have a value; `[]`: no regression",
        comment="[]: no regression",
        elsewhere="`sc.pp.regress_out`",
    )


class Scale(Section):
    """Scaling of the features."""

    heading = FEATURES

    enabled: bool = key(True, means="scale the features to unit variance", elsewhere="`sc.pp.scale`")
    max_value: Number | None = key(
        10, ge=0.1, le=1e6, means="clip at this many standard deviations; null: no clipping", elsewhere="same"
    )


class Pca(Section):
    """Principal components."""

    heading = FEATURES

    n_comps: Integer = key(
        100, ge=2, le=10_000, means="components, at most one fewer than cells or features", elsewhere="`sc.pp.pca`"
    )


class Harmony(Section):
    """Integration of the batches."""

    heading = FEATURES

    enabled: bool = key(
        True,
        means="integrate the batches; with only one batch it is skipped, with a notice",
        elsewhere="`sc.external.pp.harmony_integrate`",
    )
    keys: Distinct[Column] | None = key(
        None,
        min_length=1,
        means="obs columns to integrate over; null: `batch_key`",
        elsewhere="`vars_use` of harmonypy",
    )
    theta: Number = key(2, ge=0, le=100, means="diversity penalty", elsewhere="same")
    sigma: Number = key(0.1, ge=0.01, le=10, means="width of soft clusters", elsewhere="same")
    lamb: Number | None = key(
        None, ge=1e-6, le=1e9, means="ridge penalty; null: estimated for each cluster", elsewhere="same"
    )
    max_iter_harmony: Integer = key(
        10, ge=1, le=1000, means="maximal number of rounds; a notice says if they do not suffice", elsewhere="same"
    )


class Neighbors(Section):
    """The graph of neighbours."""

    heading = GRAPH

    n_neighbors: Integer = key(
        15,
        ge=2,
        le=10_000,
        means="size of the neighbourhood, the cell itself included; at most the number of cells",
        elsewhere="`sc.pp.neighbors`",
    )
    n_pcs: Integer = key(40, ge=2, means="leading dimensions used; at most `pca: n_comps`", elsewhere="same")
    metric: Literal["euclidean", "cosine", "manhattan", "correlation"] = key(
        "euclidean", means="distance", elsewhere="same"
    )
    use_rep: Literal["auto", "X_pca", "X_pca_harmony"] = key(
        "auto",
        means="the space to use; auto: the integrated one if there is one (the article computes it, but continues with "
        "X_pca)",
        comment="auto: X_pca_harmony if there is one, else X_pca; or one of the two by name",
        elsewhere="same",
    )


class Umap(Section):
    """The UMAP."""

    heading = GRAPH

    min_dist: Number = key(0.5, ge=0, le=10, means="minimal distance of points", elsewhere="`sc.tl.umap`")
    spread: Number = key(
        1.0,
        ge=0.1,
        le=10,
        means="scale of the distances, min_dist at least; with it it sets how dense clusters are",
        elsewhere="same",
    )
    n_epochs: Integer | None = key(
        None, ge=1, le=10_000, means="rounds; null: 500 up to 10,000 cells, 200 above", elsewhere="`maxiter`"
    )
    init_pos: Literal["spectral", "random"] = key("spectral", means="initial positions of the points", elsewhere="same")

    def contradictions(self) -> Iterator[str]:
        """Points that are farther apart than the scale of the distances."""
        if self.min_dist > self.spread:
            yield f"`umap: min_dist` ({self.min_dist}) exceeds `umap: spread` ({self.spread}), the scale of distances"


class Tsne(Section):
    """The t-SNE."""

    heading = GRAPH

    enabled: bool = key(True, means="compute a t-SNE in addition to the UMAP", elsewhere="`sc.tl.tsne`")
    perplexity: Number = key(
        30,
        gt=1,
        le=1000,
        means="effective number of neighbours; above 30 t-SNE searches neighbours of its own",
        comment="effective number of neighbours",
        elsewhere="same",
    )
    early_exaggeration: Number = key(
        12, ge=1, le=100, means="factor of the attraction in the first 250 rounds", elsewhere="same"
    )
    learning_rate: Positive | None = key(
        None,
        le=1e6,
        means="in scanpy's units; null: cells / early_exaggeration (Belkina et al. 2019)",
        elsewhere="same (scanpy: 1000, the article: 200)",
    )
    n_iter: Integer = key(750, ge=1, le=10_000, means="rounds, the first 250 included")


class Leiden(Clustering):
    """Clusters by Leiden."""

    heading, each = GRAPH, "resolutions"

    resolutions: Distinct[Resolution] = key(
        [0.6], means="one clustering each, `leiden_{resolution}`", elsewhere="`sc.tl.leiden`"
    )
    n_iterations: Integer = key(2, ge=-1, le=1000, means="rounds; -1: until nothing changes", elsewhere="same")

    def contradictions(self) -> Iterator[str]:
        """No rounds, which would leave each cell a cluster of its own."""
        if self.n_iterations == 0:
            yield "`leiden: n_iterations` is 0, which clusters nothing: set 1 or more, or -1 (until nothing changes)"


class Louvain(Clustering):
    """Clusters by Louvain."""

    heading, each = GRAPH, "resolutions"

    resolutions: Distinct[Resolution] = key(
        [0.6], means="one clustering each, `louvain_{resolution}`", elsewhere="`sc.tl.louvain`"
    )


class Kmeans(Clustering):
    """Clusters by k-means."""

    heading, each = GRAPH, "n_clusters"

    n_clusters: Distinct[Annotated[Integer, Field(ge=2, le=10_000)]] = key(
        [8],
        means="one clustering each, `kmeans_{k}`, with at most as many clusters as cells",
        elsewhere="article's k-means",
    )


class Density(Section):
    """Density of the UMAP."""

    heading = GRAPH
    writes = "umap_density_.+"

    groupby: Column | None = key(
        None,
        means="density of the UMAP per category of this column; null: `batch_key`",
        elsewhere="`sc.tl.embedding_density`",
    )


class Logreg(Section):
    """Markers by logistic regression."""

    C: Number = key(1.0, ge=1e-6, le=1e6, means="inverse strength of the penalty", elsewhere="same")
    max_iter: Integer = key(100, ge=1, le=100_000, means="maximal number of rounds", elsewhere="same")
    use_scaled: bool = key(
        True, means="fit on the regressed, scaled matrix, as in the article; false: on log-normalised values"
    )


class Markers(Section):
    """Marker genes."""

    heading = MARKERS

    groupings: Distinct[str] | None = key(
        None,
        kind="list of names",
        means="obs columns and clusterings (`leiden_0.6`); null: `label_key` and every Leiden clustering",
        elsewhere="`groupby` of `sc.tl.rank_genes_groups`",
    )
    methods: Distinct[Literal["logreg", "t-test", "wilcoxon"]] = key(
        ["logreg", "t-test"],
        means="logistic regression on the features; on all kept genes Welch's t-test, and Wilcoxon's rank-sum test "
        "with ties corrected, which reads the counts several times",
        comment="any of logreg, t-test, wilcoxon",
        elsewhere="`method`; wilcoxon: `tie_correct=True`",
    )
    reference: dict[Text, Texts | Text] = key(
        {},
        kind="grouping -> a group, or a list of pairs",
        means="what t-test and wilcoxon compare the groups of a grouping with: one group, or pairs such as "
        "`[B vs plasma]`; groupings that are not named: each group with all others (`rest`). logreg always separates "
        "all groups",
        comment="grouping -> the group to compare with, or pairs: {CellType: [B vs plasma]}; others: with all others",
        elsewhere="same",
    )
    n_genes: Integer = key(20, ge=1, le=200, means="genes shown in figures and top tables", elsewhere="same")
    hidden_families: dict[FamilyName, Texts | Text | None] = key(
        {"MT": ["MT-"], "RIBO": ["RPS", "RPL"], "HLA": ["HLA-", "H2-"]},
        kind="name -> prefixes, or a file",
        means="genes that the figures of markers and `panel.tsv` leave out, as in `qc: gene_families`; the tables have "
        "all genes. null shows a family",
        comment="name -> symbol prefixes, or a file: genes that figures of markers leave out; null shows a family",
    )
    logreg: Logreg

    def contradictions(self) -> Iterator[str]:
        """References to groupings without markers, and pairs that are none."""
        yield from super().contradictions()
        for name, reference in self.reference.items():
            if self.groupings is not None and name not in self.groupings:
                yield f"`markers: reference` names {name}, which is none of `markers: groupings`"
            for pair in [] if isinstance(reference, str) else reference:
                if VERSUS not in pair:
                    yield f"`markers: reference: {name}`: {pair!r} is no pair of groups, such as `B vs plasma`"


class Scores(Section):
    """Scores of gene sets."""

    heading = SETS

    methods: Distinct[Literal["ulm", "mlm", "aucell", "zscore", "waggr", "score_genes"]] = key(
        ["ulm"],
        means="scores of each cell for the sets of `gene_sets`, on its log-normalised values in all kept genes: obsm "
        "`score_{method}` and `padj_{method}`, of a second collection `score_{method}_{name}`. waggr is the weighted "
        "mean, without a test",
        comment="scores of cells: any of ulm, mlm, aucell, zscore, waggr, score_genes",
        elsewhere="`dc.mt`, `sc.tl.score_genes`",
    )
    marker_methods: Distinct[Literal["ora", "gsea"]] = key(
        ["ora"],
        means="which sets the markers of each group are enriched in, by the scores of wilcoxon, t-test or logreg, the "
        "first of these that `markers: methods` has: `results/cohort/enrichment/{grouping}.tsv`",
        comment="which sets the markers of each group are enriched in: any of ora, gsea",
        elsewhere="`dc.mt`; ora with `n_bg=None`",
    )
    tmin: Integer = key(
        3, ge=1, means="leave out sets with fewer genes in the cohort, with a notice", elsewhere="same (decoupler: 5)"
    )
    cell_cycle: Literal["none", "human", "mouse"] = key(
        "none",
        means="score the cell cycle by the genes of Tirosh et al. 2016: obs `S_score`, `G2M_score`, `phase`; the "
        "scores can be named in `regress_out: keys`, `phase` as a grouping. none: do not",
        comment="score the cell cycle by the genes of this organism; none: do not",
        elsewhere="`sc.tl.score_genes_cell_cycle`",
    )


class Annotation(Section):
    """Names of cell types."""

    heading = SETS
    writes = r"annotation_.+"

    reference: Text | None = key(
        None,
        kind="path",
        means="a labelled file of counts (h5ad, zarr, loom; also an atlas of Somersault), on which a model is trained; "
        "or a model that an earlier run wrote (`results/cohort/annotation/model.h5`), or one of CellTypist's "
        "([Cell types](../README.md#cell-types)). obs gets `annotation_label`, `annotation_probability`, "
        "`annotation_second`, `annotation_majority`. null: none",
        comment="a labelled file of counts, or a model; null: none",
        elsewhere="`model` of `celltypist.annotate`",
    )
    reference_key: Text = key("cell_type", means="the reference's column of labels", elsewhere="`labels` of CellTypist")
    reference_counts: str = key(
        "X",
        pattern="^(X|raw|layers/.+)$",
        kind="X, raw, layers/NAME",
        means="the reference's raw counts; of an atlas of Somersault `layers/counts`",
    )
    n_genes: Integer = key(
        2000,
        ge=10,
        le=50_000,
        means="genes of the model: those that differ most between the labels",
        elsewhere="`top_genes` of CellTypist",
    )
    threshold: Number = key(
        0.5,
        ge=0,
        le=1,
        means="probability below which a cell is `unassigned`",
        elsewhere="`p_thres` of CellTypist",
    )
    over_clustering: Resolution | None = key(
        None,
        means="resolution of the fine Leiden clustering within whose communities the majority decides; null: by the "
        "number of cells, 5 to 30",
        comment="resolution of the fine clustering in which the majority decides; null: by the number of cells",
        elsewhere="`over_clustering`",
    )
    C: Number = key(1.0, ge=1e-6, le=1e6, means="inverse strength of the model's penalty", elsewhere="same")
    max_iter: Integer = key(200, ge=1, le=100_000, means="maximal number of rounds of its fit", elsewhere="same")
    markers: Text | None = key(
        None,
        kind="collection",
        means="the collection of `gene_sets` whose sets are types (negative weights: genes that the type lacks): each "
        "cluster of the first clustering gets the set that stands out most, obs `annotation_markers`, and its "
        "`annotation_margin`. `lists`: the sets that are lists. null: none",
        comment="the collection of gene_sets whose sets are types (lists: those that are lists); null: none",
    )


class Trust(Section):
    """Evidence that the results can be believed."""

    heading = EVIDENCE
    writes = "(stability|consensus)_.+"

    enabled: bool = key(
        True,
        means="measure how well the batches are integrated (the metrics of scib-metrics, without and with the "
        "integration), compute stages again on the CPU at a sample of cells, repeat clusterings with other seeds, and "
        "cluster cells before filters: `results/tables/trust*.tsv`, the report's chapter Trust, and obs "
        "`stability_{clustering}` and `consensus_{clustering}`",
        comment="evidence that the results can be believed, in the report",
    )
    n_cells: Annotated[Integer, Field(ge=50, le=10**7)] | None = key(
        5000,
        means="cells at which is measured, drawn from each batch and cluster, against all cells; null: all",
        comment="cells at which is measured; null: all",
    )
    seeds: Annotated[Integer, Field(ge=1, le=100)] = key(
        5,
        means="other seeds with which the first clustering is repeated, of 4 `n_cells` cells at most; "
        "`stability_{clustering}` is the share of a cell's cluster that stays with it",
        comment="other seeds with which the first clustering is repeated",
    )
    resolutions: Distinct[Resolution] = key(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0],
        means="resolutions of Leiden that are compared, on as many cells, to suggest one; it is not taken. `[]`: none",
        comment="resolutions of Leiden that are compared, to suggest one",
    )
    thetas: Distinct[Annotated[Number, Field(ge=0, le=100)]] = key(
        [],
        means="values of `harmony: theta` with which Harmony is run and measured too, "
        "`results/tables/trust_thetas.tsv`; nothing else uses them",
        comment="values of harmony: theta to run and measure too",
    )
    embeddings_again: bool | None = key(
        None,
        means="compute UMAP and t-SNE once more with another seed, to measure how many neighbours both show; null: of "
        "up to 500,000 cells on a GPU, where this takes seconds",
        comment="UMAP and t-SNE with another seed too; null: of up to 500,000 cells on a GPU",
    )


class Subclusters(Section):
    """Groups of cells that are clustered again, each by itself."""

    heading = SUBCLUSTERS
    writes = "subclusters"

    grouping: Column | None = key(
        None,
        min_length=1,
        means="obs column, clustering (`leiden_0.6`) or names of cell types (`annotation_majority`) whose `groups` are "
        "clustered again; null: none",
        comment="obs column or clustering whose groups are clustered again; null: none",
        elsewhere="`restrict_to` of `sc.tl.leiden`",
    )
    groups: Distinct[Name] = key(
        [],
        kind="list of names",
        means="its groups to cluster again (`[T cells, B cells]`, clusters as numbers): each gets its own highly "
        "variable genes, PCA, Harmony, neighbours, UMAP, Leiden clusters and markers, by the settings of the whole "
        "cohort, in `results/cohort/sub/{group}/`. obs `subclusters` has `{group},{cluster}` for their cells, and the "
        "grouping's own names for the others; obsm `X_umap_subclusters` has their positions, each in its group's UMAP",
        comment="its groups, such as [T cells, B cells]; each gets its own genes, PCA, UMAP, clusters, markers",
        elsewhere="same",
    )
    resolution: Resolution = key(
        0.6, means="resolution of Leiden within the groups", elsewhere="`resolution` of `sc.tl.leiden`"
    )

    def contradictions(self) -> Iterator[str]:
        """Groups of no grouping, a grouping without groups, and a grouping that follows from the groups."""
        if self.groups and self.grouping is None:
            yield "`subclusters: groups` names groups, but `subclusters: grouping` is null: name the column they are of"
        if self.grouping is not None and not self.groups:
            yield f"`subclusters: grouping` is {self.grouping}, but `subclusters: groups` is empty: name its groups"
        if self.grouping == self.writes:
            yield f"`subclusters: grouping` is {self.writes}, which is made of it: name another column"


class Pseudobulk(Section):
    """Pseudobulks: counts summed by sample and group."""

    heading = DIFFERENCES

    groupings: Distinct[Text] = key(
        [],
        kind="list of names",
        means="sum the counts of each sample in each group of these: `label_key`, clusterings (`leiden_0.6`), names of "
        "cell types (`annotation_majority`), obs columns: `results/cohort/pseudobulk/{grouping}.h5ad`. `[]`: none, "
        "but those that `de` needs",
        comment="groupings whose groups are summed in each sample: a label, clusterings, obs columns",
        elsewhere="`groups_col` of `dc.pp.pseudobulk`; `by` of `sc.get.aggregate`",
    )
    sample_key: Column = key(
        "sample",
        min_length=1,
        means="obs column of the samples: what is compared between conditions, such as the patients. Cells without a "
        "value are left out",
        comment="obs column of what is compared between conditions: samples, patients",
        elsewhere="`sample_col`",
    )
    min_cells: Integer = key(
        10,
        ge=1,
        means="profiles of fewer cells are flagged (`few_cells`), and tests leave them out",
        elsewhere="`min_cells` of `dc.pp.filter_samples`",
    )


class Contrast(Section):
    """A level of a column against another one."""

    column: Column = key(min_length=1)
    level: Level
    reference: Level
    covariates: Distinct[Column] = key([])
    groupby: Text | None = None
    name: Text | None = None


class Composition(Section):
    """Shares of the groups in each sample."""

    heading = DIFFERENCES

    groupings: Distinct[Text] = key(
        [],
        kind="list of names",
        means="compare the shares of the groups of these between samples: tables, bars, and a test of each contrast "
        "without `groupby`, or with this one. `[]`: none",
        comment="groupings whose shares in each sample are compared",
    )
    contrasts: list[Contrast] | None = key(
        None,
        kind="list of contrasts",
        means="what to test, as in `de`; null: the contrasts of `de`",
        comment="as in de; null: those of de",
    )


class Report(Section):
    """The page of the run, `results/report.html`."""

    heading = WHOLE

    title: Text | None = key(None, means="its title; null: the number of samples")
    logo: str | None = key(
        None,
        pattern=r"\.(png|jpe?g|svg|webp|gif|PNG|JPE?G|SVG)$",
        kind="path",
        means="a picture above the list of chapters: png, jpg, svg, webp or gif; null: none",
        comment="a picture above the list of chapters; null: none",
    )
    sections: Distinct[Text] | None = key(
        None,
        kind="list of chapters",
        means="the chapters to show below the findings, in their order: Quality control, Features, Embeddings, "
        "Markers, Methods, Config, Samples, Runs, and those that further stages bring; null: all",
        comment="the chapters to show below the findings, in their order; null: all",
    )


class Figures(Section):
    """The figures."""

    heading = FIGURES

    format: Distinct[Literal["png", "pdf"]] = key(
        ["png"],
        means="formats of every figure; png is always among them, as the report shows it; pdf is made of vectors, but "
        "for the cells",
        comment="[png, pdf] draws every figure as a PDF of vectors too",
    )

    def contradictions(self) -> Iterator[str]:
        """The report shows PNGs."""
        if "png" not in self.format:
            yield "`figures: format` lacks png, which the report shows: set [png, pdf]"


class Explorer(Section):
    """The page on which the cells can be explored."""

    heading = FIGURES

    n_genes: Integer = key(
        300, ge=0, le=5000, means="marker genes that can be shown; fewer if the page would exceed 30 MB"
    )
    max_cells: Integer = key(
        500_000, ge=1000, le=2_000_000, means="cells of the page; of more, a random share of each cluster and sample"
    )


class Config(Section):
    """Every key."""

    heading = WHOLE

    samples: str = key(
        "config/samples.tsv",
        kind="path",
        means="the sample sheet: sample, path, and any other columns, which become obs",
    )
    device: Literal["auto", "cpu", "gpu"] = key(
        "auto",
        means="device of the stages. `auto`: a GPU if driver, card and packages are there; decided once, on the "
        "machine where `snakemake` is started (on a cluster's login node set `gpu`)",
        comment="auto: a GPU if one can be used, else the CPU | cpu | gpu",
    )
    warm: bool = key(
        True,
        means="start jobs as forks of a process that has imported the libraries, which takes most of a small job's "
        "time; false: each job imports them itself",
        comment="start jobs as forks of a process that has imported the libraries",
    )
    gpu: Gpu
    limits: Limits = key(comment="limits that `snakemake preflight` checks for each job; null: not checked")
    shards: Integer = key(
        1,
        ge=1,
        le=1000,
        means="number of jobs of each pass over the cohort, each with a part of the kept cells, to use as many GPUs or "
        "nodes; the results are the same up to rounding ([Many GPUs, many nodes]"
        "(../docs/cluster.md#many-gpus-many-nodes))",
        comment="number of jobs of each pass over the cohort, to use as many GPUs or nodes (docs/cluster.md)",
    )
    seed: Integer = key(0, ge=0, le=2**32 - 1, means="seed of all random numbers", elsewhere="`random_state`")
    batch_key: Column = key(
        "sample",
        min_length=1,
        means="obs column of the batches, for doublets, highly variable genes, Harmony, densities. `sample`: each line "
        'of the sheet is a batch. Numbers are names too: batch 7 is "7" in figures, tables and the atlas',
        comment="obs column of the batches (the article's PatientNumber); `sample`: each line of the sheet is one",
        elsewhere="article's `PatientNumber`",
    )
    label_key: Column | None = key(
        None,
        min_length=1,
        means="obs column with known cell types, for figures and markers; null: none. In the atlas a column "
        "`cell/type` is named `cell_type`",
        comment="obs column with known cell types, for figures and markers; null: none (your files?)",
        elsewhere="article's `CellType`",
    )
    ingest: Ingest
    qc: Qc
    doublets: Doublets
    cells: Cells
    genes: Genes
    normalize: Normalize
    hvg: Hvg
    regress_out: RegressOut
    scale: Scale
    pca: Pca
    harmony: Harmony
    neighbors: Neighbors
    umap: Umap
    tsne: Tsne
    leiden: Leiden
    louvain: Louvain
    kmeans: Kmeans
    density: Density
    markers: Markers
    gene_sets: dict[str, Texts | Text] = key(
        {},
        kind="name -> file, or a list of genes",
        means="sets of genes: a `.gmt` file, a table `source target [weight]` (with tabs; both may be gzipped), or a "
        "list of genes, which is one set; all lists together are the collection `lists`. Genes are symbols or Ensembl "
        "ids. Refused before any job if less than a quarter of a collection's genes are in the cohort. Nothing is "
        "scored without them. The demo's are left out for other samples",
        comment="name -> a .gmt file, a table with tabs, or a list of genes; these are the demo's, and for it alone",
        elsewhere="`net` of decoupler",
    )
    scores: Scores
    annotation: Annotation
    trust: Trust
    subclusters: Subclusters
    pseudobulk: Pseudobulk
    de: list[Contrast] = key(
        [],
        kind="list of contrasts",
        means="test each gene between conditions on the pseudobulks, by PyDESeq2. A contrast is "
        "`{column: condition, level: treated, reference: control}`: a column of the sheet, or one of obs that is "
        "constant within a sample, and two of its values. Further keys: `covariates`, columns (numbers are numbers, "
        "`C(batch)` takes them as names); `groupby`, one grouping instead of all of `pseudobulk: groupings` (without "
        "these: `label_key`, else the first clustering); `name`, instead of `condition_treated_vs_control`. Two "
        "samples a level at least, and a design of full rank "
        "([Differences between conditions](../README.md#differences-between-conditions))",
        comment="[{column: condition, level: treated, reference: control, covariates: [age]}], tested on pseudobulks",
        elsewhere="`contrast` of PyDESeq2's `DeseqStats`",
    )
    composition: Composition
    figures: Figures
    explorer: Explorer
    report: Report
