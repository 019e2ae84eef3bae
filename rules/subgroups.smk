# What is known of the groups that are clustered again, which the files of their rules look up.

SUBGROUPING = config["subclusters"]["grouping"]
SUB_LEIDEN = f"leiden_{config['subclusters']['resolution']}"
SUB_CLUSTERS = f"{SUB}/{SUB_LEIDEN.replace('_', '/', 1)}.parquet"
SUB_MARKERS = f"{SUB}/markers/{escape(SUB_LEIDEN)}"
SUBGROUPING_TABLE = [TABLE_OF[SUBGROUPING]] if SUBGROUPING in TABLE_OF else []
SUB_CHAPTER = "4 Sub-clusters"


def of_group(files, **others):
    """The files of a stage's rule in the folder of a group instead of the cohort's, but for those that are given."""
    genes = f"{COHORT}/genes.parquet"

    def place(path):
        return path if path == genes else str(path).replace(f"{COHORT}/", f"{SUB}/", 1)

    found = {
        name: place(value) if isinstance(value, str) else list(map(place, value))
        for name, value in files.items()
        if name not in others
    }
    return found | others


def of_subgroups(path):
    """The files of all groups."""
    return expand(path, subgroup=SUBGROUP_PARTS)


def subgroup_of(wildcards):
    """The name of the group in a path."""
    return unescape(wildcards.subgroup)


def all_subgroups(wildcards, input):
    """All groups, for the message if some are not there; Snakemake does not compare params that depend on inputs, so
    that a further group leaves the others as they are."""
    return SUBGROUPS


def section_of(wildcards):
    """The heading of a group's figures."""
    return f"{SUBGROUPING} {subgroup_of(wildcards)}"


def of_subfigure(name, caption, **labels):
    """The files of a group's figure."""
    return figure(
        f"results/figures/sub/{{subgroup}}/{name}",
        caption=caption,
        category=SUB_CHAPTER,
        subcategory=section_of,
        labels=labels,
    )
