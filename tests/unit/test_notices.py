from lib.run import notices

RECORDS = [
    {"rule": "cells", "wildcards": {"sample": "A"}, "notices": ["max_genes takes 40 %"], "code": "1"},
    {"rule": "pca", "wildcards": {}, "notices": [], "code": "2"},
    {"rule": "umap", "wildcards": {}},  # a record of an earlier version
]


def test_notices_name_their_job():
    found = notices.notices(RECORDS, {"cells": "1", "pca": "2"})
    assert found == [{"rule": "cells", "wildcards": "sample=A", "notice": "max_genes takes 40 %"}]
    assert notices.shown(found, "notices.tsv").splitlines()[1] == "  cells (sample=A): max_genes takes 40 %"


def test_results_of_other_code_are_told():
    found = notices.notices(RECORDS, {"cells": "1", "pca": "3", "umap": "4"})
    assert "results of pca umap were made by another version" in found[-1]["notice"]
    assert "--forcerun pca umap" in found[-1]["notice"]


def test_nothing_to_tell_prints_nothing():
    assert notices.shown([], "notices.tsv") == ""


def test_many_are_cut_on_the_console():
    text = notices.shown([{"rule": "qc", "wildcards": "", "notice": str(i)} for i in range(30)], "notices.tsv")
    assert len(text.splitlines()) == 1 + notices.SHOWN + 1
    assert "and 5 more" in text
