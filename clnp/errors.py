"""What the method refuses, and what it cannot go on from."""

__all__ = ["DataUnavailable", "Damaged", "Diverged", "NothingToCommit", "UnsupportedNetwork"]


class UnsupportedNetwork(ValueError):
    """A module that cannot be made into a network of claimable units."""


class DataUnavailable(ValueError):
    """A data set that is absent, or whose bytes are not the known ones."""


class Damaged(ValueError):
    """Bytes or tensors that are not what their hash, fingerprint or record says."""


class Diverged(ValueError):
    """A trained network whose numbers are not finite: nothing can be measured on it."""


class NothingToCommit(ValueError):
    """A task that ends without a network worth committing: the sequence cannot go on as it is."""
