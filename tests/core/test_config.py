import tomllib
from types import ModuleType
from typing import ClassVar

import attrs
import pytest

from advrepair.core.config import as_layer, parse_setting, read_toml, resolve, to_toml
from advrepair.core.errors import PluginError, UsageError
from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Allocator, Attack, Executor, Indicator, Refiner, Verifier
from advrepair.core.options import describe, option
from advrepair.core.registry import Registry
from advrepair.core.sections import PRESETS, ROLES, SECTIONS, Patch, Problem, Run, Training


@attrs.frozen
class Exact(Verifier):
    """Rigorous."""

    name: ClassVar[str] = "deeppoly"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = True
    slope: str = option("area", "lower slope", choices=("area", "zero"))

    def prepare(self, network, rounding=None): ...


@attrs.frozen
class Interval(Exact):
    """Rigorous, and quick."""

    name: ClassVar[str] = "interval"


@attrs.frozen
class Loose(Verifier):
    """Not rigorous."""

    name: ClassVar[str] = "loose"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = False

    def prepare(self, network, rounding=None): ...


@attrs.frozen
class Guided(Indicator):
    """One each."""

    name: ClassVar[str] = "property-guided"
    allocator: ClassVar[str] = "cosine"

    def assign(self, properties): ...


@attrs.frozen
class Cosine(Allocator):
    """The nearest."""

    name: ClassVar[str] = "cosine"
    top: int = option(10, "how many", at_least=1)

    def allocate(self, x, logits, centres): ...


@attrs.frozen
class NoAllocator(Allocator):
    """Nothing."""

    name: ClassVar[str] = "none"
    why: str = option("", "a note")

    def allocate(self, x, logits, centres): ...


@attrs.frozen
class NoRefiner(Refiner):
    """Nothing."""

    name: ClassVar[str] = "none"
    when: int = option(0, "a number")

    def choose(self, box, margin, slope, budget): ...


@attrs.frozen
class Width(Refiner):
    """The widest."""

    name: ClassVar[str] = "gradient-width"

    def choose(self, box, margin, slope, budget): ...


@attrs.frozen
class Pgd(Attack):
    """Descends."""

    name: ClassVar[str] = "pgd"
    steps: int = option(40, "steps", at_least=1)
    rate: float = option(0.25, "step over epsilon", above=0)

    def perturb(self, model, properties, start, generator): ...


@attrs.frozen
class Here(Executor):
    """Here."""

    name: ClassVar[str] = "in-process"

    def map(self, function, items): ...


def _module(name, *classes):
    module = ModuleType(name)

    @hookimpl
    def advrepair_components():
        return classes

    module.advrepair_components = advrepair_components
    return module


class Broken(Refiner):
    name = "broken"


@pytest.fixture(scope="module")
def registry():
    own = (Exact, Interval, Loose, Guided, Cosine, NoAllocator, NoRefiner, Width, Pgd, Here)
    fakes = _module("fakes", *own)
    return Registry(fakes, _module("bad", Broken))


def test_defaults(registry):
    found = resolve(registry, [])
    assert found.problem == Problem()
    assert found.problem.input_range == (0.0, 1.0)
    assert found.training == Training()
    assert found.verifier is found.components["verifier"]
    assert found.certifier == Exact()
    assert found.indicator == Guided()
    assert found.allocator == Cosine()
    assert found.refiner == Width()
    assert found.attack == Pgd()


def test_the_plan_names_what_was_left_to_a_default(registry):
    plan = resolve(registry, [{"plan": {"verifier": "loose"}}]).plan
    assert (plan.verifier, plan.certifier, plan.allocator) == ("loose", "deeppoly", "cosine")


def test_later_layers_win(registry):
    layers = [
        {"training": {"lr": 0.5, "epochs": 3}},
        {"training": {"lr": "0.25"}, "pgd": {"steps": "7"}},
    ]
    found = resolve(registry, layers)
    assert (found.training.lr, found.training.epochs) == (0.25, 3)
    assert found.attack == Pgd(steps=7)


def test_layers_are_left_as_they_were(registry):
    layers = [{"training": {"lr": 0.5}}, {"training": {"lr": 0.25}}]
    resolve(registry, layers)
    assert layers[0] == {"training": {"lr": 0.5}}
    assert PRESETS["default"] == {}


