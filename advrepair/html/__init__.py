"""A run folder, or a comparison, as one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advrepair.core.errors import UsageError
from advrepair.core.files import write_text
from advrepair.html.comparison import render_comparison
from advrepair.html.folder import read
from advrepair.html.page import render

__all__ = ["NAME", "write", "write_comparison"]

NAME = "report.html"


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder into it, or to another file; returns where.

    Raises UsageError if the folder holds no complete run, OSError if the file cannot be written.
    """
    path = out or folder / NAME
    # A lone surrogate, which JSON can hold, has no bytes.
    page = render(read(folder)).encode("utf-8", "replace").decode("utf-8")
    if path.is_dir() or not path.name:
        raise UsageError(f"cannot write to {path}: it is a folder")
    write_text(path, page)
    return path


def write_comparison(folder: Path, whole: Mapping[str, Any]) -> Path:
    """Write ``comparison.html`` of what is in a comparison's JSON; returns where."""
    path = folder / "comparison.html"
    write_text(path, render_comparison(whole).encode("utf-8", "replace").decode("utf-8"))
    return path
