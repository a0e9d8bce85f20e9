"""Bad input: one line, exit code 2, before any work, and nothing is written."""

import pickle

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from problems import a_module, a_problem, entries, some_data, write_inputs, write_onnx

from advrepair.cli import main
from advrepair.testing.networks import fully_connected

X, Y = (t.numpy() for t in some_data())
GOOD = ["run", "net.onnx", "--data", "data.npz", "--count", "3", "--out", "out"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a good network and good data."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """Run, and hold the error to its promise; the good command with some of it replaced."""

    def _refused(message, *arguments, network="net.onnx", data="data.npz", out="out"):
        command = ["run", network, "--data", data, "--out", out]
        command += [] if "--count" in arguments else ["--count", "3"]
        before = entries(folder)
        assert main([*command, *arguments]) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        said = [line for line in captured.out.splitlines() if not line.startswith("estimate: ")]
        assert said == [] and len(lines) == 1, captured.err
        assert lines[0].startswith("error: ") and message in lines[0], lines[0]
        assert "Traceback" not in lines[0] and len(lines[0]) < 400
        assert entries(folder) == before

    return _refused


def save(name="data.npz", **arrays):
    np.savez(name, **arrays)
    return name


def test_the_good_command_is_good(folder):
    assert main(GOOD) == 0 and (folder / "out" / "report.json").exists()


@pytest.mark.parametrize(
    "suffix", ["onnx", "safetensors", "pt"], ids=lambda suffix: f"network.{suffix}"
)
def test_missing_network(suffix, refused):
    refused(f"no.{suffix}: no such file", network=f"no.{suffix}")


def test_missing_data(refused):
    refused("no.npz: no such file", data="no.npz")
    refused("problem.data is empty", data="")


def test_missing_configuration(refused):
    refused("no.toml: No such file or directory", "--config", "no.toml")


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04", b"\x08\x07"])
def test_not_an_onnx_file(content, folder, refused):
    (folder / "bad.onnx").write_bytes(content)
    refused("bad.onnx", network="bad.onnx")


def test_a_folder_in_place_of_a_file(folder, refused):
    (folder / "folder.onnx").mkdir()
    refused("folder.onnx: not a file", network="folder.onnx")
    refused("not a file", data=".")


def test_a_network_of_unknown_kind(folder, refused):
    (folder / "net.h5").write_bytes(b"x")
    refused("suffix '.h5' is not a network", network="net.h5")


def test_an_unknown_operator_is_named_by_its_node(folder, refused):
    write_onnx(folder / "bad.onnx", fully_connected(3, (6, 12, 4)), extra=("Sin",))
    refused("'extra0'", network="bad.onnx")


def test_a_network_with_one_output(folder, refused):
    write_onnx(folder / "one.onnx", fully_connected(3, (6, 12, 1)))
    save(x=X, y=0 * Y)
    refused("output", network="one.onnx")


def test_x_and_y_of_different_length(refused):
    save(x=X, y=Y[:-1])
    refused("x has 60 inputs and y 59 labels")
    save(x_train=X, y_train=Y, x_test=X, y_test=Y[:5])
    refused("x_test has 60 inputs and y_test 5 labels")
    save(x=X, y=Y, x_adv=X[:-1])
    refused("x_adv has shape (59, 6), x (60, 6)")


def test_a_wrong_input_shape(refused):
    save(x=X[:, :5], y=Y)
    refused("x has shape (60, 5), the network takes ('N', 6)")


@pytest.mark.parametrize("arrays", [{}, {"x": X}, {"a": X, "b": Y}, {"x": X, "x_train": X}])
def test_arrays_of_other_names(arrays, refused):
    save(**arrays)
    refused("data.npz: ")


def test_no_inputs(refused):
    save(x=X[:0], y=Y[:0])
    refused("x is empty")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["x", "x_adv", "x_test"])
def test_nan_in_the_data(key, value, refused):
    bad = X.copy()
    bad[3, 2] = value
    train = {"x": X, "y": Y} if key != "x_test" else {"x_train": X, "y_train": Y, "y_test": Y}
    save(**{**train, key: bad})
    refused(f"{key} holds NaN or infinity")


def test_floats_of_0_to_255_are_not_in_the_range(refused):
    save(x=np.round(X * 255).astype(np.float32), y=Y)
    refused("outside the input range [0, 1]; store it as uint8, divide it by 255")
    save(x=np.round(X * 255).astype(np.int64), y=Y)
    refused("outside the input range [0, 1]")


def test_bytes_are_scaled_to_the_declared_range(folder):
    save(x=np.round(X * 255).astype(np.uint8), y=Y)
    assert main(GOOD) == 0


def test_data_outside_the_declared_range(refused):
    refused("outside the input range [0.2, 1]", "--input-range", "0.2,1")


@pytest.mark.parametrize("labels", [Y + 4, Y.astype(float), np.eye(4)[Y], Y[:, None, None]])
def test_labels_that_are_none(labels, refused):
    save(x=X, y=labels)
    refused("data.npz: y ")


def test_labels_that_the_network_never_gives(refused):
    save(x=X, y=(Y + 1) % 4)
    refused("the attack finds 0 counterexamples")


@pytest.mark.parametrize("epsilon", ["0", "-1", "abc", "nan", "inf", "1/0", "8/", "", "0/255"])
def test_epsilon(epsilon, refused):
    refused(f"problem.epsilon is {epsilon!r}: it must be a finite number", f"--epsilon={epsilon}")


@pytest.mark.parametrize("count", ["0", "-3", "1.5", "many"])
def test_count(count, refused):
    refused(f"problem.count is {count!r}", "--count", count)


def test_more_than_the_attack_finds_says_how_many_there_are(refused):
    there = len(a_problem(count=None).row)
    refused(f"the attack finds {there} counterexamples at epsilon 0.1", "--count", "61")
    refused(f"use --count {there}", "--count", str(there + 1))


def test_more_than_the_attack_finds_leaves_no_default_folder_either(folder, capsys):
    before = entries(folder)
    assert main(["run", "net.onnx", "--data", "data.npz", "--count", "61"]) == 2
    assert entries(folder) == before


def test_more_than_there_are_of_given_ones(refused):
    problem, x_adv = a_problem(count=4), X.copy()
    x_adv[problem.row.numpy()] = problem.x_adv.numpy()
    save(x=X, y=Y, x_adv=x_adv)
    refused("wrong on 4 of the 60 x_adv; use --count 4", "--count", "5")
    x_adv[9] = np.where(X[9] > 0.5, X[9] - 0.2, X[9] + 0.2)
    save(x=X, y=Y, x_adv=x_adv)
    refused("x_adv row 9 lies outside the ball of radius 0.1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "deepoly"], "unknown verifier 'deepoly': did you mean 'deeppoly'?"),
        (["--indicator", "target-label"], "unknown indicator 'target-label': did you mean"),
        (["--allocator", "cosin"], "unknown allocator 'cosin': did you mean 'cosine'?"),
        (["--refiner", "zzz"], "unknown refiner 'zzz': choose from"),
        (["--attack", "pdg"], "unknown attack 'pdg': did you mean 'pgd'?"),
        (["--front", "intervall"], "unknown verifier 'intervall': did you mean 'interval'?"),
        (["--preset", "papers"], "run.preset is 'papers': it must be one of default, paper"),
        (["--set", "training.lrr=1"], "unknown option 'lrr' in [training]: did you mean 'lr'?"),
        (["--set", "deeppoly.slope=1"], "unknown option 'slope' in [deeppoly]"),
        (["--set", "trainig.lr=1"], "unknown section [trainig]: did you mean 'training'?"),
        (["--set", "training.lr=fast"], "training.lr is 'fast': it must be a finite number"),
        (["--set", "run.memory=0"], "run.memory is '0'"),
        (["--set", "patch.boxes=sampled"], "patch.boxes is 'sampled' and patch.at is empty"),
        (["--force", "--resume"], "--force and --resume exclude each other"),
    ],
)
def test_unknown_plugins_and_options(arguments, message, refused):
    refused(message, *arguments)


def test_a_seed_that_torch_cannot_take(refused):
    refused("run.seed", "--seed", str(10**20))


def test_an_output_folder_that_holds_a_run(folder, capsys):
    assert main(GOOD) == 0
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    capsys.readouterr()
    assert main(GOOD) == 2
    line = capsys.readouterr().err
    assert line == "error: out holds a run: use --force, --resume or another --out\n"
    assert main([*GOOD, "--resume", "--seed", "3"]) == 2
    assert "was configured differently: leave --config and flags out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert main([*GOOD, "--resume"]) == 0 and main([*GOOD, "--force", "--seed", "3"]) == 0


@pytest.mark.parametrize("flag", [[], ["--force"], ["--resume"]])
def test_a_folder_that_is_no_run(flag, folder, refused):
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("x")
    refused("out exists and is no run folder: choose another --out", *flag)
    refused("is no run folder", *flag, out="net.onnx")


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_folder_without_a_name(out, refused):
    refused("is no name for a run folder", out=out)


def test_a_folder_of_somebody_beside_the_output(folder, refused):
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "mine").write_text("x")
    refused("out.partial exists and is no run folder")
    refused("out.partial exists and is no run folder", "--force")


def test_a_place_that_cannot_be_written_to(refused):
    refused("cannot write to net.onnx/out: Not a directory; mend that", out="net.onnx/out")


def test_a_name_that_is_too_long(refused):
    refused("cannot write to", out="x" * 300)


def test_overlapping_balls_with_different_labels(refused):
    """Two inputs that the network tells apart, and a point between them that it does not."""
    label = torch.tensor(Y)
    ends = [(i, j) for i in range(60) for j in range(i) if label[i] != label[j]]
    i, j = min(ends, key=lambda pair: np.abs(X[pair[0]] - X[pair[1]]).max())
    pair, labels = X[[j, i]], Y[[j, i]]
    steps = np.linspace(0, 1, 21, dtype=np.float32)[:, None]
    way = pair[0] + steps * (pair[1] - pair[0])
    given = a_module()(torch.tensor(way)).argmax(1).numpy()
    x_adv = np.stack([way[given != labels[0]][0], way[given != labels[1]][-1]])
    save(x=pair, y=labels, x_adv=x_adv)
    message = f"x[0] (label {labels[0]}) and x[1] (label {labels[1]}) overlap and cannot both hold"
    refused(message, "--epsilon", "0.9", "--count", "2")


def test_overlapping_balls_that_the_attack_finds(refused):
    refused("overlap and cannot both hold", "--epsilon", "0.3", "--count", "20")


class Pickled:
    """Something that a pickle would run."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("factory", [[], ["--factory", "somewhere:module"]])
def test_a_pickled_module(factory, folder, refused):
    (folder / "somewhere.py").write_text("def module(): raise AssertionError\n")
    torch.save(a_module(), folder / "net.pt")
    refused("net.pt", *factory, network="net.pt")
    (folder / "evil.pt").write_bytes(pickle.dumps(Pickled()))
    refused("evil.pt", *factory, network="evil.pt")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["data.pkl", "data.npz", "data.npy"])
