"""Hendrycks and Dietterich 2019 (arXiv 1903.12261): the corruptions of ImageNet-C, made on the fly."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import plain_corruptions
import pytest
import torch
from PIL import Image
from scenes import scenes, write_frost

from robust_train.data.corruptions import BENCHMARK, CATEGORIES, NAMES, SEVERITIES, VALIDATION, blur, corrupt, named
from robust_train.data.corruptions.benchmark import parameters
from robust_train.data.corruptions.generate import levels
from robust_train.data.corruptions.spatter import chamfer
from robust_train.keyed import Key
from robust_train.read.errors import ConfigError, DataError

PUBLISHED = {  # the numbers of the generators of the published files, severities 1 to 5, for 224 | 64 | 32 pixels
    "gaussian_noise": ".08 .12 .18 .26 .38 | .04 .08 .12 .15 .18 | .04 .06 .08 .09 .10",
    "shot_noise": "60 25 12 5 3 | 250 100 50 30 15 | 500 250 100 75 50",
    "impulse_noise": ".03 .06 .09 .17 .27 | .01 .02 .05 .08 .14 | .01 .02 .03 .05 .07",
    "defocus_blur": """(3,.1)(4,.5)(6,.5)(8,.5)(10,.5) | (.5,.6)(1,.1)(1.5,.1)(2.5,.01)(3,.1)
        | (.3,.4)(.4,.5)(.5,.6)(1,.2)(1.5,.1)""",
    "glass_blur": """(.7,1,2)(.9,2,1)(1,2,3)(1.1,3,2)(1.5,4,2) | (.1,1,1)(.5,1,1)(.6,1,2)(.7,2,1)(.9,2,2)
        | (.05,1,1)(.25,1,1)(.4,1,1)(.25,1,2)(.4,1,2)""",
    "motion_blur": """(10,3)(15,5)(15,8)(15,12)(20,15) | (10,1)(10,1.5)(10,2)(10,2.5)(12,3)
        | (6,1)(6,1.5)(6,2)(8,2)(9,2.5)""",
    "zoom_blur": """1.11/.01 1.16/.01 1.21/.02 1.26/.02 1.31/.03 | 1.06/.01 1.11/.01 1.16/.01 1.21/.01 1.26/.01
        | 1.06/.01 1.11/.01 1.16/.01 1.21/.01 1.26/.01""",
    "snow": """(.1,.3,3,.5,10,4,.8)(.2,.3,2,.5,12,4,.7)(.55,.3,4,.9,12,8,.7)(.55,.3,4.5,.85,12,8,.65)
        (.55,.3,2.5,.85,12,12,.55)
        | (.1,.2,1,.6,8,3,.8)(.1,.2,1,.5,10,4,.8)(.15,.3,1.75,.55,10,4,.7)(.25,.3,2.25,.6,12,6,.65)
        (.3,.3,1.25,.65,14,12,.6)
        | (.1,.2,1,.6,8,3,.95)(.1,.2,1,.5,10,4,.9)(.15,.3,1.75,.55,10,4,.9)(.25,.3,2.25,.6,12,6,.85)
        (.3,.3,1.25,.65,14,12,.8)""",
    "frost": """(1,.4,1)(.8,.6,1)(.7,.7,1)(.65,.7,1)(.6,.75,1) | (1,.3,.3)(.9,.4,.3)(.8,.45,.3)(.75,.5,.3)(.7,.55,.3)
        | (1,.2,.2)(1,.3,.2)(.9,.4,.2)(.85,.4,.2)(.75,.45,.2)""",
    "fog": """(1.5,2)(2,2)(2.5,1.7)(2.5,1.5)(3,1.4) | (.4,3)(.7,3)(1,2.5)(1.5,2)(2,1.75)
        | (.2,3)(.5,3)(.75,2.5)(1,2)(1.5,1.75)""",
    "brightness": ".1 .2 .3 .4 .5 | .1 .2 .3 .4 .5 | .05 .1 .15 .2 .3",
    "contrast": ".4 .3 .2 .1 .05 | .4 .3 .2 .1 .05 | .75 .5 .4 .3 .15",
    "elastic_transform": """(2,.7,.1)(2,.08,.2)(.05,.01,.02)(.07,.01,.02)(.12,.01,.02)
        | (0,0,.08)(.05,.3,.06)(.1,.08,.06)(.1,.03,.03)(.16,.03,.02)
        | (0,0,.08)(.05,.2,.07)(.08,.06,.06)(.1,.04,.05)(.1,.03,.03)""",
    "pixelate": ".6 .5 .4 .3 .25 | .9 .8 .7 .6 .5 | .95 .9 .85 .75 .65",
    "jpeg_compression": "25 18 15 10 7 | 65 58 50 40 25 | 80 65 58 50 40",
    "speckle_noise": ".15 .2 .35 .45 .6 | .15 .2 .25 .3 .35 | .06 .1 .12 .16 .2",
    "gaussian_blur": "1 2 3 4 6 | .5 .75 1 1.25 1.5 | .4 .6 .7 .8 1",
    "saturate": "(.3,0)(.1,0)(2,0)(5,.1)(20,.2) | (.3,0)(.1,0)(2,0)(5,.1)(30,.2) | (.3,0)(.1,0)(1.5,0)(2,.1)(2.5,.2)",
    "spatter": """(.65,.3,4,.69,.6,0)(.65,.3,3,.68,.6,0)(.65,.3,2,.68,.5,0)(.65,.3,1,.65,1.5,1)(.67,.4,1,.65,1.5,1)
        | (.62,.1,.7,.7,.6,0)(.65,.1,.8,.7,.6,0)(.65,.3,1,.69,.6,0)(.65,.1,.7,.68,.6,1)(.65,.1,.5,.67,.6,1)
        | (.62,.1,.7,.7,.5,0)(.65,.1,.8,.7,.5,0)(.65,.3,1,.69,.5,0)(.65,.1,.7,.69,.6,1)(.65,.1,.5,.68,.6,1)""",
}
SCALE = {224: 244, 64: 64, 32: 32}  # of the elastic transform's numbers; 244 is the generator's own
GROWING = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
)


@pytest.fixture(scope="session")
def frost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frost(tmp_path_factory.mktemp("corruptions") / "frost")


def keyed(*samples: int, seed: int = 3) -> Key:
    return Key(seed).rows(torch.tensor(samples))


def grey_images(value: int, count: int = 4, size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.full((count, channels, size, size), value, dtype=torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_the_published_ones(name):
    for size, text in zip((224, 64, 32), PUBLISHED[name].split("|"), strict=True):
        scale = SCALE[size] if name == "elastic_transform" else 1
        numbers = [scale * float(found) for found in re.findall(r"[\d.]+", text)]
        ours = np.array([parameters(name, size, severity) for severity in SEVERITIES], dtype=float).ravel()
        assert ours.tolist() == pytest.approx(numbers)


@pytest.mark.parametrize(("size", "severities"), [(32, SEVERITIES), (64, (2, 4)), (224, (1, 4))])
@pytest.mark.parametrize("name", NAMES)
def test_every_corruption_is_the_formula_worked_out_by_hand(name, size, severities, frost):
    """Equal in all grey levels; one in 1,000 may fall to the other side of a whole number."""
    images, samples = scenes(size, 2 if size == 32 else 1), (5, 2**40 + 1)
    folder = (frost,) if name == "frost" else ()
    for severity in severities:
        ours = corrupt(images, name, severity, keyed(*samples[: len(images)]), frost).int().numpy()
        for image, sample, made in zip(images.numpy(), samples, ours, strict=False):
            key = keyed(sample).of(name).at(severity)
            plain = getattr(plain_corruptions, name)
            exact = plain(image.transpose(1, 2, 0) / 255, parameters(name, size, severity), key, *folder)
            difference = np.abs(made - levels(exact).astype(int).transpose(2, 0, 1))
            assert difference.mean() <= 1e-3, (name, severity, difference.max())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_in_any_batch(name, frost):
    images = scenes(32, 5)
    samples = torch.tensor([7, 0, 3, 12, 9])
    whole = corrupt(images, name, 4, Key(1).rows(samples), frost)
    order = torch.tensor([3, 0, 4])
    assert torch.equal(corrupt(images[order], name, 4, Key(1).rows(samples[order]), frost), whole[order])
    for row in range(5):
        assert torch.equal(
            corrupt(images[row : row + 1], name, 4, Key(1).rows(samples[row : row + 1]), frost)[0], whole[row]
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_worked_on_in_pieces_is_the_batch(name, frost, monkeypatch):
    images, key = scenes(32, 5), keyed(0, 1, 2, 3, 4)
    whole = corrupt(images, name, 3, key, frost)
    monkeypatch.setattr("robust_train.data.corruptions.generate.VALUES", 2 * images[0].numel())
    assert torch.equal(corrupt(images, name, 3, key, frost), whole)


RANDOM = sorted(
    {*NAMES} - {*CATEGORIES["digital"], "defocus_blur", "zoom_blur", "brightness", "gaussian_blur", "saturate"}
)


@pytest.mark.parametrize("name", [*RANDOM, "elastic_transform"])
def test_the_seed_the_sample_and_the_severity_decide_the_draws(name, frost):
    images = scenes(32, 1).repeat(2, 1, 1, 1)
    drawn = corrupt(images, name, 5, keyed(4, 8), frost)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(corrupt(images, name, 5, keyed(4, 8, seed=9), frost), drawn)
    assert torch.equal(corrupt(images, name, 5, keyed(4, 8), frost), drawn)


def test_two_severities_draw_apart():
    """Else the accuracies at several severities would fall and rise together by one draw's luck."""
    low, high = (corrupt(grey_images(128), "gaussian_noise", s, keyed(0, 1, 2, 3)).double() - 128 for s in (1, 2))
    assert abs(np.corrcoef(low.flatten(), high.flatten())[0, 1]) < 0.02


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_grey_and_coloured_images_keep_shape_and_type_and_are_changed(name, channels, frost):
    images = scenes(32, 2, channels)
    before = images.clone()
    made = corrupt(images, name, 5, keyed(0, 1), frost)
    assert (made.shape, made.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert not torch.equal(made, images)


@pytest.mark.parametrize("name", ["fog", "snow", "frost", "contrast", "zoom_blur", "motion_blur", "spatter"])
def test_a_grey_image_is_corrupted_as_one_with_three_equal_channels(name, frost):
    """What has no colour of its own does to grey what it does to each channel; coloured textures by their luminance."""
    grey = scenes(32, 2, 1)
    coloured = corrupt(grey.expand(-1, 3, -1, -1).contiguous(), name, 4, keyed(0, 1), frost).double()
    luminance = (coloured * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert (corrupt(grey, name, 4, keyed(0, 1), frost) - luminance).abs().max() < (1.01 if name != "frost" else 30)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", GROWING)
def test_the_distance_from_the_clean_image_grows_with_severity(name, size):
    images = scenes(size, 4 if size == 32 else 1)
    key = Key(0).rows(torch.arange(len(images)))
    far = [(corrupt(images, name, s, key).double() - images).pow(2).sum().sqrt().item() for s in SEVERITIES]
    assert all(near < more for near, more in pairwise(far)), far


# -- closed forms -----------------------------------------------------------------------------------


def test_noise_has_the_mean_and_the_spread_it_says():
    """On mid-grey nothing is clipped; cutting fractions off costs half a level. Shot noise has variance x / c."""
    x, samples = 128 / 255, tuple(range(8))
    for name, sigma in (("gaussian_noise", 0.04), ("speckle_noise", 0.15 * x), ("shot_noise", (x / 250) ** 0.5)):
        noise = (corrupt(grey_images(128, 8), name, 1, keyed(*samples)).double() + 0.5) / 255
        assert noise.mean().item() == pytest.approx(x, abs=4 * sigma / noise.numel() ** 0.5)
        assert noise.std().item() == pytest.approx(sigma, rel=0.02)


def test_salt_and_pepper_take_their_share_in_equal_parts():
    made = corrupt(grey_images(128, 8), "impulse_noise", 5, keyed(*range(8)))
    share = 0.14 / 2
    for value in (0, 255):
        assert (made == value).double().mean().item() == pytest.approx(share, abs=4 * (share / made.numel()) ** 0.5)
    assert set(made.unique().tolist()) == {0, 128, 255}


def test_contrast_draws_each_channel_towards_its_mean():
    """Pixels 0, 100, 200 in equal numbers have the mean 100: c = 0.4 makes 60, 100, 140, and c = 0.05 95, 100, 105."""
    image = torch.full((1, 1, 224, 224), 100, dtype=torch.uint8)
    image[..., :74], image[..., -74:] = 0, 200
    for severity, expected in ((1, [60, 100, 140]), (5, [95, 100, 105])):
        assert corrupt(image, "contrast", severity, keyed(0)).unique().tolist() == expected


def test_speckle_is_the_image_plus_a_share_of_it():
    """With n = 1 and c = 0.15 the levels 0, 100, 200 become 0, 115, 230: whole numbers are not cut to the one below."""
    x = np.array([0, 100, 200]) / 255
    assert levels(x + x * 1 * 0.15).tolist() == [0, 115, 230]
    assert levels(x * 1.15).tolist() == [0, 115, 230]


def test_images_that_a_blur_cannot_change_stay_as_they_are():
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "elastic_transform"):
        for value in (1, 100, 254):
            image = grey_images(value, 1)
            assert torch.equal(corrupt(image, name, 5, keyed(0)), image), name


def test_the_zoom_factors_are_as_many_as_in_the_published_files(monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(blur, "enlarged", lambda x, factor: seen.append(factor) or x)
    for size, expected in ((224, (12, 16, 11, 13, 11)), (64, (7, 12, 16, 21, 26)), (32, (7, 12, 16, 21, 26))):
        for severity, count in zip(SEVERITIES, expected, strict=True):
            seen.clear()
            corrupt(grey_images(9, 1, size), "zoom_blur", severity, keyed(0))
            assert len(seen) == count
            assert seen[0] == 1


def test_the_coarsest_pixels_at_224_are_blocks_of_four():
    image = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = corrupt(image, "pixelate", 5, keyed(0)).view(3, 56, 4, 56, 4).double()
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    means = image.view(3, 56, 4, 56, 4).double().mean((2, 4))
    assert (blocks[:, :, 0, :, 0] - means).abs().max() <= 1  # Pillow rounds after each of its two passes


def test_motion_draws_a_point_out_to_one_side_only():
    """A point to the right of which nothing lit lies: the pixels from which the line reaches it lie on its left."""
    image = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    image[..., 16, 16] = 255
    lit = corrupt(image, "motion_blur", 5, keyed(0))[0, 0].nonzero()
    assert len(lit) > 5
    assert lit[:, 1].max() == 16


@pytest.mark.parametrize("name", ["motion_blur", "snow"])
def test_imagemagick_cuts_grey_levels_off_and_its_hdri_builds_round_them(name):
    """A cut lies half a level lower in the mean; of snow's two layers each, where it lies at all."""
    images = scenes(64, 4)
    cut, rounded = (corrupt(images, name, 3, keyed(0, 1, 2, 3), hdri=hdri).int() for hdri in (False, True))
    difference = (rounded - cut).double()
    assert set(difference.unique().tolist()) <= ({0, 1} if name == "motion_blur" else {0, 1, 2})
    assert 0.45 < float(difference.mean()) < 0.55 if name == "motion_blur" else 0 < float(difference.mean()) < 1


def test_distances_of_spatter_are_by_straight_diagonal_and_knights_moves():
    """From one edge: Borgefors' 5 x 5 chamfer in closed form, within 2 % of Euclid's, and 20 beyond."""
    edges = np.zeros((41, 51), dtype=bool)
    edges[20, 25] = True
    i, j = np.abs(np.arange(41) - 20)[:, None], np.abs(np.arange(51) - 25)
    closed = plain_corruptions.chamfer(np.minimum(i, j), np.maximum(i, j)).clip(0, 20)
    assert np.abs(chamfer(edges, 20) - closed).max() < 1e-12
    near = (closed < 20) & (closed > 0)
    assert np.abs(closed / np.where(near, np.hypot(i, j), 1) - 1)[near].max() < 0.021
    assert (chamfer(np.zeros((4, 4), dtype=bool), 20) == 20).all()


def test_snow_is_the_same_when_turned_by_half_a_turn():
    """On a black image it is whitening, which is constant, and a layer with its rotation."""
    snow = corrupt(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "snow", 3, keyed(0))
    assert torch.equal(snow, snow.flip(2, 3))
    assert len(snow.unique()) > 5


def test_black_has_no_hue_to_brighten_and_grey_none_to_saturate():
    black = corrupt(grey_images(0, 1, 32), "brightness", 5, keyed(0))
    assert (black == int(0.3 * 255)).all()
    red = corrupt(grey_images(200, 1, 32), "saturate", 5, keyed(0))[0, :, 0, 0]
    assert red.tolist() == [200, 160, 160]  # V (1, 1 - S, 1 - S) with S = 0.2


# -- names, sizes, textures -------------------------------------------------------------------------


def test_corruptions_are_named_alone_by_category_or_all_together():
    assert len(BENCHMARK) == 15
    assert named("all") == BENCHMARK
    assert named("validation") == VALIDATION
    assert named("fog, noise,gaussian_noise") == (*CATEGORIES["noise"], "fog")
    with pytest.raises(ConfigError, match="'snoww' is no corruption; did you mean 'snow'"):
        named("fog,snoww")
    with pytest.raises(ConfigError, match="did you mean 'gaussian_noise'"):
        corrupt(scenes(32), "gausian_noise", 1, Key(0))


def test_what_is_not_defined_is_refused():
    with pytest.raises(ConfigError, match=r"224, 64 and 32 pixels, not of 28"):
        corrupt(scenes(28), "fog", 1, Key(0))
    with pytest.raises(ConfigError, match="severity=6 of fog"):
        corrupt(scenes(32), "fog", 6, Key(0))
    with pytest.raises(ValueError, match="not uint8"):
        corrupt(scenes(32) / 255, "fog", 1, Key(0))
    with pytest.raises(ValueError, match="2 rows, but 3 images"):
        corrupt(scenes(32, 3), "fog", 1, keyed(0, 1))
    assert corrupt(scenes(32)[:0], "fog", 1, keyed()).shape == (0, 3, 32, 32)


def test_missing_and_damaged_textures_are_named(tmp_path):
    with pytest.raises(ConfigError, match="frost needs textures: name a folder"):
        corrupt(scenes(32), "frost", 1, Key(0))
    with pytest.raises(DataError, match="holds no frost"):
        corrupt(scenes(32), "frost", 1, Key(0), tmp_path)
    folder = write_frost(tmp_path / "small")
    for path in folder.iterdir():
        Image.new("RGB", (200, 240)).save(path)
    with pytest.raises(DataError, match="200x240 pixels at scale 1, too few for images of 224: put a larger picture"):
        corrupt(scenes(224), "frost", 1, Key(0), folder)
    other = write_frost(tmp_path / "damaged")
    for path in other.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        corrupt(scenes(32), "frost", 1, Key(0), other)
