"""``advrepair verify``: its words and exit codes, what it refuses, and real networks."""

import json
import os
from pathlib import Path

import pytest
import torch
from problems import a_network, entries, write_onnx
from safetensors.torch import save_file

import advrepair
from advrepair.cli import main
from advrepair.core.network import load_network
from advrepair.testing.networks import fully_connected

DATA = Path(os.environ.get("ADVREPAIR_DATA", "")) / "acasxu"
UNSET = not os.environ.get("ADVREPAIR_DATA") or not (DATA / "onnx").is_dir()


def write(name, *unsafe, low=0.25, high=0.75, inputs=6, outputs=4):
    """A property file on one box."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    lines += [f"(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))" for i in range(inputs)]
    Path(name).write_text("\n".join([*lines, *(f"(assert {each})" for each in unsafe)]))
    return name


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A network, and one property of each answer."""
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "net.onnx", a_network())
    write("good.vnnlib", "(<= Y_0 -1000.0)")
    write("bad.vnnlib", "(>= Y_0 -1000.0)")
    with torch.no_grad():
        y = a_network()(0.25 + 0.5 * torch.rand(10**5, 6, generator=torch.manual_seed(0)))
    write("hard.vnnlib", f"(<= Y_0 {float(y[:, 0].min()) - 0.05:.4f})")
    return tmp_path


def verify(capsys, *arguments):
    code = main(["verify", *arguments])
    out = capsys.readouterr().out
    return code, out


def test_holds_violated_unknown(folder, capsys):
    before = entries(folder)
    code, out = verify(capsys, "net.onnx", "good.vnnlib")
    assert code == 0
    assert out.splitlines()[0] == "net.onnx (zonotope, deployed-float32)"
    assert "good: you ask that for every input of the box, " in out
    assert "good: holds: proved for every input of the region, margin " in out
    code, out = verify(capsys, "net.onnx", "bad.vnnlib")
    assert code == 1 and "bad: violated: by this input, run alone, with margin -" in out
    code, out = verify(capsys, "net.onnx", "hard.vnnlib", "--pieces", "9")
    assert code == 5 and "hard: unknown: the budget of pieces is used up; " in out
    assert "% of the volume is proved" in out
    code, out = verify(capsys, "net.onnx", "hard.vnnlib", "--pieces", "200000")
    assert code == 0 and "hard: holds" in out
    code, out = verify(capsys, "net.onnx", "hard.vnnlib", "--timeout", "1e-6")
    assert code == 5 and "hard: unknown: the time is up" in out
    assert entries(folder) == before


def test_several_files(capsys):
    files = ("good.vnnlib", "hard.vnnlib", "bad.vnnlib")
    code, out = verify(capsys, "net.onnx", *files, "--pieces", "9")
    assert code == 1 and out.splitlines()[-1] == "1 holds, 1 violated, 1 unknown"
    code, out = verify(capsys, "net.onnx", *files[:2], "--pieces", "9")
    assert code == 5 and out.splitlines()[-1] == "1 holds, 1 unknown"


def test_the_printed_counterexample_is_one(capsys):
    """Every digit counts: it is read back and run."""
    code, out = verify(capsys, "net.onnx", "bad.vnnlib")
    shown = {line.split(": ")[0].strip(): line.split(": ")[1] for line in out.splitlines()[-2:]}
    x = torch.tensor([[float(v) for v in shown["x"].split(", ")]])
    y = [float(v) for v in shown["y"].split(", ")]
    assert code == 1 and torch.equal(a_network()(x)[0].detach(), torch.tensor(y))
    assert bool((x > 0.25).all() and (x < 0.75).all()) and y[0] >= -1000


