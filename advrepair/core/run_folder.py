"""The run folder: what a repair leaves behind, there when it is complete."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.files import (
    FORMAT,
    Blocks,
    read_json,
    read_tensors,
    versions,
    write_json,
    write_tensors,
    write_text,
)
from advrepair.core.registry import Registry


@define
class Folder:
    """One run folder; ``partial`` beside it holds the work until it is complete."""

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

    def claim(
        self, configuration: str, manifest: Mapping[str, Any], force: bool, resume: bool
    ) -> bool:
        """Prepare to write; True if the folder already holds this very run, complete.

        configuration: text of run.toml. manifest: as in manifest.json. Raises UsageError if
        there is a run and neither force nor resume is asked for, if a path that is needed
        holds no run of ours or cannot be written, or if what is to be resumed had another
        configuration, other inputs or other versions.
        """
        if self.path.name in ("", ".."):
            raise UsageError(f"{self.path} is no name for a run folder: choose another --out")
        try:
            for place in (self.path, self.partial, self.old):
                if place.exists() and not (place / "run.toml").exists():
                    raise UsageError(f"{place} exists and is no run folder: choose another --out")
            for place in (self.path, self.partial):
                if place.exists() and not force:
                    self._resumable(place, configuration, manifest, resume)
            if self.path.exists() and not force:
                return True
            self._start(configuration, manifest, force)
        except OSError as error:
            self.discard()
            raise UsageError(f"cannot write to {self.partial}: {error.strerror}") from None
        return False

    def _resumable(
        self, place: Path, configuration: str, manifest: Mapping[str, Any], resume: bool
    ) -> None:
        if not resume:
            what = "a run" if place == self.path else "an interrupted run"
            raise UsageError(f"{place} holds {what}: use --force, --resume or another --out")
        if (place / "run.toml").read_text(encoding="utf-8") != configuration:
            raise UsageError(
                f"{place} was configured differently: resume it with --config "
                f"{place / 'run.toml'}, or replace it with --force"
            )
        before = read_json(place / "manifest.json")
        for key in ("inputs", "versions"):
            if before.get(key) != manifest[key]:
                raise UsageError(f"{place} was begun with other {key}: replace it with --force")

    def _start(self, configuration: str, manifest: Mapping[str, Any], force: bool) -> None:
        if force and self.partial.exists():
            shutil.rmtree(self.partial)
        self.began = not self.partial.exists()
        self.made = [above for above in self.partial.parents if not above.exists()]
        self.partial.mkdir(parents=True, exist_ok=True)
        write_text(self.partial / "run.toml", configuration)
        write_json(self.partial / "manifest.json", manifest)

    def publish(self) -> None:
        """Put the complete run in its place, in one step."""
        if self.old.exists():  # left by a run that was killed right here
            shutil.rmtree(self.old)
        if self.path.exists():
            os.rename(self.path, self.old)
        os.rename(self.partial, self.path)
        if self.old.exists():
            shutil.rmtree(self.old)

    def discard(self) -> None:
        """Leave nothing behind of a run that began here; what is resumed is kept."""
        if not self.began:
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        for above in self.made:
            if above.exists() and not any(above.iterdir()):
                above.rmdir()


def manifest(registry: Registry, inputs: Mapping[str, str], seed: int) -> dict[str, Any]:
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
            "device": "cpu",
        },
    }


@define
class Checkpoint:
    """What an interrupted run has finished, by name, in its partial folder."""

    folder: Path

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Tensors saved under a name; None if there are none, or the file is damaged."""
        path = self._path(name)
        try:
            return read_tensors(path)[0] if path.exists() else None
        except UsageError:
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor | Blocks]) -> None:
        """Keep tensors for a resume."""
        write_tensors(self._path(name), tensors, {"format": FORMAT})

    def clear(self) -> None:
        """The run is complete: nothing of this is needed, nor what was written by half."""
        for pattern in ("checkpoint-*", "*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"checkpoint-{name}.safetensors"
