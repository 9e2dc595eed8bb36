"""Pictures show what they say they show."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from recorded_run import QUIET, Toy
from scipy.stats import norm

from robust_train.keyed import Key
from robust_train.nouns import Place
from robust_train.records import Records
from robust_train.records import pictures as p
from robust_train.settings.tracking import Tracking


def opened(png: bytes) -> np.ndarray:
    """[H, W, 3] of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_colour(png: bytes, colour: str) -> bool:
    """Whether a text of this colour is in the picture."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return bool((opened(png) == wanted).all(-1).any())


def attacked(count: int = 3, channels: int = 3, size: int = 32, change: float = 8 / 255):
    clean = torch.full((count, channels, size, size), 0.5)
    return clean, clean + change


@pytest.mark.parametrize(
    ("channels", "size", "count"), [(1, 32, 1), (3, 32, 10), (1, 224, 2), (3, 224, 1), (3, 64, 12)]
)
def test_an_attack_can_be_drawn_at_every_size(channels, size, count):
    clean, adversarial = attacked(count, channels, size)
    logits = torch.eye(5)[torch.arange(count) % 5]
    targets = torch.arange(count) % 5
    names = ["a", "b", "an endlessly long name of a class", "d", "e"]
    image = opened(p.attack_picture(clean, adversarial, targets, logits, -logits, names, title="PGD-20 at 8/255"))
    assert min(image.shape[:2]) > 150
    assert image.std() > 0


def test_right_predictions_are_green_and_wrong_ones_red():
    clean, adversarial = attacked(1)
    right, wrong, label = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]]), torch.tensor([0])
    held = p.attack_picture(clean, adversarial, label, right, right)
    fooled = p.attack_picture(clean, adversarial, torch.tensor([[0.9, 0.1]]), right, wrong)  # a distribution
    assert has_colour(held, p.RIGHT)
    assert not has_colour(held, p.WRONG)
    assert has_colour(fooled, p.RIGHT)
    assert has_colour(fooled, p.WRONG)


def test_the_difference_is_amplified_around_grey_by_the_scale_that_is_stated():
    """+8/255 shown at 16 times is 1/2 + 16 · 8/255 / 2; the picture holds that grey, and no change is 1/2."""
    clean, adversarial = attacked(1, change=8 / 255)
    logits = torch.tensor([[1.0, 0.0]])
    image = opened(p.attack_picture(clean, adversarial, torch.tensor([0]), logits, logits))
    lower = image[2 * len(image) // 3 + 40 : -20]
    shown, counts = np.unique(lower.reshape(-1, 3), axis=0, return_counts=True)
    grey = shown[counts.argsort()[::-1]].tolist()
    expected = (0.5 + 16 * 8 / 255 / 2) * 255
    assert any(abs(pixel[0] - expected) <= 1 and len(set(pixel)) == 1 for pixel in grey[:2])
    assert p.amplification(8 / 255) == 16


def test_the_amplification_is_the_largest_power_of_two_that_clips_nothing():
    for largest in (1e-9, 1 / 255, 4 / 255, 8 / 255, 0.15, 0.5, 0.51, 1.0):
        scale = p.amplification(largest)
        assert scale * largest <= 1
        assert scale == 256 or 2 * scale * largest > 1
    assert p.amplification(0.0) == 1


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 2, 8, 8\] are not"):
        p.grid(torch.zeros(2, 2, 8, 8))
    with pytest.raises(ValueError, match="as many of both"):
        p.attack_picture(*attacked(1)[:1], attacked(2)[1], torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2))


def test_a_grid_holds_every_image():
    shades = [0.2, 0.4, 0.6, 0.8, 0.9]
    images = torch.tensor(shades).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    image = opened(p.grid(images, [str(shade) for shade in shades], columns=2))
    for shade in shades:
        assert (np.abs(image.astype(int) - round(255 * shade)).max(-1) <= 1).sum() > 5000


def test_a_picture_is_a_function_of_what_it_shows():
    clean, adversarial = attacked(2)
    arguments = (clean, adversarial, torch.tensor([0, 1]), torch.eye(2), torch.eye(2))
    assert p.attack_picture(*arguments) == p.attack_picture(*arguments)


def test_the_band_is_wilsons_interval():
    """Its ends are where the score test rejects: |p - accuracy| = z sqrt(p (1 - p) / n)."""
    z = norm.ppf(0.975)
    for accuracy, images in ((0.3, 100), (0.5, 7), (0.97, 1000)):
        for end in p.wilson(accuracy, images):
            assert abs(end - accuracy) == pytest.approx(z * (end * (1 - end) / images) ** 0.5, rel=1e-5)
    low, high = p.wilson(0.0, 50)
    assert low == 0.0
    assert high == pytest.approx(z * z / (50 + z * z), rel=1e-5)
    assert p.wilson(1.0, 50) == pytest.approx((1 - high, 1.0))


def test_a_contact_sheet_shows_the_image_and_what_becomes_of_it():
    """A grey of level 100 brightened at 32 pixels: its levels, and no others, fill the panels of the row."""
    image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    sheet = opened(p.contact_sheet(image, Key(0), names=("brightness", "frost")))
    shown, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    panels = {tuple(colour) for colour, count in zip(shown.tolist(), counts, strict=True) if count > 2000}
    assert panels == {(255,) * 3} | {(level,) * 3 for level in (100, 112, 125, 138, 151, 176)}
    assert len(p.contact_sheet(image, Key(0), names=("fog", "snow"), title="32 pixels")) > len(sheet) > 0


def test_a_curve_needs_an_accuracy_for_each_eps():
    eps = [0.0, 2 / 255, 8 / 255]
    assert opened(p.curve(eps, {"madry": [0.8, 0.6, 0.3], "plain": [0.9, 0.1, 0.0]}, images=500)).std() > 0
    assert opened(p.curve([0.0], {"madry": [0.8]}, images=1)).std() > 0
    with pytest.raises(ValueError, match="madry: 2 accuracies for 3 eps"):
        p.curve(eps, {"madry": [0.8, 0.6]}, images=500)


def test_no_figure_stays_behind():
    import matplotlib._pylab_helpers as helpers

    p.curve([0.0, 0.1], {"madry": [0.8, 0.6]}, images=500)
    assert not helpers.Gcf.figs


def test_a_tensor_becomes_a_picture_of_its_pixels(tmp_path):
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    with Records(Toy(str(tmp_path)), Place()) as records:
        path = records.picture(200, "attack/pgd 20", pixels)
        grey = records.picture(200, "grey", torch.tensor([[0.0, 0.5, 1.0]]))
        copy = records.picture(7, "copy", path)
    assert path == tmp_path / "pictures" / "attack-pgd-20-200.png"
    assert (opened(path.read_bytes()) == pixels.permute(1, 2, 0).numpy()).all()
    assert np.asarray(Image.open(grey)).tolist() == [[0, 128, 255]]
    assert copy.read_bytes() == path.read_bytes()


def test_pictures_can_be_left_out(tmp_path):
    run = Toy(str(tmp_path), records=Tracking(wandb="off", progress="off", pictures=False))
    with Records(run, Place()) as records:
        assert records.picture(0, "attack", torch.zeros(1, 4, 4)) is None
    assert not (tmp_path / "pictures").exists()
    assert QUIET.pictures


def test_a_heat_map_shows_square_matrices_and_rates_of_nothing():
    png = p.heat_maps({"found": [[1.0, 0.2], [float("nan"), 1.0]]}, ["a", "b"], "title")
    assert png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="2 names: every panel needs as many rows and columns"):
        p.heat_maps({"found": [[1.0, 0.2]]}, ["a", "b"])
