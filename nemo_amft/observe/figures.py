"""Pictures of a run, from its records alone.

Drawn on a `Figure` without pyplot, so that nothing here touches matplotlib's global state or needs a display.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nemo_amft.observe.metrics import Record

# Okabe and Ito's palette: told apart under every common colour blindness, and by lightness in print.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#8A8A8A"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "legend.frameon": False}

Points = tuple[list[int], list[float]]


def series(records: Sequence[Record], name: str, phase: str = "train") -> Points:
    """Steps and values of metric `name` in `phase`. A null is NaN, a gap in a line; records without the metric are left out."""
    found = [(r["step"], math.nan if r[name] is None else float(r[name])) for r in records if r["phase"] == phase and name in r]
    return [step for step, _ in found], [value for _, value in found]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean over the `width` values around each one; fewer at the ends, and NaN left out."""
    half = width // 2
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def dynamics(
    records: Sequence[Record], path: str | Path | None, title: str, mu_bounds: tuple[float, float] | None = None
) -> Figure:
    """The run at a glance: mu and what moved it, entropy, reward and validation accuracy over the steps.

    A panel without its metric (mu of a method that has none) is left out. `path` None draws without saving. `mu_bounds` are the
    controller's (mu_min, mu_max).
    """
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        ("mu", lambda axes: _mu(axes, records, mu_bounds)),
        ("entropy", lambda axes: _entropy(axes, records)),
        ("reward/mean", lambda axes: _reward(axes, records)),
        ("validation/accuracy", lambda axes: _validation(axes, records)),
    ]
    present = {name for record in records if record["phase"] != "warmup" for name in record}
    drawn = [draw for name, draw in panels if name in present]
    return _stacked(drawn, path, title)


def comparison(runs: Mapping[str, Sequence[Sequence[Record]]], path: str | Path | None, title: str) -> Figure:
    """Validation accuracy, reward, share of demonstrations (both smoothed) and mu of several runs over each other.

    `runs` holds the records of each run of a name; each name has a look of its own, and its runs are thin lines.
    """
    present = {name for group in runs.values() for records in group for record in records for name in record}
    shares = {value for group in runs.values() for records in group for value in series(records, "data/demonstration_share")[1]}
    if len(shares) == 1:
        present.discard("data/demonstration_share")  # nothing to see

    def panel(name: str, label: str, phase: str, smooth: bool) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            marks = {"marker": "o", "ms": 4} if phase == "validation" else {}
            for records, look in _looks(runs):
                steps, values = series(records, name, phase)
                if steps:
                    axes.plot(steps, smoothed(values, _width(values)) if smooth else values, **look, **marks)
            axes.set_ylabel(label)
            if phase == "validation":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            if name == "validation/accuracy":
                wide = min(len(runs), 3 if len(runs) < 7 else 5)
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=wide, fontsize=9)

        return draw

    panels = [
        ("validation/accuracy", "accuracy", "validation", False),
        ("reward/mean", "reward", "train", True),
        ("data/demonstration_share", "share of\ndemonstrations", "train", True),
        ("mu", "µ", "train", False),
    ]
    return _stacked([panel(*row) for row in panels if row[0] in present], path, title)


