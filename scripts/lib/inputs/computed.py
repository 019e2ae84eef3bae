"""The obs columns that stages write. Written by config/generate.py, as stages do not load the config's model."""

import re

COMPUTED = re.compile(
    r"(?:log1p_)?total_counts(?:_.+)?|(?:log1p_)?n_genes_by_counts|pct_counts_.+"  # qc
    r"|doublet_score|predicted_doublet"  # doublets
    r"|kept|reason"  # cells
    r"|kept_counts"  # genes
    r"|leiden_\d[\d.e+-]*"  # leiden
    r"|louvain_\d[\d.e+-]*"  # louvain
    r"|kmeans_\d[\d.e+-]*"  # kmeans
    r"|umap_density_.+"  # density
    r"|annotation_.+"  # annotation
    r"|(stability|consensus)_.+"  # trust
    r"|subclusters"  # subclusters
)
