"""The few ways a command can end badly, each with its exit code."""

__all__ = ["BadInput", "Damage", "Held", "Impossible", "LeaseLost", "SearchError", "Unavailable"]


class SearchError(Exception):
    """Something a person should read: what was wrong, what was found and how to mend it."""

    exit_code = 1


class BadInput(SearchError):
    """Input that is refused before anything starts."""

    exit_code = 2


class Damage(SearchError):
    """Bytes that are not what their hash or record says."""

    exit_code = 3


class Held(SearchError):
    """The run is in another driver's hands."""

    exit_code = 4


class LeaseLost(Held):
    """The lease went to another driver while this one ran; nothing more may be written."""


class Impossible(SearchError):
    """A task that leaves nothing worth committing: its replica stops before the commit, the others go on."""

    exit_code = 5


class Unavailable(SearchError):
    """A worker, database or store that could not be reached often enough; the same command continues."""

    exit_code = 1
