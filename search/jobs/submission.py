"""What a submitted run is: its command on the cluster, and the files that travel with it. Imports no Ray."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sqlalchemy import make_url

from search.artifacts import is_bucket, normal
from search.errors import BadInput
from search.experiment import Experiment, read_experiment
from search.experiment_file import shipped_names
from search.names import check_run_name
from search.text import plural, size
from search.urls import read_url

__all__ = ["Package", "Submission", "check_job_name", "pack"]

_MOST_FILES = 500
_MOST_BYTES = 10 * 2**20

_RAYS_OWN = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a person asks for. Paths but ``experiment`` are those of the cluster's machines.

    Attributes:
        experiment: A YAML file here, or a shipped experiment's name.
        sets: Changes on top, as ``--set`` takes them.
        name: Of the run; None: the experiment's.
        origin: The run that it is forked from, with ``task``, the last task that is copied.
        storage: The database's URL, without a password.
        storage_file: A file on the head whose first line is the URL. With neither, the head's environment says it.
        take_over: Of a lease whose holder is known to be gone.
    """

    experiment: str
    sets: tuple[str, ...] = ()
    name: str | None = None
    origin: str | None = None
    task: int | None = None
    storage: str | None = None
    storage_file: str | None = None
    data_dir: str | None = None
    artifacts: str | None = None
    allow_missing: bool = False
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """What is sent.

    Attributes:
        name: Of the run, and of its job.
        entrypoint: What the head's shell runs. The whole cluster can read it.
        files: Of the folder that it runs in, by their paths there.
        command: What continues the run, as it is typed here, less the address.
    """

    name: str
    entrypoint: str
    files: Mapping[str, bytes]
    command: str


def check_job_name(name: str) -> str:
    """``name``, if it can name a run's job.

    Raises:
        BadInput: It cannot.
    """
    if _RAYS_OWN.fullmatch(name):
        raise BadInput(f"{name!r} reads like a job's number of Ray's own; give the run another --name to submit it")
    return check_run_name(name)


def pack(asked: Submission) -> Package:
    """Check what can be checked without the cluster, and put together what is sent.

    Raises:
        BadInput: As for ``run``: the experiment, the name, the kind of storage or artifacts; a URL with what may be a
            password, which the whole cluster could read; a path that is not absolute, or own code that does not lie
            beside the experiment.
    """
    experiment = read_experiment(asked.experiment, asked.sets)
    name = check_job_name(experiment.name if asked.name is None else asked.name)
    if (asked.origin is None) != (asked.task is None):
        raise BadInput("--from NAME and --task T go together: a fork begins with the first T tasks of run NAME")
    if asked.storage is not None:
        _check_storage(asked.storage)
    for option, value in (("--storage-file", asked.storage_file), ("--data-dir", asked.data_dir)):
        _check_path(option, value)
    if asked.artifacts is not None and not is_bucket(normal(asked.artifacts)):
        _check_path("--artifacts", asked.artifacts)
    files: dict[str, bytes] = {}
    source = asked.experiment
    if source not in shipped_names():
        source = Path(source).name
        files = {source: _read(Path(asked.experiment)), **_own_code(experiment)}
    options = _options(asked)
    words = ["clnp-search", "run", source, "--name", name, "--address", "auto", *options]
    typed = ["clnp-search", "submit", asked.experiment, "--name", name, *options]
    return Package(name, f"exec {shlex.join(words)}", files, shlex.join(typed))


def _options(asked: Submission) -> list[str]:
    """What ``run`` and ``submit`` both take, as words."""
    found: list[str] = []
    for option, value in (
        ("--from", asked.origin),
        ("--task", asked.task),
        ("--storage", asked.storage),
        ("--storage-file", asked.storage_file),
        ("--data-dir", asked.data_dir),
        ("--artifacts", asked.artifacts),
    ):
        found += [option, str(value)] if value is not None else []
    found += ["--allow-missing"] if asked.allow_missing else []
    found += ["--take-over"] if asked.take_over else []
    return [*found, "--set", *asked.sets] if asked.sets else found


def _check_storage(text: str) -> None:
    """Refuse what would show a password, without showing it, and a SQLite file that nobody finds again."""
    url, secrets = read_url(text)
    if url.password is not None or secrets:
        what = f"what may be a password ({', '.join(secrets)})" if secrets else "a password"
        raise BadInput(
            f"--storage holds {what}, and Ray shows a job's command to everybody on the cluster; write the URL into a "
            "file on the head and give --storage-file, or start Ray there with CLNP_SEARCH_STORAGE or PGPASSWORD set"
        )
    if url.get_backend_name() == "sqlite" and not PurePosixPath(make_url(text).database or "").is_absolute():
        raise BadInput(
            f"--storage {text}: a job runs in a folder that goes with the cluster; give a file on the head by its "
            "absolute path: sqlite:////FILE"
        )


def _check_path(option: str, value: str | None) -> None:
    if value is not None and not PurePosixPath(value).is_absolute():
        raise BadInput(
            f"{option} {value}: a job runs in a folder of its own on the cluster; give a path there that begins with /"
        )


def _own_code(experiment: Experiment) -> dict[str, bytes]:
    """The Python files beside an experiment that names functions of a person's own."""
    if experiment.code is None:
        return {}
    folder = Path(experiment.code)
    for key, section in (("model.kind", experiment.model), ("tasks.kind", experiment.tasks)):
        if section.own:
            _check_beside(key, section.kind, folder)
    files: dict[str, bytes] = {}
    total = 0
    for path in _python_files(folder):
        content = _read(path)
        files[path.relative_to(folder).as_posix()] = content
        total += len(content)
        if len(files) > _MOST_FILES or total > _MOST_BYTES:
            raise BadInput(
                f"the Python files in {folder}, which travel with the experiment, are more than "
                f"{plural(_MOST_FILES, 'file')} or {size(_MOST_BYTES)}; put the experiment and its functions into a "
                "folder of their own"
            )
    return files


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}, which travels with the run, cannot be read: {error.strerror}") from None


def _python_files(folder: Path) -> Iterator[Path]:
    """Hidden folders and virtual environments are left out; links to folders are not followed."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not _left_out(Path(path, each)))
        yield from (Path(path, each) for each in sorted(files) if each.endswith(".py"))


def _left_out(folder: Path) -> bool:
    return folder.name.startswith((".", "__")) or (folder / "pyvenv.cfg").exists()


def _check_beside(key: str, kind: str, folder: Path) -> None:
    """Here ``run`` looks into the current folder too; a job has the experiment's alone."""
    module = kind.partition(":")[0].partition(".")[0]
    here = Path.cwd()
    if _has(here, module) and not _has(folder, module):
        raise BadInput(f"{key}: {kind} is in {here}; a job takes what lies beside the experiment: put it into {folder}")


def _has(folder: Path, module: str) -> bool:
    return (folder / f"{module}.py").is_file() or (folder / module).is_dir()