def test_notes_and_regions(capsys):
    """A strict constraint is noted; a file of two boxes has two answers."""
    write("strict.vnnlib", "(< Y_0 -1000.0)")
    _, out = verify(capsys, "net.onnx", "strict.vnnlib")
    assert "note: strict: 1 strict constraint(s)" in out
    boxes = " ".join(f"(and (<= X_0 {v}) (<= Y_0 {c}))" for v, c in ((0.5, -1000.0), (0.6, 1000.0)))
    write("two.vnnlib", f"(or {boxes})")
    code, out = verify(capsys, "net.onnx", "two.vnnlib")
    assert code == 1 and "two[0]: holds" in out and "two[1]: violated" in out
    code, out = verify(capsys, "net.onnx", "two.vnnlib", "--vnncomp")
    assert code == 1 and out.startswith("sat\n")


def test_json(capsys):
    files = ("good.vnnlib", "bad.vnnlib", "hard.vnnlib")
    code, out = verify(capsys, "net.onnx", *files, "--pieces", "9", "--json", "--level", "real")
    report = json.loads(out)
    assert code == 1 and (report["level"], report["verifier"]) == ("real", "zonotope")
    good, bad, hard = report["answers"]
    assert (good["answer"], good["share"], good["x"], good["reason"]) == ("holds", 1, None, None)
    assert bad["answer"] == "violated" and len(bad["x"]) == 6 and len(bad["y"]) == 4
    assert (hard["answer"], hard["reason"]) == ("unknown", "pieces") and hard["share"] < 1
    assert good["demand"] == "for every input of the box, " + good["demand"].split(", ")[1]


def test_the_words_of_vnncomp(capsys):
    assert verify(capsys, "net.onnx", "good.vnnlib", "--vnncomp") == (0, "unsat\n")
    flags = ["--vnncomp", "--pieces", "9"]
    assert verify(capsys, "net.onnx", "hard.vnnlib", *flags) == (5, "unknown\n")
    flags = ["--vnncomp", "--timeout", "1e-6"]
    assert verify(capsys, "net.onnx", "hard.vnnlib", *flags) == (5, "timeout\n")
    code, out = verify(capsys, "net.onnx", "bad.vnnlib", "--vnncomp")
    lines = out.splitlines()
    assert code == 1 and lines[0] == "sat" and lines[1].startswith("((X_0 ")
    assert lines[-1].startswith("(Y_3 ") and lines[-1].endswith("))") and len(lines) == 11
    assert [line.strip("()").split()[0] for line in lines[1:]] == [
        *(f"X_{i}" for i in range(6)), *(f"Y_{j}" for j in range(4)),
    ]  # fmt: skip


def test_progress_does_not_claim_what_is_not_proved(capsys):
    from advrepair.cli import progress

    progress.LOG_EVERY, kept = 0.0, progress.LOG_EVERY
    try:
        main(["verify", "net.onnx", "hard.vnnlib", "--pieces", "9"])
    finally:
        progress.LOG_EVERY = kept
    shown = capsys.readouterr().err
    assert "hard: thousandths of the volume proved" in shown and "1000/1000" not in shown


