"""Pictures: images, attacks on them, corruptions, accuracy against eps and steps. matplotlib without pyplot.

PNG bytes; charts also as SVG, where colours are the page's own (`--ink`, `--pale`, `--rule`, `--line-0`, ...).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from robust_train.data.corruptions import NAMES, SEVERITIES, corrupt
from robust_train.evaluate.report import wilson
from robust_train.keyed import Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10  # images in a picture of an attack
DOTS = 130  # an inch
RIGHT, WRONG, INK, PALE, RULE = "#1a7f37", "#c62828", "#222222", "#777777", "#dddddd"
LINES = ("#0b6bcb", "#c62828", "#1a7f37", "#8e44ad", "#d97706", "#0e7490", "#555555")
AMPLIFIED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Form = Literal["png", "svg"]


def grid(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 8, colours: Sequence[str] | None = None
) -> bytes:
    """Images [N, C, H, W] in [0, 1] (or uint8), C of 1 or 3, row by row, a title above each."""
    pixels = _pixels(images)
    count = len(pixels)
    if count == 0:
        raise ValueError("images holds none: a grid shows at least one")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = _figure(1.5 * columns + 0.2, (1.5 + (0.2 if titles else 0)) * rows + 0.05)
    for index, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        _bare(panel)
        if index < count:
            _show(panel, pixels[index])
            if titles:
                panel.set_title(titles[index], fontsize=8, color=colours[index] if colours else INK, pad=3)
        else:
            panel.set_visible(False)
    return _bytes(figure)


def attack_picture(
    clean: Tensor,
    adversarial: Tensor,
    targets: Tensor,
    clean_logits: Tensor,
    adversarial_logits: Tensor,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> bytes:
    """Clean images, attacked images and their difference, one column an image, the first ten.

    clean, adversarial [N, C, H, W] in [0, 1]; targets [N] labels (or distributions [N, K]); logits [N, K].
    Above each image stands the predicted class and its softmax probability, green where it is the label, else red.
    The difference is shown as 1/2 + scale (adversarial - clean) / 2: grey is no change. The scale, a power of two,
    is the largest that clips no pixel, and stands beside the row.
    """
    shown = slice(0, MOST)
    before, after = _pixels(clean[shown]), _pixels(adversarial[shown])
    count = len(before)
    if count == 0 or len(after) != count:
        raise ValueError(f"{count} clean and {len(after)} adversarial images: a picture needs as many of both, and one")
    labels = (targets if targets.dim() == 1 else targets.argmax(1))[shown].detach().cpu()
    change = after - before
    largest = float(change.abs().max())
    scale = amplification(largest)

    figure = _figure(1.55 * count + 0.75, 5.35 + (0.3 if title else 0))
    panels = figure.subplots(3, count, squeeze=False)
    rows = (("clean", before, clean_logits), ("adversarial", after, adversarial_logits))
    for row, (name, pixels, logits) in enumerate(rows):
        probability, predicted = logits[shown].detach().float().cpu().softmax(1).max(1)
        for column in range(count):
            panel = panels[row, column]
            _bare(panel)
            _show(panel, pixels[column])
            guess, label = int(predicted[column]), int(labels[column])
            heading = f"{_name(guess, classes)} · {100 * float(probability[column]):.0f} %"
            if row == 0:
                truth = f"label {_name(label, classes)}"
                panel.text(
                    0.5, 1.17, truth, transform=panel.transAxes, ha="center", va="bottom", fontsize=8, color=PALE
                )
            panel.set_title(heading, fontsize=8.5, color=RIGHT if guess == label else WRONG, pad=3)
        panels[row, 0].set_ylabel(name, fontsize=9.5, color=INK)
    for column in range(count):
        panel = panels[2, column]
        _bare(panel)
        _show(panel, 0.5 + scale * change[column] / 2)
        moved = 255 * float(change[column].abs().max())
        panel.set_title(f"max {moved:.3g}/255", fontsize=8, color=PALE, pad=3)
    panels[2, 0].set_ylabel(f"difference × {scale}", fontsize=9.5, color=INK)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _bytes(figure)


def amplification(largest: float) -> int:
    """The largest power of two up to 256 that keeps scale · largest within 1; 1 where nothing changed."""
    fits = [scale for scale in AMPLIFIED if scale * largest <= 1]
    return fits[-1] if fits and largest > 0 else 1


def contact_sheet(
    image: Tensor, key: Key, frost: str | Path | None = None, names: Sequence[str] = NAMES, title: str = ""
) -> bytes:
    """One image under each corruption (a row) at each severity (a column), itself first.

    image uint8 [C, H, W], C of 1 or 3, of 224, 64 or 32 pixels. frost: the folder of the textures; without it that row
    is left out.
    """
    names = [name for name in names if name != "frost" or frost is not None]
    figure = _figure(7.0, 0.97 * len(names) + (0.6 if title else 0.3))
    panels = figure.subplots(len(names), 1 + len(SEVERITIES), squeeze=False)
    alone = key.rows(torch.tensor([0]))
    for row, name in zip(panels, names, strict=True):
        shown = [corrupt(image[None], name, severity, alone, frost)[0] for severity in SEVERITIES]
        for panel, pixels in zip(row, _pixels(torch.stack([image, *shown])), strict=True):
            _bare(panel)
            _show(panel, pixels)
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=8.5, color=INK, rotation=0, ha="right", va="center")
    for panel, heading in zip(panels[0], ("clean", *map(str, SEVERITIES)), strict=True):
        panel.set_title(heading, fontsize=8.5, color=INK, pad=3)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _bytes(figure)


def curve(
    eps: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    images: int,
    title: str = "",
    unit: str = "eps, pixels in [0, 1]",
    form: Form = "png",
) -> bytes:
    """Accuracy against eps, a line for each name, with its 95 % binomial band over `images` images.

    eps [n] ascending, in the threat model's unit (said by `unit`); each line [n], fractions.
    """
    figure, panel = _chart()
    for (name, line), colour in zip(accuracies.items(), _cycle(len(accuracies)), strict=True):
        if len(line) != len(eps):
            raise ValueError(f"{name}: {len(line)} accuracies for {len(eps)} eps: one for each")
        low, high = zip(*(wilson(accuracy, images) for accuracy in line), strict=True)
        panel.fill_between(eps, low, high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(eps, line, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
    panel.margins(x=0.02)
    if max(eps) <= 32 / 255 and all(abs(255 * radius - round(255 * radius)) < 1e-6 for radius in eps):
        panel.set_xticks(list(eps), [f"{255 * radius:.0f}/255" if radius else "0" for radius in eps], fontsize=9)
    _finish(panel, title or f"{images:,} images, 95 % binomial bands", unit)
    return _bytes(figure, form)


def budget(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str = "", form: Form = "png") -> bytes:
    """Accuracy against an attack's steps (of Square: queries), on a logarithmic axis that begins with 0.

    lines: (steps ascending, accuracies as fractions) by name. Between two of its points a line only guides the eye.
    """
    figure, panel = _chart()
    for (name, (steps, accuracy)), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        if len(steps) != len(accuracy):
            raise ValueError(f"{name}: {len(accuracy)} accuracies for {len(steps)} steps: one for each")
        panel.plot(steps, accuracy, color=colour, marker="o", markersize=3.0, linewidth=1.6, label=name)
    most = max((max(steps) for steps, _ in lines.values() if len(steps)), default=1)
    panel.set_xscale("symlog", linthresh=1, linscale=0.4)
    marks = [0, *(10**power for power in range(len(str(most))))]
    panel.set_xticks(marks, [f"{mark:,}" for mark in marks], fontsize=9)
    panel.set_xticks([], minor=True)
    panel.set_xlim(-0.05, max(most, 1) * 1.15)
    _finish(panel, title, "steps (square: queries)")
    return _bytes(figure, form)


def lines(found: Mapping[str, Sequence[tuple[float, float, float]]], unit: str, form: Form = "svg") -> bytes:
    """Numbers by update, a line for each name: (update, mean, error); the band is mean +/- error."""
    figure, panel = _chart()
    for (name, line), colour in zip(found.items(), _cycle(len(found)), strict=True):
        update, mean, error = (list(column) for column in zip(*line, strict=True))
        low = [m - e for m, e in zip(mean, error, strict=True)]
        high = [m + e for m, e in zip(mean, error, strict=True)]
        if any(error):
            panel.fill_between(update, low, high, color=colour, alpha=0.16, linewidth=0)
        dots = "o" if len(line) < 30 else None
        panel.plot(update, mean, color=colour, marker=dots, markersize=3.0, linewidth=1.4, label=name)
    _finish(panel, "", "update")
    panel.set(ylabel=unit)
    if unit != "share":
        panel.autoscale(axis="y")
    return _bytes(figure, form)


def heat_maps(panels: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], title: str = "") -> bytes:
    """Square matrices of rates [n, n] side by side: rows what was made for a network, columns who it was tried on.

    panels: by heading, fractions; nan, where there is nothing to take a rate of, stays white.
    """
    if any(len(rows) != len(names) or any(len(row) != len(names) for row in rows) for rows in panels.values()):
        raise ValueError(f"{len(names)} names: every panel needs as many rows and columns")
    side = 1.4 + 0.62 * len(names)
    figure = _figure(side * len(panels) + 0.6, side + (0.3 if title else 0))
    for place, (panel, (heading, rows)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True)
    ):
        panel.imshow([list(row) for row in rows], cmap="Blues", vmin=0, vmax=1)
        for down, row in enumerate(rows):
            for across, rate in enumerate(row):
                said, ink = ("-", PALE) if math.isnan(rate) else (f"{100 * rate:.1f}", "white" if rate > 0.6 else INK)
                panel.text(across, down, said, ha="center", va="center", fontsize=8, color=ink)
        shown = [_name(0, [name]) for name in names]
        panel.set_xticks(range(len(names)), shown, fontsize=8, rotation=45, ha="right")
        panel.set_yticks(range(len(names)), shown if place == 0 else [""] * len(names), fontsize=8)
        panel.set_title(heading, fontsize=9.5, color=INK)
        panel.set_xlabel("tried on", fontsize=9)
        for spine in panel.spines.values():
            spine.set_visible(False)
    figure.axes[0].set_ylabel("made for", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _bytes(figure)


def _chart() -> tuple[Figure, Any]:
    figure = _figure(5.6, 3.8)
    return figure, figure.subplots()


def _finish(panel: Any, title: str, across: str) -> None:
    """What every chart of accuracies has in common."""
    panel.set(xlabel=across, ylabel="accuracy", ylim=(-0.02, 1.02))
    panel.grid(color=RULE, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=9)
    panel.set_title(title, fontsize=10, color=INK)


def _figure(width: float, height: float) -> Figure:
    """A figure in inches that belongs to nobody's global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _bytes(figure: Figure, form: Form = "png") -> bytes:
    """The file, without the version or the date of what wrote it: the same picture is the same bytes."""
    if form == "svg":
        return _svg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure) -> bytes:
    """An <svg> to stand inside a page: text is text, in the page's font; no fixed size, no background, no names."""
    import matplotlib

    figure.patch.set_visible(False)
    for panel in figure.axes:
        panel.patch.set_visible(False)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "robust_train", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # several charts on a page would share these names
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    named = {INK: "ink", PALE: "pale", RULE: "rule", "#000000": "ink"}
    named |= {colour: f"line-{index}" for index, colour in enumerate(LINES)}
    for colour, name in named.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text.encode()


def _pixels(images: Tensor) -> Tensor:
    """[N, C, H, W] float32 on the CPU; uint8 as k / 255; refuses other shapes."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images {list(images.shape)} are not [N, 1, H, W] or [N, 3, H, W]: nothing to show")
    pixels = images.detach().cpu()
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _show(panel: Any, pixels: Tensor) -> None:
    """One image [C, H, W]: its pixels as squares where they are few, smoothed where they are many."""
    image = pixels.nan_to_num(0.0).clamp(0, 1)
    smooth = "nearest" if max(image.shape[1:]) < 128 else "antialiased"
    if len(image) == 1:
        panel.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    else:
        panel.imshow(image.permute(1, 2, 0).numpy(), interpolation=smooth)


def _bare(panel: Any) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _name(label: int, classes: Sequence[str] | None) -> str:
    """The class's name, short enough for its column."""
    name = classes[label] if classes is not None and label < len(classes) else str(label)
    return name if len(name) <= 13 else name[:12] + "…"


def _cycle(count: int) -> list[str]:
    return [LINES[index % len(LINES)] for index in range(count)]
