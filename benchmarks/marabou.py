"""Check an exported repair end to end with Marabou, which shares nothing with this project.

``python benchmarks/marabou.py FOLDER FILE.onnx [--properties 3] [--timeout 600]``

FILE is the export of the run in FOLDER with ``--form relu``: an ordinary network of linear layers
and ReLUs. Every property that the certificate calls certified becomes one query a group: is there
an input of its box at which every row of the group is <= 0? ``unsat`` for all of them means that
Marabou (PyPI ``maraboupy``, in an environment of its own, with ``safetensors`` and
``onnxruntime``) proves the property for the file, shells of regions included.

Marabou computes in floating point without a guarantee, so this is a second opinion, no
certificate.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from maraboupy import Marabou
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]


def query(path: Path, box: tuple[Array, Array], rows: list[tuple[Array, float]], limit: int) -> str:
    """``unsat`` if no input of the box has all rows ``c y + d`` at most 0."""
    network = Marabou.read_onnx(str(path))
    inputs, outputs = network.inputVars[0].flatten(), network.outputVars[0].flatten()
    for variable, low, high in zip(inputs, *box, strict=True):
        network.setLowerBound(variable, float(low))
        network.setUpperBound(variable, float(high))
    for c, d in rows:
        network.addInequality(list(outputs), [float(v) for v in c], -d)
    options = Marabou.createOptions(timeoutInSeconds=limit, verbosity=0)
    return str(network.solve(options=options, verbose=False)[0])


def main() -> int:
    """Print a line for every property; 0 if Marabou proves all that were asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--properties", type=int, default=3, help="how many, at most")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a query")
    given = parser.parse_args()
    claim = json.loads((given.folder / "certificate.json").read_text())["properties"]
    arrays = load_file(given.folder / "certificate.safetensors")
    certified = [i for i, each in enumerate(claim) if each["status"] == "certified"]
    good = True
    for i in certified[: given.properties]:
        faces = (arrays[f"box.{end}"][i].ravel().astype(float) for end in ("lower", "upper"))
        low, high = faces
        begin, answers = time.perf_counter(), []
        for group in sorted({int(g) for g in arrays["group"][i] if g >= 0}):
            which = np.flatnonzero(arrays["group"][i] == group)
            rows = [(arrays["C"][i, m].astype(float), float(arrays["d"][i, m])) for m in which]
            answers.append(query(given.file, (low, high), rows, given.timeout))
        proved = set(answers) == {"unsat"}
        good &= proved
        seconds = time.perf_counter() - begin
        print(f"{claim[i]['name']}: {'proved' if proved else answers} in {seconds:.1f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
