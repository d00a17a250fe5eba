"""What is sent to a cluster, what is refused here, and what the head refuses in a job."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import search.jobs.client
import search.jobs.commands
import search.jobs.follow
from search.cli import main
from search.errors import BadInput
from search.jobs.submission import Submission, pack
from search.options import read_options

SECRET = "hunter2-in-a-url"


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)
paths = words.map(lambda text: f"/{text}")


@settings(max_examples=25, deadline=None)
@given(
    sets=st.lists(
        st.sampled_from(["seed=3", "description='a $HOME; rm -rf \"x\" `y`'", "training.epochs=4"]), unique=True
    ),
    name=st.one_of(st.none(), st.from_regex(r"[A-Z][A-Za-z0-9._-]{0,20}", fullmatch=True)),
    fork=st.one_of(st.none(), st.tuples(words.filter(lambda text: not text.startswith("-")), st.integers(1, 9))),
    data_dir=st.one_of(st.none(), paths),
    artifacts=st.one_of(st.none(), paths, st.just("s3://bucket/prefix")),
    storage_file=st.one_of(st.none(), paths),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_the_head_is_asked_for_the_very_run(
    sets: list[str],
    name: str | None,
    fork: tuple[str, int] | None,
    data_dir: str | None,
    artifacts: str | None,
    storage_file: str | None,
    flags: tuple[bool, bool],
) -> None:
    """Whatever a value looks like, the head's shell gives `run` what `submit` was given; so does the command that
    continues."""
    origin, task = fork or (None, None)
    asked = Submission(
        experiment="quickstart",
        sets=tuple(sets),
        name=name,
        origin=origin,
        task=task,
        data_dir=data_dir,
        artifacts=artifacts,
        storage_file=storage_file,
        allow_missing=flags[0],
        take_over=flags[1],
    )
    package = pack(asked)
    assert package.files == {}
    assert package.name == (name or "quickstart")
    first, program, *typed = shlex.split(package.entrypoint)
    assert (first, program) == ("exec", "clnp-search")
    run, again = read_options(typed), read_options(shlex.split(package.command)[1:])
    assert (run.command, run.address, run.backend, again.command) == ("run", "auto", "tune", "submit")
    for options in (run, again):
        assert options.experiment == "quickstart"
        assert options.set == sets
        assert (options.name, options.origin, options.task) == (package.name, origin, task)
        assert (options.data_dir, options.artifacts, options.storage_file) == (data_dir, artifacts, storage_file)
        assert (options.allow_missing, options.take_over) == flags


def test_a_file_travels_alone(file: Path) -> None:
    (file.parent / "other.py").write_text("print('not asked for')")
    (file.parent / "clnp-search.db").write_text("records")
    package = pack(Submission(experiment=str(file), storage="postgresql+psycopg://user@host/database"))
    assert package.files == {"small.yaml": file.read_bytes()}
    assert "run small.yaml --name small" in package.entrypoint
    assert "--storage postgresql+psycopg://user@host/database" in package.entrypoint


def own(folder: Path, kind: str = "mine:net") -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "model": {"kind": kind}}))
    return str(path)


def test_own_code_is_what_lies_beside_the_experiment(tmp_path: Path) -> None:
    for name in ("mine.py", "more/__init__.py", "more/deep.py", ".git/hook.py", "venv/lib/x.py", "data/images.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "venv/pyvenv.cfg").touch()
    package = pack(Submission(experiment=own(tmp_path)))
    assert set(package.files) == {"own.yaml", "mine.py", "more/__init__.py", "more/deep.py"}
    assert package.files["more/deep.py"] == b"more/deep.py"


@pytest.mark.parametrize(("limit", "least"), [("_MOST_FILES", 2), ("_MOST_BYTES", 10)])
def test_too_much_own_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, least: int) -> None:
    for index in range(3):
        (tmp_path / f"mine{index}.py").write_text("12345")
    monkeypatch.setattr(search.jobs.submission, limit, least)
    with pytest.raises(BadInput, match=f"{re.escape(str(tmp_path))}.*more than.*folder of their own"):
        pack(Submission(experiment=own(tmp_path)))


def test_own_code_of_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` would find it; a job does not."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "mine.py").touch()
    monkeypatch.chdir(here)
    with pytest.raises(BadInput, match=f"model.kind: mine:net is in {here}; .*put it into {there}"):
        pack(Submission(experiment=own(there)))
    assert pack(Submission(experiment=own(there, "torchvision.models:resnet18"))).files.keys() == {"own.yaml"}


WITH_PASSWORD = (
    f"postgresql+psycopg://user:{SECRET}@host/database",
    f"postgresql+psycopg://user:{SECRET}@more@host/database",
    f"postgresql+psycopg://user@host/database?password={SECRET}",
    f"postgresql+psycopg://user@host/database?sslpassword={SECRET}",
    f"postgresql+psycopg://user@host/database?Password={SECRET}",
    f"postgresql+psycopg://user:p@host/{SECRET}@host/database",
    f"{SECRET} is no URL",
)


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_a_password_is_refused_and_not_shown(file: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray's job server shows a job's command to everybody."""
    assert main(["submit", str(file), "--address", "http://127.0.0.1:1", "--storage", url]) == 2
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert re.search("password|is not a database URL", said.err)


