"""What stands beside the figures: the run in words, and the table of its commits, as plain text."""

from search.experiment import Experiment
from search.figures.common import alpha_text, grown, now, tasks_done, theta_text, tuned_text
from search.records import CommitRecord
from search.reports.common import Known
from search.text import clock, number, percent, plural, points_text

__all__ = ["commit_table", "facts", "headline"]


def headline(known: Known) -> str:
    """How far the run is, in a sentence."""
    done = sum(len(known.commits(replica)) for replica in known.replicas)
    stopped = known.row.state == "stopped"
    if not done and stopped:
        return "No task is committed, and the run has stopped: what is shown below is the task that it stopped at."
    if not done:
        return "No task is committed yet: what is shown below is the task that is open."
    if known.row.state == "finished":
        return f"The run is finished: {tasks_done(known)}, {plural(done, 'commit')}."
    how, so_far = ("has stopped", "") if stopped else ("is not finished", " so far")
    return f"The run {how}: {tasks_done(known)} committed, {plural(done, 'commit')}{so_far}."


def facts(known: Known) -> dict[str, str]:
    """The run in words: what it learns, with what, by which rule, and how it stands."""
    experiment, row = known.experiment, known.row
    outline, tasks = experiment.outline, experiment.tasks
    split = f", {tasks.classes} classes each" if tasks.classes else ""
    made = "" if tasks.own else f"{tasks.kind} "
    groups = ", ".join(f"{group.name} {group.units:,}" for group in outline.groups)
    seeds = f"seed {experiment.seed}"
    if experiment.replicas > 1:
        seeds = f"seeds {experiment.seed} to {experiment.seed + experiment.replicas - 1}"
    found = {
        "experiment": " – ".join(filter(None, (experiment.name, experiment.description))),
        "tasks": f"{plural(tasks.count, f'{made}task')} from {tasks.title}{split}; the first has {outline.train:,} "
        f"samples to train with and {outline.validation:,} held out for validation",
        "network": f"{experiment.model.kind}: {groups} ({plural(sum(outline.widths), 'unit')})",
        "head": "one output layer for all tasks (single)"
        if experiment.head == "single"
        else "an output layer for each task (multi)",
        "training": _training(experiment),
        "replicas": f"{experiment.replicas:,}, {seeds}",
        **_rules(experiment),
        "state": _state(known),
        "recorded": f"{clock(row.created)} to {clock(row.updated)}",
    }
    if experiment.grow is not None:
        by = experiment.grow.by
        added = f"{number(100 * by)} % of its first width" if by < 1 else plural(int(by), "unit")
        so_far = grown(known)
        found["growth"] = f"a layer with fewer than {plural(experiment.grow.below, 'free unit')} grows by {added}" + (
            f"; {so_far}" if so_far else ""
        )
    if experiment.origin is not None:
        found["origin"] = experiment.origin.text
    return found


def _training(experiment: Experiment) -> str:
    training = experiment.training
    said = [
        f"{plural(training.epochs, 'epoch')} of {training.optimizer}",
        f"momentum {number(training.momentum)}" if training.momentum else "",
        f"weight decay {number(training.weight_decay)}" if training.weight_decay else "",
        f"α of BatchNorm {number(training.norm_alpha)}" if training.norm_alpha else "",
        f"batches of {training.batch_size:,}",
    ]
    if training.early_stopping:
        said.append("the epoch of best validation accuracy is kept")
        if training.patience is not None:
            said.append(f"ended after {plural(training.patience, 'epoch')} without a better one")
    if training.halving:
        epochs = " and ".join(map(str, training.halving))
        said.append(f"halving after epoch {epochs} (more than {points_text(training.halving_margin or 0)} behind)")
    if training.precision != "float32":
        said.append(f"{training.precision} products")
    return ", ".join(filter(None, said))


def _rules(experiment: Experiment) -> dict[str, str]:
    """The rule; of a fork that of every run that its tasks come from, and how these were trained if otherwise."""
    found = {}
    copied = _copied(experiment)
    for first, last, run, other in copied:
        tasks = f"task {first}" if first == last else f"tasks {first} to {last}"
        trained = _training(other)
        found[f"{tasks}, from {run}"] = _rule(other) + (
            f"; trained for {trained}" if trained != _training(experiment) else ""
        )
    return {"rule": (f"from task {copied[-1][1] + 1} on: " if copied else "") + _rule(experiment), **found}


