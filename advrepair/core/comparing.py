"""Repair methods compared: one problem, each method in a process of its own, one table.

The folder grows method by method. What is there is not done again, unless something it depends on
has changed; so more methods can be added to a comparison that is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import tomli_w
from attrs import evolve, frozen

from advrepair.core.comparison_rows import (
    RESULT,
    Row,
    finished,
    problem_key,
    read_problem,
    repaired,
    write_problem,
    written_model,
)
from advrepair.core.comparison_table import as_csv, as_markdown
from advrepair.core.config import Configuration, as_layer, component, read_toml, resolve
from advrepair.core.devices import device_of
from advrepair.core.errors import UsageError
from advrepair.core.files import FORMAT, read_json, write_json, write_text
from advrepair.core.finding import find_problem
from advrepair.core.inputs import Inputs, anchored, in_plain_words, read_inputs
from advrepair.core.interfaces import Method
from advrepair.core.isolation import Alone, Line
from advrepair.core.measuring import find_unseen, measured, unseen_data
from advrepair.core.methods import Attempt, Bench, Limits
from advrepair.core.options import values
from advrepair.core.registry import Registry
from advrepair.core.run_folder import manifest
from advrepair.core.sections import Layer
from advrepair.core.work import Progress, Work, silent

FILE, TOML = "comparison.json", "compare.toml"
DEFAULTS: Layer = {"evaluation": {"scope": "full"}}
_FIRST = ("none", "constant-bias", "advrepair")  # what others are compared with


@frozen(eq=False)
class Comparison:
    """What is compared. notes: plugins that are left out, and why."""

    plan: Configuration
    methods: tuple[Method, ...]
    registry: Registry
    folder: Path
    notes: tuple[str, ...] = ()

    @classmethod
    def resolved(cls, registry: Registry, layers: Sequence[Layer], folder: Path) -> Comparison:
        """As layers say; raises UsageError and PluginError as :func:`resolve` does."""
        plan = resolve(registry, layers)
        plan = evolve(plan, problem=anchored(plan.problem))
        names, notes = list(dict.fromkeys(plan.comparison.methods)), []
        if not names:
            raise UsageError("comparison.methods is empty: name methods, or all of them with 'all'")
        if "all" in names:
            found = [entry for entry in registry.listing() if entry.kind == "method"]
            every = sorted((each.name for each in found if each.problem is None), key=_place)
            notes = [f"{e.name} is left out: {e.problem}" for e in found if e.problem is not None]
            names = [*every, *(name for name in names if name not in (*every, "all"))]
        methods = [cast(Method, component(registry, "method", name, layers)) for name in names]
        return cls(plan, tuple(methods), registry, folder, tuple(notes))

    def as_layer(self) -> dict[str, dict[str, Any]]:
        """Everything, as a layer: :meth:`resolved` of it gives an equal one."""
        layer = as_layer(self.plan)
        layer["comparison"]["methods"] = [method.name for method in self.methods]
        for method in self.methods:
            options = values(method)
            if options:
                layer.setdefault(method.name, {}).update(options)
        return layer

    def run(
        self,
        progress: Progress = silent,
        force: bool = False,
        resume: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Compare; returns what is in comparison.json. say: told of each method that is done.

        Raises UsageError before any long work for what the user can fix; then nothing is
        written. SoundnessError if a proof turns out to be wrong.
        """
        self._refuse_others(force, resume)
        inputs = read_inputs(self.plan.problem)
        for line in [*in_plain_words(inputs), *(f"note: {note}" for note in self.notes)]:
            say(line)
        inputs.network.compute_on(device_of(self.plan.run.device))
        self._require()
        asked = self.plan.run
        about = manifest(self.registry, inputs.digests, asked.seed, asked.device)
        key = _digest(self._identity(), about["inputs"], about["versions"])
        self._problem(inputs, key, progress, force)
        self._write_toml()
        write_json(self.folder / "manifest.json", about)
        rows: list[Row] = []
        for method in self.methods:
            row, done = self._row(method, key, progress)
            rows.append({k: v for k, v in row.items() if k not in ("key", "complete")})
            if done:
                say(_told(row))
            whole = self._whole(about, rows)
            write_text(self.folder / "comparison.csv", as_csv(whole))
            write_text(self.folder / "comparison.md", as_markdown(whole))
            write_json(self.folder / FILE, whole)
        return whole

    # Before any work --------------------------------------------------------------------

    def _refuse_others(self, force: bool, resume: bool) -> None:
        folder, stored = self.folder, self.folder / TOML
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
        if not stored.is_file():
            raise UsageError(f"{folder} exists and is no comparison: choose another --out")
        if not (force or resume):
            raise UsageError(f"{folder} holds a comparison: use --force, --resume or another --out")
        if resume and _identity(read_toml(stored), self.registry) != self._identity():
            raise UsageError(
                f"{folder} was configured differently: with --resume only methods, their options "
                "and limits may differ; replace it with --force"
            )

    def _require(self) -> None:
        """Raises UsageError for anything that is not installed."""
        self.plan.attack.require()
        self.plan.executor.require()
        if self.plan.evaluation.scope == "full":
            self.plan.evaluation_attack.require()
        for method in self.methods:
            method.require()

    def _identity(self) -> dict[str, Any]:
        return _identity(self.as_layer(), self.registry)

    # The problem, the same for every method ---------------------------------------------

    def _problem(self, inputs: Inputs, key: str, progress: Progress, force: bool) -> None:
        """See to it that the folder has the problem; one that is there already serves again."""
        known = None if force else problem_key(self.folder)
        if known == key:
            return
        if known is not None:
            raise UsageError(
                f"{self.folder} was begun with other inputs or versions: replace it with --force"
            )
        work = Work(progress)
        problem = find_problem(inputs, self.plan, work, self.plan.problem.count)
        bench = Bench(inputs, self.plan, problem)
        unseen_data(bench)
        unseen = find_unseen(bench, work)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        self._write_toml()
        write_problem(self.folder, problem, unseen, key)

    def _write_toml(self) -> None:
        write_text(self.folder / TOML, tomli_w.dumps(self.as_layer()))

    # One method after the other ---------------------------------------------------------

    def _row(self, method: Method, problem: str, progress: Progress) -> tuple[Row, bool]:
        """The row of a method, and whether it was made now."""
        place, origin = self.folder / "methods" / method.name, _origin(method)
        limits = [self.plan.comparison.seconds, self.plan.comparison.memory]
        key = _digest(problem, method.name, values(method), origin, limits)
        kept = place / RESULT
        if kept.exists():
            found = read_json(kept)
            if found.get("key") == key and found.get("complete"):
                return found, False
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)

        def told(stage: str, done: int, total: int) -> None:
            named = stage if stage.startswith(method.name) else f"{method.name}: {stage}"
            progress(named, done, total)

        memory = int(limits[1] * 2**30)
        alone = Alone(limits[0], memory, place / "log.txt", told)
        ended = alone.run(attempt_one, str(self.folder), method.name)
        row = finished(place, ended, limits)
        row |= {"method": method.name, "distribution": origin, "options": values(method)}
        row |= {"key": key, "complete": True}
        write_json(kept, row)
        log = place / "log.txt"
        if log.exists() and not log.stat().st_size:
            log.unlink()
        return row, True

    def _whole(self, about: Mapping[str, Any], rows: list[Row]) -> dict[str, Any]:
        """What is known by now."""
        problem, plan = read_problem(self.folder)[0], self.plan
        labelled = bool((problem.properties.label >= 0).any())
        return {
            "format": FORMAT,
            "network": Path(plan.problem.network).name,
            "problem": {
                "epsilon": plan.problem.epsilon if labelled else None,
                "count": len(problem.properties),
                "counterexamples": len(problem.x_adv),
                "decision": plan.problem.decision,
            },
            "evaluation": {
                "scope": plan.evaluation.scope,
                "attack": plan.evaluation_attack.name,
                "options": values(plan.evaluation_attack),
                "epsilon": plan.evaluation.epsilon or plan.problem.epsilon,
                "limit": plan.evaluation.limit,
            },
            "limits": {"seconds": plan.comparison.seconds, "memory_gib": plan.comparison.memory},
            "level": plan.certification.level,
            "hardware": about["hardware"],
            "versions": about["versions"],
            "inputs": about["inputs"],
            "seed": about["seed"],
            "notes": list(self.notes),
            "methods": [m.name for m in self.methods],
            "rows": rows,
        }


def attempt_one(line: Line, folder: str, name: str) -> None:
    """What the process of a method does: repair, measure, write the model.

    What is known is written when each is done, so that nothing is lost if the process is ended.
    """
    path, registry = Path(folder), Registry.load()
    whole = Comparison.resolved(registry, [read_toml(path / TOML)], path)
    (method,) = [each for each in whole.methods if each.name == name]
    plan, place = whole.plan, path / "methods" / name
    inputs = read_inputs(plan.problem)
    inputs.network.compute_on(device_of(plan.run.device))
    problem, unseen = read_problem(path)
    limits = Limits(plan.comparison.seconds, int(plan.comparison.memory * 2**30))
    bench = Bench(inputs, plan, problem, limits, line.progress)
    line.limited(True)
    result, seconds = bench.repair(method)
    line.limited(False)
    row = repaired(result, seconds)
    write_json(place / RESULT, row)
    attempt = Attempt(result, seconds, bench.proved(result.model))
    work = Work(line.progress)
    row |= measured(bench, name, attempt, unseen, work).as_json()
    row["seconds"]["evaluation"] = sum(work.seconds.values())
    row["measured"] = True
    write_json(place / RESULT, row)
    write_json(place / RESULT, row | written_model(place, result.model, bench))


def _identity(layer: Layer, registry: Registry) -> dict[str, Any]:
    """What may not differ on a resume: all but methods, their options and limits."""
    methods = {entry.name for entry in registry.listing() if entry.kind == "method"}
    others = {entry.name for entry in registry.listing() if entry.kind != "method"}
    free = {"comparison", *(methods - others)}
    known = {name: dict(options) for name, options in layer.items() if name not in free}
    known.get("run", {}).pop("memory", None)
    return known


def _place(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _origin(method: Method) -> str:
    """Distribution and version of a method."""
    top = type(method).__module__.partition(".")[0]
    owner = next(iter(metadata.packages_distributions().get(top, [])), None)
    return top if owner is None else f"{owner} {metadata.version(owner)}"


def _told(row: Row) -> str:
    """One line about a method that is done."""
    rates = {name: row["figures"].get(name) for name in ("RSR", "DD")}
    shown = ", ".join(f"{n} {100 * v:.1f} %" for n, v in rates.items() if v is not None)
    parts = [row["status"], shown, row["reason"] or ""]
    return f"{row['method']}: {'; '.join(filter(None, parts))}"
