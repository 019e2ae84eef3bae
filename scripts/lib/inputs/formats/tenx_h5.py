"""Read Cell Ranger's `.h5`: the group `matrix` of version 3, or a group per genome of version 2.

CellBender's files may lack the features' types and genomes, or have "NA" for all. Source: scanpy.read_10x_h5.
"""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd

from lib.inputs.formats.base import MatrixReader, Question, Tell, choice
from lib.run.errors import UserError

# Fields of version 2 -> fields of version 3
FIELDS = {"genes": "id", "gene_names": "name"}
FIELDS |= {f"features/{field}": field for field in ("id", "name", "feature_type", "genome")}


class TenxH5(MatrixReader):
    """Reader of a 10x `.h5`, whose CSC matrix of genes x cells is a CSR matrix of cells x genes."""

    sparse = True

    def __init__(self, question: Question, tell: Tell, file: h5py.File) -> None:
        super().__init__(question, tell)
        if "matrix" in file:
            group = file["matrix"]
        else:
            genomes = [name for name, item in file.items() if hasattr(item, "keys") and "barcodes" in item]
            if not genomes:
                raise UserError(
                    f"{self.path} is not a 10x .h5 file: it has no group `matrix`, and no group of a genome."
                )
            group = file[choice(self.path, "genome", question.genome, genomes)]
        self.check_columns()
        self.fields = {new: group[old] for old, new in FIELDS.items() if old in group}
        if not {"id", "name"} & set(self.fields):
            raise KeyError(f"it has no {group.name}/features/id")
        n_features, n_cells = next(iter(self.fields.values())).shape[0], group["indptr"].shape[0] - 1
        self.take(group, (n_cells, n_features))
        if "barcodes" not in group:
            tell(f"{self.path} is not laid out as its format is: it has no {group.name}/barcodes.")
        elif (n := group["barcodes"].shape[0]) != n_cells:
            self.damaged(f"{n_cells} columns, but {n} barcodes")
        if "shape" in group and (n := int(group["shape"][0])) != n_features:
            self.damaged(f"{n} rows of {n_features} features")

    def load(self) -> None:
        """Read barcodes and features; take the features that are genes of the genome."""
        from lib.inputs.formats import genes

        fields = {name: dataset.asstr()[...] for name, dataset in self.fields.items()}
        ids = fields.get("id", fields.get("name"))
        symbols, ids = genes.filled_names(self.path, fields.get("name", ids), ids)
        untold = np.full(len(ids), "")
        self.columns = genes.gene_features(self.path, fields.get("feature_type", untold))
        if self.question.genome is not None and "features" in self.matrix:
            genomes = fields.get("genome", untold)
            there = list(pd.unique(genomes[self.columns]))
            self.columns &= genomes == choice(self.path, "genome", self.question.genome, there)
        self.gene_symbols, self.gene_ids = symbols[self.columns], ids[self.columns]
        self.obs = pd.DataFrame(index=self.matrix["barcodes"].asstr()[...])
