"""Commit a winner and measure every task again."""

import math
import time
from dataclasses import replace

import torch

from clnp.commit import added, commit, fingerprint, restore
from clnp.diagnostics import diagnose
from clnp.errors import Damaged
from clnp.evaluation import count_correct, full_width_agrees, full_width_difference, logits
from clnp.finetuning import fine_tune
from clnp.growth import widths
from clnp.network import FREE, Network
from clnp.ownership import Claims, with_free
from clnp.rounds import Round
from clnp.subnetwork import cut, subnetwork
from clnp.tensors import decode, encode
from clnp.thresholds import claims_at
from clnp.training import Member
from clnp.usage import Usage
from search.errors import Damage
from search.records import CommitJob, CommitRecord, JobResult, Progress, Score
from search.sections import FineTuning, spread
from search.text import plural
from search.worker.process import device_name, worker_name
from search.worker.settings import WorkerSettings
from search.worker.work import ACTIVITY, Report, Work, training

__all__ = ["CommitWork"]

_WITHOUT_WINNER = (
    "Every commit is whole without it. Without a copy the cells of this task have to be trained again: clnp-search "
    "verify says how"
)


class CommitWork(Work):
    """Prune the winner at its threshold, fine-tune what is left where that is asked for, claim, freeze, and measure
    every task again (Promises 1 and 2)."""

    def __init__(self, job: CommitJob, settings: WorkerSettings, report: Report) -> None:
        super().__init__(job, settings, report)
        self._job = job

    def run(self) -> JobResult:
        job = self._job
        network, validation, usage, rounds = self._prune()
        # Only now does this task's test split open: its commit stands (Promise 5).
        measured = [self._measure(network, task) for task in range(job.task + 1)]
        fingerprints = tuple(fingerprint(network, task) for task in range(job.task + 1))
        changed = sum(
            committed.fingerprint != now or not same
            for committed, now, (_, same) in zip(job.commits, fingerprints, measured, strict=False)
        )
        data = encode(added(network, job.task))
        if not changed:
            self._check_return(data, fingerprints[-1])
        record = CommitRecord(
            replica=job.replica,
            task=job.task,
            winner=job.winner,
            point=job.point,
            unpruned=job.score,
            validation=validation,
            test=measured[-1][0],
            best=job.best,
            needed=job.needed,
            candidates=job.candidates,
            missing=job.missing,
            widths=widths(network),
            claimed=rounds[-1].claimed if rounds else job.point.claimed,
            free=tuple(int((network.owner(group) == FREE).sum()) for group in network.groups),
            usage=usage,
            artifact=self.artifacts.put(data),
            size=len(data),
            fingerprints=fingerprints,
            changed=changed,
            matrix=tuple(score for score, _ in measured),
            provenance=self.provenance((job.winner.index,)),
            started=self.started,
            ended=time.time(),
            over_budget=job.over_budget,
            rounds=rounds,
        )
        return JobResult(commit=record)

    def _prune(self) -> tuple[Network, Score, Usage, tuple[Round, ...]]:
        """The committed network, its trained free weights still in place, its score on the validation split, its use by
        the task, and the rounds of fine-tuning.

        Raises:
            Damaged: It is not the one that was recorded.
        """
        job, validation = self._job, self.task.validation
        tensors = decode(self._winner())
        names = [group.name for group in self.network.groups]
        if missing := [name for name in names if ACTIVITY + name not in tensors]:
            raise Damaged(f"artifact {job.artifact} holds no activity of {', '.join(missing)}")
        activity = {name: tensors.pop(ACTIVITY + name) for name in names}
        network = with_free(self.open(), tensors)
        claims: Claims = claims_at(network, self.order(network, activity), job.point.theta)
        expected, rounds = (job.point.claimed, job.point.correct), tuple[Round, ...]()
        if self.experiment.fine_tuning is not None:
            self._compare(claims, count_correct(cut(network, job.task, claims), validation), expected)
            network, claims, rounds = self._fine_tune(network, claims, self.experiment.fine_tuning)
            expected = rounds[-1].claimed, rounds[-1].correct
        commit(network, claims)
        correct = count_correct(subnetwork(network, job.task), validation)
        self._compare(claims, correct, expected, len(rounds))
        return network, Score(correct, len(validation)), diagnose(network, activity), rounds

    def _winner(self) -> bytes:
        try:
            return self.artifacts.get(self._job.artifact, recovery=_WITHOUT_WINNER)
        except Damage as error:
            raise Damage(f"the tensors of cell {self._job.winner.index}: {error}") from None

    def _compare(self, claims: Claims, correct: int, expected: tuple[tuple[int, ...], int], rounds: int = 0) -> None:
        job, claimed = self._job, tuple(int(claims[group.name].sum()) for group in self.network.groups)
        if (claimed, correct) != expected:
            tuned = f", fine-tuned in {plural(rounds, 'round')}," if rounds else ""
            raise Damaged(
                f"cell {job.winner.index} at θ={job.point.theta}{tuned} was recorded with {expected[1]} right answers "
                f"and {list(expected[0])} units claimed, and has {correct} and {list(claimed)} on "
                f"{device_name(self.device)}; continue on the kind of device, with the threads and with the versions "
                f"that trained it"
            )

    def _fine_tune(
        self, network: Network, claims: Claims, asked: FineTuning
    ) -> tuple[Network, Claims, tuple[Round, ...]]:
        """What fine-tuning keeps of the winner, pruned (Sec. 3.2)."""
        total = len(self.task.validation)

        def tell(number: int, epoch: int, correct: int) -> None:
            done = (number - 1) * asked.epochs + epoch
            self.tell(Progress(worker_name(), done, asked.rounds * asked.epochs, correct / total))

        found = fine_tune(
            network,
            claims,
            self.task.train,
            self.task.validation,
            Member(spread(asked.alpha, len(network.layers)), asked.learning_rate),
            replace(training(self.experiment), epochs=asked.epochs, early_stopping=False, patience=None),
            seed=self.seed,
            needed=self._job.needed,
            theta=self._job.point.theta,
            rounds=asked.rounds,
            order=self.order,
            on_epoch=tell,
        )
        return found.network, found.claims, found.rounds

    def _measure(self, network: Network, task: int) -> tuple[Score, bool]:
        """A task's score on its test split after the commit, and whether its logits are those from before.

        Raises:
            Damaged: The network at full width answers otherwise than the task's sub-network.
        """
        test = self.sequence.task(task).open_test().decoded()
        answer = logits(subnetwork(network, task), test.x)
        if not full_width_agrees(network, test.x, task, narrow=answer):
            finite = math.isfinite(full_width_difference(network, test.x, task, narrow=answer))
            why = "a connection into it was not severed" if finite else "a unit that it does not read overflows"
            raise Damaged(
                f"task {task + 1} is answered otherwise by the whole network than by its sub-network after the commit "
                f"of task {network.task}: {why}. Nothing was committed"
            )
        same = task == self._job.task or torch.equal(logits(subnetwork(self.network, task), test.x), answer)
        return Score(int((answer.argmax(1) == test.y.to(answer.device)).sum()), len(test)), same

    def _check_return(self, data: bytes, expected: str) -> None:
        """Compare what comes back from a commit's bytes with what went into them."""
        again = self.network.copy()
        restore(again, decode(data))
        if fingerprint(again, self._job.task) != expected:
            raise Damaged(f"task {self._job.task + 1} comes back from its own tensors with another fingerprint")
