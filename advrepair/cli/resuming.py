"""Which configuration a run goes on with: the stored one, and what the user says besides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advrepair.core.config import Configuration, read_toml, resolve
from advrepair.core.errors import UsageError
from advrepair.core.registry import Registry
from advrepair.core.sections import DEMO


def configured(
    registry: Registry, layers: list[Any], out: Path | None, resume: bool
) -> tuple[Configuration, Path]:
    """The configuration of a run, and its folder.

    A run that is resumed has its own configuration beneath what is said now; whether they
    agree is seen when the folder is claimed. Raises UsageError for what cannot be resolved.
    """
    from advrepair.core.run_folder import Folder

    if not resume:
        plan = resolve(registry, layers)
        return plan, out or Path("runs") / Path(plan.problem.network).stem
    folder = out or Path("runs") / Path(_network(layers)).stem
    stored = Folder(folder).stored if folder.name else folder
    if stored.is_file():
        layers = [read_toml(stored), *layers]
    elif out is not None and not any(layers):
        raise UsageError(f"{folder} holds nothing to go on with: say again what is to be repaired")
    return resolve(registry, layers), folder


def _network(layers: list[Any]) -> str:
    """The network that is named, the last one wins."""
    problems = [layer.get("problem", {}) for layer in layers]
    named = [
        each["network"] for each in problems if isinstance(each, Mapping) and "network" in each
    ]
    return str(named[-1]) if named else DEMO
