# Groupings, contrasts and samples of differences between conditions, which their rules look up.

BULK_GROUPINGS = contrasts.bulk_groupings(config)
BULK_PARTS = list(map(escape, BULK_GROUPINGS))
CONTRASTS = contrasts.declared(config)
TESTED = contrasts.pairs(config)  # groupings and contrasts of genes
COMPOSED = config["composition"]["groupings"]
SAMPLE_KEY = config["pseudobulk"]["sample_key"]
BULK_SCORES = SETS and SCORED


wildcard_constraints:
    contrast="|".join(re.escape(escape(contrast["name"])) for contrast in CONTRASTS)
    or "none",


def contrast_of(wildcards):
    """The contrast in a path."""
    return next(one for one in CONTRASTS if escape(one["name"]) == wildcards.contrast)


def contrasts_of(grouping):
    """The contrasts whose shares are tested in a grouping."""
    return [one for of, one in contrasts.pairs(config, "composition") if of == grouping]


def of_tested(path):
    """A path for each grouping and contrast of genes."""
    return [
        path.format(grouping=escape(grouping), contrast=escape(contrast["name"]))
        for grouping, contrast in TESTED
    ]


def family_of(wildcards):
    """The family of a grouping's colours."""
    return colours_of([grouping_of(wildcards)]).get(grouping_of(wildcards), "types")


def first_column(wildcards):
    """The column of the first contrast of a grouping, by which samples are coloured."""
    mine = [one["column"] for of, one in TESTED if of == grouping_of(wildcards)]
    return (mine or [CONTRASTS[0]["column"]] if CONTRASTS else [""])[0]
