"""What a worker imports before its first job: torch, Tune, and all that a job needs.

Ray's workers import this module while their driver still gets Tune ready. Of what is imported nothing is garbage, and
the search for it takes a quarter of the time, so there is none until all is there; later ones leave these objects out.
"""

import gc

__all__: list[str] = []

gc.disable()
try:
    import search.backends.hooks
    import search.worker.jobs  # noqa: F401
except (ImportError, OSError, RuntimeError):
    pass  # The worker would end, and nobody hear why; a job that imports the same says it.
finally:
    gc.freeze()
    gc.enable()
