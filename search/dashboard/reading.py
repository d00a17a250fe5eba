"""What the dashboard reads: studies, no more of them than a page shows, and the tensors of every run."""

import io
from contextvars import ContextVar
from typing import BinaryIO, NoReturn

from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from sqlalchemy import Connection

from search.attributes import Carried, read_carried
from search.errors import BadInput
from search.store import Store
from search.trials import Study, read_studies

__all__ = ["Shelf", "asked", "open_storage"]

asked: ContextVar[int | None] = ContextVar("asked", default=None)
"""The id of the study that a request is about; None: it is about no single one."""


def open_storage(store: Store, name: str | None = None) -> RDBStorage:
    """Optuna's storage as the dashboard is to read it.

    For its list of studies it asks for all attributes of all studies, and for the page of one study too: with notes and
    figures that is megabytes. Here a list comes without attributes, and a page reads one study.

    Args:
        name: Of a run: its studies alone are listed.

    Raises:
        BadInput: Optuna's tables belong to another version of it.
    """
    storage = store.database.rdb_storage()
    prefix = "" if name is None else f"{name}/replica-"

    def get_all_studies() -> list[FrozenStudy]:
        return store.look(lambda connection: _studies(connection, prefix))

    storage.get_all_studies = get_all_studies  # type: ignore[method-assign]
    return storage


def _studies(connection: Connection, prefix: str) -> list[FrozenStudy]:
    one = asked.get()
    if one is None:
        return [_frozen(study, Carried(study.study_id, {}, {})) for study in read_studies(connection, prefix=prefix)]
    found = ((study, read_carried(connection, study.name)) for study in read_studies(connection, study_id=one))
    return [_frozen(study, carried) for study, carried in found if carried is not None]


def _frozen(study: Study, carried: Carried) -> FrozenStudy:
    return FrozenStudy(
        study.name,
        None,
        dict(carried.user),
        dict(carried.system),
        study.study_id,
        directions=[StudyDirection[direction] for direction in study.directions],
    )


class Shelf:
    """The tensors of all runs, as Optuna's dashboard takes an artifact store: each file is the SHA-256 of its bytes.

    Which run's folder it is in says the study that is :data:`asked` for.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A file, hashed before it is given out.

        Raises:
            BadInput: The study is of no run.
            Damage: It is missing, or hashes to something else.
            Unavailable: It cannot be read.
        """
        one = asked.get()
        studies = self._store.look(lambda connection: [] if one is None else read_studies(connection, study_id=one))
        row = self._store.run(studies[0].name.partition("/")[0]) if studies else None
        if row is None:
            raise BadInput(f"study {one} is of no run in {self._store.url}: its files are elsewhere")
        return io.BytesIO(self._store.open_artifacts(row.artifacts).get(artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> NoReturn:  # noqa: ARG002
        """Refused."""
        raise BadInput("tensors are kept by runs alone; nothing is added here")

    def remove(self, artifact_id: str) -> NoReturn:
        """Refused."""
        raise BadInput(f"{artifact_id} stays: a commit needs it. `clnp-search delete` removes a whole run")