def ends(accuracy: Mapping[str, Mapping[str, Sequence[float | None]]], path: str | Path | None) -> Figure:
    """Final accuracy of runs: a panel for each set of problems, a row for each name, a dot for each seed, a bar at the mean."""
    import matplotlib

    names = list(dict.fromkeys(name for values in accuracy.values() for name in values))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.0 + 0.26 * len(names)), layout="constrained")
        grid = figure.subplots(1, max(1, len(accuracy)), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(grid, accuracy.items(), strict=False):
            for row, name in enumerate(names):
                known = [value for value in values.get(name, ()) if value is not None]
                axes.plot(known, [row] * len(known), "o", color=SKY, ms=5, alpha=0.8)
                if known:
                    axes.plot([sum(known) / len(known)], [row], "|", color=VERMILION, ms=13, mew=2.2)
            axes.set_title(title, loc="left", fontsize=11)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.grid(color="#E6E6E6", lw=0.8)
            axes.set_axisbelow(True)
        grid[0].set_yticks(range(len(names)), names)
        grid[0].set_ylim(len(names) - 0.5, -0.5)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    return figure


def mu_of_runs(runs: Mapping[str, Sequence[Sequence[Record]]], path: str | Path | None) -> Figure:
    """mu over the steps, a line for each run; runs of a name look alike."""

    def draw(axes: Axes) -> None:
        for records, look in _looks(runs):
            axes.plot(*series(records, "mu"), **look)
        axes.set_ylabel("µ (weight of SFT)")
        _legend(axes)

    return _stacked([draw], path, "")


def _stacked(panels: Sequence[Callable[[Axes], None]], path: str | Path | None, title: str) -> Figure:
    """One panel above the other over the same steps."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.9 + 2.0 * max(1, len(panels))), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        grid = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, draw in zip(grid, panels, strict=False):
            draw(axes)
            axes.grid(axis="y", color="#E6E6E6", lw=0.8)
            axes.set_axisbelow(True)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
        if not panels:
            grid[0].text(0.5, 0.5, "no steps recorded yet", ha="center", transform=grid[0].transAxes, color=GREY)
        grid[-1].set_xlabel("training step")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels(grid)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    return figure


def _mu(axes: Axes, records: Sequence[Record], bounds: tuple[float, float] | None) -> None:
    steps, mu = series(records, "mu")
    terms = {name: series(records, name)[1] for name in ("mu/meta_term", "mu/entropy_term")}
    for bound, name, side in zip(bounds or (), ("µ min", "µ max"), ("bottom", "top"), strict=False):
        axes.axhline(bound, color=GREY, lw=1, ls=":")
        axes.text(1, bound, name, transform=axes.get_yaxis_transform(), ha="right", va=side, color=GREY, fontsize=8)
    if all(len(values) == len(steps) > 0 for values in terms.values()):
        # Drawn from the mu before the first step: how far each term alone has carried it, on mu's own scale.
        origin = mu[0] - sum(values[0] for values in terms.values())
        labels = {
            "mu/meta_term": ("meta-gradient terms, summed", VERMILION, "--"),
            "mu/entropy_term": ("entropy terms, summed", GREEN, "-."),
        }
        for name, (label, colour, style) in labels.items():
            path = [origin + total for total in accumulate(0.0 if math.isnan(v) else v for v in terms[name])]
            axes.plot(steps, path, color=colour, lw=1.4, ls=style, label=label)
    axes.plot(steps, mu, color=BLUE, lw=2.2, label="µ")
    axes.set_ylabel("µ (weight of SFT)")
    _legend(axes)


def _entropy(axes: Axes, records: Sequence[Record]) -> None:
    axes.plot(*series(records, "entropy"), color=PURPLE, lw=1.8, label="entropy H")
    target = series(records, "entropy/target")
    if target[0]:
        axes.plot(*target, color=GREY, lw=1.4, ls="--", label="target H* (after warm-up)")
    axes.set_ylabel("entropy (nats)")
    _legend(axes)


def _reward(axes: Axes, records: Sequence[Record]) -> None:
    steps, values = series(records, "reward/mean")
    width = _width(values)
    axes.plot(steps, values, color=SKY, lw=0.8, alpha=0.6, label="each step")
    axes.plot(steps, smoothed(values, width), color=BLUE, lw=2.0, label=f"mean of {width} steps")
    axes.set_ylabel("reward")
    _legend(axes)


def _validation(axes: Axes, records: Sequence[Record]) -> None:
    looks = {
        "validation": {"color": BLUE, "marker": "o", "ms": 5},
        "test": {"color": VERMILION, "marker": "*", "ms": 13, "ls": "none", "zorder": 3},
    }
    for name, look in looks.items():
        steps, values = series(records, f"{name}/accuracy", "validation")
        errors = dict(zip(*series(records, f"{name}/standard_error", "validation"), strict=True))
        # The test problems are answered twice, after warm-up and at the end: the legend can tell both numbers.
        ends = len(values) == 2 and steps[0] == 0
        told = f"{name}: {values[0]:.1%} after warm-up, {values[-1]:.1%} at the end" if ends else f"{name} (± standard error)"
        if values:
            bars = [errors.get(step, math.nan) for step in steps]
            axes.errorbar(steps, values, yerr=bars, lw=1.4, elinewidth=1, label=told, **look)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(y=0.12)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the panel, out of the way of every curve."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=4, fontsize=9, borderaxespad=0, columnspacing=1.6)


def _width(values: Sequence[float]) -> int:
    """A smoothing window of about a twentieth of the run, odd, at least 5."""
    return max(5, len(values) // 20) | 1


def _looks(runs: Mapping[str, Sequence[Sequence[Record]]]) -> Iterator[tuple[Sequence[Record], dict[str, Any]]]:
    """Each run's records and how to draw its line: runs of a name look alike, thinner than a lone one, and share a label.

    Colours first, then the same ones dashed, dotted and so on.
    """
    colours, strokes = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY), ("-", "--", ":", "-.")
    for i, (name, group) in enumerate(runs.items()):
        look = {"color": colours[i % 6], "ls": strokes[i // 6 % 4], "lw": 1.8 if len(group) == 1 else 1.0}
        for j, records in enumerate(group):
            yield records, look | ({"label": name} if j == 0 else {})
