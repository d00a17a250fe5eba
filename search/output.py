"""What a command prints: its report to stdout, everything else to stderr."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from search.experiment import Experiment

__all__ = ["note", "print_report", "print_resolved", "refuse", "silence", "spare_encoding", "write", "write_note"]


def print_report(options: argparse.Namespace, report: Mapping[str, Any], table: str | None = None) -> int:
    """Print a report as ``--format`` says, and return the exit code of what is done.

    Args:
        table: Of :data:`search.tables.TABLES`; None: the one that has the command's name.
    """
    if options.format == "json":
        print(json.dumps(report, indent=2, allow_nan=False))
        return 0
    from search.tables import TABLES, print_table

    print_table(TABLES[table or options.command](report), sys.stdout)
    return 0


def print_resolved(options: argparse.Namespace, experiment: "Experiment") -> None:
    """Print an experiment with every default, as its file would be or as JSON."""
    data = experiment.to_file()
    if options.format == "json":
        print(json.dumps(data, indent=2))
    else:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None), end="")


def write(text: str) -> None:
    """Text that is all that the command prints, such as a log, as it comes."""
    print(text, end="", flush=True)


def write_note(text: str) -> None:
    """The same beside a report."""
    print(text, end="", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr)


def refuse(text: str, code: int) -> int:
    """Say why the command ends, and return its exit code."""
    try:
        print(f"clnp-search: {text}", file=sys.stderr)
    except OSError:
        silence(sys.stderr)
    return code


def silence(stream: TextIO) -> None:
    """Nobody reads it: what Python still has to write, and would at its end, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def spare_encoding(stream: TextIO) -> None:
    """A terminal that cannot show θ shows a question mark instead of ending the command."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
