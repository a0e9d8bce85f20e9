"""Run folders to render, and the page as a tree of what it consists of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from problems import write_inputs

from advrepair import html
from advrepair.cli import main

VOID = {"meta", "link", "img", "br", "hr", "input"}
FILES = ("report.json", "certificate.json", "certificate.safetensors", "repaired.safetensors")


def image_run(folder: Path, count: int = 14) -> Path:
    """A run on the digits, whose inputs are images."""
    assert main(["run", "--count", str(count), "--json", "--out", str(folder)]) == 0
    return folder


def vector_run(folder: Path) -> Path:
    """A run on six numbers, which are no image."""
    place = folder.with_name("inputs")
    place.mkdir(parents=True)
    network, data = write_inputs(place)
    asked = ["run", str(network), "--data", str(data), "--count", "5", "--epsilon", "0.1"]
    assert main([*asked, "--json", "--out", str(folder)]) == 0
    return folder


def copy(run: Path, folder: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(run, folder)
    return folder


def change(folder: Path, name: str, how: Callable[[Any], None]) -> Path:
    """Change a JSON file of a folder."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def page(folder: Path) -> str:
    """The page of a folder, written anew."""
    return html.write(folder).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements as (tag, attributes), their text, and whether the tags match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader reads, with single spaces and plain dashes."""
        return " ".join(" ".join(self.words).split()).replace("\N{EN DASH}", "-")

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]
