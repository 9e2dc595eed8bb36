"""The pyramid threat model: patches of several sizes move as wholes, large ones far, pixels a little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robust_train.kernels.pyramid_step import Levels, composed, pyramid_step
from robust_train.keyed import Key, uniform
from robust_train.nouns import Threat, number
from robust_train.read.registry import Number, threats


@threats.register("pyramid")
@dataclass(frozen=True)
class Pyramid(Threat):
    """Sums of levels: in level s every s x s patch has one offset a channel, at most eps, times a multiplier.

        clips="sum":   x' = clip(x + sum_s m_s U_s(clip(z_s, -eps, eps)), 0, 1)                     (the paper)
        clips="each":  x_0 = x,  x_l = clip(x_{l-1} + m_l U_l(clip(z_l, -eps, eps)), 0, 1),  x' = x_L     (its code)
        step:          z_s' = clip(z_s + size sign(dl/dz_s), -eps, eps)

    U_s repeats each entry over its patch. The step's gradient goes back through the clips: a pixel beyond the box
    passes none to the levels before it, and one exactly at 0 or 1 half of it, as in the authors' code, where min and
    max share a tie out (torch.clamp would pass all of it). Herrmann et al. 2022 (arXiv 2111.15121, section 3.2). Their
    images are in [-1, 1] and ours in [0, 1], so their eps 6/255 and step 1/255 are eps 3/255 and step_size 0.5/255
    here. `z` is a tuple of [B, C, H / s, W / s], one for each level.
    """

    eps: Number  # largest offset of every level before its multiplier, pixels in [0, 1]: half of the paper's number
    levels: tuple[int, ...] = (32, 16, 1)  # patch sizes s in pixels, coarse to fine; each divides height and width
    multipliers: tuple[float, ...] = (20.0, 10.0, 1.0)  # m_s, one a level
    clips: Literal["each", "sum"] = "each"  # to [0, 1] after each level, in their order, or once

    examples = """
    - {eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}
    - {eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0], clips: sum}
    """

    def __post_init__(self) -> None:
        if isinstance(self.eps, (int, float)) and not 0 <= self.eps <= 1:
            raise ValueError(f"eps={self.eps:g} is not in [0, 1]: pixels live in [0, 1], so say eps={self.eps:g}/255")
        if not self.levels or min(self.levels) < 1:
            raise ValueError(
                f"levels={list(self.levels)} must be patch sizes of at least one pixel, one or more of them"
            )
        if len(self.levels) != len(self.multipliers):
            raise ValueError(
                f"{len(self.levels)} levels and {len(self.multipliers)} multipliers: give one multiplier a level"
            )

    def start(self, images: Tensor, key: Key) -> Levels:
        return tuple(
            (2 * uniform(key.at(level), zero.shape, images.device, images.dtype) - 1) * number(self.eps)
            for level, zero in enumerate(self.zero(images))
        )

    def zero(self, images: Tensor) -> Levels:
        height, width = images.shape[-2:]
        wrong = [patch for patch in self.levels if height % patch or width % patch]
        if wrong:
            fits = [patch for patch in range(1, height + 1) if height % patch == 0 and width % patch == 0]
            raise ValueError(
                f"levels={list(self.levels)}: patches of {', '.join(map(str, wrong))} pixels do not tile images of "
                f"{height} x {width}; use some of {', '.join(map(str, fits))}"
            )
        return tuple(images.new_zeros(*images.shape[:2], height // patch, width // patch) for patch in self.levels)

    def apply(self, images: Tensor, z: Levels) -> Tensor:
        if isinstance(z, Composed) and z.images is images and z.threat == self:
            return z.image.detach()  # whoever asks for its gradient asks on a tensor of his own
        return composed(images, z, number(self.eps), *self._shape)

    def step(self, images: Tensor, z: Levels, gradient: Tensor, size: float) -> Levels:
        levels, image = pyramid_step(images, z, gradient, size, number(self.eps), *self._shape)
        made = Composed(levels)
        made.threat, made.images, made.image = self, images, image
        return made

    @property
    def _shape(self) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        return tuple(self.levels), tuple(self.multipliers), self.clips == "each"

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """max |x' - x| / sum_s m_s: the least eps that could have done it, were every level of one sign."""
        return (adversarial - images).flatten(1).abs().amax(1) / sum(abs(m) for m in self.multipliers)


class Composed(tuple[Tensor, ...]):
    """Levels that remember the image that they compose with these images: the step makes it in the same pass."""

    threat: Pyramid
    images: Tensor
    image: Tensor
