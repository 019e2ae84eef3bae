"""What a stage tells the report of a finished run: findings, sentences, tables, the numbers of its figures.

A stage's script declares it in the function `tells`, beside the model of its resources:

    def tells(run: Finished) -> Iterator[Part]:

Figures and tables that a rule marks with Snakemake's `report(...)` are in the page without more: their category is the
chapter, "3 Embeddings" the third one, and their caption is the rst file. All text is plain and is escaped in the page;
in sentences `name` in backticks is set as code. Paths are those of the rules' outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What a human must look at.

    Attributes
    ----------
    where
        The batch, cluster or group: "batch P3", "cluster 7 of leiden_0.6".
    said
        What is found, with the number: "62 % of its cells are kept".
    limit
        What is expected: "at least 80 %".
    beyond
        How many times the limit is exceeded, by which findings are ordered: a share of 30 % lost where 10 % may be
        is 3.
    figure
        The figure, or the table, that shows it.
    kind
        What it has in common with others, in the plural: "doublet rates"; of many of one kind the page folds most.
    """

    where: str
    said: str
    limit: str
    beyond: float
    figure: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Numbers:
    """A sentence with this run's numbers, with which the caption of a figure begins."""

    figure: str
    said: str


@dataclass(frozen=True)
class Column:
    """How a column of a table is shown; columns that are not declared are shown by their own names.

    Attributes
    ----------
    title
        The header.
    low, high
        Values below or above are coloured.
    p_value
        Zero is shown as < 1e-300, the smallest number that the tables resolve.
    hidden
        Not shown until the reader asks for it.
    text
        Names, which are shown as they are though they may look like numbers: a sample 007.
    """

    title: str
    low: float | None = None
    high: float | None = None
    p_value: bool = False
    hidden: bool = False
    text: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page: a TSV of the results, which readers can sort, filter and download as it is.

    Attributes
    ----------
    chapter
        The heading under which it stands, such as "Markers"; one that no figure has makes a chapter of its own.
    section
        The heading below the chapter's; none if empty.
    said
        A sentence with this run's numbers, then how to read the table.
    """

    path: str
    title: str
    said: str
    chapter: str
    section: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Paragraph:
    """Sentences at the beginning of a chapter; see `Table` for `chapter` and `section`."""

    said: str
    chapter: str
    section: str = ""


@dataclass(frozen=True)
class Methods:
    """What the stage did, in the words of a paper, with this run's values, and the publications to cite.

    These are names in references.yaml, or texts.
    """

    said: str
    references: Sequence[str] = ()


Part = Finding | Numbers | Table | Paragraph | Methods


@dataclass(frozen=True)
class Mark:
    """A file that a rule marks for the report (Snakemake's `report(...)`).

    Attributes
    ----------
    path, rule, wildcards
        The file, its rule, and the values of the rule's wildcards.
    caption
        The path of its rst file; empty if it has none.
    chapter, section
        The mark's category and subcategory.
    labels
        What tells it from its neighbours.
    """

    path: str
    rule: str
    wildcards: Mapping[str, str]
    caption: str
    chapter: str
    section: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """A job of the run.

    Attributes
    ----------
    rule, script
        Names; the script's without its suffix.
    wildcards
        As users know them, unescaped.
    output
        Its files by their names in the rule: a path, or a list of paths. Files without a name are under "".
    """

    rule: str
    script: str
    wildcards: Mapping[str, str]
    output: Mapping[str, Any]

    def files(self, name: str) -> list[str]:
        """The paths of the output of this name; none if the rule has no such output."""
        found = self.output.get(name, [])
        return [found] if isinstance(found, str) else list(found)

    def __getattr__(self, name: str) -> Any:
        """The output of this name: `job.umap` is `job.output["umap"]`."""
        if name.startswith("_") or name not in self.output:
            raise AttributeError(f"{self.rule} has no output {name!r}; there are {', '.join(self.output)}")
        return self.output[name]


@dataclass(frozen=True)
class Finished:
    """A finished run, whose artifacts stages look at to tell of them.

    Attributes
    ----------
    config
        The whole config but what does not change results.
    jobs
        All jobs, each after those that made its input.
    marks
        The files that rules mark for the report.
    versions
        The versions of the packages that the jobs ran with.
    on_gpu
        The rules of which a job ran on a GPU.
    """

    config: Mapping[str, Any]
    jobs: Sequence[Done]
    marks: Sequence[Mark] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    on_gpu: Collection[str] = ()

    @cached_property
    def _by_rule(self) -> dict[str, list[Done]]:
        found: dict[str, list[Done]] = {}
        for job in self.jobs:
            found.setdefault(job.rule, []).append(job)
        return found

    def of(self, rule: str) -> list[Done]:
        """The jobs of a rule; none if the config leaves it out."""
        return self._by_rule.get(rule, [])

    def one(self, rule: str) -> Done:
        """The only job of a rule."""
        (job,) = self.of(rule)
        return job

    def files(self, rule: str, name: str) -> list[str]:
        """The outputs of a rule under one name, of all its jobs; none if there are none."""
        return [path for job in self.of(rule) for path in job.files(name)]

    def figure(self, *words: str, part: int = 0, parts: int = 1) -> str:
        """The first marked figure whose section or labels are these words, or else "".

        Of a figure in pages, each with equally many of `parts`, the page that has one of them.
        """
        known = [mark.path for mark in self.marks if {mark.section, *mark.labels.values()}.issuperset(words)]
        return known[part // -(-parts // len(known))] if known else ""

    def package(self, name: str, rule: str = "", gpu: str = "") -> str:
        """A package with the version that the jobs ran with: "umap-learn 0.5.12"; `gpu` if the rule's ran on a GPU."""
        name = gpu if gpu and rule in self.on_gpu else name
        return f"{name} {self.versions[name]}" if self.versions.get(name) else name
