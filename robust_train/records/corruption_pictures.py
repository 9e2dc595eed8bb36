"""Pictures of accuracies under corruptions: a network by corruption and severity, a study of many by category."""

from __future__ import annotations

from typing import Any

from robust_train.data.corruptions import CATEGORIES, NAMES, SEVERITIES, VALIDATION
from robust_train.evaluate.corruptions import Robustness
from robust_train.evaluate.study import Study
from robust_train.records.pictures import INK, LINES, PALE, RULE, _bytes, _figure

GAP = 0.3  # between groups of rows, and before the column of means, in cells
SHADES = ("#fdf1e3", "#9cc3ea", "#08306b")  # of accuracy 0, 1/2 and 1
ROOM = 0.12  # the shortest bar that its number has room in
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # told apart without red and green
MARKS = ("o", "v", "p", "<")  # of variants: another one when the colours are used up


def robustness(found: Robustness, title: str = "", base: Robustness | None = None) -> bytes:
    """PNG. Left A(c, s) in percent, by category, with the means over severities; right the categories and the mean.

    base: another network's, drawn pale beside each bar. What was not judged is left out.
    """
    from matplotlib.colors import LinearSegmentedColormap

    if not found.counts:
        raise ValueError("no corruption was judged: there is nothing to draw")
    groups = {group: found.category(group) for group in CATEGORIES} | {"mean of the 15": found.mean}
    bars = {group: value for group, value in groups.items() if value is not None}
    shades = LinearSegmentedColormap.from_list("accuracy", SHADES)

    places = _rows(found)
    bottom = max(places.values()) + 1
    width = 9.4 if bars else 5.8
    figure = _figure(width, max(0.24 * bottom + 1.0, 2.4 if not bars else 3.2))
    panels = figure.subplots(1, 2, width_ratios=(1.75, 1)) if bars else [figure.subplots()]
    _map(panels[0], found, places, shades)
    if bars:
        _bars(panels[1], found, bars, base)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _bytes(figure)


