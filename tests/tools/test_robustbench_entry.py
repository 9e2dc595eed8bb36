"""A RobustBench entry: the names that RobustBench expects, and no figure that was not measured."""

from __future__ import annotations

import pytest

from robust_train.read.errors import ConfigError
from robust_train.tools.robustbench_entry import Entry, fraction, renamed, spoken

LINF = {"use": "linf", "eps": 8 / 255}


@pytest.mark.parametrize(
    ("name", "dataset", "known"),
    [
        ("layer1.0.conv1.weight", "cifar10", "layer1.0.conv1.weight"),
        ("module.fc.bias", "cifar100", "fc.bias"),
        ("model.fc.bias", "cifar10", "fc.bias"),
        ("model.fc.bias", "imagenet", "model.fc.bias"),
        ("fc.bias", "imagenet", "model.fc.bias"),
        ("a.model.fc.bias", "cifar10", "l.fc.bias"),  # six letters go from the front, wherever "model." stands
    ],
)
def test_names_change_as_robustbench_changes_them(name, dataset, known):
    """`rm_substr_from_state_dict` and `add_substr_to_state_dict` of RobustBench 1.1.1, by hand."""
    assert renamed(name, dataset) == known


def report(*names: str, eps: float = 8 / 255, raised: bool = False) -> dict:
    """As tools.eval writes it: of 900 images 600 right when clean, 300 under each attack named; 90 under all else."""
    clean = {"name": "clean", "threat": "", "part": False, "accuracy": 2 / 3, "images": 900, "eps": 0.0}
    clean["interval95"] = [0.63, 0.7]
    held = {**clean, "threat": "linf", "eps": eps, "accuracy": 1 / 3, "interval95": [0.30, 0.364]}
    part = {**held, "name": "apgd-ce", "part": True, "accuracy": 0.1}
    other = {**held, "name": "pgd50", "threat": "l2", "eps": eps, "accuracy": 0.1}
    union = {**held, "name": "union", "threat": "union", "eps": None, "accuracy": 0.1}
    flags = [{"name": "zero gradients", "raised": raised}, {"name": "random", "raised": None}]
    figures = [clean, part, *({**held, "name": name} for name in names), other, union]
    return {"figures": figures if names else [clean], "flags": flags}


def test_what_was_not_measured_or_said_is_null():
    info = Entry("Tiny2026Test", "cifar10", LINF, {}, None).info("resnet18")
    for name in ("link", "name", "authors", "venue", "clean_acc", "reported", "autoattack_acc", "unreliable"):
        assert info[name] is None
    assert (info["eps"], info["architecture"], info["footnote"]) == ("8/255", "resnet18", "Not evaluated.")


def test_only_autoattack_stands_as_autoattack():
    """Neither another attack, nor one part of it, nor another threat model, nor the union over several."""
    pgd = Entry("Tiny2026Test", "cifar10", LINF, {}, report("pgd50")).info("resnet18")
    assert (pgd["clean_acc"], pgd["reported"], pgd["autoattack_acc"]) == ("66.67", "33.33", None)
    assert "pgd50 on 900 images: 33.33 % (95 % interval 30.00 to 36.40)" in pgd["footnote"]
    assert pgd["footnote"].endswith("AutoAttack not run.")
    whole = Entry("Tiny2026Test", "cifar10", LINF, {}, report("autoattack")).info("resnet18")
    assert (whole["autoattack_acc"], whole["reported"]) == ("33.33", "33.33")
    assert "not run" not in whole["footnote"]


def test_a_raised_flag_makes_the_entry_unreliable():
    flagged = Entry("Tiny2026Test", "cifar10", LINF, {}, report("pgd50", raised=True)).info("resnet18")
    assert flagged["unreliable"] is True
    assert flagged["footnote"].endswith("Flags: zero gradients.")
    assert Entry("Tiny2026Test", "cifar10", LINF, {}, report()).info("resnet18")["unreliable"] is False


@pytest.mark.parametrize("threat", [{"use": "linf", "eps": 4 / 255}, {"use": "l2", "eps": 0.5}])
def test_a_report_of_another_threat_model_or_radius_is_refused(threat):
    entry = Entry("Tiny2026Test", "cifar10", threat, {}, report("pgd50"))
    with pytest.raises(ConfigError, match=rf"no figure for {threat['use']} at eps {threat['eps']:.4g}"):
        entry.info("resnet18")


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.5, "0.5"), (0.01, "0.01"), (1 / 255, "1/255")])
def test_a_radius_is_written_in_grey_levels_where_it_is_some(eps, text):
    assert fraction(eps) == text


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (lambda: Entry("a/b", "cifar10", LINF, {}, None), "cannot be the name"),
        (lambda: Entry("Standard", "cifar10", LINF, {}, None), "without weights"),
        (lambda: Entry("A", "cifar10", {"use": "l1", "eps": 12.0}, {}, None), "no threat model l1: it has linf and l2"),
        (lambda: spoken(["clean_acc=99"]), "say one of link, name"),
        (lambda: spoken(["additional_data=maybe"]), "true or false"),
    ],
)
def test_an_entry_that_robustbench_cannot_hold_is_refused(entry, said):
    with pytest.raises(ConfigError, match=said):
        entry()