def test_verifiers_and_their_options(capsys):
    code, out = verify(capsys, "net.onnx", "good.vnnlib", "--verifier", "deeppoly")
    assert code == 0 and "(deeppoly, deployed-float32)" in out
    flags = ["--verifier", "branch-and-bound", "--set", "branch-and-bound.pieces=1"]
    assert verify(capsys, "net.onnx", "hard.vnnlib", *flags)[0] == 5


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("no.onnx: no such file", ["no.onnx", "good.vnnlib"]),
        ("no.vnnlib: no such file", ["net.onnx", "no.vnnlib"]),
        ("declares 5 inputs, the network takes 6", ["net.onnx", "inputs.vnnlib"]),
        ("declares 3 outputs, the network has 4", ["net.onnx", "outputs.vnnlib"]),
        ("nonsense", ["net.onnx", "good.vnnlib", "--verifier", "nonsense"]),
        ("not rigorous", ["net.onnx", "good.vnnlib", "--verifier", "careless"]),
        ("certification.level", ["net.onnx", "good.vnnlib", "--level", "exact"]),
        ("leaves the input range", ["net.onnx", "good.vnnlib", "--input-range", "0.5,1"]),
        ("--timeout is -1", ["net.onnx", "good.vnnlib", "--timeout", "-1"]),
        ("pieces", ["net.onnx", "good.vnnlib", "--pieces", "0"]),
        ("takes one property file", ["net.onnx", "good.vnnlib", "bad.vnnlib", "--vnncomp"]),
        ("exclude each other", ["net.onnx", "good.vnnlib", "--json", "--vnncomp"]),
        ("holds weights only", ["weights.safetensors", "good.vnnlib"]),
        ("is its folder a complete run", ["empty", "good.vnnlib"]),
        ("Missing argument", ["net.onnx"]),
        ("bad.txt", ["net.onnx", "bad.txt"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(message, arguments, folder, capsys, monkeypatch):
    from advrepair.plugins.verifiers.interval import Interval

    monkeypatch.setattr(Interval, "rigorous", False)
    arguments = ["interval" if each == "careless" else each for each in arguments]
    write("inputs.vnnlib", "(<= Y_0 0.0)", inputs=5)
    write("outputs.vnnlib", "(<= Y_0 0.0)", outputs=3)
    (folder / "bad.txt").write_text("nothing")
    (folder / "empty").mkdir()
    save_file(a_network().tensors, folder / "weights.safetensors")
    assert main(["verify", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown
    assert shown.err.startswith("error: ") and message in shown.err


def test_a_run_folder_is_its_deployed_function(folder, capsys):
    """What a run repaired holds there, and is violated by the network without its patches."""
    network = fully_connected(1, (2, 8, 8, 3))
    write_onnx(folder / "small.onnx", network)
    with torch.no_grad():
        y = network(torch.rand(10**4, 2, generator=torch.manual_seed(0)))[:, 0]
    edge = float(y.quantile(0.1))
    write("p.vnnlib", f"(<= Y_0 {edge:.4f})", low=0.0, high=1.0, inputs=2, outputs=3)
    assert verify(capsys, "small.onnx", "p.vnnlib")[0] == 1
    assert main(["run", "small.onnx", "--property", "p.vnnlib", "--out", "run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["properties"]["certified"] == 1 and report["patches"]["count"] == 1
    for name in ("run", "run/repaired.safetensors"):
        code, out = verify(capsys, name, "p.vnnlib")
        assert code == 0 and "p: holds" in out
    # Of the stored patch another bias: the certificate would be void, so it says no.
    assert isinstance(advrepair.load("run"), advrepair.RepairedNetwork)
    stored = folder / "run" / "repaired.safetensors"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x01")
    assert main(["verify", "run", "p.vnnlib"]) == 2
    assert "was changed after it was certified" in capsys.readouterr().err


@pytest.mark.skipif(UNSET, reason="ADVREPAIR_DATA is not set: no ACAS Xu networks")
def test_acas_xu(capsys):
    """Known verdicts: one that holds, one that does not."""
    at = "ACASXU_run2a_{}_batch_2000.onnx"
    good, bad = (str(DATA / "onnx" / at.format(name)) for name in ("1_1", "2_1"))
    code, out = verify(capsys, good, str(DATA / "vnnlib" / "prop_3.vnnlib"))
    assert code == 0 and "prop_3: you ask that" in out and "prop_3: holds" in out
    code, out = verify(capsys, bad, str(DATA / "vnnlib" / "prop_2.vnnlib"), "--vnncomp")
    assert code == 1 and out.startswith("sat\n((X_0 ")
    values = [float(line.strip("()").split()[1]) for line in out.splitlines()[1:]]
    x, y = torch.tensor([values[:5]]), torch.tensor(values[5:])
    network = load_network(bad)
    assert torch.equal(network(x.view(1, *network.input_shape))[0].detach(), y)
    assert int(y.argmax()) == 0
