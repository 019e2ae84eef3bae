"""Draw the scores of gene sets: their means in each group, and on the UMAP those that differ most between groups.

The means are standardised over the groups, set by set. Sets are ordered by the share of their variance that lies
between the groups (eta squared), by which the UMAPs are chosen. A table has the means and this share.
"""

from lib.start import run

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from lib.figures import plots
from lib.methods.markers import Groups, read_groups
from lib.report import facts
from lib.report import sets as told_sets
from lib.report.parts import Column, Finished, Numbers, Part, Table
from lib.run.forked import run_all
from lib.run.resources import KB, MB, Job, Need
from lib.store.files import read_table, write_tsv
from matplotlib.figure import Figure

MOST_SETS, MOST_UMAPS = 40, 12


def by_group(scores: pd.DataFrame, groups: Groups) -> tuple[pd.DataFrame, pd.Series]:
    """The mean score of each set in each group, groups x sets, and the share of each set's variance between groups."""
    mine = groups.codes >= 0
    values, codes = scores.to_numpy(np.float64)[mine], groups.codes[mine]
    sums = np.zeros((len(groups.names), values.shape[1]))
    np.add.at(sums, codes, values)
    sizes = groups.sizes[:, None]
    means, mean = sums / sizes, values.mean(0)
    total = ((values - mean) ** 2).sum(0)
    between = (sizes * (means - mean) ** 2).sum(0)
    share = np.divide(between, total, out=np.zeros(len(total)), where=total > 0)
    return pd.DataFrame(means, groups.names, scores.columns), pd.Series(share, scores.columns)


def heatmap(means: pd.DataFrame, label: str) -> Figure:
    """Groups as rows, sets as columns, coloured by the mean score, standardised over the groups."""
    deviation = means.std(ddof=0).replace(0, 1)
    shown = (means - means.mean()) / deviation
    fig, axes = plots.panels(1, 1, (0.2 * means.shape[1] + 0.2, 0.2 * means.shape[0] + 0.2))
    ax = axes[0, 0]
    drawn = ax.imshow(shown, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    ax.set_xticks(np.arange(means.shape[1]), [short(name) for name in means.columns], rotation=90, size=7)
    ax.set_yticks(np.arange(means.shape[0]), means.index, size=8)
    ax.tick_params(length=2)
    plots.colour_bar(ax, drawn, f"mean {label},\nstandardised", gap=0.15, height=min(1.4, 0.2 * means.shape[0] + 0.2))
    return fig


def short(name: str, most: int = 40) -> str:
    """A set's name, cut if it is long."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def umaps(embedding: pd.DataFrame, scores: pd.DataFrame, label: str, seed: int) -> Figure:
    """A UMAP for each set, shaded by its score, from its 1st to its 99th percentile."""
    n = scores.shape[1]
    columns = min(n, 4)
    fig, axes = plots.panels(-(-n // columns), columns, (2.2, 2.2), (0.25, 0.3))
    X = embedding.to_numpy(np.float32)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for ax, (name, values) in zip(axes.flat, scores.items(), strict=False):
        plots.without_ticks(ax)
        low, high = np.percentile(values, [1, 99])
        style = {"vmin": low, "vmax": max(high, low + 1e-9), "cmap": "viridis"}
        drawn = plots.points(ax, *X.T, values.to_numpy(), seed, **style)
        ax.set_title(f"{short(name, 24)} ({low:.2g} to {high:.2g})", size=8, loc="left")
    bar = plots.colour_bar(axes[0, columns - 1], drawn, label, gap=0.15, height=1.2)
    bar.set_ticks([low, max(high, low + 1e-9)], labels=["low", "high"])
    axes[-1, 0].set_xlabel("UMAP1", loc="left", size=8)
    axes[-1, 0].set_ylabel("UMAP2", loc="bottom", size=8)
    return fig


def tells(run: Finished) -> Iterator[Part]:
    """The sets that differ most between the groups, and the tables of means."""
    for job in run.of("figures_scores"):
        collection, method, grouping = (job.wildcards[name] for name in ("collection", "scored", "grouping"))
        means = facts.tsv(job.means)
        said = told_sets.of_groups(means, collection, method, grouping)
        for path in (*job.files("heatmap"), *job.files("umaps")):
            yield Numbers(path, said)
        columns = {name: Column(name.removeprefix("mean_")) for name in means if name.startswith("mean_")}
        columns |= {"set": Column("set"), "between_groups": Column("share of the variance between groups")}
        yield Table(job.means, f"Mean scores by {method}, {grouping}", said, told_sets.CHAPTER, collection, columns)


def needs(job: Job) -> Need:
    """The scores of one collection by one method."""
    return job.drawn(110 * MB, 1.4 * KB, seconds=20)


def main(snakemake: Any) -> None:
    """Draw the scores of a collection by one method, for one grouping."""
    inputs, params, output = snakemake.input, snakemake.params, snakemake.output
    scores, embedding = read_table(inputs.scores), read_table(inputs.umap)
    groups = read_groups(params.grouping, inputs.obs, inputs.grouping)
    if not groups.names:
        for path in (output.heatmap, output.umaps):
            plots.save(plots.nothing(f"{params.grouping}: fewer than two groups to compare."), path)
        write_tsv(pd.DataFrame({"set": scores.columns}), output.means)
        return
    means, share = by_group(scores, groups)
    share = share.sort_values(ascending=False, kind="stable")
    order = share.index
    table = means.add_prefix("mean_", axis=0).T.loc[order]
    table.insert(0, "between_groups", share)
    write_tsv(table.rename_axis("set").reset_index(), output.means)
    chosen = [name for name in means.columns if name in order[:MOST_SETS]]
    tasks = [
        partial(draw, partial(heatmap, means[chosen], params.label), output.heatmap),
        partial(draw, partial(umaps, embedding, scores[order[:MOST_UMAPS]], params.label, params.seed), output.umaps),
    ]
    run_all(tasks, snakemake.threads)


def draw(figure: Any, path: str) -> None:
    """Draw and save one figure."""
    plots.save(figure(), path)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