def test_the_preset_lies_beneath(registry):
    found = resolve(registry, [{"run": {"preset": "paper"}, "training": {"lr": 1.0}}])
    assert found.patch.hidden == (64, 64, 16)
    assert (found.training.lr, found.training.split) == (1.0, 800)
    assert not found.training.fallback


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves(registry, preset):
    assert resolve(registry, [{"run": {"preset": preset}}]).run.preset == preset


SAID = [
    [],
    [{"run": {"preset": "paper", "seed": 7}, "problem": {"epsilon": "8/255", "input_range": "[]"}}],
    [{"plan": {"allocator": "none", "refiner": "none"}, "none": {"why": "a\nb", "when": 3}}],
    [{"plan": {"verifier": "loose"}, "deeppoly": {"slope": "zero"}, "pgd": {"rate": "1/3"}}],
    [{"problem": {"network": 'C:\\a "b".onnx', "data": "x.npz"}, "cosine": {"top": 2}}],
]


@pytest.mark.parametrize("layers", SAID)
def test_toml_round_trip(registry, layers):
    found = resolve(registry, layers)
    text = to_toml(found)
    again = resolve(registry, [tomllib.loads(text)])
    assert again == found
    assert to_toml(again) == text


def test_toml_says_everything_and_nothing_else(registry):
    layer = tomllib.loads(to_toml(resolve(registry, [])))
    assert set(layer) == {*SECTIONS, "deeppoly", "interval", "cosine", "pgd"}
    for name, cls in SECTIONS.items():
        assert set(layer[name]) == {each.name for each in describe(cls)}


def test_two_components_of_one_name_share_a_section(registry):
    both = {"plan": {"allocator": "none", "refiner": "none"}}
    found = resolve(registry, [both, {"none": {"why": "x", "when": 2}}])
    assert found.allocator == NoAllocator(why="x")
    assert found.refiner == NoRefiner(when=2)
    with pytest.raises(UsageError, match=r"unknown option 'wyh' in \[none\]: did you mean 'why'"):
        resolve(registry, [both, {"none": {"wyh": "x"}}])


def test_a_section_named_after_a_role_is_that_of_its_component(registry):
    named = {"plan": {"refiner": "none"}, "refiner": {"when": "3"}, "attack": {"steps": 7}}
    found = resolve(registry, [named])
    assert (found.refiner, found.attack) == (NoRefiner(when=3), Pgd(steps=7))
    assert found.evaluation_attack == Pgd(steps=7)  # one component in two roles
    written = tomllib.loads(to_toml(found))
    assert not set(written) & set(ROLES)
    assert written["none"] == {"when": 3}
    assert resolve(registry, [written]) == found


def test_roles_and_names_overrule_each_other_as_layers_do(registry):
    by_name, by_role = {"pgd": {"steps": 7}}, {"attack": {"steps": 8}}
    assert resolve(registry, [by_name, by_role]).attack == Pgd(steps=8)
    assert resolve(registry, [by_role, by_name]).attack == Pgd(steps=7)
    assert resolve(registry, [{**by_role, "pgd": {"rate": 0.5}}]).attack == Pgd(steps=8, rate=0.5)
    with pytest.raises(UsageError, match=r"^\[attack\] gives 'steps' of 'pgd' another value"):
        resolve(registry, [by_name | by_role])
    with pytest.raises(UsageError, match=r"\[evaluation_attack\] gives 'steps' of 'pgd'"):
        resolve(registry, [by_role, {**by_role, "evaluation_attack": {"steps": 9}}])


