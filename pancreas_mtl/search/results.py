"""The results of a study: a table of its trials, and a picture of which keys mattered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from pancreas_mtl.data.files import atomic_path, write_csv
from pancreas_mtl.search.space import as_text
from pancreas_mtl.search.study import FOLDER

SHOWN = 10  # trials in the terminal's table
ENOUGH = 4  # complete trials from which importances are computed
BLUE = "#2567ab"
COLUMNS = ("trial", "state", "value", "epochs", "seconds", "folder")


def write_results(study: Study, folder: Path) -> None:
    """Write `trials.csv`, a row per trial that has ended, and `importance.png`.

    The picture is drawn from ENOUGH complete trials on, by PED-ANOVA (arXiv:2304.10255).
    """
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    names = list(dict.fromkeys(name for trial in ended for name in trial.params))
    rows = [
        [*_facts(t), *(as_text(t.params[n]) if n in t.params else "" for n in names)] for t in ended
    ]
    write_csv(folder / "trials.csv", [*COLUMNS, *names], rows)
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if len(complete) >= ENOUGH and len({trial.value for trial in complete}) > 1:
        figure = importance_chart(
            get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        )
        with atomic_path(folder / "importance.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def importance_chart(importances: dict[str, float]) -> Figure:
    """Bars of the importances by key, which sum to 1; the most important one on top."""
    figure = Figure(figsize=(6.0, 0.8 + 0.35 * len(importances)), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(importances, key=lambda name: importances[name])
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_title("Importance for the score", fontsize=10, loc="left")
    axes.set_xlim(0, 1.1 * max(importances.values(), default=1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure


def results_table(study: Study) -> Table:
    """The best trials for the terminal."""
    reached = [(best_value(trial), trial) for trial in study.get_trials(deepcopy=False)]
    done = [(value, trial) for value, trial in reached if value is not None]
    best = sorted(done, key=lambda pair: -pair[0])[:SHOWN]
    names = list(dict.fromkeys(name for _, trial in best for name in trial.params))
    table = Table("trial", "state", "value", *names, title=f"best of {len(done)} trials")
    for value, trial in best:
        chosen = [_short(trial.params.get(name, "")) for name in names]
        table.add_row(str(trial.number), trial.state.name.lower(), f"{value:.4f}", *chosen)
    return table


def best_value(trial: FrozenTrial) -> float | None:
    """The highest value of a trial; None without any. Of a pruned one, Optuna keeps the last."""
    if trial.state == TrialState.PRUNED:
        return max(trial.intermediate_values.values(), default=None)
    value: float | None = trial.value
    return value


def best_command(study: Study, overrides: Sequence[str]) -> str | None:
    """The command that trains the best complete trial again; None without one."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    best = max(complete, key=lambda trial: trial.value or 0.0)
    values = [f"{name}={as_text(value)}" for name, value in best.params.items()]
    return " ".join(["python train.py", *overrides, *values])


def _facts(trial: FrozenTrial) -> list[Any]:
    seconds = trial.duration.total_seconds() if trial.duration else None
    value = best_value(trial)
    return [
        trial.number,
        trial.state.name.lower(),
        "" if value is None else f"{value:.6g}",
        len(trial.intermediate_values),
        "" if seconds is None else f"{seconds:.0f}",
        trial.user_attrs.get(FOLDER, ""),
    ]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value)
