"""Continual Learning via Neural Pruning: the method, without any orchestration.

Names are loaded when they are first used, so that importing a pure part (:mod:`clnp.forgetting`) imports no torch.
Functions named like their module are taken from it: ``from clnp.commit import commit``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clnp.activity import by_layer, mean_activity
    from clnp.commit import fingerprint, restore
    from clnp.diagnostics import diagnose
    from clnp.errors import Damaged, DataUnavailable, Diverged, NothingToCommit, UnsupportedNetwork
    from clnp.evaluation import count_correct, logits
    from clnp.finetuning import fine_tune
    from clnp.forgetting import Choice, Pick, Point, Trial, choose
    from clnp.growth import grow
    from clnp.halving import Halving
    from clnp.models import mlp, split_cifar_narrow, split_cifar_wide
    from clnp.network import Network
    from clnp.ownership import with_free
    from clnp.thresholds import claims_at, curve, staircase
    from clnp.training import Member, Settings, Trained, open_task, train

__all__ = [
    "NUMERICS",
    "Choice",
    "Damaged",
    "DataUnavailable",
    "Diverged",
    "Halving",
    "Member",
    "Network",
    "NothingToCommit",
    "Pick",
    "Point",
    "Settings",
    "Trained",
    "Trial",
    "UnsupportedNetwork",
    "by_layer",
    "choose",
    "claims_at",
    "count_correct",
    "curve",
    "diagnose",
    "fine_tune",
    "fingerprint",
    "grow",
    "logits",
    "mean_activity",
    "mlp",
    "open_task",
    "restore",
    "split_cifar_narrow",
    "split_cifar_wide",
    "staircase",
    "train",
    "with_free",
]

NUMERICS = 3
"""Counted up by every change after which the same seed gives other bits; records say which they were made with."""

_HOME = {
    "activity": ["by_layer", "mean_activity"],
    "commit": ["fingerprint", "restore"],
    "diagnostics": ["diagnose"],
    "errors": ["Damaged", "DataUnavailable", "Diverged", "NothingToCommit", "UnsupportedNetwork"],
    "evaluation": ["count_correct", "logits"],
    "finetuning": ["fine_tune"],
    "forgetting": ["Choice", "Pick", "Point", "Trial", "choose"],
    "growth": ["grow"],
    "halving": ["Halving"],
    "models": ["mlp", "split_cifar_narrow", "split_cifar_wide"],
    "network": ["Network"],
    "ownership": ["with_free"],
    "thresholds": ["claims_at", "curve", "staircase"],
    "training": ["Member", "Settings", "Trained", "open_task", "train"],
}
_MODULE = {name: f"clnp.{module}" for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
