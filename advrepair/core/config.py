"""Sections of the core, and the whole resolved configuration of a run.

A layer is what one source says: section to option to value. Layers are laid over each other,
later ones win, and every value is checked once. ``run.toml`` is a layer that says everything.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import tomli_w

from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Allocator, Attack, Component, Indicator, Refiner, Verifier
from advrepair.core.options import build, check_names, describe, option, suggestion, values
from advrepair.core.registry import Registry

Layer = Mapping[str, Mapping[str, object]]

DEMO = "digits"
PRESETS: dict[str, Layer] = {
    "default": {},
    "paper": {
        "patch": {"hidden": [64, 64, 16]},
        "training": {
            "optimiser": "adam",
            "lr": 10.0,
            "epochs": 10,
            "rounds": 25,
            "split": 800,
            "margin": 0.0,
            "scale": False,
            "fallback": False,
        },
    },
}

# Of the evaluation alone. The paper's released code runs two attacks of AutoAttack, 10 steps each.
EVALUATION_PRESETS: dict[str, Layer] = {
    "default": {},
    "paper": {
        "plan": {"evaluation_attack": "autoattack"},
        "autoattack": {"version": "paper"},
    },
}


@attrs.frozen
class Problem:
    """What is to be repaired."""

    network: str = option(
        DEMO, "an ONNX file; safetensors or torch weights with factory; 'digits' is the demo"
    )
    factory: str = option("", "package.module:function that builds the module for the weights")
    data: str = option("", "an npz file with x and y; empty for the demo's own images")
    epsilon: float = option(0.1, "radius of the balls, in input units", above=0)
    count: int = option(50, "how many counterexamples to repair", at_least=1)
    input_range: tuple[float, ...] = option(
        (0.0, 1.0), "lowest and highest input; clips balls and attacks; [] for none"
    )

    def __attrs_post_init__(self) -> None:
        bounds = self.input_range
        if bounds and (len(bounds) != 2 or bounds[0] >= bounds[1]):
            raise UsageError(
                f"problem.input_range is {list(bounds)}: it must be [low, high] with low < high, "
                "or [] for an unbounded input"
            )


@attrs.frozen
class Plan:
    """Which components do the work."""

    indicator: str = option("property-guided", "says which patch serves which property")
    verifier: str = option("deeppoly", "bounds the margins that training raises")
    certifier: str = option(
        "", "rigorous verifier of the certificate; empty: the verifier if rigorous, else deeppoly"
    )
    allocator: str = option("", "patches of inputs outside the balls; empty: the indicator's own")
    refiner: str = option("gradient-width", "says where to split what is not proved")
    attack: str = option("pgd", "searches for counterexamples")
    evaluation_attack: str = option("", "attacks unseen inputs; empty: the attack")


@attrs.frozen
class Patch:
    """What a patch network looks like."""

    hidden: tuple[int, ...] = option((), "sizes of the hidden layers; [] is affine", at_least=1)


@attrs.frozen
class Training:
    """How patches are trained, and when to give up."""

    optimiser: str = option("polyak", "step rule; adam is the paper's", choices=("polyak", "adam"))
    lr: float = option(1.0, "step length: a factor for polyak, the learning rate for adam", above=0)
    epochs: int = option(10, "epochs in a round (the paper's R)", at_least=1)
    rounds: int = option(25, "rounds, each followed by a split (the paper's M)", at_least=1)
    split: int = option(
        800, "pieces of each patch split after a round, at most (the paper's K)", at_least=0
    )
    margin: float = option(0.01, "margin aimed at beyond the proof", at_least=0)
    scale: bool = option(True, "prove the least multiple of a patch that suffices")
    fallback: bool = option(True, "use a constant patch where the budget ends unproved")


@attrs.frozen
class Certification:
    """What is certified, and how hard it is tested."""

    level: str = option(
        "deployed",
        "arithmetic for which the certificate holds; deployed: that of the network's weights",
        choices=("deployed", "real", "deployed-float32", "deployed-float64"),
    )
    attack: bool = option(True, "attack the certified boxes too")


@attrs.frozen
class Evaluation:
    """What is measured beside the proof."""

    samples: int = option(10, "adversarial examples a ball for RGR", at_least=1)
    scope: str = option(
        "quick",
        "quick: RSR, RGR, DD; full: attacks on unseen inputs too",
        choices=("quick", "full"),
    )
    epsilon: float = option(0.0, "radius on unseen inputs; 0: that of the balls", at_least=0)
    limit: int = option(1000, "unseen inputs that are attacked, at most", at_least=1)


@attrs.frozen
class Run:
    """How the run is done."""

    seed: int = option(0, "seed of everything random", at_least=0, at_most=2**52)
    memory: float = option(2.0, "GiB that bounds in flight may take", above=0, at_most=2**20)
    preset: str = option(
        "default", "values laid beneath the others of its source", choices=tuple(PRESETS)
    )


SECTIONS: dict[str, type] = {
    cls.__name__.lower(): cls
    for cls in (Problem, Plan, Patch, Training, Certification, Evaluation, Run)
}
# What a component is there for, and of which kind it must be.
ROLES = {
    "verifier": "verifier",
    "certifier": "verifier",
    "indicator": "indicator",
    "allocator": "allocator",
    "refiner": "refiner",
    "attack": "attack",
    "evaluation_attack": "attack",
}


@attrs.frozen
class Configuration:
    """Everything a run is told. components: by role, a key of ROLES."""

    problem: Problem
    plan: Plan
    patch: Patch
    training: Training
    certification: Certification
    evaluation: Evaluation
    run: Run
    components: dict[str, Component]

    @property
    def verifier(self) -> Verifier:
        """Bounds margins in training."""
        return cast(Verifier, self.components["verifier"])

    @property
    def certifier(self) -> Verifier:
        """States the certificate; rigorous."""
        return cast(Verifier, self.components["certifier"])

    @property
    def indicator(self) -> Indicator:
        """Assigns patches to properties."""
        return cast(Indicator, self.components["indicator"])

    @property
    def allocator(self) -> Allocator:
        """Serves inputs outside the boxes."""
        return cast(Allocator, self.components["allocator"])

    @property
    def refiner(self) -> Refiner:
        """Chooses splits."""
        return cast(Refiner, self.components["refiner"])

    @property
    def attack(self) -> Attack:
        """Finds counterexamples."""
        return cast(Attack, self.components["attack"])

    @property
    def evaluation_attack(self) -> Attack:
        """Attacks unseen inputs."""
        return cast(Attack, self.components["evaluation_attack"])


def resolve(registry: Registry, layers: Sequence[Layer]) -> Configuration:
    """Lay the layers over each other, each over the preset it names, check, and build.

    The plan of the result names every component, those left to a default too.

    Raises UsageError for an unknown section, option or component and for a bad value,
    PluginError for a component of a quarantined plugin.
    """
    given = _merge(_with_presets(layers))
    _check_sections(registry, given)
    sections: dict[str, Any] = {
        name: build(cls, given.get(name, {}), name) for name, cls in SECTIONS.items()
    }
    problem: Problem = sections["problem"]
    if not problem.data and problem.network != DEMO:
        raise UsageError("problem.data is empty: name the npz file of the inputs with --data")
    chosen = _select(registry, sections["plan"])
    sections["plan"] = Plan(**{role: cls.name for role, cls in chosen.items()})
    components = {
        role: build(cls, _own(cls, given.get(cls.name, {})), cls.name)
        for role, cls in chosen.items()
    }
    return Configuration(**sections, components=components)


def _with_presets(layers: Sequence[Layer]) -> list[Layer]:
    """Beneath each layer that names a preset, its values; so a later preset wins as a whole.

    What another preset sets and this one does not goes back to the default.
    """
    plain: dict[str, dict[str, object]] = {}
    for preset in PRESETS.values():
        for section, options in preset.items():
            defaults = {each.name: each.default for each in describe(SECTIONS[section])}
            plain.setdefault(section, {}).update({name: defaults[name] for name in options})
    result: list[Layer] = []
    for layer in layers:
        named = layer.get("run", {})
        if isinstance(named, Mapping) and "preset" in named:
            preset_name = build(Run, {"preset": named["preset"]}, "run").preset
            result += [plain, PRESETS[preset_name]]
        result.append(layer)
    return result


def _merge(layers: Sequence[Layer]) -> dict[str, dict[str, object]]:
    merged: dict[str, dict[str, object]] = {}
    for layer in layers:
        for section, options in layer.items():
            if not isinstance(options, Mapping):
                raise UsageError(f"option {section!r} stands in no section: put it under [section]")
            merged.setdefault(section, {}).update(options)
    return merged


def _check_sections(registry: Registry, given: Layer) -> None:
    """Sections must be known; those of components, selected or not, must use known names."""
    listing = registry.listing()
    # Nothing can be said of the options of a quarantined component.
    quarantined = {entry.name for entry in listing if entry.problem}
    for section, options in given.items():
        classes = registry.named(section)
        if section in SECTIONS or (section in quarantined and not classes):
            continue
        if not classes:
            names = [*SECTIONS, *(entry.name for entry in listing)]
            raise UsageError(f"unknown section [{section}]: {suggestion(section, names)}")
        known = {each.name for cls in classes for each in describe(cls)}
        check_names(options, known, section)


def _own(cls: type[Component], options: Mapping[str, object]) -> Mapping[str, object]:
    """The options that are this component's: another kind may have one of the same name."""
    known = {each.name for each in describe(cls)}
    return {name: value for name, value in options.items() if name in known}