def study(found: Study, title: str = "") -> bytes:
    """PNG. For each category, the mean of the 15 and clean images a point a network with a role, with 2 SE either way.

    Variants are coloured, what they are compared with is not; each kind has a mark of its own. In a group they stand in
    the order of the legend.
    """
    groups = [one for one in (*CATEGORIES, "mean", "clean") if any(found.values(name, one) for name in found.names)]
    shown = [name for name in found.names if found.roles.of(name) and any(found.values(name, one) for one in groups)]
    if not shown:
        raise ValueError("no network with a role was judged on a whole category: there is nothing to draw")
    figure = _figure(9.4, max(4.2, 0.24 * len(shown) + 1.2))
    panel = figure.subplots()
    width = 0.8 / max(len(shown) - 1, 1)  # between two networks of a group
    for index, (name, style) in enumerate(zip(shown, _styles(found, shown), strict=True)):
        spreads = {place: found.spread(name, one) for place, one in enumerate(groups)}
        known = {place: spread for place, spread in spreads.items() if spread is not None}
        panel.errorbar(
            [place + (index - (len(shown) - 1) / 2) * width for place in known],
            [100 * spread.mean for spread in known.values()],
            [200 * (spread.error or 0.0) for spread in known.values()],
            label=name,
            linestyle="none",
            elinewidth=1.1,
            **style,
        )
    for place in range(1, len(groups)):
        panel.axvline(place - 0.5, color=RULE, linewidth=0.8)
    panel.set_xlim(-0.5, len(groups) - 0.5)
    panel.set_xticks(range(len(groups)), ["mean of the 15" if one == "mean" else one for one in groups], fontsize=9.5)
    panel.tick_params(axis="x", length=0, labelcolor=INK)
    panel.tick_params(axis="y", labelsize=9, labelcolor=INK)
    panel.grid(axis="y", color=RULE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_ylabel("accuracy, %", fontsize=9.5, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, title=_heading(found), title_fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _bytes(figure)


def _styles(found: Study, shown: list[str]) -> list[dict[str, Any]]:
    """How each network's points look, by its role."""
    styles: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for name in shown:
        role = found.roles.of(name)
        number = seen[role] = seen.get(role, -1) + 1
        if role == "variant":
            mark = MARKS[number // len(COLOURS) % len(MARKS)]
            styles.append({"color": COLOURS[number % len(COLOURS)], "marker": mark, "markersize": 5.5})
            continue
        hollow = {"markerfacecolor": "white"} if number % 2 else {}
        looks = {
            "base": {"color": PALE, "marker": "x", "markersize": 6},
            "standard": {"color": PALE, "marker": "o", "markersize": 5.5},
            "ensemble": {"color": INK, "marker": "D", "markersize": 6.5},
            "control": {"color": PALE, "marker": "s", "markersize": 6, **hollow},
            "student": {"color": INK, "marker": "^", "markersize": 7.5},
            "control student": {"color": PALE, "marker": "^", "markersize": 6.5, "markerfacecolor": "white"},
        }
        styles.append(looks[role])
    return styles


def _heading(found: Study) -> str:
    count = len(found.seeds)
    return "one seed" if count == 1 else f"{count} seeds, bars 2 SE each way"


def _rows(found: Robustness) -> dict[str, float]:
    """The upper edge of each corruption's row: groups stand apart."""
    group = {one: kind for kind, names in (*CATEGORIES.items(), ("validation", VALIDATION)) for one in names}
    edges: dict[str, float] = {}
    edge, last = 0.0, ""
    for one in (one for one in NAMES if one in found.corruptions):
        edge += GAP if last and group[one] != last else 0.0
        edges[one], last = edge, group[one]
        edge += 1
    return edges


def _map(panel: Any, found: Robustness, places: dict[str, float], shades: Any) -> None:
    from matplotlib.patches import Rectangle

    means = len(SEVERITIES) + GAP
    lefts = [*range(len(SEVERITIES)), means]
    for one, top in places.items():
        values = [found.figures[one, s].accuracy if (one, s) in found.figures else None for s in SEVERITIES]
        for left, value in zip(lefts, [*values, found.accuracy(one)], strict=True):
            colour = shades(value) if value is not None else "white"
            panel.add_patch(Rectangle((left, top), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.2))
            text = "–" if value is None else f"{100 * value:.0f}"
            ink = "white" if value is not None and value > 0.7 else INK
            panel.text(left + 0.5, top + 0.52, text, ha="center", va="center", fontsize=8, color=ink)
    panel.set_xlim(0, means + 1)
    panel.set_ylim(max(places.values()) + 1, 0)
    panel.set_xticks([left + 0.5 for left in lefts], [*map(str, SEVERITIES), "mean"], fontsize=8.5)
    panel.set_yticks([top + 0.5 for top in places.values()], [one.replace("_", " ") for one in places], fontsize=8.5)
    panel.tick_params(length=0, labelcolor=INK)
    panel.set_xlabel("severity", fontsize=9, color=INK)
    panel.set_title("accuracy, %", fontsize=9.5, color=INK)
    panel.spines[:].set_visible(False)


def _bars(panel: Any, found: Robustness, bars: dict[str, float], base: Robustness | None) -> None:
    others = {one: base.category(one) if one in CATEGORIES else base.mean for one in bars} if base is not None else {}
    thick = 0.38 if base is not None else 0.6
    for place, (one, value) in enumerate(bars.items()):
        pairs = [(value, LINES[0], "white"), (others.get(one), RULE, INK)][: 1 if base is None else 2]
        for index, (height, colour, ink) in enumerate(pairs):
            if height is not None:
                at = place + (index - (len(pairs) - 1) / 2) * thick
                panel.barh(at, height, thick * 0.94, color=colour, label=("this", "base")[index])
                left, said = (0.015, ink) if height >= ROOM else (height + 0.015, INK)
                panel.text(left, at, f"{100 * height:.1f}", va="center", fontsize=8, color=said)
    if found.clean_accuracy is not None:
        panel.axvline(found.clean_accuracy, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        said = f"clean {100 * found.clean_accuracy:.1f}"
        panel.text(found.clean_accuracy, -0.55, said, ha="center", va="bottom", fontsize=8.5, color=INK)
    panel.set_ylim(len(bars) - 0.45, -0.5)
    panel.set_xlim(0, 1.12)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"], fontsize=8.5)
    panel.set_yticks(range(len(bars)), list(bars), fontsize=8.5)
    panel.tick_params(axis="y", length=0, labelcolor=INK)
    panel.set_xlabel("accuracy, %, the mean over severities", fontsize=9, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    if base is not None:
        handles, labels = panel.get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True))
        panel.legend(known.values(), known.keys(), frameon=False, fontsize=8.5, loc="lower right")