@pytest.mark.parametrize("place", [f"s3://KEY:{SECRET}@bucket/x", f"gs://KEY:{SECRET}@bucket"])
def test_credentials_of_a_bucket_are_refused_and_not_shown(place: str) -> None:
    """They would stand in the job's command and in its metadata."""
    with pytest.raises(BadInput, match="s3://") as caught:
        pack(Submission(experiment="quickstart", artifacts=place))
    assert SECRET not in str(caught.value)
    assert "KEY:" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--storage", "sqlite:///store.db"], "absolute path: sqlite:////FILE"),
        (["--storage", "sqlite://"], "a database that outlives it"),
        (["--storage", "mysql://user@host/database"], "MySQL and MariaDB are not supported"),
        (["--storage", "oracle://user@host/database"], "unknown driver 'oracle'"),
        (["--storage-file", "storage.txt"], "--storage-file storage.txt: .*begins with /"),
        (["--data-dir", "~/data"], "--data-dir ~/data: .*begins with /"),
        (["--artifacts", "tensors"], "--artifacts tensors: .*begins with /"),
        (["--artifacts", "gs://bucket/prefix"], "only folders and s3:// are supported"),
        (["--artifacts", "s3://b/prefix"], "'b' cannot name a bucket"),
        (["--name", "no/name"], "cannot name a run"),
        (["--name", ""], "'' cannot name a run"),
        (["--name", "02000000"], "reads like a job's number"),
        (["--from", "other"], "--from NAME and --task T go together"),
        (["--task", "1"], "--from NAME and --task T go together"),
        (["--set", "training.epoch=3"], "did you mean training.epochs"),
    ],
)
def test_bad_input_is_refused_before_the_head_is_asked(
    file: Path, options: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Promise 8. Nothing listens at this address: who asked there would end with 1."""
    assert main(["submit", str(file), "--address", "http://127.0.0.1:1", *options]) == 2
    assert re.search(match, capsys.readouterr().err)


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "nowhere.yaml", "--address", "http://127.0.0.1:1"]) == 2
    assert "neither a file nor a shipped experiment" in capsys.readouterr().err


def test_an_absent_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    for module in ("client", "follow", "commands"):
        monkeypatch.delitem(sys.modules, f"search.jobs.{module}")
    assert main(["list", "--address", "http://127.0.0.1:1"]) == 2
    assert "pip install 'clnp-search[cluster]'" in capsys.readouterr().err


# On the head, `run` itself


def test_a_job_has_no_database_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would lie in a folder that Ray removes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["run", "quickstart"]) == 2
    assert "no database: this is a Ray job" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_job_s_tensors_lie_where_they_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CLNP_SEARCH_STORAGE", postgres_url)
    assert main(["run", "quickstart"]) == 2
    assert "no --artifacts: this is a Ray job" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
