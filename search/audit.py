"""``verify``: every commit taken from its bytes again, and everything old measured again; nothing is copied."""

from collections.abc import Callable

import torch

from clnp.commit import fingerprint, restore
from clnp.errors import Damaged, NothingToCommit
from clnp.evaluation import count_correct, full_width_agrees
from clnp.network import Network
from clnp.subnetwork import subnetwork
from clnp.tasks.task import Sequence
from clnp.tensors import decode
from search.book import place
from search.building import build_network, build_sequence, grown, without_commit
from search.checks import unsound_halving, unsound_rounds
from search.data import data_sha256
from search.decisions import exceeded, losers, pick_winner
from search.errors import BadInput, Damage
from search.names import study_name
from search.own_code import folders
from search.records import CommitRecord, Score
from search.replay import recorded_cells
from search.reports.common import Known, Report, read_run
from search.store import Store
from search.text import group_list, plural, up_to
from search.worker import WorkerSettings, configure, device_name

__all__ = ["verify"]

_OF_COMMITTED_TASK = (
    "The commit and all later tasks are whole without it; only this trial's unpruned network is lost without a copy"
)


def verify(
    store: Store, name: str, *, data_dir: str | None = None, note: Callable[[str], None] = lambda _: None
) -> Report:
    """Whether anything of a run has changed by a bit (Promise 1).

    Every artifact that should be there is hashed. Of every replica the commits are put back in order; after each the
    fingerprint of every task so far is computed and its test score measured, and both are compared with the records. A
    score that differs although every hash holds, on another device, with other threads or another torch, is a remark.

    Args:
        data_dir: Where the data set lies.
        note: Told how far it is.

    Raises:
        BadInput: No run has this name, or the data or a person's own code are absent, or other than the run's.
    """
    known = read_run(store, name)
    found = data_sha256(known.experiment, data_dir, folders(known.experiment.code))
    if found != known.row.data:
        raise BadInput(f"the data are other than the run's: their SHA-256 is {found}, and was {known.row.data}")
    audit = _Audit(store, known, data_dir, note)
    audit.hash_artifacts()
    for replica in known.replicas:
        audit.replay_commits(replica)
    return audit.report()


