"""Verdicts that Python asked to be kept: taken again only where nothing that they rest on has changed."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

import robust_train
from robust_train.door.identity import of_function, of_network
from robust_train.evaluate import robustness
from robust_train.read.errors import ConfigError
from tests.evaluate.linear import Linear, Middling

STEP = 0.01
TABLE = {"size": torch.tensor([0.1])}


class Net(nn.Module):
    """All kinds of things that an answer may rest on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)
        self.scale = 2.0
        self.grid = numpy.arange(3)
        self.act = torch.relu
        self.own = SimpleNamespace(deep={"gain": [1.0, 2.0]})

    def forward(self, images):
        return self.act(self.body((images - self.mean) * self.scale))


class Other(Net):
    def forward(self, images):
        return self.act(self.body((images - self.mean) * self.scale)) * 1


def changed(change) -> str:
    net = Net()
    change(net)
    return of_network(net)


CHANGES = {
    "a weight": lambda net: net.body[0].weight.data.add_(1e-6),
    "running statistics": lambda net: net.body[1].running_mean.add_(1e-6),
    "a buffer that no state_dict holds": lambda net: net.mean.add_(1e-6),
    "a number": lambda net: setattr(net, "scale", 2.5),
    "an array": lambda net: net.grid.__setitem__(0, 7),
    "a function": lambda net: setattr(net, "act", torch.tanh),
    "something deep": lambda net: net.own.deep["gain"].__setitem__(1, 3.0),
    "a layer's field": lambda net: setattr(net.body[1], "eps", 1e-3),
    "a hook": lambda net: net.body[0].register_forward_hook(lambda module, given, found: found * 2),
    "its mode": lambda net: net.body.eval(),
    "a method of its own": lambda net: setattr(net, "forward", lambda images: net.body(images)),
}


def test_a_network_is_itself_again_in_a_copy_and_after_its_hooks_numbers_moved():
    once = of_network(Net())
    nn.Linear(1, 1).register_forward_hook(lambda *_: None)  # the numbers of hooks are the process' own
    assert of_network(Net()) == once
    hooked = [changed(lambda net: net.register_forward_hook(print)) for _ in range(2)]
    assert hooked[0] == hooked[1] != once


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_network_rests_on_makes_it_another(change):
    assert changed(change) != of_network(Net())


def test_the_code_of_a_class_counts_and_of_one_that_it_comes_from(monkeypatch):
    assert of_network(Net()) != of_network(Other())
    before = of_network(Other())
    monkeypatch.setattr(Net, "bonus", lambda self: 1, raising=False)
    assert of_network(Other()) != before


def attack(module, images, labels, size=0.1):
    return (images + STEP).clamp(0, 1)


def _closing(size):
    def attack(module, images, labels):
        return next(images + size for _ in range(2))

    return attack


def _reading():
    return lambda module, images, labels: images + TABLE["size"]


def test_whatever_a_function_rests_on_makes_it_another(monkeypatch):
    kinds = [attack, _closing(1), _closing(2), _reading(), functools.partial(attack, size=1), Net().forward, torch.relu]
    kinds += [functools.partial(attack, size=2), lambda module, images, labels: images, SimpleNamespace(a=1)]
    prints = [of_function(kind) for kind in kinds]
    assert len(set(prints)) == len(kinds)
    assert of_function(_closing(1)) == prints[1]
    monkeypatch.setitem(globals(), "STEP", 0.02)
    monkeypatch.setitem(TABLE, "size", torch.tensor([0.2]))
    assert of_function(attack) != prints[0]
    assert of_function(_reading()) != prints[3]
    monkeypatch.setattr(attack, "__defaults__", (0.3,))
    assert of_function(attack) not in prints


def test_what_has_no_fingerprint_is_refused_by_its_place():
    net = Net()
    net.own.stream = (number for number in range(3))
    with pytest.raises(ConfigError, match=r"module\.own\.stream is a generator, which has no fingerprint"):
        of_network(net)


def test_a_network_of_ours_and_one_of_timm_have_fingerprints(small_run):
    path = small_run.parent / "run"
    assert of_network(robust_train.load(path)) == of_network(robust_train.load(path))
    assert of_network(robust_train.load(path)) != of_network(robust_train.load(path, averaged=False))
    torch.manual_seed(0)
    one = robust_train.load("test_resnet", classes=10, size=32)
    assert of_network(one) == of_network(one)
    assert of_network(one.model) != of_network(one)


def test_the_same_call_goes_on_and_any_other_begins_anew(tmp_path, monkeypatch):
    made = []
    tried = robustness.tried
    monkeypatch.setattr(robustness, "tried", lambda *given: made.append(given[2].name) or tried(*given))
    net, data, step = Linear(), Middling(40), [0.05]

    def nudge(module, images, labels):
        return images + step[0]

    def call(module=net, images=data.images, labels=data.targets, **asked):
        asked = {"threats": {"linf": 0.1}, "attack": nudge, "checks": 0, "batch": 16, "folder": tmp_path, **asked}
        made.clear()
        report = robust_train.evaluate(module, images, labels, **asked)
        return len(made), report.accuracies

    first = call()
    assert first[0] == 6, "three chunks, clean and attacked"
    assert call() == (0, first[1])
    assert call(images=data.images.clone()) == (0, first[1])
    assert call(threats={"linf": 0.2})[0] == 3, "the attack alone is made again"
    assert call(seed=1)[0] == 6
    assert call(batch=8)[0] == 5, "what a function finds may rest on its batch; clean verdicts are taken over"
    step[0] = 0.06
    assert call()[0] == 3, "the attack reads another number"
    turned = data.targets.clone()
    turned[7] = 1 - turned[7]
    assert call(labels=turned)[0] == 6
    moved = data.images.clone()
    moved[39, 0, 0, 0] += 1e-4
    assert call(images=moved)[0] == 6
    net.scale = 0.2
    assert call()[0] == 6
    net.scale = 0.1
    assert call()[0] == 0
