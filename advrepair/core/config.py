"""The whole resolved configuration of a run.

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
from advrepair.core.interfaces import (
    Allocator,
    Attack,
    Component,
    Executor,
    Indicator,
    Refiner,
    Verifier,
)
from advrepair.core.options import build, check_names, describe, suggestion, values
from advrepair.core.registry import Registry
from advrepair.core.sections import (
    DEMO,
    PRESETS,
    ROLES,
    SECTIONS,
    Certification,
    Comparison,
    Evaluation,
    Layer,
    Patch,
    Plan,
    Problem,
    Run,
    Sampling,
    Screening,
    Training,
)


@attrs.frozen
class Configuration:
    """Everything a run is told. components: by role, a key of ROLES."""

    problem: Problem
    plan: Plan
    patch: Patch
    sampling: Sampling
    screening: Screening
    training: Training
    certification: Certification
    evaluation: Evaluation
    comparison: Comparison
    run: Run
    components: dict[str, Component]

    @property
    def verifier(self) -> Verifier:
        """Bounds margins in training."""
        return cast(Verifier, self.components["verifier"])

    @property
    def front(self) -> Verifier:
        """Bounds the layers before those whose result patches see."""
        return cast(Verifier, self.components["front"])

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

    @property
    def executor(self) -> Executor:
        """Works on the shards."""
        return cast(Executor, self.components["executor"])


def resolve(registry: Registry, layers: Sequence[Layer]) -> Configuration:
    """Lay the layers over each other, each over the preset it names, check, and build.

    The plan of the result names every component, those left to a default too. A section named
    after a role gives options to the component that plays it.

    Raises UsageError for an unknown section, option or component and for a bad value,
    PluginError for a component of a quarantined plugin.
    """
    laid = _with_presets(layers)
    given = _merge(laid)
    _check_sections(registry, given)
    sections: dict[str, Any] = {
        name: build(cls, given.get(name, {}), name) for name, cls in SECTIONS.items()
    }
    problem: Problem = sections["problem"]
    _check_together(problem, sections["patch"])
    if problem.property and not problem.data and "input_range" not in given.get("problem", {}):
        # Images lie in [0, 1]; the inputs of a property file wherever it says.
        sections["problem"] = attrs.evolve(problem, input_range=())
    chosen = _select(registry, sections["plan"], problem)
    sections["plan"] = Plan(**{role: cls.name for role, cls in chosen.items()})
    given = _merge([_by_component(layer, chosen) for layer in laid])
    components = {
        role: build(cls, _own(cls, given.get(cls.name, {})), cls.name)
        for role, cls in chosen.items()
    }
    return Configuration(**sections, components=components)


def _check_together(problem: Problem, patch: Patch) -> None:
    """What is wrong only beside something else."""
    if not problem.data and not problem.property and problem.network != DEMO:
        raise UsageError(
            "problem.data is empty: name the npz file of the inputs with --data, or what must "
            "hold with --property"
        )
    if problem.decision == "argmin" and (problem.data or not problem.property):
        raise UsageError(
            "problem.decision is argmin: labels of data are the largest output; leave --data out, "
            "or negate the network's last layer"
        )
    if patch.boxes == "sampled" and not patch.at:
        raise UsageError(
            "patch.boxes is 'sampled' and patch.at is empty: patches see the input, whose boxes "
            "need no samples; name a layer with --at, or leave patch.boxes out"
        )


def component(registry: Registry, kind: str, name: str, layers: Sequence[Layer]) -> Component:
    """A component that plays no role, with the options that the layers give it.

    Raises UsageError for an unknown name or a bad value, PluginError for one quarantined.
    """
    cls = registry.find(kind, name)
    return build(cls, _own(cls, _merge(layers).get(name, {})), name)


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
        of_core = section in SECTIONS or section in ROLES
        if of_core or (section in quarantined and not classes):
            continue
        if not classes:
            names = [*SECTIONS, *ROLES, *(entry.name for entry in listing)]
            raise UsageError(f"unknown section [{section}]: {suggestion(section, names)}")
        known = {each.name for cls in classes for each in describe(cls)}
        check_names(options, known, section)


def _by_component(layer: Layer, chosen: Mapping[str, type[Component]]) -> Layer:
    """The layer with what it says of roles under the names of the components that play them."""
    named = {name: dict(options) for name, options in layer.items() if name not in ROLES}
    for role, cls in chosen.items():
        known = [each.name for each in describe(cls)]
        for name, value in layer.get(role, {}).items():
            if name not in known:
                raise UsageError(
                    f"unknown option {name!r} in [{role}], which is {cls.name!r}: "
                    f"{suggestion(name, known)}"
                )
            if named.setdefault(cls.name, {}).setdefault(name, value) != value:
                raise UsageError(
                    f"[{role}] gives {name!r} of {cls.name!r} another value than a section beside "
                    "it: they are one component, give it once"
                )
    return named


def _own(cls: type[Component], options: Mapping[str, object]) -> Mapping[str, object]:
    """The options that are this component's: another kind may have one of the same name."""
    known = {each.name for each in describe(cls)}
    return {name: value for name, value in options.items() if name in known}


def _select(registry: Registry, plan: Plan, problem: Problem) -> dict[str, type[Component]]:
    """Classes by role, defaults filled in."""
    names = attrs.asdict(plan)
    verifier = cast(type[Verifier], registry.find("verifier", plan.verifier))
    indicator = cast(type[Indicator], registry.find("indicator", plan.indicator))
    rigorous = verifier.name if verifier.rigorous else "deeppoly"
    names["certifier"] = plan.certifier or (
        "zonotope" if problem.property and not problem.data else rigorous
    )
    names["front"] = plan.front or "interval"
    names["allocator"] = plan.allocator or ("none" if problem.property else indicator.allocator)
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