class _Audit:
    """What was found so far."""

    def __init__(self, store: Store, known: Known, data_dir: str | None, note: Callable[[str], None]) -> None:
        self._known = known
        self._where = (data_dir, folders(known.experiment.code))
        self._note = note
        self._artifacts = store.open_artifacts(known.row.artifacts)
        self._problems: list[str] = []
        self._elsewhere: list[str] = []
        self._hashed = self._restored = self._fingerprints = self._scores = 0
        commits = list(known.history.commits.values())
        on_gpu = bool(commits) and all(record.provenance.device.startswith("cuda") for record in commits)
        self._device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
        self._threads = commits[0].provenance.threads if commits else 1
        configure(WorkerSettings(self._artifacts.location, data_dir, self._device, self._threads))

    def hash_artifacts(self) -> None:
        """Read every file that a record needs."""
        for sha256, (what, recovery) in self._needed().items():
            try:
                self._artifacts.get(sha256, recovery=recovery)
                self._hashed += 1
            except Damage as error:
                self._problems.append(f"{what}: {error}")

    def replay_commits(self, replica: int) -> None:
        """Put a replica's commits back one by one, and measure every task after each."""
        commits = self._known.commits(replica)
        network = build_network(self._known.experiment, self._where[1])
        sequence = build_sequence(self._known.experiment, replica, *self._where)
        for record in commits:
            self._note(f"{place(replica, record.task)} of {self._known.experiment.tasks.count}")
            self._check_data(record, sequence)
            self._check_rule(record, commits)
            try:
                network = grown(network, record.widths)
                restore(network, decode(self._artifacts.get(record.artifact)))
            except (Damage, Damaged) as error:
                if isinstance(error, Damaged):
                    self._problems.append(f"{place(replica, record.task)}: {error}")
                sound = up_to(record.task, "task", verb=True) if record.task else "none of its tasks is"
                self._problems.append(
                    f"replica {replica + 1}: {sound} whole; from task {record.task + 1} on it cannot be put together"
                )
                return
            self._restored += 1
            self._check_fingerprints(record, network, commits)
            self._measure(record, network.copy().to(self._device), sequence)
        self._check_full_width(replica, network.to(self._device), sequence)

    def report(self) -> Report:
        remarks = []
        if self._elsewhere:
            remarks.append(
                f"{plural(len(self._elsewhere), 'test score')} came out otherwise although every fingerprint holds: "
                f"the tensors are the same, the arithmetic is not; {self._elsewhere[0]}"
            )
        return {
            "run": self._known.row.name,
            "sound": not self._problems,
            "verdict": self._verdict(),
            "problems": self._problems,
            "remarks": remarks,
            "artifacts": self._hashed,
            "commits": self._restored,
            "fingerprints": self._fingerprints,
            "scores": self._scores,
            "device": device_name(self._device),
            "threads": self._threads,
        }

    def _verdict(self) -> str:
        counts = (
            f"{plural(self._restored, 'commit')}, {plural(self._fingerprints, 'fingerprint')}, "
            f"{plural(self._scores, 'test score')} re-measured, {plural(self._hashed, 'artifact')} re-hashed"
        )
        if self._problems:
            return f"{plural(len(self._problems), 'problem')}: not everything is as it was recorded ({counts})"
        if not self._restored:
            return f"nothing is committed yet ({plural(self._hashed, 'artifact')} re-hashed)"
        return f"nothing old has changed by a bit: {counts}"

    def _needed(self) -> dict[str, tuple[str, str]]:
        """Every artifact that must be there: what it holds, and what is to be done without it."""
        needed: dict[str, tuple[str, str]] = {}
        for (replica, task), cells in sorted(self._known.history.cells.items()):
            commit = self._known.history.commits.get((replica, task))
            gone = set() if commit is None else set(losers(self._known.experiment.keep, cells, commit))
            # What was given up stays so, whatever the run keeps now.
            given_up = {index for index in cells if (replica, task, index) in self._known.history.given_up}
            gone |= {artifact for index in given_up if (artifact := cells[index].artifact) is not None}
            recovery = self._of_open_task(replica, task) if commit is None else _OF_COMMITTED_TASK
            for index, record in sorted(cells.items()):
                if record.artifact and record.artifact not in gone:
                    needed[record.artifact] = f"{place(replica, task)}, the tensors of cell {index}", recovery
        for (replica, task), commit in sorted(self._known.history.commits.items()):
            needed[commit.artifact] = f"{place(replica, task)}, the tensors of the commit", without_commit(task)
        return needed

    def _of_open_task(self, replica: int, task: int) -> str:
        """A cell counts once its trial is there, so without its study the task's cells are trained again."""
        study = study_name(self._known.row.name, replica, task)
        return (
            "Every commit is whole without it; this task is open and needs it if this cell wins. Without a copy delete "
            f"the task's study (optuna delete-study --study-name {study} --storage URL) and give the run's command "
            "again: it trains all cells of this task anew, and nothing else"
        )

    def _check_data(self, record: CommitRecord, sequence: Sequence) -> None:
        opening = self._known.opening(record.replica, record.task)
        if opening is None:
            self._problems.append(f"{place(record.replica, record.task)}: the ledger has the commit and no opening")
        elif (found := sequence.sha256(record.task)) != opening.data:
            raise BadInput(
                f"{place(record.replica, record.task)}: the data are other than the run's: their SHA-256 is {found}, "
                f"and was {opening.data} when the task opened"
            )

    def _check_rule(self, record: CommitRecord, commits: list[CommitRecord]) -> None:
        """The winner must follow from the records (Promise 4), and so what it exceeds of a budget; and what was
        committed from it."""
        experiment, where = self._known.experiment, place(record.replica, record.task)
        self._check_rounds(record, where)
        try:
            cells = recorded_cells(self._known.history, record, self._known.row.name)
        except Damage as error:
            self._problems.append(str(error))
            return
        if (problem := unsound_halving(experiment, record.task, cells)) is not None:
            self._problems.append(f"{where}: {problem}")
        try:
            choice = pick_winner(experiment, cells, earlier=commits[: record.task], widths=record.widths)
        except (Damaged, NothingToCommit) as error:
            self._problems.append(f"{where}: the records do not explain the commit: {error}")
            return
        winner, over = choice.winner, exceeded(experiment, choice)
        if (winner.index, winner.point) != (record.winner.index, record.point):
            self._problems.append(
                f"{where}: the records give cell {winner.index} at θ={winner.point.theta}, but committed is cell "
                f"{record.winner.index} at θ={record.point.theta}"
            )
        elif over != record.over_budget:
            self._problems.append(
                f"{where}: by the records it is over budget in {group_list(over) or 'no group'}, but recorded is "
                f"{group_list(record.over_budget) or 'no group'}"
            )

    def _check_rounds(self, record: CommitRecord, where: str) -> None:
        """What was committed is what the last round of fine-tuning kept, or the rule's point (Promise 2)."""
        asked = self._known.experiment.of(record.task).fine_tuning
        problem = unsound_rounds(record, 0 if asked is None else asked.rounds)
        if problem is None and record.validation.correct != (scored := (record.rounds or (record.point,))[-1].correct):
            problem = f"{record.validation.correct} right answers were recorded where {scored} were scored"
        if problem is not None:
            self._problems.append(f"{where}: {problem}")

    def _check_fingerprints(self, record: CommitRecord, network: Network, commits: list[CommitRecord]) -> None:
        for earlier, recorded in zip(commits, record.fingerprints, strict=False):
            found = fingerprint(network, earlier.task)
            self._fingerprints += 1
            if not found == recorded == earlier.fingerprint:
                self._problems.append(
                    f"{_after(record, earlier.task)}: the fingerprint is {found}, was recorded as {recorded} then and "
                    f"as {earlier.fingerprint} when task {earlier.task + 1} was committed"
                )

    def _measure(self, record: CommitRecord, network: Network, sequence: Sequence) -> None:
        for task, recorded in enumerate(record.matrix):
            test = sequence.task(task).open_test()
            found = Score(count_correct(subnetwork(network, task), test), len(test))
            self._scores += 1
            if found != recorded:
                text = (
                    f"{_after(record, task)}: {found.correct} of {found.total} right, recorded as "
                    f"{recorded.correct} of {recorded.total}"
                )
                differs = self._differs(record)
                if differs:
                    self._elsewhere.append(f"{text}, {differs}")
                else:
                    self._problems.append(text)

    def _differs(self, record: CommitRecord) -> str:
        """What this measurement has that the recorded one had not."""
        was = record.provenance
        pairs = (
            ("on", was.device, device_name(self._device)),
            ("with threads", was.threads, self._threads),
            ("with torch", was.versions.get("torch", "of unknown version"), torch.__version__),
        )
        return ", ".join(f"{word} {now} instead of {before}" for word, before, now in pairs if before != now)

    def _check_full_width(self, replica: int, network: Network, sequence: Sequence) -> None:
        """A connection that was not severed shows at full width only."""
        for task in range(network.task):
            if not full_width_agrees(network, sequence.task(task).open_test().x, task):
                self._problems.append(
                    f"{place(replica, task)}: the whole network answers otherwise than the task's sub-network: a "
                    f"connection into it is not severed"
                )


def _after(record: CommitRecord, task: int) -> str:
    return f"{place(record.replica, task)}, after task {record.task + 1}"
