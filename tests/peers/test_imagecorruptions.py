"""Beside `imagecorruptions` 1.1.2 (Michaelis et al. 2019, arXiv 1907.07484), which has the parameters of 224 pixels."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter

from robust_train.data.corruptions import corrupt
from robust_train.keyed import Key, integers, normal, uniform

if importlib.util.find_spec("imagecorruptions") is None:
    pytest.skip("could not import 'imagecorruptions': make peers", allow_module_level=True)

SIZE = 224
MEAN_DIFFERENCE = {  # grey levels, at most; most agree in every pixel
    "gaussian_noise": 0.001,
    "speckle_noise": 0.001,
    "shot_noise": 0.001,
    "gaussian_blur": 0.001,
    "defocus_blur": 0.005,  # its kernel is float32: some pixels fall to the other side of a whole number
    "glass_blur": 0.005,  # its whole numbers are cut before rounding is given back
    "motion_blur": 0.003,  # fractions that lie within rounding of a whole grey level
    "fog": 0.001,
    "brightness": 0.001,
    "contrast": 0.001,
    "saturate": 0.001,
    "jpeg_compression": 0.001,
    "pixelate": 0.001,  # its enlarging by the nearest pixel is ours where blocks are whole
    "spatter": 0.001,
}


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch):
    """Its functions, on today's NumPy and scikit-image."""
    monkeypatch.setitem(sys.modules, "pkg_resources", SimpleNamespace(resource_filename=lambda *names: names[-1]))
    from imagecorruptions import corruptions as found

    monkeypatch.setattr(np, "float_", np.float64, raising=False)

    def gaussian(x, sigma, multichannel=False, mode="nearest", truncate=4.0):
        axes = (0, 1) if multichannel else None
        return gaussian_filter(np.asarray(x, dtype=float), sigma, mode=mode, truncate=truncate, axes=axes)

    monkeypatch.setattr(found, "gaussian", gaussian)
    return found


def scene(number: int) -> torch.Tensor:
    """[3, 224, 224] uint8: smooth colours."""
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(number))
    fine = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return (255 * fine[0].clamp(0, 1)).to(torch.uint8)


class Drawn:
    """Stands for numpy.random: the key's numbers, in the order in which the peer asks for them."""

    def __init__(self, name: str, key: Key) -> None:
        self.name, self.key, self.asked = name, key, 0

    def normal(self, size, loc=0.0, scale=1.0):
        shape = (1, *size) if len(size) == 2 else (1, size[2], *size[:2])
        draws = normal(self.key, shape, dtype=torch.float64)[0].numpy()
        return loc + scale * (draws if len(size) == 2 else draws.transpose(1, 2, 0))

    def poisson(self, rate):
        u = uniform(self.key, (1, 3, *rate.shape[:2]), dtype=torch.float64)[0].numpy().transpose(1, 2, 0)
        return stats.poisson.ppf(u, rate).clip(0)

    def uniform(self, low, high, size=(1,)):
        key = self.key
        if self.name == "fog":
            step = 256 // size[0]
            key = key.at(step).of(("squares", "rows", "columns")[self.asked % 3])
            self.asked += 1
        u = uniform(key, (1, *size), dtype=torch.float64)[0].numpy()
        return (low + (high - low) * u) if len(size) > 1 else float(low + (high - low) * u[0])

    def randint(self, low, high, size):
        """A move (dx, dy) a pixel, from the last one to the first, round after round."""
        side = SIZE - 2 * high
        turn, number = divmod(self.asked, side * side)
        self.asked += 1
        if number == 0:
            self.moves = integers(self.key.at(turn), (1, 2, SIZE, SIZE), high - low)[0].numpy() + low
        row, column = SIZE - high - number // side, SIZE - high - number % side
        return self.moves[1, row, column], self.moves[0, row, column]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [3, 8])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", MEAN_DIFFERENCE)
def test_corruptions_are_the_peers_when_both_are_given_the_same_numbers(name, severity, number, peer, monkeypatch):
    image, key = scene(number), Key(4).rows(torch.tensor([11 + number]))
    ours = corrupt(image[None], name, severity, key)[0].numpy().astype(float)
    seen = Image.fromarray(image.permute(1, 2, 0).numpy())
    with monkeypatch.context() as patch:
        for draw in ("normal", "poisson", "uniform", "randint"):
            patch.setattr(np.random, draw, getattr(Drawn(name, key.of(name).at(severity)), draw))
        theirs = np.asarray(getattr(peer, name)(seen, severity))
    # what rounding took off a whole number is given back, as `generate.levels` does
    theirs = np.floor(theirs.astype(float) + 1e-6).transpose(2, 0, 1)
    difference = np.abs(ours - theirs)
    assert difference.mean() <= MEAN_DIFFERENCE[name]
    assert difference.max() <= (1 if name != "glass_blur" else 2)
