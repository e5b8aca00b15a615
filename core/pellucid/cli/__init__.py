"""The `pellucid` command.

Each command is a module of this package with two functions, and a line in `COMMANDS`:

    def arguments(parser: argparse.ArgumentParser) -> None    # adds the command's arguments
    def run(options: argparse.Namespace) -> int | None        # does it; returns an exit code other than 0

Only the module of the command that is called is imported, and it imports what is heavy inside `run`, so that
`pellucid list` stays quick. The parser is argparse because typer imports pydantic when it reads a command line.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pellucid.errors import Interrupted, PellucidError, nearest

COMMANDS = {
    "demo": "explain photos by a real network and write a report, offline",
    "list": "list the techniques",
    "show": "show one technique: its record, its parameters, whether it can be used",
    "doctor": "tell what works here and with a model, and what is wrong with plugins",
    "explain": "explain what a model says of images or texts",
    "run": "run a pipeline of named steps from a YAML file",
    "bench": "time techniques on a model against the raw cost of their passes",
    "check": "check a technique, or all techniques of a plugin, against the contract",
    "new": "make a plugin package that works, to start from",
}
"""Every command with the line that `pellucid --help` shows, in that order."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Exit codes: 0; 1 where the answer is negative, such as a failed check, or Pellucid itself failed; 2 for a user's
    mistake; 130 after Ctrl-C. With `PELLUCID_DEBUG=1` errors show their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" for it
    try:
        # Not list(...): once `pellucid list` has run in this process, that name is this package's module.
        code = _run(sys.argv[1:] if arguments is None else [*arguments])
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        # What an `Interrupted` holds is for programs; commands that keep results say where.
        _fail("interrupted." if isinstance(error, Interrupted) else f"interrupted. {error}", 130, error)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has gone; what is left in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PellucidError, OSError) as error:
        _fail(f"error: {error}", 2, error)
    except Exception as error:
        _fail(f"internal error: {type(error).__name__}: {error} (PELLUCID_DEBUG=1 shows where)", 1, error)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"error: {message}{stop} `{self.prog} --help` shows what is expected.\n")


def _run(given: list[str]) -> int:
    parser = _Parser(
        prog="pellucid",
        description="Explain neural networks: any technique, on any model, through one registry.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    called = next((word for word in given if not word.startswith("-")), None)
    if called is not None and called not in COMMANDS:
        parser.error(f"no command {called!r}.{nearest(called, COMMANDS)}")
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=line, allow_abbrev=False)
        if name == called:
            module = importlib.import_module(f"pellucid.cli.{name}")
            command.description = module.run.__doc__
            module.arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(given)
    if options.version:
        import pellucid

        print(pellucid.__version__)
        return 0
    if called is None:
        parser.print_help()
        return 0
    return options.run(options) or 0


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    if os.environ.get("PELLUCID_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
