"""``advrepair run`` up to the pipeline, which is faked, and the entry point around it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import advrepair.core
from advrepair.cli import main
from advrepair.core.errors import PluginError, SoundnessError
from advrepair.core.options import describe
from advrepair.core.sections import SECTIONS

REPORT = {
    "network": {"name": "digits", "parameters": 1000},
    "problem": {"epsilon": 0.1, "count": 2, "level": "real"},
    "properties": {"total": 2, "certified": 1, "falsified": 0, "unknown": 1, "constant": 0},
    "metrics": {"RSR": 1.0, "RGR": None, "DD": 0.0},
    "baseline": {},
    "seconds": {"total": 2.0},
    "peak_memory_bytes": 1024,
    "patches": {"count": 2, "parameters": 10, "bytes": 40, "ratio_to_network": 0.01},
    "notes": [],
    "folder": "runs/digits",
}
FLAGS = {
    "--data": "problem.data",
    "--property": "problem.property",
    "--decision": "problem.decision",
    "--factory": "problem.factory",
    "--epsilon": "problem.epsilon",
    "--count": "problem.count",
    "--input-range": "problem.input_range",
    "--indicator": "plan.indicator",
    "--verifier": "plan.verifier",
    "--certifier": "plan.certifier",
    "--front": "plan.front",
    "--allocator": "plan.allocator",
    "--refiner": "plan.refiner",
    "--attack": "plan.attack",
    "--evaluation-attack": "plan.evaluation_attack",
    "--executor": "plan.executor",
    "--evaluate": "evaluation.scope",
    "--level": "certification.level",
    "--preset": "run.preset",
    "--seed": "run.seed",
    "--device": "run.device",
}
OTHERS = [
    "--at", "--config", "--set", "--out", "--force", "--resume", "--json", "--dry-run",
    "--require-certified",
]  # fmt: skip


class Pipeline(ModuleType):
    """Notes what it was called with."""

    def __init__(self):
        super().__init__("advrepair.core.pipeline")
        self.calls = []
        self.error = None

    def run(self, configuration, registry, folder, progress, *, force, resume, say):
        if self.error is not None:
            raise self.error
        progress("attack", 2, 2)
        self.calls.append((configuration, folder, force, resume))
        return REPORT


@pytest.fixture(autouse=True)
def pipeline(monkeypatch, tmp_path):
    fake = Pipeline()
    monkeypatch.setitem(sys.modules, "advrepair.core.pipeline", fake)
    monkeypatch.setattr(advrepair.core, "pipeline", fake, raising=False)
    monkeypatch.setattr("advrepair.html.write", lambda folder: folder)
    monkeypatch.chdir(tmp_path)
    return fake


def test_the_demo(pipeline, capsys):
    assert main(["run"]) == 0
    ((configuration, folder, force, resume),) = pipeline.calls
    assert configuration.problem.network == "digits"
    assert (folder, force, resume) == (Path("runs/digits"), False, False)
    out, err = capsys.readouterr()
    assert out.startswith("1 of 2 properties certified (real)")
    assert err.startswith("attack  2/2")


def test_flags_become_options(pipeline):
    arguments = ["run", "nets/a.onnx", "--data", "x.npz", "--epsilon", "8/255", "--count", "3"]
    arguments += ["--input-range", "-1,1", "--indicator", "targeted-label", "--refiner", "none"]
    arguments += ["--level", "real", "--seed", "7", "--preset", "paper", "--force"]
    assert main(arguments) == 0
    ((found, folder, force, _),) = pipeline.calls
    assert (found.problem.network, found.problem.data) == ("nets/a.onnx", "x.npz")
    assert (found.problem.epsilon, found.problem.count) == (8 / 255, 3)
    assert found.problem.input_range == (-1.0, 1.0)
    assert (found.plan.indicator, found.plan.refiner) == ("targeted-label", "none")
    assert (found.certification.level, found.run.seed) == ("real", 7)
    assert found.patch.hidden == (64, 64, 16)
    assert (folder, force) == (Path("runs/a"), True)


def test_config_then_flags_then_settings(pipeline, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[problem]\ncount = 5\nepsilon = 0.2\n[run]\nseed = 9\n[pgd]\nsteps = 4\n")
    arguments = ["run", "--config", str(file), "--count", "6", "--seed", "1"]
    arguments += ["--set", "run.seed=2", "--set", "patch.hidden=[]", "--set", "run.seed=3"]
    assert main([*arguments, "--out", "here", "--resume"]) == 0
    ((found, folder, force, resume),) = pipeline.calls
    assert (found.problem.epsilon, found.problem.count) == (0.2, 6)
    assert (found.run.seed, found.patch.hidden) == (3, ())
    assert found.attack.steps == 4
    assert (folder, force, resume) == (Path("here"), False, True)


def test_json_is_all_there_is(capsys):
    assert main(["run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == REPORT
    assert err == ""


def test_require_certified(capsys, monkeypatch):
    assert main(["run", "--require-certified"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 properties certified" in out
    assert err.endswith("error: not every property is certified (--require-certified)\n")
    monkeypatch.setitem(REPORT, "properties", {**REPORT["properties"], "certified": 2})
    assert main(["run", "--require-certified"]) == 0


WRONG = {
    "unknown flag": (["--verifer", "x"], "No such option: --verifer"),
    "flag without a value": (["--data"], "'--data' requires an argument"),
    "second argument": (["a.onnx", "b.onnx"], "unexpected extra argument"),
    "force and resume": (["--force", "--resume"], "--force and --resume exclude each other"),
    "epsilon zero": (["--epsilon", "0"], "problem.epsilon is '0': it must be a finite number"),
    "epsilon no number": (["--epsilon", "x"], "problem.epsilon is 'x'"),
    "count": (["--count", "0"], "problem.count is '0': it must be an integer, at least 1"),
    "range": (["--input-range", "1,0"], "problem.input_range is [1.0, 0.0]"),
    "seed": (["--seed", "1.5"], "run.seed is '1.5'"),
    "level": (["--level", "float"], "one of deployed, real, deployed-float32, deployed-float64"),
    "preset": (["--preset", "papr"], "run.preset is 'papr'"),
    "verifier": (["--verifier", "deepoly"], "unknown verifier 'deepoly': did you mean 'deeppoly'"),
    "refiner": (["--refiner", "wide"], "unknown refiner 'wide': did you mean 'widest'?"),
    "setting": (["--set", "lr=1"], "write section.option=value"),
    "section": (["--set", "trainig.lr=1"], "unknown section [trainig]: did you mean 'training'?"),
    "option": (
        ["--set", "pgd.stepss=1"],
        "unknown option 'stepss' in [pgd]: did you mean 'steps'?",
    ),
    "no data": (["a.onnx"], "problem.data is empty"),
    "config": (["--config", "no.toml"], "no.toml: No such file or directory"),
    "broken config": (["--config", "broken.toml"], "broken.toml is not a TOML file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_usage_error_is_one_line_and_writes_nothing(case, pipeline, capsys, tmp_path):
    (tmp_path / "broken.toml").write_text("[")
    arguments, message = WRONG[case]
    assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert pipeline.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["broken.toml"]


def test_an_unknown_command(capsys):
    assert main(["rum"]) == 2
    assert "No such command 'rum'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PluginError("a\nb"), 3, "error: a b\n"),
        (SoundnessError("a proof was wrong"), 4, "error: a proof was wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted: go on with --resume\n"),
    ],
)
def test_exit_codes(error, code, line, pipeline, capsys):
    pipeline.error = error
    assert main(["run"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_a_traceback(pipeline):
    pipeline.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["run"])


def test_help_shows_every_flag(capsys):
    assert main(["run", "--help"]) == 0
    shown = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(shown) == sorted([*FLAGS, *OTHERS, "--help"])


def test_every_option_of_problem_and_plan_has_a_flag():
    wanted = {
        f"{name}.{each.name}" for name in ("problem", "plan") for each in describe(SECTIONS[name])
    }
    assert wanted - set(FLAGS.values()) == {"problem.network"}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_reaches_its_option(flag, capsys):
    assert main(["run", flag, "\udcff"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {FLAGS[flag]} is ")


def test_no_command_shows_help(capsys):
    assert main([]) == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith("Usage: advrepair")
    assert {"run", "plugins"} <= set(help_text.split())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"advrepair \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from advrepair.cli import main; main(['run', '--help']);"
        "heavy = {'torch', 'numpy', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "advrepair", "run", "--nope"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such option: --nope")
