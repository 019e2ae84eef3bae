"""Read a `.loom`: `matrix` and layers are dense, genes x cells; the attributes have the writing programs' names."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib.inputs.formats.arrays import File, array_problem, is_array, n_bytes
from lib.inputs.formats.base import NUMBERS, PEEK, DamagedError, MatrixReader, Question, Tell, choice, look_of, plain
from lib.run.errors import UserError

CELLS = ("CellID", "obs_names", "barcode", "barcodes", "cell_names", "cell_id", "cell_ids", "Barcode")
GENES = ("Gene", "var_names", "gene_name", "gene_names", "gene_symbols", "Symbol", "target_name", "Accession")
GENES += ("gene_id", "gene_ids", "Name")


class Loom(MatrixReader):
    """A loom's matrix, or one of its layers."""

    transposed = True

    def __init__(self, question: Question, tell: Tell, file: File) -> None:
        super().__init__(question, tell)
        self.file = file
        layers = file.find("layers")
        found = {"X": "matrix"} | {f"layers/{n}": f"layers/{n}" for n in (() if is_array(layers) else layers or ())}
        self.places = {place: look for place, name in found.items() if (look := self._look(name)) is not None}
        if (wanted := found.get(question.counts)) and question.counts not in self.places:
            file.array(wanted, 2, NUMBERS)
        self.where = choice(self.path, "counts", question.counts, list(self.places))
        # For each table its attributes with one value per cell or gene, and the attribute with the names
        self.tables, named = [], []
        for group, names in (
            ("col_attrs", (question.obs_names,) if question.obs_names else CELLS),
            ("row_attrs", (question.var_names,) if question.var_names else GENES),
        ):
            attributes = {
                name: item for name in file.group(group) if (item := file.find(f"{group}/{name}")) is not None
            }
            single = {name: item for name, item in attributes.items() if not array_problem(item, 1)}
            index = next((name for name in names if name in single), None)
            if index is None:
                key = "obs_names" if group == "col_attrs" else "var_names"
                there = f"it has {', '.join(single) or 'nothing'}. Name the attribute that does (`ingest: {key}`)."
                raise UserError(
                    f"{self.path}: /{group} has none of {', '.join(names)}, to name its cells or genes; {there}"
                )
            named.append(n := int(single[index].shape[0]))
            file.check_room(f"{group}/{index}", n_bytes(single[index]))
            for name, item in single.items():
                if item.shape != (n,):
                    why = f"{group}/{name} has {item.shape[0]} values, and {group}/{index} {n}"
                    raise DamagedError(self.path, why)
            self.tables.append((group, attributes, single, index))
        self.check_columns(list(self.tables[0][2]))
        self.take(found[self.where], (named[0], named[1]), f"col_attrs have {named[0]} values and row_attrs {named[1]}")

    def _look(self, name: str) -> str | None:
        matrix = self.file.find(name)
        if matrix is None or array_problem(matrix, 2, NUMBERS):
            return None
        return look_of(self.file.read(name, matrix, slice(1), slice(PEEK)).ravel())

    def load(self) -> None:
        """Read the attributes of cells and genes."""
        from lib.inputs.formats import genes

        self.obs, var = (self._table(*table) for table in self.tables)
        named = var.drop(columns=[*genes.SYMBOL_COLUMNS], errors="ignore") if self.question.var_names else var
        self.gene_symbols, self.gene_ids = genes.names_in(self.path, named)
        self.flags = genes.flags_in(var)

    def _table(self, group: str, attributes: dict[str, Any], single: dict[str, Any], index: str) -> pd.DataFrame:
        from lib.run.stage import log, notice

        if odd := ", ".join(name for name in attributes if name not in single):
            log.info("%s: left out of /%s: %s, which hold no single values", self.path, group, odd)
        table = {index: self.file.strings(f"{group}/{index}", single[index])}
        for name, item in single.items():
            where = f"{group}/{name}"
            try:
                whole = self.file.whole if item.dtype.kind in NUMBERS else self.file.strings
                table.setdefault(name, whole(where, item))
            except UserError as error:
                if name in GENES or isinstance(error, DamagedError):
                    raise
                notice("%s: left out of /%s: %s, which is no text", self.path, group, name)
        return pd.DataFrame(table, index=plain(table.pop(index)))
