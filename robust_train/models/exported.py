"""A trained network in forms that others read: torch.export, ONNX, timm's files, a state dict and how it is built."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.losses import full
from robust_train.models.blueprint import Blueprint, numbers
from robust_train.models.ensemble import Ensemble, Mean, mixed
from robust_train.models.network import Network
from robust_train.models.noise import Settlement, refuse_drawn, settle
from robust_train.models.timm import Timm
from robust_train.models.weights import read_weights
from robust_train.nouns import Model, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.parse import parse, tree_of

OPSET = 20  # of ONNX: the first with GELU as one operator
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # as timm calls them in a model's folder
KEPT = ("first_conv", "classifier", "pool_size", "interpolation", "fixed_input_size")  # of timm's pretrained_cfg

Logits = Callable[[Tensor], Tensor]


class Deployed(nn.Module):
    """Pixels in [0, 1] to logits, and nothing of training.

        f(images) = model((images - mean) / std)          images [B, C, H, W] -> logits [B, classes], float32

    In eval mode: BatchNorm by running statistics, no drops. The model is the network's own, not a copy. It stands as
    `network`: RobustBench cuts "model." out of names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.eval().model
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return full(self.network((images - self.mean) / self.std))


class DeployedEnsemble(nn.Module):
    """Pixels in [0, 1] to the weighted mean of what each member says of them."""

    weights: Tensor  # [M], on the simplex

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(Deployed(member) for member in ensemble.each)
        self.mean: Mean = ensemble.mean
        self.register_buffer("weights", ensemble.weights.float())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return mixed(torch.stack([member(images) for member in self.members]), self.weights, self.mean)


def deployed(network: Network | Ensemble, shape: Shape) -> nn.Module:
    """What is written of a network. Raises ConfigError for one whose noise is drawn: settle it first."""
    refuse_drawn(network, shape)
    return DeployedEnsemble(network) if isinstance(network, Ensemble) else Deployed(network)


def write_program(network: Network | Ensemble, shape: Shape, path: Path) -> None:
    """A torch.export file for images [B, *shape], any B: torch alone reads it, and gradients pass through it."""
    program = torch.export.export(deployed(network, shape), (_example(network, shape),), dynamic_shapes=_any_batch())
    torch.export.save(program, path)


def read_program(path: Path) -> nn.Module:
    """The network of a torch.export file."""
    return torch.export.load(path).module()


def write_onnx(network: Network | Ensemble, shape: Shape, path: Path) -> None:
    """An ONNX file for images [B, *shape], any B: input `images`, output `logits`, weights inside.

    Raises ConfigError where the packages of the extra `export` are not installed.
    """
    _onnx("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what torch itself gives up
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            deployed(network, shape),
            (_example(network, shape),),
            path,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_any_batch(),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )


def read_onnx(path: Path) -> Logits:
    """The network of an ONNX file, on the CPU by onnxruntime."""
    session = _onnx("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.cpu().numpy()})[0])


def write_folder(
    network: Network,
    blueprint: Blueprint,
    shape: Shape,
    crop: float,
    folder: Path,
    noise: Settlement | None = None,
) -> None:
    """model.safetensors and config.json: a timm model as timm reads it; any other with the run's words that build it.

    The weights are those of the model alone, which takes pixels (x - mean) / std; mean and std stand in config.json.
    noise: how that of the network was settled, for `read_folder` to do the same. Raises ConfigError where it is drawn.
    """
    from safetensors.torch import save

    refuse_drawn(network, shape)

    weights = {name: value.detach().cpu().contiguous() for name, value in network.model.state_dict().items()}
    # not save_file, whose files nobody but their owner may read
    (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
    said = config(network, blueprint, shape, crop) | ({} if noise is None else {"noise": noise})
    (folder / CONFIG).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> Logits:
    """Pixels to logits from `write_folder`'s files: a timm model by timm alone, with normalisation put before it."""
    said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if "network" in said:
        network = built(said)
        network.model.load_state_dict(read_weights(folder / WEIGHTS))
        if "noise" in said:
            settle(network, said["noise"], tuple(said["pretrained_cfg"]["input_size"]))
        return network.eval()
    import timm

    model = timm.create_model(said["architecture"], checkpoint_path=str(folder / WEIGHTS), **said["model_args"]).eval()
    mean, std = (torch.tensor(said["pretrained_cfg"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    return lambda images: model((images - mean) / std)


def built(said: dict[str, Any]) -> Network:
    """The network, randomly initialised, that a config.json with a section `network` speaks of."""
    blueprint = parse(Blueprint, said["network"], "network", CONFIG)
    return blueprint.build(said["num_classes"], tuple(said["pretrained_cfg"]["input_size"]), "fp32", 1)


def config(network: Network, blueprint: Blueprint, shape: Shape, crop: float) -> dict[str, Any]:
    """What config.json says: timm's own keys; where timm cannot build the model, also the run's section `network`."""
    channels = shape[0]
    own = getattr(network.model, "pretrained_cfg", None) or {}
    said: dict[str, Any] = {
        "architecture": architecture(blueprint.model),
        "num_classes": network.classes,
        "pretrained_cfg": {
            "input_size": list(shape),
            "crop_pct": crop,
            "mean": numbers(network.mean, channels),
            "std": numbers(network.std, channels),
            "num_classes": network.classes,
            **{name: own[name] for name in KEPT if name in own},
        },
    }
    if of_timm_alone(blueprint):
        said["model_args"] = timm_arguments(blueprint.model, network, shape)
    else:
        kind = type(blueprint.model)
        said["built_by"] = f"{kind.__module__}.{kind.__qualname__}"
        said["network"] = tree_of(blueprint.bare())
    return said


def of_timm_alone(blueprint: Blueprint) -> bool:
    """Whether timm by itself builds the model: one of timm's that nothing is changed in."""
    return isinstance(blueprint.model, Timm) and not blueprint.edits


def timm_arguments(model: Model, network: Network, shape: Shape) -> dict[str, Any]:
    """The arguments of timm.create_model that shape a model; rates of dropping do not."""
    if not isinstance(model, Timm):
        raise ConfigError(f"{architecture(model)} is no timm model, so timm.create_model has no arguments for it")
    said: dict[str, Any] = {"num_classes": network.classes, "in_chans": shape[0]}
    if "img_size" in inspect.signature(type(network.model).__init__).parameters:
        said["img_size"] = shape[1]
    if model.patch_size is not None:
        said["patch_size"] = model.patch_size
    return {**said, **tree_of(model.options)}


def architecture(model: Model) -> str:
    """timm's name of a model, or ours with its fields: "small-resnet(widths=32-64-128, stem_stride=2)"."""
    if isinstance(model, Timm):
        return model.name
    fields = {name: value for name, value in tree_of(model).items() if name != "use" and value is not None}
    inner = getattr(model, "model", None)
    if isinstance(inner, Model):
        fields["model"] = architecture(inner)
    words = (f"{name}={'-'.join(map(str, v)) if isinstance(v, list) else v}" for name, v in fields.items())
    return f"{model.use}({', '.join(words)})" if fields else model.use


def described(blueprint: Blueprint, noise: Settlement | None = None) -> str:
    """A model with its edits, and what became of its noise: "small-resnet + v1, noise off"."""
    edits = "".join(f" + {edit.use}" for edit in blueprint.edits)
    return architecture(blueprint.model) + edits + ("" if noise is None else f", noise {noise}")


def _example(network: Network | Ensemble, shape: Shape) -> Tensor:
    # two: one image would become a constant of the program
    return next(network.parameters()).new_full((2, *shape), 0.5)


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


def _onnx(name: str) -> Any:
    """onnxscript or onnxruntime."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs {name} ({error}). Install the extra: pip install 'robust-train[export]'"
        ) from None
