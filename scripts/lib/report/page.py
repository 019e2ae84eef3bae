"""The page: chapters with figures, tables and sentences, from the marks of rules and from what stages tell."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from lib.report import facts
from lib.report.parts import Column, Finding, Mark, Methods, Part, Table
from lib.report.pictures import Picture, pictures

HERE = Path(__file__).parent
STYLES, SCRIPTS = ("../vendor/tabulator.min.css", "page.css"), ("../vendor/tabulator.min.js", "page.js")
TEMPLATE, REFERENCES = "page.html", "references.yaml"
EACH = 24  # pages, or samples, of a figure that the page holds
PLAIN = ("sample", "method", "clusters")  # labels whose values need no name
SHOWN = 3  # findings of a kind
FIGURES_MB = 11  # of all of them, as text
WIDE, PANELS = 800, 1200  # pixels from which on a long figure, and one of several panels, has a line of its own
RUNS = "Runs"  # the last chapter
RESERVED = ("top", "zoom", "findings", "methods", "methods-text", "references", "config", "config-text", "samples")


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes
    ----------
    number, anchor
        "Figure 3" and its address in the page.
    path
        Beside the page, for readers who want the file.
    title, of
        What it shows; the sample or another value by which its pager finds it.
    numbers, caption
        The sentence with this run's numbers, and what the rst file says (HTML).
    picture
        None: the page does not hold it.
    """

    number: int
    anchor: str
    path: str
    title: str
    of: str
    numbers: Markup
    caption: Markup
    picture: Picture | None = None

    @property
    def wide(self) -> bool:
        """Whether it needs a line of its own."""
        if self.picture is None:
            return False
        width, height = self.picture.width, self.picture.height
        return width > PANELS or width > max(WIDE, 1.5 * height)

    @property
    def alt(self) -> str:
        """The text in place of the picture."""
        return f"{self.title}. {Markup(self.numbers).striptags()}"


@dataclass(frozen=True)
class Group:
    """Figures that stand together: side by side, or one at a time (`paged`)."""

    figures: Sequence[Figure]
    paged: bool

    @property
    def shared(self) -> Markup:
        """The caption that all of them have; empty if they differ."""
        captions = {figure.caption for figure in self.figures}
        return captions.pop() if len(captions) == 1 and len(self.figures) > 1 else Markup()

    @property
    def held(self) -> list[Figure]:
        """Those that the page holds."""
        return [figure for figure in self.figures if figure.picture]


@dataclass(frozen=True)
class Sheet:
    """A table of the page: the file's bytes, compressed, and how its columns are shown."""

    anchor: str
    path: str
    title: str
    said: Markup
    data: str
    columns: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The name of the file when it is downloaded: "leiden_0.6_t-test.top.tsv"."""
        return re.sub(r"^(tables|cohort/markers|cohort)/", "", self.path).replace("/", "_")


@dataclass
class Section:
    """A heading with what stands below it; a chapter has sections, the first of which has no title."""

    title: str
    anchor: str
    paragraphs: list[Markup] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    sections: dict[str, Section] = field(default_factory=dict)


def sentence(text: str) -> Markup:
    """Plain text as HTML: `name` in backticks as code, no line break before a per cent sign."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))).replace(" %", "&nbsp;%"))


@cache
def caption_template(path: str) -> Any:
    """A caption's rst file, of paragraphs with ``code`` and **bold**, as a template whose values are escaped."""
    text = re.sub(r"``(.+?)``", r"<code>\1</code>", Path(path).read_text(encoding="utf-8"))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text, flags=re.S)
    paragraphs = "".join(f"<p>{paragraph}</p>" for paragraph in re.split(r"\n\s*\n", text.strip()))
    return Environment(autoescape=True).from_string(paragraphs)


def caption_of(mark: Mark, config: Mapping[str, Any]) -> Markup:
    """What a mark's rst file says of the figure, as HTML."""
    if not mark.caption:
        return Markup()
    known = SimpleNamespace(wildcards=SimpleNamespace(**mark.wildcards), config=config)
    return Markup(caption_template(mark.caption).render(snakemake=known))


