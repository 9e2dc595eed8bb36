"""torchvision beside a CPU build of torch."""

from __future__ import annotations

import importlib.util
import pathlib

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a schema lives as long as its library is referenced


def ensure_torchvision_importable() -> None:
    """Make `import torchvision` (and timm, which imports it) work where its compiled operators cannot load.

    torchvision's published wheel is a CUDA build: beside a CPU torch its library does not load, yet on import it
    registers fake kernels for operators that only the library declares, and fails. Declaring them is enough; none of
    them is used here. Where the library loads, nothing is changed.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _libraries:
        return
    for library in pathlib.Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        declared.define(schema)
    _libraries.append(declared)
