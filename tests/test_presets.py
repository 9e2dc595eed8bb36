"""The presets are the papers' recipes: their numbers, read off the runs that they load as."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from shipped import RUNS
from torch import Tensor
from torch.testing import assert_close

from robust_train.attacks.fgsm import NFGSM
from robust_train.command import here
from robust_train.engines.division import micro_batch_size
from robust_train.keyed import Key
from robust_train.launch.distill import Distillation
from robust_train.launch.sweep import Sweep
from robust_train.models.network import Network
from robust_train.nouns import Batch, State, at
from robust_train.ownership import FREE
from robust_train.read.parse import difference
from robust_train.run import Run
from robust_train.threats.l1 import L1

CONFIGS = Path(__file__).parent.parent / "configs"
ALL = {str(path.relative_to(CONFIGS))[: -len(".yaml")]: path for path in sorted(CONFIGS.glob("*/*.yaml"))}
PRESETS = sorted(name for name, path in ALL.items() if path in RUNS)
DEBUG = [name for name in PRESETS if name.startswith("debug/")]
TINY = [name for name in PRESETS if name.startswith("tinyimagenet/")]
IMAGES = {"imagenet": 1_281_167, "cifar": 50_000}

EPOCHS = {
    "imagenet/xcit-s12-light": 100,
    "imagenet/vit-s16-light": 100,
    "imagenet/vit-b16-regvit": 300,
    "imagenet/vit-b16-pyramid": 300,
    "imagenet/convnext-t-convstem-clean": 100,
    "imagenet/convnext-t-convstem": 300,
    "imagenet/vit-s-convstem-clean": 100,
    "imagenet/vit-s-convstem": 300,
    "imagenet/resnet50-linf4": 90,
    "imagenet/resnet50-l2-3": 90,
    "cifar/rn18-rice": 200,
    "cifar/rn18-fastat": 100,
    "cifar/rn18-fastat-nfgsm": 100,
    "cifar/rn18-interpolated": 200,
    "cifar/rn18-interpolated-manifold": 200,
    "cifar/wrn28-10-interpolated": 200,
    "cifar/wrn28-10-interpolated-manifold": 200,
    "cifar/rn18-generalized": 50,
    "cifar/rn18-generalized-maximum": 50,
    "cifar/rn18-generalized-average": 50,
    "cifar/rn18-generalized-sample": 80,
    "cifar/rn18-trades": 76,
    "cifar/wrn34-10-trades": 76,
    "cifar/rn18-mart": 120,
    "cifar/rn18-awp": 200,
    "cifar/wrn34-10-trades-awp": 200,
    "cifar/wrn34-10-free8": 205,
    "cifar/rn18-grad-align": 30,
    "cifar/gallery": 100,
    "cifar/wrn34-10-ikl": 200,
    "cifar/rn18-infoat": 120,
    "cifar/rn18-infoat-shuffled": 120,
    "cifar/rn18-weight-adversary": 30,
    "cifar/small": 10,
    "cifar/small-plain": 10,
}

PARAMETERS = {  # as published, or by timm's table; the stems by hand, below
    "imagenet/vit-s16-light": 22_050_664,
    "imagenet/vit-b16-pyramid": 86_567_656,
    "imagenet/resnet50-linf4": 25_557_032,
    "cifar/rn18-rice": 11_172_170,
    "cifar/wrn28-10-interpolated": 36_479_194,
    "cifar/wrn34-10-trades": 46_160_474,
    "cifar/small": 308_266,
}
CONVNEXT_T = 28_589_128


@cache
def preset(name: str) -> Run:
    return Run.load(CONFIGS / f"{name}.yaml")


@cache
def built(name: str) -> Network:
    run = preset(name)
    with torch.device("meta"):
        return run.network.build(run.data.classes, run.data.shape, run.precision, run.batch)


def parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in built(name).parameters())


def rate(run: Run, epoch: float) -> float:
    """The learning rate at an epoch's start."""
    update = round(epoch * (IMAGES["imagenet" if run.data.classes == 1000 else "cifar"] // run.batch))
    return at(run.optimiser.lr, update, run.updates)


def objective_at(run: Run, epoch: float):
    return at(run.objective, round(epoch * (IMAGES["imagenet"] // run.batch)), run.updates)


def rising(images: Tensor) -> Tensor:
    """Two logits; towards class 1, every pixel falls, and away from class 1, every pixel rises."""
    return torch.stack([images.flatten(1).sum(1), -images.flatten(1).sum(1)], 1)


# -- all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_head_of_a_preset_says_its_source_what_was_published_and_what_was_reached(name: str) -> None:
    head = []
    for line in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    for said in ("source", "published", "reached"):
        assert sum(line.startswith(f"# {said}: ") and len(line) > len(said) + 4 for line in head) == 1, said


def test_no_two_presets_share_a_name_or_a_folder() -> None:
    for said in ("name", "folder"):
        values = [getattr(preset(name), said) for name in PRESETS]
        assert len(set(values)) == len(values)


def test_every_preset_on_a_known_data_set_has_its_length_checked() -> None:
    assert sorted(EPOCHS) == [name for name in PRESETS if name.split("/")[0] in IMAGES]


@pytest.mark.parametrize(("name", "epochs"), EPOCHS.items())
def test_updates_are_whole_epochs_of_full_batches(name: str, epochs: int) -> None:
    run = preset(name)
    assert run.updates == epochs * (IMAGES[name.split("/")[0]] // run.batch)


@pytest.mark.parametrize("name", [*EPOCHS, *TINY])
def test_the_paper_s_devices_hold_whole_groups(name: str) -> None:
    world = {"imagenet": 8, "cifar": 2 if "small" in name else 1, "tinyimagenet": 1}[name.split("/")[0]]
    assert preset(name).batch // world % micro_batch_size(preset(name), world) == 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in DEBUG])
def test_every_preset_s_network_has_logits_for_its_classes(name: str) -> None:
    network = built(name)
    width, heads = preset(name).data.classes, ("head.bias", "fc.bias", "head.fc.bias")
    assert [len(p) for n, p in network.model.named_parameters() if n in heads] == [width]


@pytest.mark.parametrize(("name", "published"), PARAMETERS.items())
def test_networks_are_as_large_as_published(name: str, published: int) -> None:
    assert parameters(name) == published


def test_xcit_has_the_26_million_weights_of_its_paper() -> None:
    assert round(parameters("imagenet/xcit-s12-light") / 1e6) == 26


def test_a_convolutional_stem_adds_what_its_layers_hold() -> None:
    def convolution(inside: int, outside: int, side: int) -> int:
        return outside * (inside * side**2 + 1)

    norm, vit = 2, PARAMETERS["imagenet/vit-s16-light"]  # two numbers a channel
    widths = [3, 48, 96, 192, 384]
    stem = sum(convolution(a, b, 3) + norm * b for a, b in pairwise(widths))
    assert parameters("imagenet/vit-s-convstem") == vit - convolution(3, 384, 16) + stem + convolution(384, 384, 1)
    stem = convolution(3, 48, 3) + norm * 48 + convolution(48, 96, 3) + norm * 96
    patches = convolution(3, 96, 4) + norm * 96
    assert parameters("imagenet/convnext-t-convstem") == CONVNEXT_T - patches + stem


# -- the light recipe -------------------------------------------------------------------------------

LIGHT = ["imagenet/xcit-s12-light", "imagenet/vit-s16-light"]


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_recipe_warms_eps_up_over_ten_epochs(name: str) -> None:
    levels = [objective_at(preset(name), epoch).attack.threat.eps * 255 for epoch in (0, 1, 5, 9, 10, 99)]
    assert levels == pytest.approx([0, 0.4, 2.0, 3.6, 4.0, 4.0])


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_recipe_steps_by_the_final_eps_from_the_start(name: str) -> None:
    for epoch in (0, 5, 10, 99):
        attack = objective_at(preset(name), epoch).attack
        assert attack.steps == 1
        assert attack.step_size == pytest.approx(1.5 * (4 / 255) / attack.steps)


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_recipe_has_large_decay_little_augmentation_and_pixels_as_they_are(name: str) -> None:
    run = preset(name)
    assert (run.optimiser.name, run.optimiser.weight_decay, run.optimiser.decay_all) == ("adamw", 0.5, False)
    assert (run.data.augment.use, run.data.augment.jitter, run.mixing) == ("inception", 0.4, None)
    assert (run.objective.smoothing, run.objective.cost()) == (0.1, 2 * 1 + 3)
    assert (run.network.mean, run.network.std) == ((0.0,), (1.0,))
    assert [rate(run, epoch) for epoch in (0, 10, 55, 100)] == pytest.approx([1e-6, 5e-4, (5e-4 + 1e-5) / 2, 1e-5])


# -- PyramidAT --------------------------------------------------------------------------------------


def test_pyramid_at_costs_2k_plus_6() -> None:
    assert preset("imagenet/vit-b16-pyramid").objective.cost() == 2 * 5 + 6
    assert preset("imagenet/vit-b16-regvit").objective.cost() == 3


@pytest.mark.parametrize(("steps", "levels"), [(1, 31 / 2), (5, 155 / 2)])
def test_pyramid_at_moves_a_pixel_by_half_of_what_it_does_in_minus_one_to_one(steps: int, levels: float) -> None:
    """31/255 a step and 155/255 in all, for images in [-1, 1]: eps 6/255 never binds."""
    attack = replace(preset("imagenet/vit-b16-pyramid").objective.attack, steps=steps, targets="label")
    images = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64)
    moved = (attack(rising, images, torch.ones(2).long(), Key(0)) - images) * 255
    assert_close(moved, torch.full_like(moved, levels))


def test_pyramid_at_and_its_contrast_differ_in_the_objective_alone() -> None:
    changed = difference(preset("imagenet/vit-b16-regvit"), preset("imagenet/vit-b16-pyramid"))
    assert {line.split(":")[0].split(".")[0] for line in changed} == {"name", "folder", "objective"}
    for name in ("regvit", "pyramid"):
        assert preset(f"imagenet/vit-b16-{name}").objective.loss == "sigmoid"


def test_pyramid_at_attacks_towards_a_random_class_under_the_update_s_masks() -> None:
    attack = preset("imagenet/vit-b16-pyramid").objective.attack
    assert (attack.start, attack.targets, attack.drops) == ("zero", "random", "frozen")
    assert (attack.threat.levels, attack.threat.multipliers) == ((32, 16, 1), (20, 10, 1))


def test_regvit_begins_at_the_prior_of_a_thousand_classes() -> None:
    """Head weights 0 and biases -6.9 = -ln 1000, so that every class begins at 1/1000."""
    run = preset("imagenet/vit-b16-regvit")
    slim = replace(
        run.network.model, options={**run.network.model.options, "depth": 1, "embed_dim": 24, "num_heads": 3}
    )
    network = replace(run.network, model=slim).build(1000, (3, 224, 224), "fp32", 32)
    with network.drops(None):
        logits = network(torch.rand(1, 3, 224, 224))
    assert_close(logits, torch.full((1, 1000), -6.9), atol=0.01, rtol=0)


def test_regvit_has_its_dropout_clipping_and_rates() -> None:
    run = preset("imagenet/vit-b16-regvit")
    assert (run.network.model.proj_drop_rate, run.network.model.options["pos_drop_rate"]) == (0.1, 0.1)
    assert (run.network.model.drop_path_rate, run.network.model.attn_drop_rate) == (0.1, None)
    assert (run.optimiser.clip, run.optimiser.weight_decay, run.mixing.alpha) == (1.0, 0.1, 0.5)
    assert run.optimiser.decay_all
    assert [at(run.optimiser.lr, update, run.updates) for update in (0, 5000, 10_000)] == [0, 5e-4, 1e-3]
    assert at(run.optimiser.lr, run.updates, run.updates) == pytest.approx(0)


# -- ResNet-50 and convolutional stems --------------------------------------------------------------


@pytest.mark.parametrize(("name", "use", "eps"), [("linf4", "linf", 4 / 255), ("l2-3", "l2", 3.0)])
def test_robust_resnets_step_by_two_thirds_of_eps_and_are_judged_by_two_and_a_half_over_the_steps(
    name: str, use: str, eps: float
) -> None:
    run = preset(f"imagenet/resnet50-{name}")
    for attack in (run.objective.attack, run.validate.attack, run.validate.final):
        assert (attack.threat.use, attack.threat.eps) == (use, pytest.approx(eps))
    assert run.objective.attack.step_size == pytest.approx(eps * 2 / 3)
    assert run.objective.cost() == 2 * 3 + 1 + 3  # one more for the best iterate
    for attack in (run.validate.attack, run.validate.final):
        assert attack.step_size == pytest.approx(2.5 * eps / attack.steps)
    assert run.validate.final.steps == 100
    assert [rate(run, epoch) for epoch in (0, 29, 30, 59, 60, 89)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])


@pytest.mark.parametrize("name", ["convnext-t", "vit-s"])
def test_networks_with_a_stem_begin_at_the_clean_run_of_the_same_network(name: str) -> None:
    clean, robust = preset(f"imagenet/{name}-convstem-clean"), preset(f"imagenet/{name}-convstem")
    assert robust.start == clean.folder
    assert (robust.network, robust.mixing, robust.data) == (clean.network, clean.mixing, clean.data)
    assert (clean.objective.cost(), robust.objective.cost()) == (3, 2 * 2 + 1 + 3)
    assert robust.objective.attack.threat.eps == 4 / 255
    assert [rate(robust, epoch) for epoch in (0, 20, 160, 300)] == pytest.approx([1e-7, 1e-3, (1e-3 + 5e-6) / 2, 5e-6])


# -- simulated V1 -----------------------------------------------------------------------------------

V1_EPOCHS = {"v1/voneresnet50": 70, "v1/evnet-resnet50": 50}
STUDY = ["v1/tinyimagenet", "v1/imagenet"]


@cache
def study(name: str) -> dict[str, Run]:
    """The runs of the first seed of a sweep, by their names: the variants, and the controls' other members."""
    sweep = replace(Sweep.load(CONFIGS / f"{name}-sweep.yaml"), seeds=(0,))
    return {run.name: run for run in sweep.runs().values()}


@pytest.mark.parametrize("name", STUDY)
def test_the_study_has_eight_variants_of_512_cells_and_three_seeds(name: str) -> None:
    assert Sweep.load(CONFIGS / f"{name}-sweep.yaml").seeds == (0, 1, 2)
    variants = Distillation.load(CONFIGS / f"{name}-distill.yaml").roles.members
    fronts = {title: study(name)[title].network.edits[0] for title in variants}
    assert len(fronts) == len(set(fronts.values())) == 8
    assert {front.simple + front.complex for front in fronts.values()} == {512}
    assert len({front.seed for front in fronts.values()}) == 1  # the cells differ by what is said of them only
    assert (fronts["only-simple"].complex, fronts["only-complex"].simple) == (0, 0)
    assert (fronts["no-noise"].noise, fronts["high-noise"].noise_factor) == (None, 2)


@pytest.mark.parametrize("name", STUDY)
def test_the_controls_are_as_large_as_the_ensemble_and_see_maps_of_its_size(name: str) -> None:
    found = Distillation.load(CONFIGS / f"{name}-distill.yaml")
    assert {len(one.members) for one in found.ensembles.values()} == {8}
    plain, standard = study(name)["plain-7"], study(name)["standard-7"]
    assert standard.network == study(name)["standard-0"].network
    own = (
        plain.network.edits[0].step if plain.network.edits else 4
    )  # ResNet-50's stem: a convolution and a pooling by two
    assert own == standard.network.edits[0].step
    students = [run for title, run in found.taught().items() if title.startswith("seed0/")]
    assert {run.seed for run in students} == {study(name)["standard-0"].seed}
    assert {found.cost(pupil) for pupil in found.students.values()} == {8 + 3}


@pytest.mark.parametrize("name", STUDY)
def test_the_three_bands_of_a_study_are_whole_bins_that_meet_and_lie_in_the_standard_one(name: str) -> None:
    fronts = [study(name)[title].network.edits[0] for title in ("low-sf", "mid-sf", "high-sf")]
    for front in fronts:
        cells = front.cells.frequency
        assert front.sf_min <= cells.min() < front.sf_min * 1.1
        assert front.sf_max / 1.1 < cells.max() <= front.sf_max
    assert [front.sf_min for front in fronts[1:]] == [front.sf_max for front in fronts[:-1]]
    assert fronts[-1].sf_max <= study(name)["standard-0"].network.edits[0].sf_max


def test_the_study_on_tiny_imagenet_has_the_published_geometry_and_training() -> None:
    run = study("v1/tinyimagenet")["standard-0"]
    front = run.network.edits[0]
    assert (run.data.size, front.visual_degrees, front.ksize, front.stride, front.k_exc) == (64, 2, 25, 2, 23.5)
    assert (front.noise_scale, front.noise_level, front.relu_after, front.sf_max) == (0.286, 0.071, False, 11.3)
    assert (run.batch, run.updates, run.optimiser.weight_decay) == (128, 60 * (100_000 // 128), 5e-4)
    epochs = [at(run.optimiser.lr, epoch * 781, run.updates) for epoch in (0, 29, 30, 44, 45, 59)]
    assert epochs == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    bank, width = 512 * 64, 64
    resnet18 = 11_689_512 - 1000 * 513 + 200 * 513  # by timm's table, with another head
    assert parameters("v1/tinyimagenet-member") == resnet18 - (width * 7 * 7 * 3 + 2 * width) + bank


def test_the_study_on_imagenet_is_of_voneresnet50() -> None:
    changed = difference(preset("v1/voneresnet50"), preset("v1/imagenet-member"))
    assert {line.split(":")[0].split(".")[0] for line in changed} <= {"precision", "validate", "folder", *FREE}


@pytest.mark.parametrize(("name", "epochs"), V1_EPOCHS.items())
def test_networks_behind_v1_train_for_whole_epochs_of_256_imagenet_images(name: str, epochs: int) -> None:
    run = preset(name)
    assert (run.batch, run.updates) == (256, epochs * (IMAGES["imagenet"] // 256))
    assert (run.objective.cost(), run.optimiser.name, run.optimiser.momentum) == (3, "momentum", 0.9)
    assert (run.optimiser.weight_decay, run.data.augment.use, run.data.augment.jitter) == (1e-4, "inception", 0)
    assert micro_batch_size(run, 4) == 64


@pytest.mark.parametrize("name", V1_EPOCHS)
def test_a_bottleneck_from_512_cells_takes_the_place_of_a_resnet_s_stem(name: str) -> None:
    """Off go 64 filters of 7x7x3 and a norm; on comes 1x1 from 512 to 64. The rest of the front end is not trained."""
    assert parameters(name) == PARAMETERS["imagenet/resnet50-linf4"] - (64 * 7 * 7 * 3 + 2 * 64) + 512 * 64


def test_voneresnet50_is_the_published_one() -> None:
    run = preset("v1/voneresnet50")
    front = run.network.edits[0]
    assert (front.visual_degrees, front.ksize, front.stride, front.simple, front.complex) == (8, 25, 4, 256, 256)
    assert (front.noise, front.noise_scale, front.noise_level, front.noise_factor) == ("neuronal", 0.35, 0.07, 1)
    assert (front.sf_max, front.k_exc, front.tables, front.relu_after, front.lgn) == (9, 25, 2020, True, None)
    assert [rate(run, epoch) for epoch in (0, 19, 20, 40, 60)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4])
    assert built("v1/voneresnet50").mean.shape == (1, 1, 1)  # 0.5 for all colours
    assert (front.mean, front.std) == ((0.5,), (0.5,))


def test_evnet_is_the_published_one() -> None:
    """32 pixels a degree; V1 at a Fano factor of 0.93 and the subcortical block at 0.4, each with its noise."""
    run = preset("v1/evnet-resnet50")
    front = run.network.edits[0]
    assert (run.data.size / front.visual_degrees, front.ksize, front.stride, front.sf_max) == (32, 31, 4, 8)
    assert (front.k_exc, front.noise, front.noise_scale, front.noise_level) == (5.3, "neuronal", 1, 0)
    assert front.noise_factor**2 == pytest.approx(0.93)
    assert (front.lgn.fano, front.tables, front.relu_after) == (0.4, 2024, False)
    assert (front.mean, front.std) == ((0.0,), (1.0,))
    assert built("v1/evnet-resnet50").noisy == ["conv1.lgn.noise", "conv1.block.noise"]
    assert (run.objective.smoothing, run.optimiser.clip, run.optimiser.decay_all) == (0.1, 5, False)
    assert [rate(run, epoch) for epoch in (0, 15, 50)] == pytest.approx([0.1 / 25, 0.1, 0.1 / 25 / 1e4])


# -- CIFAR ------------------------------------------------------------------------------------------


def test_rice_s_rate_falls_by_ten_after_100_and_150_epochs() -> None:
    run = preset("cifar/rn18-rice")
    rates = [rate(run, epoch) for epoch in (0, 99, 100, 149, 150, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (run.optimiser.weight_decay, run.optimiser.decay_all) == (5e-4, True)


def test_rice_attacks_with_ten_steps_of_2_255_in_train_mode() -> None:
    attack = preset("cifar/rn18-rice").objective.attack
    assert (attack.steps, attack.step_size, attack.threat.eps) == (10, 2 / 255, 8 / 255)
    assert (attack.norm, attack.start, attack.keep) == ("group", "random", "last")


def test_fastat_smooths_and_averages() -> None:
    run = preset("cifar/rn18-fastat")
    assert (run.objective.smoothing, run.average.decay, run.average.warmup) == (0.4, 0.9995, False)
    assert (run.objective.attack.norm, run.objective.cost()) == ("running", 23)
    assert [rate(run, epoch) for epoch in (0, 30, 100)] == pytest.approx([0.1 / 25, 0.1, 0.1 / 25 / 1e4])


def test_fastat_s_n_fgsm_reaches_three_radii_for_five_forwards() -> None:
    run = preset("cifar/rn18-fastat-nfgsm")
    assert isinstance(run.objective.attack, NFGSM)
    assert run.objective.attack.reach()[0].eps == pytest.approx(24 / 255)
    assert (run.objective.cost(), run.objective.smoothing, run.average.decay) == (5, 0.4, 0.9995)


@pytest.mark.parametrize("network", ["rn18", "wrn28-10"])
def test_interpolated_training_mixes_a_batch_after_seven_steps(network: str) -> None:
    run = preset(f"cifar/{network}-interpolated")
    assert (run.objective.cost(), run.objective.groups(), run.batch) == (2 * 7 + 6, 128, 128)
    assert (run.objective.alpha, run.objective.layers, run.optimiser.weight_decay) == (1.0, "input", 2e-4)
    name = f"cifar/{network}-interpolated-manifold"
    manifold = preset(name)
    assert manifold.objective.alpha == 2.0
    assert set(manifold.objective.layers[1:]) < set(manifold.network.model.stages(built(name).model))


@pytest.mark.parametrize(
    ("join", "cost"),
    [
        ("", 50 * (2 + 3) + 3),  # msd: one gradient and three candidates a step
        ("-maximum", 3 * (2 * 50 + 1 + 1) + 3),
        ("-average", 3 * (2 * 50 + 1 + 3)),
        ("-sample", 2 * 10 + 1 + 3),
    ],
)
def test_generalized_training_costs_what_its_join_says(join: str, cost: float) -> None:
    assert preset(f"cifar/rn18-generalized{join}").objective.cost() == cost


def test_msd_trains_against_three_balls_with_the_paper_s_radii_and_rates() -> None:
    run = preset("cifar/rn18-generalized")
    assert [attack.threat.eps for attack in run.objective.attacks] == [0.03, 0.5, 12]
    assert [attack.step_size for attack in run.objective.attacks] == [0.003, 0.05, 1.0]
    rates = [rate(run, epoch) for epoch in (0, 10, 20, 30, 40, 50)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.0525, 0.005, 0])


def test_msd_s_l1_step_moves_so_many_pixels_by_one_in_all() -> None:
    """Theirs moves k pixels by 0.05 * 20 / k each; ours 12 of them by 1/12."""
    threat = preset("cifar/rn18-generalized").objective.attacks[2].threat
    assert isinstance(threat, L1)
    images = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    gradient = torch.linspace(0.1, 1, 192, dtype=torch.float64).view_as(images)
    moved = threat.step(images, threat.zero(images), gradient, 1.0).flatten()
    assert int((moved != 0).sum()) == 12
    assert_close(moved[-12:], torch.full((12,), 0.05 * 20 / 12, dtype=torch.float64))


@pytest.mark.parametrize("name", ["rn18", "wrn34-10"])
def test_trades_has_the_paper_s_beta_radius_and_last_epochs(name: str) -> None:
    run = preset(f"cifar/{name}-trades")
    assert (run.objective.beta, run.objective.cost()) == (6.0, 2 * 10 + 7)
    attack = run.objective.attack
    assert (attack.threat.eps, attack.step_size, attack.start, attack.norm) == (0.031, 0.007, "noise", "running")
    assert [rate(run, epoch) for epoch in (0, 73, 74, 75)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_the_small_run_takes_one_step_and_its_rate_rises_for_three_epochs() -> None:
    run = preset("cifar/small")
    assert (run.objective.cost(), run.unit(), micro_batch_size(run, 2)) == (5, 64, 64)
    assert [rate(run, epoch) for epoch in (0, 1.5, 3, 6.5, 10)] == pytest.approx([0, 0.1, 0.2, 0.1, 0])
    assert run.validate.images >= 1000


# -- those that run here ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("digits"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEBUG)
def test_a_debug_preset_trains_and_judges_itself(name: str, digits: str, tmp_path: Path) -> None:
    changes = [f"folder={tmp_path}", f"data.folder={digits}", "updates=2", "batch=32", "records.wandb=off"]
    changes += ["validate.every=2", "validate.images=16", "records.progress=off"]
    summary = here(Run.load(CONFIGS / f"{name}.yaml", changes))
    assert summary["updates"] == 2
    assert 0 <= summary["accuracy/clean"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_fresh_small_vit_knows_no_more_than_chance(name: str) -> None:
    """Its loss on clean images, or on slightly attacked ones, is near ln 100."""
    run = preset(name)
    network = run.build(torch.device("cpu")).train()
    images = torch.rand(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(32), torch.arange(32), torch.arange(32))
    loss = run.objective(network, batch, Key(0).at(0).rows(batch.position), State())
    first = loss.metrics.get("loss/clean", loss.total)
    assert float(first.detach()) == pytest.approx(math.log(100), abs=0.5)
    assert loss.total.requires_grad