def _select(registry: Registry, plan: Plan) -> dict[str, type[Component]]:
    """Classes by role, defaults filled in."""
    names = attrs.asdict(plan)
    verifier = cast(type[Verifier], registry.find("verifier", plan.verifier))
    indicator = cast(type[Indicator], registry.find("indicator", plan.indicator))
    names["certifier"] = plan.certifier or (verifier.name if verifier.rigorous else "deeppoly")
    names["allocator"] = plan.allocator or indicator.allocator
    names["evaluation_attack"] = plan.evaluation_attack or plan.attack
    chosen = {role: registry.find(kind, names[role]) for role, kind in ROLES.items()}
    if not cast(type[Verifier], chosen["certifier"]).rigorous:
        raise UsageError(
            f"plan.certifier is {names['certifier']!r}, which is not rigorous and cannot state a "
            "certificate: choose another, or leave it empty"
        )
    return chosen


def as_layer(configuration: Configuration) -> dict[str, dict[str, Any]]:
    """The configuration as a layer that says everything.

    Raises UsageError if two selected components of one name differ in an option they share.
    """
    layer = {name: values(getattr(configuration, name)) for name in SECTIONS}
    for component in configuration.components.values():
        section = layer.setdefault(component.name, {})
        for name, value in values(component).items():
            if section.setdefault(name, value) != value:
                raise UsageError(
                    f"two components {component.name!r} with different values of {name!r} cannot "
                    "be written to one section"
                )
    return {name: options for name, options in layer.items() if options}


def to_toml(configuration: Configuration) -> str:
    """The configuration as the text of ``run.toml``; :func:`resolve` of it gives an equal one."""
    return tomli_w.dumps(as_layer(configuration))


def read_toml(path: str | Path) -> Layer:
    """The layer in a TOML file; raises UsageError for a missing file or a syntax error."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from None


def parse_setting(text: str) -> Layer:
    """The layer of ``section.option=value``; raises UsageError for another form."""
    left, equals, value = text.partition("=")
    section, dot, name = (part.strip() for part in left.partition("."))
    if not (equals and dot and section and name):
        raise UsageError(
            f"setting {text!r}: write section.option=value, for example training.lr=0.01"
        )
    return {section: {name: value.strip()}}