def _copied(experiment: Experiment) -> list[tuple[int, int, str, Experiment]]:
    """The tasks that a fork was given: first and last (from 1), the run that they were trained in, and what with."""
    origin = experiment.origin
    if origin is None:
        return []
    parts = _copied(origin.experiment)
    found = [(first, min(last, origin.tasks), run, of) for first, last, run, of in parts if first <= origin.tasks]
    first = found[-1][1] + 1 if found else 1
    return [*found, *([(first, origin.tasks, origin.run, origin.experiment)] if first <= origin.tasks else [])]


def _rule(experiment: Experiment) -> str:
    """What is committed of a task's trials, fine-tuning with it."""
    chosen, tuning = experiment.rule, experiment.fine_tuning
    if chosen.kind == "budget":
        text = (
            f"budget: the most accurate whose new units fit an equal share of what is left for {chosen.tasks} tasks, "
            f"at most {number(chosen.floor or 0)} points of validation accuracy under the best trial"
        )
    else:
        sparsest = "the fewest new units" if chosen.sparsity == "units" else "the most weights left free"
        text = f"margin: {sparsest} within {_margin(chosen.margin)} of the best trial's validation accuracy"
    text += ", one θ for all layers" if chosen.theta == "shared" else ", θ scaled to each layer"
    if tuning is None:
        return text
    first = "" if tuning.margin is None else f"pruned within {_margin(tuning.margin)}, "
    return (
        f"{text}; then fine-tuned: {first}{plural(tuning.epochs, 'epoch')} at learning rate "
        f"{number(tuning.learning_rate)}, {plural(tuning.rounds, 'round')} at most"
    )


def _margin(margin: float | tuple[float, ...] | None) -> str:
    values = margin if isinstance(margin, tuple) else (margin or 0.0,)
    return f"{', '.join(map(number, dict.fromkeys(values)))} percentage point{'s' if set(values) != {1.0} else ''}"


def _state(known: Known) -> str:
    row = known.row
    words = {"open": "not finished", "deleting": "being deleted"}.get(row.state, row.state)
    return f"{words}: {row.reason}" if row.reason else words


Row = list[str]


def commit_table(known: Known, replica: int) -> tuple[Row, list[Row]]:
    """The header and the commits of a replica (from 0) in order."""
    names = known.hidden if len(known.hidden) <= 4 else None
    columns = [f"{name} new, free" for name in names] if names else ["units new, free"]
    extra = ["remarks"] if any(_remark(known, record) for record in known.commits(replica)) else []
    header = ["task", "α", "learning rate", "θ", "validation", "test at its commit", "test now", *columns, *extra]
    return header, [_row(known, record, bool(extra)) for record in known.commits(replica)]


def _row(known: Known, record: CommitRecord, remarked: bool) -> Row:
    found = now(known, record)
    if len(known.hidden) <= 4:
        use = [f"{new:,}, {free:,}" for new, free in zip(record.claimed, record.free, strict=True)]
    else:
        use = [f"{sum(record.claimed):,}, {sum(record.free):,}"]
    return [
        f"{record.task + 1}",
        alpha_text(record.winner.alpha),
        number(record.winner.learning_rate),
        theta_text(known, record.task + 1, record.rounds[-1].theta if record.rounds else record.point.theta),
        percent(record.validation.accuracy),
        f"{percent(record.test.accuracy)} ({record.test.correct:,} of {record.test.total:,})",
        f"{percent(found.accuracy)} ({found.correct:,})",
        *use,
        *([_remark(known, record)] if remarked else []),
    ]


def _remark(known: Known, record: CommitRecord) -> str:
    said = [
        f"copied from {run}" for first, last, run, _ in _copied(known.experiment) if first <= record.task + 1 <= last
    ]
    if record.missing:
        said.append(f"without {plural(len(record.missing), 'lost cell')}")
    if record.over_budget:
        said.append(f"over budget in {', '.join(record.over_budget)}")
    if record.rounds:
        said.append(tuned_text(record))
    return "; ".join(said)
