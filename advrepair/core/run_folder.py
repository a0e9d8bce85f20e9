"""The run folder: what a repair leaves behind, there when it is complete."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.files import (
    FORMAT,
    Blocks,
    cannot_write,
    is_sealed,
    read_json,
    read_tensors,
    settle,
    versions,
    write_json,
    write_tensors,
    write_text,
)
from advrepair.core.registry import Registry

_TOML, _MANIFEST, _REPORT = "run.toml", "manifest.json", "report.json"


@define
class Folder:
    """One run folder; ``partial`` beside it holds the work until it is complete.

    Whoever uses it holds its lock (:mod:`~advrepair.core.locking`). The process may be killed
    between any two steps: what is left then is understood by the next :meth:`claim`.
    """

    path: Path
    # Folders above that were made for this run, innermost first; whether partial was too.
    made: list[Path] = field(factory=list)
    began: bool = False

    @property
    def partial(self) -> Path:
        """Where the work is kept until the run is complete."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def old(self) -> Path:
        """Where a run that is replaced is kept for the moment of the change."""
        return self.path.with_name(self.path.name + ".old")

    @property
    def stored(self) -> Path:
        """The configuration of the run that a resume goes on with, if there is one."""
        return (self.partial if _begun(self.partial) else self.path) / _TOML

    def claim(
        self, configuration: str, manifest: Mapping[str, Any], force: bool, resume: bool
    ) -> bool:
        """Prepare to write; True if the folder now holds this very run, complete.

        configuration: text of run.toml. manifest: as in manifest.json. Raises UsageError if
        there is a run and neither force nor resume is asked for, if a path that is needed
        holds no run of ours or cannot be written, or if what is to be resumed had another
        configuration, other inputs or other versions.
        """
        if self.path.name in ("", ".."):
            raise UsageError(f"{self.path} is no name for a run folder: choose another --out")
        try:
            self._refuse_foreign()
            self._roll_back(force)
            if not force:
                self._refuse_others(configuration, manifest, resume)
                if self._completed():
                    return True
            self._start(configuration, manifest, force)
        except OSError as error:
            self.discard()
            raise UsageError(cannot_write(error, path=self.partial)) from None
        return False

    def _refuse_foreign(self) -> None:
        ours = {self.path: _begun, self.partial: _ours, self.old: _ours}
        for place, known in ours.items():
            if place.exists() and not known(place):
                raise UsageError(f"{place} exists and is no run folder: choose another --out")

    def _roll_back(self, force: bool) -> None:
        """A kill came in the middle of a change: the old run is put back, or the new one waits."""
        waits = (self.partial / _REPORT).exists() and not force
        if self.old.exists() and not self.path.exists() and not waits:
            os.rename(self.old, self.path)

    def _refuse_others(self, configuration: str, manifest: Mapping[str, Any], resume: bool) -> None:
        for place, what in ((self.path, "a run"), (self.partial, "an interrupted run")):
            if _begun(place) and not resume:
                raise UsageError(f"{place} holds {what}: use --force, --resume or another --out")
        place = self.stored.parent
        if not _begun(place):
            return
        if _that_count(self.stored.read_text(encoding="utf-8")) != _that_count(configuration):
            raise UsageError(
                f"{place} was configured differently: leave --config and flags out to resume it, "
                "or replace it with --force"
            )
        before = read_json(place / _MANIFEST)
        for key in ("inputs", "versions"):
            if before.get(key) != manifest[key]:
                raise UsageError(f"{place} was begun with other {key}: replace it with --force")

    def _completed(self) -> bool:
        """Whether the run to be resumed is complete; a kill may have come before its publishing."""
        if (self.partial / _REPORT).exists():
            self.publish()
        elif _begun(self.partial) or not self.path.exists():
            return False
        Checkpoint(self.path).clear()
        for left in (self.partial, self.old):
            if left.exists():
                _remove(left)
        return True

    def _start(self, configuration: str, manifest: Mapping[str, Any], force: bool) -> None:
        if force and self.partial.exists():
            _remove(self.partial)
        self.began = not _begun(self.partial)
        self.made = [above for above in self.partial.parents if not above.exists()]
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(self.partial / _MANIFEST, manifest)
        write_text(self.partial / _TOML, configuration)  # last: from here on it is begun

    def publish(self) -> None:
        """Put the complete run in its place, in one step."""
        Checkpoint(self.partial).clear()
        settle(self.partial)
        if self.path.exists():
            if self.old.exists():
                _remove(self.old)
            os.rename(self.path, self.old)
        os.rename(self.partial, self.path)
        if self.old.exists():
            _remove(self.old)

    def discard(self) -> None:
        """Leave nothing behind of a run that began here; what is resumed is kept."""
        if not self.began:
            return
        with suppress(OSError):
            _remove(self.partial)
        for above in self.made:
            if above.exists() and not any(above.iterdir()):
                above.rmdir()


def _begun(place: Path) -> bool:
    return (place / _TOML).exists()


def _ours(place: Path) -> bool:
    """Whether a folder is of a run, perhaps of one that was killed in its first or last moments."""
    if _begun(place):
        return True
    return place.is_dir() and all(
        each.name == _MANIFEST or each.suffix == ".tmp" for each in place.iterdir()
    )


def _remove(place: Path) -> None:
    """Delete a folder of ours; what is left at any moment is complete, or known as ours."""
    (place / _REPORT).unlink(missing_ok=True)
    last = [place / _TOML, place / _MANIFEST]
    for each in place.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each not in last:
            each.unlink()
    for each in last:
        each.unlink(missing_ok=True)
    place.rmdir()


def _that_count(configuration: str) -> dict[str, Any]:
    """A configuration without what changes no result: memory, and where shards are worked on."""
    known = tomllib.loads(configuration)
    known.get("run", {}).pop("memory", None)
    executor = known.get("plan", {}).pop("executor", None)
    return {name: options for name, options in known.items() if name not in (executor, "executor")}


def manifest(
    registry: Registry, inputs: Mapping[str, str], seed: int, device: str
) -> dict[str, Any]:
    """What the run ran on. inputs: what was read, name to SHA-256."""
    packages = ("advrepair", "torch", "numpy", "attrs", "pluggy", "onnx", "safetensors")
    plugins = [
        {key: getattr(entry, key) for key in ("kind", "name", "distribution", "version")}
        for entry in registry.listing()
        if entry.problem is None
    ]
    return {
        "versions": versions(*packages),
        "plugins": plugins,
        "inputs": dict(inputs),
        "seed": seed,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device,
        },
    }


@define
class Checkpoint:
    """What an interrupted run has finished, by name, in its partial folder."""

    folder: Path

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Tensors saved under a name; None if there are none, or a single bit has changed."""
        path = self._path(name)
        try:
            if not (path.exists() and is_sealed(path)):
                return None
            tensors, header = read_tensors(path)
            return tensors if header.get("name") == name else None
        except (UsageError, OSError):
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor | Blocks]) -> None:
        """Keep tensors for a resume."""
        write_tensors(self._path(name), tensors, {"format": FORMAT, "name": name}, seal=True)

    def spilled(self, name: str, tensors: Mapping[str, Tensor | Blocks]) -> dict[str, Tensor]:
        """Tensors as they lie on disk from now on, memory-mapped; of no use to a resume."""
        write_tensors(self._path(name), tensors, {"format": FORMAT})
        return read_tensors(self._path(name))[0]

    def clear(self) -> None:
        """The run is complete: nothing of this is needed, nor what was written by half."""
        for pattern in ("checkpoint-*", "*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"checkpoint-{name}.safetensors"
