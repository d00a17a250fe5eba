"""The experiments that ship with the package."""

from search.experiment import shipped
from search.reports.common import Report

__all__ = ["experiments"]


def experiments() -> Report:
    """Each shipped experiment with its description."""
    return {"experiments": [{"experiment": name, "description": text} for name, text in shipped().items()]}
