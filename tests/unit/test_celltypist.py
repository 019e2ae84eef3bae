"""Convert models of CellTypist: what is in them arrives, and pickles that do more are not run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lib.inputs.celltypist import convert
from lib.methods.typing_model import Model
from lib.run.errors import UserError
from runs import HOME
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler
from test_annotation import genes_named, predicted, simulated


def celltypist_model(path, classifier, n_types=4) -> tuple[object, StandardScaler]:
    """A model as CellTypist writes it: scikit-learn's classifier and scaler, with the genes' names."""
    X, types = simulated(n_types=n_types)
    L = np.log1p(X * (1e4 / X.sum(1, keepdims=True)))
    scaler = StandardScaler().fit(L)
    model = classifier.fit(np.minimum(scaler.transform(L), 10), types)
    model.features = np.array(genes_named(X.shape[1]), object)
    path.write_bytes(pickle.dumps({"Model": model, "Scaler_": scaler, "description": {"date": "today", "number": 3}}))
    return model, scaler


@pytest.mark.parametrize("n_types", [2, 4])
@pytest.mark.parametrize("classifier", [LogisticRegression, SGDClassifier])
def test_a_converted_model_predicts_as_the_original(tmp_path, classifier, n_types):
    """The label with the largest decision value, and its logistic function, as CellTypist; weights are float32."""
    options = {"loss": "log_loss", "random_state": 0} if classifier is SGDClassifier else {}
    model, scaler = celltypist_model(tmp_path / "m.pkl", classifier(**options), n_types)
    convert(tmp_path / "m.pkl", tmp_path / "m.h5")
    ours = Model.read(tmp_path / "m.h5")
    assert ours.link == "sigmoid"
    X, _ = simulated(n_types=n_types, seed=1)
    L = np.log1p(X * (1e4 / X.sum(1, keepdims=True)))
    Z = np.minimum(scaler.transform(L), 10)
    labels, probability, _ = predicted(ours, X, genes_named(X.shape[1]))
    assert (labels == model.predict(Z)).mean() > 0.995
    decision = np.abs(model.decision_function(Z)) if n_types == 2 else model.decision_function(Z).max(1)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-decision)), atol=1e-4)


class Evil:
    """What runs a command when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_that_run_commands_are_not_run(tmp_path):
    trace, model = tmp_path / "trace", tmp_path / "m.pkl"
    for content in (Evil(trace), {"Model": Evil(trace), "Scaler_": Evil(trace)}, [np.array([Evil(trace)], object)]):
        model.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"not converted: .*(posix|nt)\.system is not allowed in a model"):
            convert(model, tmp_path / "m.h5")
    model.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(UserError, match=r"builtins\.eval is not allowed"):
        convert(model, tmp_path / "m.h5")
    assert not trace.exists()
    assert not (tmp_path / "m.h5").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps({}), pickle.dumps({"Model": 1, "Scaler_": 2}), pickle.dumps(np.arange(3))],
    ids=["empty", "text", "empty dict", "numbers", "array"],
)
def test_files_that_are_no_models(tmp_path, content):
    (tmp_path / "m.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.pkl is not converted: "):
        convert(tmp_path / "m.pkl", tmp_path / "m.h5")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "none.pkl", tmp_path / "m.h5")


def test_the_command(tmp_path):
    celltypist_model(tmp_path / "m.pkl", LogisticRegression())
    script = str(HOME / "scripts" / "lib" / "inputs" / "celltypist.py")
    done = subprocess.run([sys.executable, script, "m.pkl"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "4 labels, 200 genes\n"
    assert len(Model.read(tmp_path / "m.h5").labels) == 4
    done = subprocess.run([sys.executable, script, "x.pkl"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "x.pkl does not exist, or is no file.\n")
    assert not Path(tmp_path / "x.h5").exists()
