"""The page of a finished run, as its reader sees it in a browser: offline, without an error, to the last table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import anndata as ad
import chromium
import pytest
from pages import captions_have_numbers
from runs import sheet_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]
READY = "document.documentElement.dataset.ready === 'yes'"
EVIL = "<script>alert(1)</script>"


def page_of(run) -> Path:
    return run.folder / "results" / "report.html"


def test_the_page_has_every_figure_each_with_a_caption_of_numbers(finished):
    captions_have_numbers(finished)


def test_the_small_cohort_has_no_finding_but_those_of_its_size(finished):
    """350 cells a patient: 'clean' but for what so few cells bring."""
    text = page_of(finished).read_text()
    found = re.findall(r'<span class="where">(.*?)</span>\s*<span class="said">(.*?)<', text)
    assert [one for one in found if "cells" not in one[1]] == []


def test_a_report_of_snakemake_can_still_be_made(finished, tmp_path):
    finished.snakemake("--report", str(tmp_path / "theirs.html"))
    theirs = (tmp_path / "theirs.html").read_text()
    assert "umap/leiden_0.6.png" in theirs
    assert "How to judge" in theirs


@pytest.fixture(scope="module")
def shown(finished, tmp_path_factory):
    """The page in a browser, with all tables built."""
    with chromium.Page(tmp_path_factory.mktemp("browser")) as page:
        page.open(page_of(finished))
        page.wait(READY)
        yield page


def test_it_asks_for_nothing_and_has_no_error(shown):
    assert shown.errors == []
    assert shown.requests == []


def test_a_download_is_the_file(finished, shown, tmp_path):
    shown.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    files = {
        "qc_by_batch.tsv": "tables/qc_by_batch.tsv",
        "CellType_t-test.top.tsv": "cohort/markers/CellType/t-test.top.tsv",
        "runs.tsv": "tables/runs.tsv",
    }
    for name, file in files.items():
        shown.run(f"$$('.tools button').find((one) => one.textContent === 'Download {name}').click()")
        shown.wait(lambda name=name: (tmp_path / name).exists())
        assert (tmp_path / name).read_bytes() == (finished.folder / "results" / file).read_bytes()


def test_tables_sort_filter_and_hide_columns(shown):
    sheet = "document.querySelector('[id^=table-markers-celltype-t-test]')"
    cells = f"$$('.tabulator-row', {sheet}).map((row) => $$('.tabulator-cell', row).map((one) => one.textContent))"
    shown.run(f"{sheet}.scrollIntoView({{behavior: 'instant'}})")
    assert shown.run(f"{sheet}.innerText.includes('< 1e-300')") or not any(
        cell == "0" for row in shown.run(cells) for cell in row
    )
    shown.run(
        f"{{ const box = $$('.tabulator-header-filter input', {sheet})[1]; box.focus(); box.value = '<3'; "
        "box.dispatchEvent(new Event('input', {bubbles: true})); box.dispatchEvent(new KeyboardEvent('keyup')) }"
    )
    shown.wait(f"{sheet}.querySelector('.rows-shown').textContent.includes(' of ')")
    ranks = {row[1] for row in shown.run(cells)}
    assert ranks == {"1", "2"}
    before = shown.run(f"$$('.tabulator-col', {sheet}).filter((one) => one.offsetParent).length")
    shown.run(f"$$('.tools input[type=checkbox]', {sheet}).find((one) => one.checked).click()")
    shown.wait(f"$$('.tabulator-col', {sheet}).filter((one) => one.offsetParent).length === {before - 1}")


def test_links_lead_to_figures_and_keys_open_turn_and_close_them(finished, tmp_path):
    with chromium.Page(tmp_path) as page:
        page.open(page_of(finished), "#figure-umap-leiden_0.6")
        page.wait(READY)
        at = page.run("document.getElementById('figure-umap-leiden_0.6').getBoundingClientRect().top")
        assert 0 <= at < 600
        page.run("document.querySelector('#figure-umap-leiden_0\\\\.6 .zoom').focus()")
        page.press("Enter")
        page.wait("document.getElementById('zoom').open")
        assert "leiden_0.6" in page.run("document.querySelector('#zoom .bar span').textContent")
        page.press("ArrowRight")
        assert "leiden_0.6" not in page.run("document.querySelector('#zoom .bar span').textContent")
        page.press("Escape")
        page.wait("!document.getElementById('zoom').open")
        assert page.errors == []


def test_hostile_names_do_nothing_in_the_page(run, cohort_files, tmp_path):
    hostile = ad.read_h5ad(cohort_files[0])
    hostile.obs["type"] = hostile.obs["CellType"].astype(str).replace("B", EVIL)
    names = hostile.var_names.to_series()
    names.iloc[-3:] = [f"{EVIL}{i}" for i in range(3)]
    hostile.var_names = names
    path = tmp_path / "P1.h5ad"
    hostile.write_h5ad(path)
    sheet = [{"sample": "007", "path": str(path), "note": EVIL}]
    run.write(sheet, label_key="type", report={"title": EVIL}, tsne={"enabled": False})
    run.snakemake()
    text = page_of(run).read_text()
    assert EVIL not in text
    assert json.dumps(EVIL) not in text
    with chromium.Page(tmp_path / "browser") as page:
        page.open(page_of(run))
        page.wait(READY)
        assert page.run("document.querySelector('h1').textContent") == EVIL
        assert page.run("$$('main script:not([type])').length") == 0
        assert EVIL in page.run("document.querySelector('main').innerText")
        for table in ("qc_by_batch", "config-samples"):
            page.run(f"document.querySelector('[id^=table-{table}]').scrollIntoView({{behavior: 'instant'}})")
            page.wait(f"document.querySelector('[id^=table-{table}] .tabulator-cell')")
            name = page.run(f"document.querySelector('[id^=table-{table}] .tabulator-cell').textContent")
            assert name == "007"
        assert page.errors == []


def test_its_keys_choose_title_logo_and_chapters(finished, tmp_path, cohort_files):
    import subprocess

    from runs import Run

    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(finished.folder), str(folder)], check=True)
    copy = Run(folder)
    (folder / "logo.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    chosen = {"title": "Our atlas", "logo": "logo.svg", "sections": ["Markers", "Methods", "Sores"]}
    copy.write(sheet_of(cohort_files), report=chosen)
    assert copy.jobs() == ["report"]
    copy.snakemake()
    text = page_of(copy).read_text()
    assert "<h1>Our atlas</h1>" in text
    assert 'src="data:image/svg+xml;base64,' in text
    assert re.findall(r'<section class="chapter" id="(.*?)"', text) == ["markers", "methods"]
    assert "`report: sections` names Sores" in (folder / "logs" / "report.log").read_text()
