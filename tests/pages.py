"""The figures and captions of the page of a run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from runs import Run


class Figures(HTMLParser):
    """The figures of a page: file -> alt text, and the sentence of numbers in the caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files, self.alts, self.numbers, self.now, self.inside = [], {}, {}, "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "figure":
            self.now = attrs["data-file"]
            self.files.append(self.now)
        elif tag == "img" and self.now:
            self.alts[self.now] = attrs["alt"]
        elif attrs.get("class") == "run":
            self.inside = True

    def handle_endtag(self, tag):
        if tag == "figcaption":
            self.now = ""
        self.inside = self.inside and tag != "span"

    def handle_data(self, data):
        if self.inside:
            self.numbers[self.now] = self.numbers.get(self.now, "") + data


def captions_have_numbers(run: Run) -> None:
    """The page has every figure of the run, each with a caption that begins with numbers, which are in its alt text."""
    results = run.folder / "results"
    found = Figures((results / "report.html").read_text())
    assert sorted(found.files) == sorted(path.relative_to(results).as_posix() for path in results.rglob("*.png"))
    for file in found.files:
        assert re.search(r"\d", found.numbers.get(file, "")), file
        assert found.numbers[file] in found.alts[file]
