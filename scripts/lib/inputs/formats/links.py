"""Links of an HDF5 file to other files, of which those outside its folder would put foreign data into the results."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NoReturn

import h5py

from lib.run.errors import UserError

NOT_READ = ("uns", "obsm", "varm", "obsp", "varp")  # groups of an AnnData that no reader opens
LINKS = 16  # soft links that HDF5 follows to one element


def linked_files(file: h5py.File, path: Path) -> tuple[set[Path], dict[str, Any]]:
    """The file, and those beside it that its links and virtual datasets lead to, directly or by way of others; and the
    elements of a file without such links, by their paths.

    Raises
    ------
    UserError
        If an element is in external storage, or in a file that lies outside the file's folder or does not exist.
    """
    walk = _Walk(file, path)
    walk.run()
    return walk.files, walk.elements if len(walk.opened) == 1 else {}


class _Walk:
    """A walk through all elements that readers may open; links are looked at before they are followed."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path, self.folder, self.files = path, path.resolve().parent, {path.resolve()}
        self.opened = {path.resolve(): file}
        self.waiting: list[tuple[h5py.Group, str]] = [(file["/"], "")]
        self.seen: set[tuple[int, int]] = set()
        self.elements: dict[str, Any] = {}

    def run(self) -> None:
        try:
            while self.waiting:
                group, prefix = self.waiting.pop()
                for key in group:
                    if (name := f"{prefix}{key}") not in NOT_READ:
                        if (element := self.followed(group, key, name)) is not None:
                            self.elements[name] = element
                        self.look(element, name)
        finally:
            for other in list(self.opened.values())[1:]:
                other.close()

    def look(self, element: object, name: str) -> None:
        """Check an element; a group's elements wait."""
        if not isinstance(element, h5py.Group | h5py.Dataset):
            return
        about = h5py.h5o.get_info(element.id)
        if (about.fileno, about.addr) in self.seen:
            return
        self.seen.add((about.fileno, about.addr))
        if isinstance(element, h5py.Group):
            self.waiting.append((element, f"{name}/"))
            return
        for storage, *_ in element.external or ():  # HDF5 looks for it where the process runs
            self.refuse(name, storage, "external storage. Write the file anew with its own copy of the data.")
        for source in element.virtual_sources() if element.is_virtual else ():
            file = element.file if source.file_name == "." else self.open(name, source.file_name, element)
            found = self.followed_path(file["/"], source.dset_name, name)
            wanted = source.src_space.get_simple_extent_dims()  # those of the part that is taken
            if not isinstance(found, h5py.Dataset) or any(m > n for m, n in zip(wanted, found.shape, strict=False)):
                why = f"where {source.dset_name} does not exist or is smaller. Copy the file that has it."
                self.refuse(name, source.file_name, why)
            self.look(found, name)

    def followed(self, group: h5py.Group, key: str, name: str, links: int = 0) -> object:
        """An element of a group; None if its link leads nowhere."""
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            return self.followed_path(self.open(name, link.filename, group)["/"], link.path, name, links + 1)
        if isinstance(link, h5py.SoftLink):
            return self.followed_path(group, link.path, name, links + 1)
        with contextlib.suppress(KeyError):
            return group[key]
        return None

    def followed_path(self, group: h5py.Group, where: str, name: str, links: int = 0) -> object:
        """The element at a path; None if there is none."""
        found: object = group.file["/"] if where.startswith("/") else group
        for key in where.split("/"):
            if key not in ("", "."):
                if links > LINKS or not isinstance(found, h5py.Group) or found.get(key, getlink=True) is None:
                    return None
                found = self.followed(found, key, name, links)
        return found

    def open(self, name: str, target: str, element: h5py.HLObject) -> h5py.File:
        """Another file that a link names, by a path from the file with the link."""
        where = (Path(element.file.filename).resolve().parent / target).resolve()
        if not where.is_relative_to(self.folder):
            self.refuse(name, target, "outside its folder. Write the file anew with its own copy of the data.")
        if not where.is_file():
            why = "is no file" if where.exists() else "does not exist. Copy that too"
            self.refuse(name, target, f"which {why}.")
        if where not in self.opened:
            self.opened[where] = h5py.File(where, "r", locking=False)
        self.files.add(where)
        return self.opened[where]

    def refuse(self, name: str, target: str, why: str) -> NoReturn:
        raise UserError(f"{self.path}: {name} is not in this file but in {target}, {why}")