def test_what_one_section_cannot_say_is_not_written(registry):
    found = resolve(registry, [])
    components = {**found.components, "certifier": Exact(slope="zero")}
    with pytest.raises(UsageError, match="different values of 'slope'"):
        as_layer(attrs.evolve(found, components=components))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"cosin": {"top": 1}}, r"^unknown section \[cosin\]: did you mean 'cosine'\?"),
        ({"trainig": {"lr": 1}}, r"^unknown section \[trainig\]: did you mean 'training'\?"),
        ({"training": {"lrr": 1}}, r"unknown option 'lrr' in \[training\]: did you mean 'lr'\?"),
        ({"training": {"lr": 0}}, r"^training.lr is 0: it must be a finite number, above 0"),
        ({"patch": {"hidden": [0]}}, r"^patch.hidden is \[0\]: .*at least 1"),
        ({"problem": {"epsilon": "-0.1"}}, r"^problem.epsilon is '-0.1'"),
        ({"problem": {"input_range": "0"}}, r"^problem.input_range is \[0.0\]"),
        ({"problem": {"input_range": [1, 0]}}, r"^problem.input_range is \[1.0, 0.0\]"),
        ({"problem": {"network": "a.onnx"}}, r"^problem.data is empty"),
        ({"patch": {"boxes": "sampled"}}, r"^patch.boxes is 'sampled' and patch.at is empty"),
        ({"training": {"clamp": False}}, r"^training.clamp is false: .*training.optimiser=adam"),
        (
            {"training": {"clamp": False, "optimiser": "adam", "objective": "intrusion"}},
            r"^training.clamp is false, which .* leave one out",
        ),
        ({"run": {"preset": "papr"}}, r"^run.preset is 'papr': it must be one of default, paper"),
        ({"certification": {"level": "float"}}, r"must be one of deployed, real, deployed-float32"),
        ({"plan": {"verifier": "deepoly"}}, r"^unknown verifier 'deepoly': did you mean 'deepp"),
        ({"plan": {"certifier": "loose"}}, r"^plan.certifier is 'loose', which is not rigorous"),
        ({"epsilon": 0.1}, r"^option 'epsilon' stands in no section"),
        ({"pgd": {"steps": 0}}, r"^pgd.steps is 0"),
        ({"executr": {"address": 1}}, r"^unknown section \[executr\]: did you mean 'executor'\?"),
        (
            {"executor": {"address": "auto"}},
            r"^unknown option 'address' in \[executor\], which is 'in-process': there is none",
        ),
        ({"attack": {"stpes": 1}}, r"in \[attack\], which is 'pgd': did you mean 'steps'"),
        ({"attack": {"steps": 0}}, r"^pgd.steps is 0"),
        ({"loose": {"slope": 1}}, r"unknown option 'slope' in \[loose\]: there is none"),
    ],
)
def test_what_is_refused(registry, layer, message):
    with pytest.raises(UsageError, match=message):
        resolve(registry, [layer])


def test_boxes_of_a_layer_may_be_sampled(registry):
    found = resolve(
        registry, [{"patch": {"boxes": "sampled", "at": "auto"}, "plan": {"front": "deeppoly"}}]
    )
    assert (found.patch.at, found.patch.boxes) == ("auto", "sampled")


def test_a_section_of_a_component_not_selected_is_ignored(registry):
    found = resolve(registry, [{"none": {"when": 3}}])
    assert "none" not in as_layer(found)


def test_a_quarantined_component_is_fatal_only_when_selected(registry):
    resolve(registry, [{"broken": {"anything": 3}}])
    with pytest.raises(PluginError, match="refiner 'broken' cannot be used"):
        resolve(registry, [{"plan": {"refiner": "broken"}}])


def test_sections_built_in_python_are_checked():
    with pytest.raises(UsageError, match=r"problem.input_range"):
        Problem(input_range=(0.0,))
    with pytest.raises(UsageError, match=r"patch.hidden"):
        Patch(hidden=(0,))
    with pytest.raises(UsageError, match=r"run.preset"):
        Run(preset="none")


def test_every_section_and_option_is_explained():
    for cls in SECTIONS.values():
        assert cls.__doc__
        assert all(each.help for each in describe(cls))


def test_read_toml(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text("[training]\nlr = 0.5\n")
    assert read_toml(good) == {"training": {"lr": 0.5}}
    with pytest.raises(UsageError, match=r"nowhere.toml: No such file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_toml(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("[training]\nlr = \n")
    with pytest.raises(UsageError, match=r"bad.toml is not a TOML file: .*line 2"):
        read_toml(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"bad.toml is not a TOML file"):
        read_toml(bad)


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("training.lr=0.01", {"training": {"lr": "0.01"}}),
        ("patch.hidden=[]", {"patch": {"hidden": "[]"}}),
        (" problem.data = a=b ", {"problem": {"data": "a=b"}}),
        ("problem.data=", {"problem": {"data": ""}}),
    ],
)
def test_parse_setting(text, layer):
    assert parse_setting(text) == layer


@pytest.mark.parametrize("text", ["", "lr", "lr=1", "training.lr", ".lr=1", "training.=1", "=a.b"])
def test_parse_setting_refuses(text):
    with pytest.raises(UsageError, match=r"write section.option=value"):
        parse_setting(text)
