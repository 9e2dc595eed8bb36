"""What augmentations do to an image, and that the image's seed decides it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from robust_train.data.augment import MEAN, AffineFlip, CropFlip, Heavy, Inception, NoAugmentation
from robust_train.data.decode import Undecodable, decode, fit, pixels
from robust_train.data.loader import generators_restored, seed_generators
from robust_train.keyed import Key
from robust_train.read.registry import augmentations


def photograph(width=40, height=30, channels=3, seed=0) -> Image.Image:
    """Smooth random colours."""
    drawn = np.random.default_rng(seed).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    image = Image.fromarray(drawn if channels == 3 else drawn[:, :, 0])
    return image.resize((width, height), Image.Resampling.BICUBIC)


def shown(augmentation, image, seed, size=16, channels=3) -> torch.Tensor:
    with generators_restored():
        seed_generators(Key(seed).seed if seed < 2**20 else seed)
        return augmentation.build(size, channels, 0.875)(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("use", augmentations)
def test_every_augmentation_is_decided_by_its_seed(use, channels):
    augmentation, image = augmentations[use](), photograph(channels=channels)
    first = [shown(augmentation, image, seed, channels=channels) for seed in range(12)]
    again = [shown(augmentation, image, seed, channels=channels) for seed in range(12)]
    assert all(a.shape == (channels, 16, 16) and a.dtype == torch.uint8 for a in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    different = len({a.numpy().tobytes() for a in first})
    assert different == 1 if use == "none" else different > 9


def test_seeds_have_64_bits():
    low, high = shown(CropFlip(), photograph(), 2**62 + 1), shown(CropFlip(), photograph(), 2**61 + 1)
    assert not torch.equal(low, high)


def test_an_image_of_the_right_size_is_left_alone():
    image = photograph(16, 16)
    assert torch.equal(shown(NoAugmentation(), image, 0), pixels(image))


def test_evaluation_resizes_the_short_side_and_cuts_out_the_middle():
    """Left half black, right half white: the middle cut shows the edge in its middle. 224 of 256 is a crop of 0.875."""
    wide = np.zeros((30, 90, 3), dtype=np.uint8)
    wide[:, 45:] = 255
    for image in (Image.fromarray(wide), Image.fromarray(wide.transpose(1, 0, 2).copy())):
        cut = pixels(fit(image, 14, 0.875))[0].float()
        cut = cut if image.width > image.height else cut.T
        assert cut.shape == (14, 14)
        assert cut[:, :5].max() == 0
        assert cut[:, 9:].min() == 255
        assert torch.equal(cut, 255 - cut.flip(1))
    whole = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0))
    cut = pixels(fit(whole, 224, 0.875))[0]
    assert torch.equal(cut, torch.arange(16, 240, dtype=torch.uint8).expand(224, 224))


def test_crop_and_flip_reach_every_shift_and_mirror_and_nothing_else():
    """Of a 3x3 image padded by 1: 3 x 3 shifts, each mirrored or not."""
    image = Image.fromarray(np.arange(1, 10, dtype=np.uint8).reshape(3, 3))
    padded = torch.nn.functional.pad(pixels(image), [1] * 4)
    cuts = [padded[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
    allowed = {cut.numpy().tobytes() for cut in cuts} | {cut.flip(2).contiguous().numpy().tobytes() for cut in cuts}
    met = [shown(CropFlip(pad=1), image, seed, 3, 1).contiguous().numpy().tobytes() for seed in range(400)]
    assert len(allowed) == 18
    assert set(met) == allowed
    counts = np.array([met.count(one) for one in allowed])
    assert counts.max() < 400 / 18 + 5 * (400 / 18) ** 0.5


def test_without_flips_nothing_is_mirrored():
    image = Image.fromarray(np.tile(np.arange(1, 9, dtype=np.uint8), (8, 1)))
    for seed in range(50):
        rows = shown(CropFlip(pad=2, flip=0), image, seed, 8, 1)[0].int()
        inside = rows[rows.sum(1) > 0]
        assert (inside[:, 2:6].diff(dim=1) == 1).all()


def test_an_affine_augmentation_turns_shifts_and_enlarges_as_far_as_it_says():
    """A white disc on black: turned it stays, shifted its centre moves, enlarged its area grows by the square."""
    y, x = np.mgrid[:33, :33] - 16
    disc = Image.fromarray(((y**2 + x**2 < 49) * 255).astype(np.uint8))
    plain = pixels(disc)[0].float()
    still = {"degrees": 0.0, "shift": 0.0, "scale": (1.0, 1.0), "flip": 0.0}

    def drawn(seed: int, **changes):
        return shown(AffineFlip(**{**still, **changes}), disc, seed, 33, 1)[0].float()

    assert torch.equal(drawn(0), plain)
    turned = torch.stack([drawn(seed, degrees=30.0) for seed in range(8)])
    assert ((turned > 127).sum((1, 2)) - (plain > 127).sum()).abs().max() <= 8
    grown = [float((drawn(seed, scale=(1.0, 1.2)) > 127).sum() / (plain > 127).sum()) for seed in range(40)]
    assert 0.97 < min(grown) < 1.1
    assert 1.3 < max(grown) < 1.5
    places = [(drawn(seed, shift=0.1) > 127).nonzero().float().mean(0) - 16 for seed in range(60)]
    assert 2.5 < torch.stack(places).abs().max() <= 3.5
    ramp = Image.fromarray(np.tile(np.arange(1, 9, dtype=np.uint8), (8, 1)))
    mirrored = shown(AffineFlip(**{**still, "flip": 1.0}), ramp, 0, 8, 1)
    assert torch.equal(mirrored, pixels(ramp).flip(2))


def test_the_whole_image_as_crop_is_a_plain_resize():
    image = photograph(32, 32)
    plain = Inception(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, interpolation="bilinear")
    assert torch.equal(shown(plain, image, 3), pixels(image.resize((16, 16), Image.Resampling.BILINEAR)))


def test_a_random_resized_crop_is_a_part_of_the_image():
    """Red grows to the right and green downwards: a crop shows ascending ramps within the image's range."""
    ramp = np.zeros((64, 64, 3), dtype=np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(64) * 3, np.arange(64)[:, None] * 3
    areas = []
    for seed in range(100):
        cut = shown(Inception(flip=0, jitter=0, interpolation="bilinear"), Image.fromarray(ramp), seed).float() / 3
        across, down = cut[0].mean(0), cut[1].mean(1)
        assert (across.diff() > 0).all()
        assert (down.diff() > 0).all()
        areas.append(float((across[-1] - across[0]) * (down[-1] - down[0])) * (16 / 15) ** 2 / 64**2)
    assert min(areas) > 0.05
    assert max(areas) < 1.05
    assert 0.4 < np.mean(areas) < 0.65  # uniform on [0.08, 1], of which the largest with odd ratios do not fit


def test_jitter_changes_colours_and_no_places():
    flat = Image.new("RGB", (16, 16), (90, 120, 60))
    met = [shown(Inception(jitter=0.4), flat, seed) for seed in range(40)]
    assert all((image == image[:, :1, :1]).all() for image in met)
    green = torch.stack([image[1, 0, 0] for image in met]).float()
    assert 120 * 0.5 < green.min() < 110 < 130 < green.max() < 120 * 1.7


def test_erasing_changes_one_rectangle_of_the_stated_area():
    image, size = photograph(64, 64), 32
    plain = Heavy(policy="rand-m1-n0", fill="mean")  # no operation of RandAugment: some fill with the same mean
    for seed in range(20):
        kept, erased = (shown(replace(plain, erasing=p), image, seed, size) for p in (0.0, 1.0))
        rows, columns = torch.nonzero((kept != erased).any(0), as_tuple=True)
        box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
        mean = (torch.tensor(MEAN) * 255).round().view(3, 1, 1)
        assert (box == mean).all()
        assert 0.01 < box[0].numel() / size**2 < 0.35


def test_randaugment_does_more_than_the_basic_recipe():
    image = photograph(16, 16)
    basic = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0}
    still = Inception(**basic)
    moving = Heavy(**basic, erasing=0.0)
    assert len({shown(still, image, seed).numpy().tobytes() for seed in range(20)}) <= 2  # two interpolations
    assert len({shown(moving, image, seed).numpy().tobytes() for seed in range(20)}) > 12


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CropFlip, {"flip": 1.5}),
        (CropFlip, {"pad": -1}),
        (AffineFlip, {"degrees": -1.0}),
        (AffineFlip, {"shift": 1.5}),
        (AffineFlip, {"scale": (1.2, 1.0)}),
        (Inception, {"scale": (0.0, 1.0)}),
        (Inception, {"ratio": (2.0, 1.0)}),
        (Inception, {"jitter": -0.1}),
        (Heavy, {"erasing": 2.0}),
        (Heavy, {"policy": "augmix-m3"}),
    ],
)
def test_augmentations_out_of_range_are_refused(kind, fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        kind(**fields)


def test_grey_and_transparent_files_become_the_channels_asked_for():
    colours = {"L": 100, "RGBA": (100, 100, 100, 255), "P": 1, "LA": (100, 255), "CMYK": (0, 0, 0, 9)}
    for mode, colour in colours.items():
        file = io.BytesIO()
        Image.new(mode, (4, 4), colour).save(file, "tiff")
        for channels in (1, 3):
            assert pixels(decode(file.getvalue(), channels)).shape == (channels, 4, 4)
    with pytest.raises(Undecodable):
        decode(b"", 3)
