"""``advrepair export``: the repaired network as files of other programs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from advrepair.core.errors import UsageError

File = Path | None


def _flag(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help)


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    onnx: Annotated[File, _flag("FILE", "ONNX file to write.")] = None,
    form: Annotated[
        str, _flag("NAME", "routed, or relu: linear layers and ReLU only, for verifiers.")
    ] = "routed",
    shell: Annotated[
        float | None, _flag("NUMBER", "relu: how far a patch reaches beyond its regions.")
    ] = None,
    input_range: Annotated[
        str | None, _flag("LOW,HIGH", "relu: range of the inputs. Left out: that of the run.")
    ] = None,
    torchscript: Annotated[File, _flag("FILE", "TorchScript file to write.")] = None,
    torch_export: Annotated[File, _flag("FILE", "torch.export file (.pt2) to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write the deployed function, patches and routing included, to ordinary model files.

    Each file is run and compared with the repaired network before it is put in its place.
    """
    from advrepair.core.exporting import Request
    from advrepair.core.exporting import export as write
    from advrepair.core.registry import Registry

    limits = None if input_range is None else _limits(input_range)
    asked = Request(onnx, torchscript, torch_export, form, shell, limits, force)
    for each in write(folder, asked, Registry.load()):
        print(f"{each.path}: {each.kind}, {each.size / 1e6:.3g} MB")
        for note in each.notes:
            print(f"  {note}")
        if each.agreement is None:
            print("  not checked: onnxruntime is not installed")
            continue
        found = each.agreement
        left = f", {found.shell} more lie in shells" if found.shell else ""
        print(f"  run on {found.inputs} inputs, faces and corners of regions among them{left}")
        print(
            f"  every decision agrees; outputs differ by at most {found.deviation:.2g} "
            f"(allowed: {found.tolerance:.2g})"
        )


def _limits(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--input-range is {text!r}: write LOW,HIGH, two numbers") from None
    if not -float("inf") < low < high < float("inf"):
        raise UsageError(f"--input-range is {text!r}: LOW must be below HIGH, both finite")
    return low, high