def test_pickled_data(name, folder, refused):
    (folder / name).write_bytes(pickle.dumps(Pickled()))
    refused("is a pickle, which can run code", data=name)
    assert not (folder / "ran").exists()


def test_pickled_objects_in_an_npz(folder, refused):
    np.savez(folder / "data.npz", x=X, y=np.array([Pickled()] * 60, dtype=object))
    refused("is a pickle, which can run code")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00", b"text"])
def test_data_that_are_no_npz(content, folder, refused):
    (folder / "data.npz").write_bytes(content)
    refused("data.npz: ")


@pytest.mark.parametrize("factory", ["nowhere:f", "somewhere", "somewhere:g", "somewhere:bad"])
def test_a_factory_that_gives_no_module(factory, folder, refused, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.delitem(__import__("sys").modules, "somewhere", raising=False)
    (folder / "somewhere.py").write_text("def bad(): return 3\n")
    save_file(a_module().state_dict(), folder / "net.safetensors")
    refused(f"factory '{factory}'", "--factory", factory, network="net.safetensors")


def test_weights_that_do_not_fit_their_module(folder, refused, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.delitem(__import__("sys").modules, "elsewhere", raising=False)
    (folder / "elsewhere.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(6, 3))\n"
    )
    save_file(a_module().state_dict(), folder / "net.safetensors")
    refused("does not fit the module", "--factory", "elsewhere:build", network="net.safetensors")


def test_an_onnx_file_without_weights(folder, refused):
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 6]) for n in ("a", "b")]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["a", "w"], ["b"], name="lost")], "g", value[:1], value[1:]
    )
    onnx.save(helper.make_model(graph), folder / "bad.onnx")
    refused("bad.onnx", network="bad.onnx")
