"""Content-addressed tensors in a folder or an S3-compatible store, laid out as an Optuna artifact store is."""

from search.artifacts.locations import is_bucket, join, normal, parent
from search.artifacts.store import Artifacts

__all__ = ["Artifacts", "is_bucket", "join", "normal", "parent"]
