"""What a worker is told at its start."""

from dataclasses import dataclass

__all__ = ["WorkerSettings"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Where a worker finds things and what it may use.

    Attributes:
        artifacts: Where the run's tensors are, prepared: a folder, or ``s3://BUCKET/PREFIX``.
        data_dir: Where data sets lie, or None: where they lie by default.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads that torch may use. Bits depend on it.
        code: The folders in which a person's own functions are looked for.
        gpu: Its share of a GPU, or how many: a worker with a share takes no more of the memory.
        patience: Seconds for which artifacts are tried again while they cannot be reached: what was trained is worth
            more than the wait.
        delivered: The name under which data sets were brought to nodes that lack them, or None.
    """

    artifacts: str
    data_dir: str | None
    device: str
    threads: int
    code: tuple[str, ...] = ()
    gpu: float = 1.0
    patience: float = 600.0
    delivered: str | None = None