def title_of(labels: Mapping[str, str]) -> str:
    """The title of a figure or table from the labels of its mark, with a capital."""
    words = [value for name, value in labels.items() if name in ("figure", "table")]
    words += [
        value if name in PLAIN else f"{name} {value}"
        for name, value in labels.items()
        if name not in ("figure", "table")
    ]
    text = ", ".join(words)
    return text[:1].upper() + text[1:]


def page_of(mark: Mark) -> str:
    """What tells a figure from others of its kind that are shown one at a time: its sample, or its page."""
    return mark.wildcards.get("sample", "") or mark.labels.get("page", "")


def chapter_of(category: str) -> tuple[float, str]:
    """The place and the title of a category: "3 Embeddings" is (3, "Embeddings")."""
    found = re.fullmatch(r"(\d+)\s+(.+)", category)
    number, title = (float(found[1]), found[2]) if found else (float("inf"), category)
    return (float("inf"), title) if title == RUNS else (number, title)


class Book:
    """The chapters, filled in the order of the questions.

    Parameters
    ----------
    root
        The folder of the page; the paths of files are relative to it.
    config
        The run's.
    """

    def __init__(self, root: Path, config: Mapping[str, Any]) -> None:
        self.root, self.config = root, config
        self.chapters: dict[str, Section] = {}
        self.places: dict[str, float] = {}
        self.links: dict[str, tuple[str, str]] = {}  # path -> address and name of a figure or table
        self._anchors: dict[str, None] = dict.fromkeys(RESERVED)
        self._numbers = count(1)
        self._tables = count(1)

    def section(self, category: str, title: str = "") -> Section:
        """The section of a category."""
        place, name = chapter_of(category)
        self.places[name] = min(place, self.places.get(name, place))
        if name not in self.chapters:
            self.chapters[name] = Section(name, self.anchor(name))
        chapter = self.chapters[name]
        if title and title not in chapter.sections:
            chapter.sections[title] = Section(title, self.anchor(name, title))
        return chapter.sections[title] if title else chapter

    def anchor(self, *names: str) -> str:
        """An address within the page that is made of names, and is no other's."""
        plain = re.sub(r"[^a-z0-9._]+", "-", "-".join(names).lower()).strip("-") or "part"
        found = next(name for n in count(1) if (name := plain if n == 1 else f"{plain}-{n}") not in self._anchors)
        self._anchors[found] = None
        return found

    def add_figures(self, marks: Sequence[Mark], numbers: Mapping[str, str]) -> None:
        """Add the marked figures, those of one caption in one section together, with their sentences by path."""

        def place(mark: Mark) -> tuple[float, str, str]:
            return (*chapter_of(mark.chapter), mark.section)

        sections = dict.fromkeys(map(place, marks))
        order = {key: i for i, key in enumerate(sorted(sections, key=lambda key: (key[1] == RUNS, key[0])))}
        for _, of_section in groupby(sorted(marks, key=lambda mark: order[place(mark)]), key=place):
            of_section = list(of_section)
            section = self.section(of_section[0].chapter, of_section[0].section)
            for caption in dict.fromkeys(mark.caption for mark in of_section):
                together = [mark for mark in of_section if mark.caption == caption]
                paged = len(together) > 1 and all(map(page_of, together))
                number = next(self._numbers)
                figures = [self.figure(mark, numbers.get(mark.path, ""), number) for mark in together[:1]]
                for mark in together[1:]:
                    number = number if paged else next(self._numbers)
                    figures.append(self.figure(mark, numbers.get(mark.path, ""), number))
                section.groups.append(Group(figures, paged))

    def figure(self, mark: Mark, said: str, number: int) -> Figure:
        """A figure without its picture."""
        path = self.beside(mark.path)
        anchor, of = self.anchor("figure", re.sub(r"^figures/|\.png$", "", path)), page_of(mark)
        self.links[mark.path] = f"#{anchor}", f"Figure {number}"
        return Figure(number, anchor, path, title_of(mark.labels), of, sentence(said), caption_of(mark, self.config))

    def add_pictures(self, threads: int, urgent: Sequence[str] = ()) -> None:
        """Read the pictures: all figures, and of those in pages as many as fit, first those with these paths."""
        everywhere = [section for chapter in self.chapters.values() for section in walk(chapter)]
        groups = [group for section in everywhere for group in section.groups]
        chosen = [figure for group in groups if not group.paged for figure in group.figures]
        first = {self.beside(path): i for i, path in enumerate(urgent)}
        for group in groups:
            if group.paged:
                chosen += sorted(group.figures, key=lambda figure: first.get(figure.path, len(first)))[:EACH]
        made, room = {}, FIGURES_MB * 1e6
        for figure, found in zip(chosen, pictures([self.root / f.path for f in chosen], threads), strict=True):
            room -= len(found.uri)
            if room > 0 or not figure.of:
                made[figure.anchor] = found
        for section in everywhere:
            section.groups = [
                replace(group, figures=[replace(f, picture=made.get(f.anchor)) for f in group.figures])
                for group in section.groups
            ]
        for path, (link, name) in self.links.items():
            if name.startswith("Figure") and link[1:] not in made:
                self.links[path] = quote(self.beside(path)), name

    def add_table(self, table: Table) -> None:
        """Add a table to its section."""
        data = Path(table.path).read_bytes()
        self.section(table.chapter, table.section).sheets.append(self.sheet(table, data))

    def sheet(self, table: Table, data: bytes) -> Sheet:
        """A table of the page with these bytes."""
        anchor = self.anchor("table", re.sub(r"^(tables|cohort)/|\.tsv$", "", self.beside(table.path)))
        self.links[table.path] = f"#{anchor}", f"Table {next(self._tables)}"
        packed = base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
        header = next(csv.reader([data.partition(b"\n")[0].decode()], delimiter="\t"), [])
        columns = {name: Column(name, text=True) for name in header if name in (header[0], *facts.NAMES)}
        columns |= {name: replace(known, text=known.text or name in columns) for name, known in table.columns.items()}
        shown = {name: vars(column) for name, column in columns.items()}
        return Sheet(anchor, self.beside(table.path), table.title, sentence(table.said), packed, shown)

    def beside(self, path: str) -> str:
        """A path relative to the page's folder."""
        return Path(path).relative_to(self.root).as_posix() if Path(path).is_relative_to(self.root) else str(path)

    def ordered(self, wanted: Sequence[str] | None) -> list[Section]:
        """The chapters: by the numbers of their categories, then as they came; or those wanted, in their order."""
        if wanted is None:
            return sorted(self.chapters.values(), key=lambda chapter: self.places[chapter.title])
        return [self.chapters[name] for name in wanted if name in self.chapters]


