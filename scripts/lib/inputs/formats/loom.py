"""Read a `.loom`: `matrix` and layers are dense, genes x cells; the attributes have the writing programs' names."""

from __future__ import annotations

import h5py
import pandas as pd

from lib.inputs.formats.base import PEEK, MatrixReader, Question, Tell, choice, look_of, plain

CELLS = ("CellID", "obs_names", "barcode", "barcodes", "cell_names", "cell_id", "cell_ids", "Barcode")
GENES = ("Gene", "var_names", "gene_name", "gene_names", "gene_symbols", "Symbol", "target_name", "Accession")
GENES += ("gene_id", "gene_ids", "Name")


class Loom(MatrixReader):
    """A loom's matrix, or one of its layers."""

    transposed = True

    def __init__(self, question: Question, tell: Tell, file: h5py.File) -> None:
        super().__init__(question, tell)
        matrices = {"X": file["matrix"]} | {f"layers/{name}": layer for name, layer in file.get("layers", {}).items()}
        self.places = {name: look_of(m[:1, :PEEK].ravel()) for name, m in matrices.items() if m.ndim == 2}
        self.where = choice(self.path, "counts", question.counts, list(self.places))
        self.take(matrices[self.where], matrices[self.where].shape[::-1])
        self.check_columns([name for name, item in file["col_attrs"].items() if item.ndim == 1])
        # For each table its attributes with one value per cell or gene, and the attribute with the names
        self.tables = []
        for group, n, names in zip(("col_attrs", "row_attrs"), self.shape, (CELLS, GENES), strict=True):
            attributes = file.get(group, {})
            if lengths := {item.shape[0] for item in attributes.values() if item.ndim} - {n}:
                self.damaged(f"{group} have {lengths} values for {n} of the matrix")
            single = {name: item for name, item in attributes.items() if item.ndim == 1}
            index = next((name for name in names if name in single), None)
            if index is None:
                there = f"it has {', '.join(single) or 'nothing'}. Give the attribute that does one of these names."
                tell(f"{self.path}: /{group} has none of {', '.join(names)}, to name its cells or genes; {there}")
            self.tables.append((attributes, single, index))

    def load(self) -> None:
        """Read the attributes of cells and genes."""
        from lib.inputs.formats import genes

        self.obs, var = (self._table(*table) for table in self.tables)
        self.gene_symbols, self.gene_ids = genes.names_in(self.path, var)
        self.flags = genes.flags_in(var)

    def _table(self, attributes: h5py.Group, single: dict[str, h5py.Dataset], index: str) -> pd.DataFrame:
        from lib.run.stage import log

        if odd := ", ".join(name for name in attributes if name not in single):
            log.info("%s: left out of %s: %s, which hold no single values", self.path, attributes.name, odd)
        table = {name: item[...] if item.dtype.kind in "biuf" else item.asstr()[...] for name, item in single.items()}
        return pd.DataFrame(table, index=plain(table.pop(index)))
