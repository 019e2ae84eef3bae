"""Names map one to one to parts of paths and to HDF5 keys, and back."""

import re

import h5py
import numpy as np
import pytest
from lib.store.names import LONGEST, escape, escape_key, file_names, unescape

NAMES = ["leiden_0.6", "cell type", "A/1", "A_1", "A=2F1", "", ".", "..", "...", ".hidden", "a.b", "=", "==2F", "%2F"]
NAMES += ["T/NK", 'B "naive", mature', "γδ T", "\0", "a\nb", "~", "{x}", "*", "-rf", "NA", "é", "e\u0301", "😀", "a:b"]


def test_paths_hold_any_name(tmp_path):
    escaped = [escape(name) for name in NAMES]
    assert [unescape(text) for text in escaped] == NAMES
    assert len(set(escaped)) == len(NAMES)
    for text in escaped:
        assert re.fullmatch(r"(?!\.)[A-Za-z0-9._+@=-]+", text)
        (tmp_path / text).touch(exist_ok=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(escaped)


def test_names_of_files_fit_and_differ_where_case_does_not_count():
    """Labels of any length, some that differ by case or beyond what fits."""
    names = [*NAMES, "a/B", "A/b", "n" * 300, "n" * 299 + "m", "😀" * 99]
    found = file_names(names)
    assert list(found) == names
    assert len({text.lower() for text in found.values()}) == len(names)
    assert max(map(len, found.values())) <= LONGEST
    assert found["T/NK"] == escape("T/NK")


def test_plain_names_stay_as_they_are():
    for name in ("leiden_0.6", "CellType", "sample-1", "CD4+", "1.0"):
        assert escape(name) == escape_key(name) == unescape(name) == name
    assert escape("A/1") == "A=2F1"
    assert escape("..") == "=2E."
    assert escape_key("cell type, γδ") == "cell type, γδ"


def test_hdf5_holds_any_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i, name in enumerate(NAMES):
            file[escape_key(name)] = np.array(i)
        assert {unescape(key): int(file[key][()]) for key in file} == {name: i for i, name in enumerate(NAMES)}
        assert all(isinstance(item, h5py.Dataset) for item in file.values())


@pytest.mark.parametrize("text", ["a=b", "x==", "=2f"])
def test_what_is_no_escape_stays(text):
    assert unescape(text) == text