def walk(section: Section) -> Iterable[Section]:
    """A section and those below it."""
    yield section
    for below in section.sections.values():
        yield from walk(below)


def folded(findings: Iterable[Finding]) -> list[tuple[list[Finding], list[Finding]]]:
    """The findings, worst first, those of one kind together: the first SHOWN, and the others if they are not few."""
    kinds: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: -finding.beyond):
        kinds.setdefault(finding.kind or finding.where, []).append(finding)
    return [(of[:SHOWN], of[SHOWN:]) if len(of) > SHOWN + 2 else (of, []) for of in kinds.values()]


def methods_of(parts: Iterable[Part]) -> tuple[Markup, list[str]]:
    """The paragraph of methods, with numbers of the references, and these in their order."""
    told = [part for part in parts if isinstance(part, Methods)]
    references = list(dict.fromkeys(reference for part in told for reference in part.references))
    texts = yaml.safe_load((HERE / REFERENCES).read_text(encoding="utf-8"))
    said = []
    for part in told:
        cited = ",".join(
            f'<a href="#reference-{n}">{n}</a>' for n in (references.index(r) + 1 for r in part.references)
        )
        said.append(sentence(part.said) + Markup(f"<sup>{cited}</sup>" if cited else ""))
    return Markup(" ").join(said), [texts.get(name, name) for name in references]


def rendered(**known: Any) -> str:
    """The page's HTML; a policy within it allows its own scripts alone, and no request."""
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    environment = Environment(autoescape=True, loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True)
    environment.filters["sentence"] = sentence
    styles = [(HERE / name).read_text(encoding="utf-8") for name in STYLES]
    return environment.get_template(TEMPLATE).render(
        policy=policy, styles=list(map(Markup, styles)), scripts=list(map(Markup, scripts)), **known
    )
