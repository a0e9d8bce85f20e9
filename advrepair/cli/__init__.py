"""The command line: the only place that prints or exits.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from advrepair.cli import certify, check, compare, evaluate, export, plugins, report, run, verify
from advrepair.cli.stopping import INTERRUPTED, Stopped, leave
from advrepair.core.errors import AdvrepairError

__all__ = ["app", "main"]

app = typer.Typer(
    name="advrepair",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("certify")(certify.certify)
app.command("verify")(verify.verify)
app.command("check")(check.check)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("plugins")(plugins.plugins)


@app.callback(invoke_without_command=True)
def advrepair(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Certified repair of neural networks.

    Start with `advrepair run`: it repairs the bundled demo.
    """
    if version:
        print(f"advrepair {metadata.version('advrepair')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    What the user can mend is one line on stderr; a bug of ours is a traceback.
    """
    code = _main(arguments)
    return leave(code) if arguments is None else code


def _main(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=arguments, prog_name="advrepair", standalone_mode=False)
    except AdvrepairError as error:
        return _fail(str(error), error.exit_code)
    except Stopped as stopped:
        return _say(str(stopped), stopped.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # A wrong flag: the class that says so has moved between releases of typer.
        if not hasattr(error, "format_message"):
            raise
        return _fail(error.format_message(), 2)
    if code == INTERRUPTED:
        return _say("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    return _say(f"error: {' '.join(message.split())}", code)


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
