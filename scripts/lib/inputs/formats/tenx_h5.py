"""Read Cell Ranger's `.h5`: the group `matrix` of version 3, or a group per genome of version 2.

CellBender's files may lack the features' types and genomes, or have "NA" for all. Source: scanpy.read_10x_h5.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib.inputs.formats.arrays import File, is_array, n_bytes
from lib.inputs.formats.base import WHOLE, DamagedError, MatrixReader, Question, Tell, choice
from lib.run.errors import UserError

# Fields of version 2 -> fields of version 3
FIELDS = {"genes": "id", "gene_names": "name"}
FIELDS |= {f"features/{field}": field for field in ("id", "name", "feature_type", "genome")}


class TenxH5(MatrixReader):
    """Reader of a 10x `.h5`, whose CSC matrix of genes x cells is a CSR matrix of cells x genes."""

    sparse = True

    def __init__(self, question: Question, tell: Tell, file: File) -> None:
        super().__init__(question, tell)
        self.file, name = file, "matrix"
        if is_array(file.find(name)):
            genomes = [name for name in file.root if "barcodes" in (getattr(file.find(name), "keys", tuple)())]
            if not genomes:
                raise UserError(
                    f"{self.path} is not a 10x .h5 file: it has no group `matrix`, and no group of a genome."
                )
            name = choice(self.path, "genome", question.genome, genomes)
        self.check_columns()
        group = file.group(name)
        self.fields = {new: f"{name}/{old}" for old, new in FIELDS.items() if old in group}
        if not {"id", "name"} & set(self.fields):
            raise KeyError(f"it has no {name}/features/id")
        self.barcodes = f"{name}/barcodes"
        lengths = {field: file.array(field, 1).shape[0] for field in (*self.fields.values(), self.barcodes)}
        n_cells, n_features = lengths.pop(self.barcodes), max(lengths.values())
        for field, n in lengths.items():
            if n != n_features:
                raise DamagedError(self.path, f"{field} has {n} values for {n_features} features")
        file.check_room(self.barcodes, sum(n_bytes(file.array(field)) for field in (*lengths, self.barcodes)))
        self.take(name, (n_cells, n_features), f"there are {n_features} features and {n_cells} barcodes")

    def _told_shape(self, named: tuple[int, int]) -> tuple[int, int]:
        """The shape, if the file tells it."""
        if "shape" not in self.matrix:
            return int(self.matrix["indptr"].shape[0]) - 1, named[1]
        told = self.file.whole(f"{self.element}/shape", self.matrix["shape"])
        if told.shape != (2,) or told.dtype.kind not in WHOLE:
            raise UserError(f"{self.path} is not laid out as its format is: {self.element} has the shape {told}.")
        return int(told[1]), int(told[0])

    def load(self) -> None:
        """Read barcodes and features; take the features that are genes of the genome."""
        from lib.inputs.formats import genes

        fields = {name: self.file.strings(field, self.file.array(field)) for name, field in self.fields.items()}
        ids = fields.get("id", fields.get("name"))
        symbols, ids = genes.filled_names(self.path, fields.get("name", ids), ids)
        untold = np.full(len(ids), "")
        self.columns = genes.gene_features(self.path, fields.get("feature_type", untold))
        if self.question.genome is not None and "features" in self.matrix:
            genomes = fields.get("genome", untold)
            there = list(pd.unique(genomes[self.columns]))
            self.columns &= genomes == choice(self.path, "genome", self.question.genome, there)
        self.gene_symbols, self.gene_ids = symbols[self.columns], ids[self.columns]
        self.obs = pd.DataFrame(index=self.file.strings(self.barcodes, self.file.array(self.barcodes)))
