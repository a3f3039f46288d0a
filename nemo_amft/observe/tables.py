"""Tables of runs side by side: a row a name, whose runs differ by their seed, as means with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from nemo_amft.observe.runs import Run

Column = tuple[str, Callable[[Run], float | None], Callable[[float], str]]


def columns(runs: Sequence[Run], target: float, reference: str | None = None) -> list[Column]:
    """Title, a run's value, and how it is written. Columns that no run fills are left out, but for the first. With `reference`
    a run's final accuracies also stand less those of the reference's run with the same seed."""
    sets = dict.fromkeys(["test", *(name for run in runs for name in run.sets)])
    every: list[Column] = [
        ("final accuracy" if name == "test" else f"final {name}", lambda run, name=name: run.final(name), _percent)
        for name in sets
    ]
    if reference is not None:
        base = {run.seed: run for run in runs if run.name == reference}

        def less(name: str) -> Callable[[Run], float | None]:
            return lambda run: _less(run.final(name), base[run.seed].final(name)) if run.seed in base else None

        every += [(f"less {reference}" if name == "test" else f"{name} less {reference}", less(name), _points) for name in sets]
    every += [
        ("best validation", lambda run: max(run.values("validation", "validation/accuracy"), default=None), _percent),
        (f"rollouts to {target:.0%}", lambda run: run.used_until(target, "data/samples"), _count),
        (f"demonstrations to {target:.0%}", lambda run: run.used_until(target, "data/demonstrations"), _count),
        ("share of demonstrations", lambda run: _mean(run.values("train", "data/demonstration_share")), _percent),
        ("final entropy", lambda run: _last(run.values("train", "entropy")), lambda x: f"{x:.3f}"),
        ("final mu", lambda run: _last(run.values("train", "mu")), lambda x: f"{x:.4f}"),
        ("mu by meta-gradient", lambda run: _moved(run, "mu/meta_term"), lambda x: f"{x:+.2g}"),
        ("mu by entropy", lambda run: _moved(run, "mu/entropy_term"), lambda x: f"{x:+.2g}"),
        ("steps", lambda run: sum(r["phase"] == "train" for r in run.records), _count),
        ("wall time [min]", lambda run: run.wall_seconds and run.wall_seconds / 60, lambda x: f"{x:.1f}"),
        ("tokens/s", lambda run: run.tokens_per_second, _count),
    ]
    return [every[0], *(column for column in every[1:] if any(column[1](run) is not None for run in runs))]


def table(groups: Mapping[str, Sequence[Run]], chosen: Sequence[Column]) -> str:
    """The Markdown table: a row for each name with its runs, in the order given."""
    rows = [["run", "seeds", *(title for title, *_ in chosen)]]
    for name, group in groups.items():
        unfinished = sum(not run.finished for run in group)
        label = f"{name} ({unfinished} unfinished)" if unfinished else name if group else f"{name} (not run)"
        rows.append([label, str(len(group)), *(cell(group, column) for column in chosen)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def default_target(runs: Sequence[Run]) -> float:
    """Nine tenths of the best validation accuracy there is, rounded to a percent."""
    best = max((value for run in runs for value in run.values("validation", "validation/accuracy")), default=0.0)
    return round(0.9 * best, 2)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95% confidence interval by Student's t; None for the latter with fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t  # comes with scikit-learn, which NeMo needs; slow to import, and only needed for several seeds

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, half


def cell(runs: Sequence[Run], column: Column) -> str:
    """Mean and interval; how many runs have the value, where not all do."""
    _, value_of, form = column
    values = [value_of(run) for run in runs]
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, half = mean_and_interval(known)
    text = form(mean) if half is None else f"{form(mean)} ± {form(half).lstrip('+')}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _moved(run: Run, term: str) -> float | None:
    values = run.values("train", term)
    return sum(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each name, names in the order of their first run."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups
