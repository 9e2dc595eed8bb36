"""A model entry in RobustBench's form: weights, model_info, and a file that registers the model with RobustBench.

    OUT/models/cifar10/Linf/NAME.pt           the state dict, where `load_model(NAME, model_dir="OUT/models")` looks
    OUT/model_info/cifar10/Linf/NAME.json     what RobustBench's tables show; null is what nobody has said
    OUT/entry.py                              builds the network, normalisation inside; entry.register()
    OUT/network.pt2                           where timm alone cannot build it: the network as torch.export keeps it

RobustBench 1.1.1 takes "module." and then "model." from the names of tensors, and for ImageNet puts "model." before all
of them; entry.py builds a network whose names fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_train.models.blueprint import Blueprint, numbers
from robust_train.models.exported import (
    architecture,
    described,
    of_timm_alone,
    read_program,
    timm_arguments,
    write_program,
)
from robust_train.models.network import Network
from robust_train.models.noise import Settlement
from robust_train.nouns import Shape
from robust_train.read.errors import ConfigError

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}  # the data sets that RobustBench has
THREATS = {"linf": "Linf", "l2": "L2"}  # and the threat models, by our names
SAID = ("link", "name", "authors", "venue", "additional_data", "architecture", "footnote")  # what only a person knows

ENTRY = '''"""{name}, a network for RobustBench: pixels in [0, 1] to logits, normalisation inside.

    import entry                                        # this file
    from robustbench.utils import load_model
    entry.register()
    network = load_model({name!r}, model_dir="models", dataset={dataset!r}, threat_model={threat!r})

or, without RobustBench, entry.load(). Needs {needs}.
"""

{standard}from pathlib import Path

{imports}

NAME, DATASET, THREAT = {name!r}, {dataset!r}, {threat!r}
FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "models" / DATASET / THREAT / f"{{NAME}}.pt"

{build}

def load():
    """The trained network, in eval mode."""
    network = build()
    network.load_state_dict({weights})
    return network.eval()


def register():
    """Make the network known to RobustBench's load_model, in this process."""
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    # an id, so that load_model looks for the file; the file is there, so nothing is fetched
    entry = {{"model": build, "data": None, "gdrive_id": "beside entry.py", "preprocessing": {preprocessing!r}}}
    model_dicts[BenchmarkDataset(DATASET)][ThreatModel(THREAT)][NAME] = entry
'''
OF_TIMM = '''MEAN, STD = {mean}, {std}


def build():
    """The network with random weights."""
    network = timm.create_model({name!r}, **{arguments})
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    network.register_forward_pre_hook(lambda _, inputs: ((inputs[0] - mean.to(inputs[0])) / std.to(inputs[0]),))
    return {whole}
'''
OF_PROGRAM = '''
class Network(torch.nn.Module):
    """What torch.export kept of the network, weights too; it has no train mode."""

    def __init__(self):
        super().__init__()
        self.program = torch.export.load(FOLDER / {program!r}).module()

    def forward(self, images):
        return self.program(images)

    def train(self, mode=True):
        return self


def build():
    """The network."""
    network = Network()
    return {whole}
'''
PROGRAM = "network.pt2"


@dataclass(frozen=True)
class Entry:
    """One network in one of RobustBench's lists."""

    name: str  # of the entry: RobustBench's are such as Rice2020Overfitting
    dataset: str  # cifar10, cifar100 or imagenet
    threat: Mapping[str, Any]  # {"use": "linf", "eps": 8/255}
    said: Mapping[str, Any]  # fields of model_info that the user gave
    report: Mapping[str, Any] | None  # tools.eval's JSON on the same weights
    noise: Settlement | None = None  # what became of the network's own

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name) or "Standard" in self.name:
            raise ConfigError(
                f"{self.name!r} cannot be the name of an entry: letters, digits, - and _ can, but not Standard, which "
                "RobustBench loads without weights. Give another by --name."
            )
        if self.threat.get("use") not in THREATS:
            raise ConfigError(
                f"RobustBench has no threat model {self.threat.get('use')}: it has {' and '.join(THREATS)}. Name the "
                "one that the network is to be listed in: --threat linf --eps 8/255."
            )

    @property
    def path(self) -> Path:
        """The folder and name of its files below models/ and model_info/, without a suffix."""
        return Path(self.dataset) / THREATS[self.threat["use"]] / self.name

    def write(self, network: Network, blueprint: Blueprint, shape: Shape, crop: float, folder: Path) -> None:
        """The files of the entry. Raises ConfigError where RobustBench's data set is not the network's."""
        if shape[0] != 3 or network.classes != CLASSES[self.dataset]:
            raise ConfigError(
                f"{self.dataset} has colour images of {CLASSES[self.dataset]} classes, and this network takes images "
                f"of {shape[0]} channel{'s' * (shape[0] > 1)} to {network.classes} classes; RobustBench cannot list it."
            )
        if of_timm_alone(blueprint):
            weights = network.model.state_dict()
        else:
            write_program(network, shape, folder / PROGRAM)
            weights = {f"program.{name}": value for name, value in read_program(folder / PROGRAM).state_dict().items()}
        for path in (folder / "models" / self.path, folder / "model_info" / self.path):
            path.parent.mkdir(parents=True)
        torch.save(
            {name: value.detach().cpu().contiguous() for name, value in weights.items()},
            folder / "models" / f"{self.path}.pt",
        )
        text = json.dumps(self.info(described(blueprint, self.noise)), indent=2, ensure_ascii=False) + "\n"
        (folder / "model_info" / f"{self.path}.json").write_text(text, encoding="utf-8")
        (folder / "entry.py").write_text(self.code(network, blueprint, shape, crop), encoding="utf-8")

    def code(self, network: Network, blueprint: Blueprint, shape: Shape, crop: float) -> str:
        """entry.py."""
        imagenet = self.dataset == "imagenet"
        whole = "torch.nn.Sequential(OrderedDict(model=network))" if imagenet else "network"
        imports = ["import torch"]
        if of_timm_alone(blueprint):
            imports.insert(0, "import timm")
            build = OF_TIMM.format(
                mean=numbers(network.mean, shape[0]),
                std=numbers(network.std, shape[0]),
                name=architecture(blueprint.model),
                arguments=timm_arguments(blueprint.model, network, shape),
                whole=whole,
            )
        else:
            build = OF_PROGRAM.format(program=PROGRAM, whole=whole)
        return ENTRY.format(
            name=self.name,
            dataset=self.dataset,
            threat=THREATS[self.threat["use"]],
            needs=" and ".join(line.removeprefix("import ") for line in imports),
            imports="\n".join(imports),
            build=build,
            standard="from collections import OrderedDict\n" if imagenet else "",
            weights='{"model." + name: value for name, value in torch.load(WEIGHTS).items()}'
            if imagenet
            else "torch.load(WEIGHTS)",
            preprocessing="Res256Crop224" if imagenet and shape[1] == 224 and crop == 0.875 else None,
        )

    def info(self, architecture: str) -> dict[str, Any]:
        """model_info: null where nobody said or measured. AutoAttack's accuracy is its own, never another attack's."""
        info: dict[str, Any] = {
            "link": None,
            "name": None,
            "authors": None,
            "additional_data": None,
            "number_forward_passes": 1,
            "dataset": self.dataset,
            "venue": None,
            "architecture": architecture,
            "eps": fraction(self.threat["eps"]),
            "clean_acc": None,
            "reported": None,
            "autoattack_acc": None,
            "footnote": "Not evaluated.",
            "unreliable": None,
        }
        return {**info, **self.judged(), **self.said}

    def judged(self) -> dict[str, Any]:
        """What the report says, in RobustBench's fields. Raises ConfigError for a report of another threat model."""
        if self.report is None:
            return {}
        clean, *attacked = self.report["figures"]
        ours = [figure for figure in attacked if self.holds(figure)]
        if attacked and not ours:
            raise ConfigError(
                f"the report has no figure for {self.threat['use']} at eps {self.threat['eps']:.4g}, which the entry "
                "is for. Evaluate there (tools.eval --threat, --eps), or name the report's by --threat and --eps."
            )
        flags = [flag["name"] for flag in self.report["flags"] if flag["raised"]]
        found: dict[str, Any] = {"clean_acc": percent(clean), "unreliable": bool(flags)}
        notes = [f"Clean accuracy on {clean['images']:,} images."]
        for figure in ours:
            low, high = figure["interval95"]
            notes.append(
                f"{figure['name']} on {figure['images']:,} images: {percent(figure)} % (95 % interval {100 * low:.2f} "
                f"to {100 * high:.2f})."
            )
        whole = [figure for figure in ours if figure["name"] == "autoattack"]
        if whole:
            found["autoattack_acc"] = percent(whole[0])
        else:
            notes.append("AutoAttack not run.")
        if ours:
            found["reported"] = percent(min(ours, key=lambda figure: figure["accuracy"]))
        if flags:
            notes.append(f"Flags: {', '.join(flags)}.")
        return {**found, "footnote": " ".join(notes)}

    def holds(self, figure: Mapping[str, Any]) -> bool:
        """Whether a figure is of a whole attack in the entry's threat model; tags of several radii end in theirs."""
        same = figure["threat"].partition("-")[0] == self.threat["use"] and not figure["part"]
        return same and abs(figure["eps"] - self.threat["eps"]) < 1e-9

    def read(self, folder: Path) -> nn.Module:
        """The network as RobustBench loads it: entry.py's, with its rules on names. RuntimeError where they misfit."""
        spec = spec_from_file_location("entry", folder / "entry.py")
        if spec is None or spec.loader is None:
            raise ConfigError(f"{folder}/entry.py is no Python file")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        weights = torch.load(folder / "models" / f"{self.path}.pt", map_location="cpu", weights_only=True)
        network = module.build()
        network.load_state_dict({renamed(name, self.dataset): value for name, value in weights.items()})
        return network.eval()


def renamed(name: str, dataset: str) -> str:
    """The name under which RobustBench 1.1.1 loads a tensor: as many letters as the prefix has go, wherever it is."""
    for prefix in ("module.", "model."):
        if prefix in name:
            name = name[len(prefix) :]
    return f"model.{name}" if dataset == "imagenet" else name


def fraction(eps: float) -> str:
    """8/255 where it is one, as RobustBench writes it."""
    grey = eps * 255
    return f"{round(grey)}/255" if round(grey) and abs(grey - round(grey)) < 1e-6 and eps < 0.5 else f"{eps:g}"


def percent(figure: Mapping[str, Any]) -> str:
    """RobustBench's accuracies: per cent with two decimals, as text."""
    return f"{100 * figure['accuracy']:.2f}"


def spoken(words: list[str]) -> dict[str, Any]:
    """--say key=value as fields of model_info. Raises ConfigError for what is no such field."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in SAID:
            raise ConfigError(f"--say {word}: say one of {', '.join(SAID)} as key=value")
        if key == "additional_data" and value not in ("true", "false"):
            raise ConfigError(f"--say {word}: additional_data is true or false: whether more data than the data set")
        found[key] = value == "true" if key == "additional_data" else value
    return found
