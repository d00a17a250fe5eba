"""Task sequences. Names are imported when they are first used: their sizes are had without torch."""

import importlib
from typing import TYPE_CHECKING, Any

from clnp.tasks.sizes import (
    DATASETS,
    VIEWS,
    Sizes,
    View,
    class_counts,
    class_order,
    dataset_sizes,
    split_cifar_sizes,
    split_sizes,
    validation_count,
    views_sizes,
)

if TYPE_CHECKING:
    from clnp.tasks.base import dataset_sha256
    from clnp.tasks.downloads import download
    from clnp.tasks.encoded import Encoded
    from clnp.tasks.own import from_function
    from clnp.tasks.permutations import permuted
    from clnp.tasks.splits import split, split_cifar
    from clnp.tasks.task import Sequence, Split, Task
    from clnp.tasks.transform import Transform
    from clnp.tasks.viewing import views

__all__ = [
    "DATASETS",
    "Encoded",
    "Sequence",
    "Sizes",
    "Split",
    "Task",
    "Transform",
    "VIEWS",
    "View",
    "class_counts",
    "class_order",
    "dataset_sha256",
    "dataset_sizes",
    "download",
    "from_function",
    "permuted",
    "split",
    "split_cifar",
    "split_cifar_sizes",
    "split_sizes",
    "validation_count",
    "views",
    "views_sizes",
]

_LATER = {
    "Encoded": "encoded",
    "Sequence": "task",
    "Split": "task",
    "Task": "task",
    "Transform": "transform",
    "dataset_sha256": "base",
    "download": "downloads",
    "from_function": "own",
    "permuted": "permutations",
    "split": "splits",
    "split_cifar": "splits",
    "views": "viewing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
