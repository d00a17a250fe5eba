"""Brings data sets to the nodes of a cluster that have them not, once each, through Ray's object store."""

from collections.abc import Sequence
from typing import Any

from search import delivered
from search.delivered import Parcel

__all__ = ["Courier"]


class Courier:
    """Sends one parcel to one node after the other.

    Its bytes are in the object store while any node waits for them, and only then: a run may last for weeks.
    """

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self._pieces: list[Any] = []

    def send(self, node: str) -> Any:
        """Begin to bring it to a node; the reference ends as true, or as false where it was there by then."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._pieces = self._pieces or [ray.put(piece) for piece in delivered.pieces(self.parcel)]
        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_fetch).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
        return task.remote(self.parcel, self._pieces)

    def rest(self) -> None:
        """No node waits: give the object store its room back."""
        self._pieces = []


def _fetch(parcel: Parcel, pieces: Sequence[Any]) -> bool:
    """Runs on a node, which holds one piece at a time."""
    import ray

    return delivered.unpack(parcel, (ray.get(piece) for piece in pieces))
