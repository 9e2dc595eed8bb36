"""Pictures of a run, as PNG bytes: images, attacks on them, accuracy against eps. matplotlib without pyplot's state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_train.evaluate.report import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10  # images in a picture of an attack
DOTS = 130  # an inch
RIGHT, WRONG, INK, PALE = "#1a7f37", "#c62828", "#222222", "#777777"
LINES = ("#0b6bcb", "#c62828", "#1a7f37", "#8e44ad", "#d97706", "#0e7490", "#555555")
AMPLIFIED = (1, 2, 4, 8, 16, 32, 64, 128, 256)


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


def curve(
    eps: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    images: int,
    title: str = "",
    unit: str = "eps, pixels in [0, 1]",
) -> bytes:
    """Accuracy against eps, a line for each name, with its 95 % binomial band over `images` images.

    eps [n] ascending, in the threat model's unit (said by `unit`); each line [n], fractions.
    """
    figure = _figure(5.6, 3.8)
    panel = figure.subplots()
    for (name, line), colour in zip(accuracies.items(), _cycle(len(accuracies)), strict=True):
        if len(line) != len(eps):
            raise ValueError(f"{name}: {len(line)} accuracies for {len(eps)} eps: one for each")
        low, high = zip(*(wilson(accuracy, images) for accuracy in line), strict=True)
        panel.fill_between(eps, low, high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(eps, line, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
    panel.set(xlabel=unit, ylabel="accuracy", ylim=(-0.02, 1.02))
    panel.margins(x=0.02)
    if max(eps) <= 32 / 255 and all(abs(255 * radius - round(255 * radius)) < 1e-6 for radius in eps):
        panel.set_xticks(list(eps), [f"{255 * radius:.0f}/255" if radius else "0" for radius in eps], fontsize=9)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=9)
    panel.set_title(title or f"{images:,} images, 95 % binomial bands", fontsize=10, color=INK)
    return _bytes(figure)


def _figure(width: float, height: float) -> Figure:
    """A figure in inches that belongs to nobody's global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _bytes(figure: Figure) -> bytes:
    """The PNG, without the version of what wrote it: the same picture is the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


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
