"""A panel: many networks under corruptions at once are judged as each would be alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robust_train import checkpoint
from robust_train.data.digits import Digits
from robust_train.evaluate import corruption_work, panel
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.corruption_work import Course
from robust_train.evaluate.corruptions import corrupted
from robust_train.evaluate.panel import Entry, Panel, judged_panel
from robust_train.evaluate.work import evaluate, work
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.blueprint import Blueprint, Recipe
from robust_train.models.ensemble import Ensemble
from robust_train.nouns import Dataset, Place
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import load_tree, parse
from robust_train.trained import network_of, put

CNN = "model: {use: small-cnn, widths: [4, 8], strides: [2, 2]}"
V1 = """edits:
- {use: v1, visual_degrees: 1, ksize: 7, stride: 4, simple: 4, complex: 4, sf_max: 11.3, noise_scale: 2}
model: {use: small-resnet, widths: [8, 8]}"""
COURSE = Course(("contrast", "brightness"), chunk=16, images=40)
PIECES = 3 * 11  # chunks of 16, 16 and 8; clean and two corruptions at five severities


def written(folder: Path, digits: Path, seed: int, network: str) -> None:
    """A run's folder with one checkpoint: random weights, the last layer fitted to 100 images by least squares."""
    torch.manual_seed(seed)
    blueprint = parse(Blueprint, load_tree(network))
    made = blueprint.build(10, (1, 32, 32), "fp32", 16).eval()
    data = Digits(str(digits))
    data.prepare()
    batch = next(iter(data.validation_batches(Place(), 100))).to("cpu")
    with torch.no_grad():
        last = made.features(batch.images, ["flatten"])["flatten"]
        wanted = torch.nn.functional.one_hot(batch.targets, 10).float()
        found = torch.linalg.lstsq(last.T @ last + 1e-3 * torch.eye(last.shape[1]), last.T @ wanted).solution
        made.model.head.weight.copy_(found.T)
    recipe = Recipe.of(blueprint, made, (1, 32, 32))
    put(folder / "checkpoints/00000001", recipe, made.model.state_dict(), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Path:
    """Runs a, b and c, and the noisy ones d and e."""
    folder = tmp_path_factory.mktemp("panel")
    with torch.random.fork_rng():
        for seed, name in enumerate("abcde"):
            written(folder / name, small_run.parent / "digits", seed, CNN if name in "abc" else V1)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> dict[str, str]:
    """Copies of the runs' folders, by name."""
    return {name: str(shutil.copytree(made / name, tmp_path / name)) for name in "abcde"}


@pytest.fixture
def data(small_run: Path) -> Dataset:
    found = Digits(str(small_run.parent / "digits"))
    found.prepare()
    return found


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run whose network each forward from now on is of, one after the other."""
    seen: list[str] = []

    def counted(path, device):
        network = network_of(path, device)
        network.register_forward_hook(lambda *_: seen.append(Path(path).parent.parent.name))
        return network

    monkeypatch.setattr(panel, "network_of", counted)
    return seen


def verdicts(entries: list[Entry], data: Dataset, course: Course = COURSE, deal=None) -> dict:
    """Of each entry by its name: its verdicts on each cell."""
    sitting = Panel(tuple(entries)).on(data)
    wide = replace(course, voices=sitting.voices)
    found = evaluate(wide, sitting.networks(), data, deal=deal and deal(sitting))
    return {
        entry.name: {cell: found[f"{entry.name}/{cell}"]["right"] for cell in ("clean", *course.cells)}
        for entry in entries
    }


def alone(network, data: Dataset) -> dict:
    """The verdicts on a network that is no part of a panel."""
    found = evaluate(COURSE, {"": network}, data)
    return {cell: found[cell]["right"] for cell in ("clean", *COURSE.cells)}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[at], other[at]) for at in one)


# -- the same as alone --------------------------------------------------------------------------------


def test_a_network_is_judged_as_it_is_alone(runs, data):
    found = verdicts([Entry("first", (runs["a"],)), Entry("second", (runs["b"],))], data)
    for name, run in (("first", "a"), ("second", "b")):
        assert equal(found[name], alone(network_of(runs[run]), data))
    assert len(found["first"]) == 11
    assert not equal(found["first"], found["second"])


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.3)])
def test_an_ensemble_of_networks_is_judged_as_the_ensemble_is_alone(runs, data, mean, weights):
    members = tuple(runs[name] for name in "abc")
    found = verdicts([Entry("together", members, mean, weights), Entry("a", members[:1])], data)
    together = Ensemble([network_of(path) for path in members], mean, weights)
    assert equal(found["together"], alone(together, data))
    assert not equal(found["together"], found["a"])


def test_an_ensemble_is_made_of_the_answers_that_its_members_are_judged_by(runs, data):
    """Noise too: of a checkpoint it is the stream of the name that the panel gives it, whatever else is judged."""
    entries = [Entry("d", (runs["d"],)), Entry("both", (runs["d"], runs["e"])), Entry("a", (runs["a"],))]
    found = verdicts(entries, data)
    key, members = Key(0), [network_of(runs[name]) for name in "de"]
    first, both = [], []
    for raw in data.validation_batches(Place(), 16, 40):
        batch = corrupted(raw.to("cpu"), "contrast", 2, key)
        answers = []
        for network, name in zip(members, ("d", "both/1"), strict=True):
            with torch.no_grad(), judged(network, key.of("verdict").of(name).rows(batch.sample)):
                answers.append(network(batch.images))
        first.append(correct(answers[0], batch.targets).bool())
        both.append(correct(torch.stack(answers).mean(0), batch.targets).bool())
    assert torch.equal(found["d"]["contrast/2"], torch.cat(first))
    assert torch.equal(found["both"]["contrast/2"], torch.cat(both))
    assert equal(verdicts(entries[:1], data)["d"], found["d"])
    assert not equal(verdicts([Entry("other", (runs["d"],))], data)["other"], found["d"]), "other noise"
    moved = shutil.copytree(runs["d"], Path(runs["d"]).parent / "elsewhere")
    assert equal(verdicts([Entry("d", (str(moved),))], data)["d"], found["d"])


def test_two_places_do_together_what_one_does(runs, data):
    entries = [Entry("d", (runs["d"],)), Entry("both", (runs["a"], runs["d"]), "probabilities")]

    def deal(sitting):
        def halves(task, jobs):
            for rank in (1, 0):
                yield from work(sitting.networks(), data, task, jobs[rank::2], "cpu")

        return halves

    whole, halves = verdicts(entries, data), verdicts(entries, data, deal=deal)
    assert all(equal(halves[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.cluster
def test_two_devices_of_a_ray_cluster_judge_as_one_process(local_ray, runs, data, tmp_path):
    from robust_train.launch.deal import dealt

    entries = Panel((Entry("d", (runs["d"],)), Entry("both", (runs["a"], runs["d"]))))
    one = judged_panel(entries, data, COURSE, tmp_path / "one")
    assert judged_panel(entries, data, COURSE, tmp_path / "two", deal=lambda s: dealt(s, devices=2, gpu=False)) == one


# -- the cost, and what is kept -------------------------------------------------------------------------


def test_every_checkpoint_runs_once_a_piece_and_every_image_is_corrupted_once(runs, data, forwards, monkeypatch):
    made = []
    monkeypatch.setattr(
        corruption_work, "corrupted", lambda batch, *cell: made.append(cell[:2]) or corrupted(batch, *cell)
    )
    each = [Entry(name, (runs[name],)) for name in "ab"]
    several = [Entry("abc", tuple(runs[name] for name in "abc")), Entry("ba", (runs["b"], runs["a"]), "probabilities")]
    verdicts([*each, *several], data)
    assert {name: forwards.count(name) for name in "abc"} == dict.fromkeys("abc", PIECES)
    assert len(made) == PIECES - 3, "clean images are not corrupted"


def test_killed_anywhere_it_goes_on_to_the_same_figures(runs, data, tmp_path, forwards):
    entries = Panel((Entry("a", (runs["a"],)), Entry("ad", (runs["a"], runs["d"]))))
    whole = judged_panel(entries, data, COURSE, tmp_path / "whole")
    assert len(forwards) == 2 * PIECES
    forwards.clear()

    class Killed(Exception):
        pass

    shares: list[float] = []

    def killing(now: str, share: float, so_far: str) -> None:
        shares.append(share)
        if len(shares) == 2 * 17:
            raise Killed

    with pytest.raises(Killed):
        judged_panel(entries, data, COURSE, tmp_path / "killed", tell=killing)
    assert len(forwards) == 2 * 17
    forwards.clear()
    said: list[tuple[str, float, str]] = []
    again = judged_panel(entries, data, COURSE, tmp_path / "killed", tell=lambda *words: said.append(words))
    assert again == whole
    assert len(forwards) == 2 * (PIECES - 17)
    assert said[0][1] > shares[-1] > 0
    assert said[-1][1] == 1
    assert said[-1][2].startswith("clean ")
    assert sorted(share for _, share, _ in said) == [share for _, share, _ in said]
    forwards.clear()
    assert judged_panel(entries, data, COURSE, tmp_path / "killed") == whole
    assert not forwards


def test_more_entries_images_and_corruptions_cost_what_they_add(runs, data, tmp_path, forwards):
    entries = [Entry("a", (runs["a"],)), Entry("b", (runs["b"],))]
    first = judged_panel(Panel(tuple(entries)), data, COURSE, tmp_path)
    forwards.clear()
    judged_panel(Panel((*entries, Entry("e", (runs["e"],)))), data, COURSE, tmp_path)
    assert forwards == ["e"] * PIECES, "what is there is not judged again"
    forwards.clear()
    more = [*entries, Entry("ab", (runs["a"], runs["b"])), Entry("c", (runs["c"],))]
    second = judged_panel(Panel(tuple(more)), data, COURSE, tmp_path)
    assert {name: forwards.count(name) for name in "abc"} == dict.fromkeys("abc", PIECES)
    assert {name: second[name] for name in "ab"} == first
    forwards.clear()
    larger = replace(COURSE, images=64)
    third = judged_panel(Panel((entries[0],)), data, larger, tmp_path)
    assert len(forwards) == 2 * 11, "the third chunk had 8 images, a fourth had none; two are there"
    assert {images for _, images in third["a"].counts.values()} == {64}
    forwards.clear()
    wider = replace(COURSE, corruptions=("contrast", "brightness", "pixelate"))
    fourth = judged_panel(Panel((entries[0],)), data, wider, tmp_path)
    assert fourth["a"].corruptions == ("brightness", "contrast", "pixelate")
    assert len(forwards) == 3 * 5
    forwards.clear()
    assert judged_panel(Panel(tuple(more)), data, COURSE, tmp_path) == second
    assert not forwards, "another panel's verdicts stayed"
    judged_panel(Panel((entries[0],)), data, COURSE, tmp_path, seed=1)
    assert len(forwards) == PIECES, "other draws"


def test_a_member_that_was_trained_again_is_judged_anew_and_the_others_are_not(runs, data, made, tmp_path, forwards):
    entries = Panel((Entry("a", (runs["a"],)), Entry("b", (runs["b"],)), Entry("ab", (runs["a"], runs["b"]))))
    before = judged_panel(entries, data, COURSE, tmp_path / "kept")
    shutil.rmtree(runs["b"])
    shutil.copytree(made / "c", runs["b"])
    forwards.clear()
    after = judged_panel(entries, data, COURSE, tmp_path / "kept")
    assert after["a"] == before["a"]
    assert after["b"] == judged_panel(Panel((Entry("b", (runs["c"],)),)), data, COURSE, tmp_path / "c")["b"]
    assert after["b"] != before["b"]
    assert after["ab"] != before["ab"]
    assert len(forwards) == (2 + 1) * PIECES, "both members for the ensemble, and c"


def test_other_weights_and_another_mean_are_other_verdicts(runs, data, tmp_path):
    def of(**how) -> dict:
        return judged_panel(Panel((Entry("ab", (runs["a"], runs["b"]), **how),)), data, COURSE, tmp_path)["ab"]

    alone = judged_panel(Panel((Entry("b", (runs["b"],)),)), data, COURSE, tmp_path)["b"]
    assert of() == of(weights=(0.5, 0.5))
    assert of(weights=(0.0, 1.0)) == alone
    assert of(weights=(0.0, 1.0), mean="probabilities") == alone
    assert of() != alone


def test_a_damaged_file_is_made_again(runs, data, tmp_path, forwards):
    entries = Panel((Entry("a", (runs["a"],)),))
    whole = judged_panel(entries, data, COURSE, tmp_path)
    path = next(tmp_path.rglob("*-00001.pieces"))
    path.write_bytes(path.read_bytes()[:20])
    forwards.clear()
    assert judged_panel(entries, data, COURSE, tmp_path) == whole
    assert len(forwards) == 11


# -- what a panel is ------------------------------------------------------------------------------------


def test_an_entry_is_read_from_an_ensembles_file(runs, tmp_path):
    path = tmp_path / "ab.yaml"
    path.write_text("members: [a, b]\nmean: probabilities\nweights: [0.25, 0.75]\n", encoding="utf-8")
    assert Entry.of("ab", path) == Entry("ab", (runs["a"], runs["b"]), "probabilities", (0.25, 0.75))
    assert Entry.of("a", runs["a"]) == Entry("a", (runs["a"],))
    path.write_text("members: [a, b]\nweights: [0.25, 0.25]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ab.yaml: ab: weights=.* must be 2 shares, none below 0, together 1"):
        Entry.of("ab", path)


def test_names_do_not_depend_on_where_runs_lie_or_how_they_are_named(runs, data):
    """The run's folder and the checkpoint in it are one network."""
    inside = str(checkpoint.find(runs["a"]))
    one = Panel((Entry("x", (runs["a"],)), Entry("y", (runs["b"], inside)))).on(data)
    assert {noise for voice in one.voices for noise in voice.noises} == {"x", "y/0"}
    two = Panel((Entry("y", (runs["b"], inside)), Entry("x", (runs["a"],)))).on(data)
    assert set(one.voices) == set(two.voices), "the order of the entries is nothing"


@pytest.fixture
def broken(data) -> Dataset:
    """The digits, of which the second chunk is broken altogether and every fifth image besides."""

    class Broken(Digits):
        def validation_batches(self, place, chunk, limit=None):
            for batch in super().validation_batches(place, chunk, limit):
                bad = (batch.position // 16 == 1) | (batch.position % 5 == 0)
                yield batch[~bad]

    return Broken(data.folder)


def test_broken_images_are_left_out(runs, broken, tmp_path):
    found = judged_panel(Panel((Entry("a", (runs["a"],)),)), broken, COURSE, tmp_path)["a"]
    assert found.clean is not None
    assert found.clean[1] == sum(position // 16 != 1 and position % 5 != 0 for position in range(40))
    assert found == COURSE.report(evaluate(COURSE, {"": network_of(runs["a"])}, broken)).result


def test_what_is_no_panel_is_refused(runs, data, tmp_path):
    with pytest.raises(ValueError, match=r"x: members=\[\] must be one checkpoint or more"):
        Entry("x", ())
    with pytest.raises(ValueError, match="none twice"):
        Entry("x", ("a", "a"))
    with pytest.raises(ValueError, match=r"weights=\[1.5, -0.5\] must be 2 shares"):
        Entry("x", ("a", "b"), weights=(1.5, -0.5))
    with pytest.raises(ValueError, match="each of its own name; twice: x"):
        Panel((Entry("x", ("a",)), Entry("x", ("b",))))
    path = tmp_path / "ab.yaml"
    path.write_text("members: [a, b]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is an ensemble: name its members"):
        Panel((Entry("x", (str(path),)),)).on(data)
    with pytest.raises(CheckpointError, match="does not exist"):
        Panel((Entry("x", (str(tmp_path / "no"),)),)).on(data)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        Panel((Entry("x", (str(tmp_path),)),)).on(data)


def test_a_checkpoint_that_changes_meanwhile_is_refused(runs, data, made):
    sitting = Panel((Entry("b", (runs["b"],)),)).on(data)
    inside = checkpoint.find(runs["b"])
    shutil.rmtree(inside)
    shutil.copytree(checkpoint.find(made / "c"), inside)
    with pytest.raises(CheckpointError, match="was written anew while it was judged"):
        evaluate(replace(COURSE, voices=sitting.voices), sitting.networks(), data)
