"""Read VNN-LIB files: the unsafe set, turned into what is demanded.

Version 1.0 is read here; 2.0 by :mod:`~advrepair.core.vnnlib2`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from advrepair.core.errors import UsageError
from advrepair.core.formulas import Declared, Place, Variable, error_at
from advrepair.core.specification import Specification, safe_regions
from advrepair.core.vnnlib2 import read_version_2
from advrepair.core.vnnlib_terms import Expression, Reader, expressions

_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})")
_VERSION = re.compile(r"(?:\s|;[^\n]*\n)*\(\s*vnnlib-version\s*([^\s)]*)")
_IDLE = {  # commands that say nothing about the set
    "set-logic", "set-info", "set-option", "check-sat", "get-model", "get-value", "echo", "exit",
}  # fmt: skip


def read_vnnlib(path: Path | str) -> Specification:
    """Read a VNN-LIB file, plain or compressed by gzip: what its unsafe set demands.

    Raises UsageError, which names line and column, for whatever cannot be read or repaired.
    """
    path = Path(path)
    text = _text(path)
    name = path.name.removesuffix(".gz").removesuffix(".vnnlib")
    version = _VERSION.match(text)
    if version is None:
        return _version_1(name, str(path), text)
    if version[1] != "<2.0>":
        raise error_at(
            str(path),
            (text.count("\n", 0, version.start(1)) + 1, 0),
            f"VNN-LIB version {version[1]} is not read; use 1.0 or 2.0",
        )
    return read_version_2(name, str(path), text)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check the path of the specification") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; name a file") from None
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error):
        raise UsageError(f"{path}: is not whole as a gzip file; fetch or pack it again") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{path}: is not a text file; name a VNN-LIB file")
    return text


def _version_1(name: str, source: str, text: str) -> Specification:
    variables: dict[str, Variable] = {}
    places: dict[Variable, Place] = {}
    asserts: list[Expression] = []
    for command in expressions(source, text):
        word, parts = command.head, command.parts or ()
        if word in ("declare-const", "declare-fun"):
            variable = _declaration(source, command)
            if variable in places:
                raise error_at(source, command.at, f"{parts[1].text} is declared twice; remove one")
            variables[parts[1].text], places[variable] = variable, command.at
        elif word == "assert" and len(parts) == 2:
            asserts.append(parts[1])
        elif word not in _IDLE:
            what = repr(word or command.text or "(...)")
            raise error_at(
                source,
                command.at,
                "assert takes one formula; join several by and"
                if word == "assert"
                else f"{what} is no command of VNN-LIB; use declare-const and assert",
            )
    inputs, outputs = (_numbered(source, kind, places) for kind in "XY")
    declared = Declared(
        source,
        tuple(f"X_{i}" for i in range(inputs)),
        tuple(places["X", i] for i in range(inputs)),
        outputs,
    )
    reader = Reader(declared, variables)
    return safe_regions(name, declared, [reader.formula(each) for each in asserts])


def _declaration(source: str, command: Expression) -> Variable:
    """The variable of ``(declare-const X_0 Real)`` or ``(declare-fun X_0 () Real)``."""
    parts = command.parts or ()
    words = [part.text if part.parts is None else "()" for part in parts]
    known = {"declare-const": (3, []), "declare-fun": (4, ["()"])}
    length, between = known[words[0]]
    if len(parts) != length or words[2:-1] != between or any(part.parts for part in parts):
        raise error_at(source, command.at, "no declaration; write (declare-const X_0 Real)")
    match = _NAME.fullmatch(words[1])
    if match is None:
        raise error_at(
            source, parts[1].at, f"{words[1]!r} is no name of an input X_i or an output Y_j; rename"
        )
    if words[-1] != "Real":
        raise error_at(source, parts[-1].at, f"{words[1]} is a {words[-1]}; only Real is read")
    return match[1], int(match[2])


def _numbered(source: str, kind: str, places: dict[Variable, Place]) -> int:
    """How many variables of a kind there are; raises UsageError if a number is missing."""
    found = sorted(index for letter, index in places if letter == kind)
    if not found:
        what = "input X_0" if kind == "X" else "output Y_0"
        raise UsageError(f"{source}: declares no {what}; add (declare-const {what[-3:]} Real)")
    for i, index in enumerate(found):
        if i != index:
            raise error_at(
                source,
                places[kind, index],
                f"{kind}_{index} is declared but {kind}_{i} is not; number without gaps from 0",
            )
    return len(found)
