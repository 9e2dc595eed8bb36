"""The design as imports: who may know whom, and what stays small."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("robust_train", "launch", "tools") for path in (ROOT / folder).rglob("*.py"))

ROWS = [  # from the top down: a module may import rows below its own
    {"launch", "tools", "__main__", "command"},
    {
        "train",
        "run",
        "job",
        "ownership",
        "agreement",
        "epochs",
        "judging",
        "saved",
        "check",
        "forecast",
        "loading",
        "subject",
        "engines",
        "records",
    },
    {"door", "evaluate", "objectives", "compress", "brain"},
    {"trained"},
    {"attacks"},
    {"threats", "models", "data"},
    {
        "keyed",
        "kernels",
        "read",
        "nouns",
        "losses",
        "vision",
        "checkpoint",
        "settings",
        "disk",
        "sealed",
        "arithmetic",
        "leaving",
        "web",
        "fingerprint",
    },
]
WITHIN = {  # and within its row only these
    "launch": {"command"},
    "tools": {"launch", "command"},
    "__main__": {"command"},
    "job": {"run", "ownership", "agreement", "train", "judging", "saved", "check", "forecast", "engines", "records"},
    "ownership": {"run", "check"},
    "agreement": {"run", "ownership", "engines"},
    "train": {"engines", "judging", "records", "run", "saved"},
    "judging": {"engines", "records", "run"},
    "saved": {"engines", "judging", "records", "run"},
    "run": {"epochs"},
    "epochs": set(),
    "engines": {"run"},
    "loading": {"run", "engines"},
    "subject": {"run", "loading"},
    "check": {"run", "engines", "forecast"},
    "forecast": {"run", "engines", "records"},
    "records": {"run"},
    "compress": {"objectives"},
    "door": {"evaluate"},
    "evaluate": {"door"},  # its package can be called
    "brain": {"objectives"},
    "keyed": set(),
    "kernels": {"keyed"},
    "read": {"nouns", "disk"},
    "checkpoint": {"nouns", "read", "disk"},
    "disk": set(),
    "sealed": {"disk"},
    "leaving": {"read"},
    "web": set(),
    "fingerprint": {"disk"},
    "settings": {"nouns", "read"},
    "losses": set(),
    "data": set(),
}
ONLY = {  # heavy libraries and the files that may import them
    "ray": ("launch/",),
    "deepspeed": ("robust_train/engines/deepspeed.py",),
    "wandb": ("robust_train/records/wandb.py", "tools/wandb_replay.py"),
    "triton": ("robust_train/kernels/",),
    "timm": (
        "robust_train/models/",
        "robust_train/data/augment.py",
        "robust_train/engines/optim.py",
        "robust_train/evaluate/report.py",  # its version, for the report
    ),
    "webdataset": ("robust_train/data/",),
}


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, module, whether for types only) of every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, id(node) in typed) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module]
            if node.module in ("robust_train", "robust_train.launch", "robust_train.tools"):
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name, id(node) in typed) for name in named]
    return found


def noun(module: str) -> str:
    """The name under which a module stands in a row: "attacks" for robust_train.attacks.pgd."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "robust_train" else top


def row(name: str) -> int | None:
    return next((index for index, names in enumerate(ROWS) if name in names), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward_only(path: Path) -> None:
    here = noun(".".join(path.relative_to(ROOT).with_suffix("").parts))
    mine = row(here)
    assert mine is not None or path.name == "__init__.py", f"{path} stands in no row of the layout"
    for line, module, typed in imports(path):
        theirs = row(noun(module))
        if not module.startswith("robust_train.") or theirs is None or mine is None or typed:
            continue
        allowed = theirs > mine or noun(module) == here or noun(module) in WITHIN.get(here, set())
        assert allowed, f"{path.relative_to(ROOT)}:{line} imports {module}: {here} may import rows below it only"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used_only(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for line, module, _ in imports(path):
        homes = ONLY.get(module.partition(".")[0])
        assert homes is None or where.startswith(homes), f"{where}:{line} imports {module}; it belongs to {homes}"


def test_the_package_is_imported_without_ray_deepspeed_wandb_or_triton() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('ray', 'deepspeed', 'wandb', 'triton'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import robust_train.command, robust_train.run, robust_train.job, robust_train.loading\n"
        "import robust_train.tools.eval\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_longer_than_400_lines_and_no_folder_has_more_than_25_files() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{path} is to be split by noun"
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= 25, f"{folder} is to be split by noun"


def test_the_loop_is_one_page() -> None:
    from robust_train import train

    assert len(inspect.getsource(train).splitlines()) < 60


def test_no_file_is_named_after_a_drawer() -> None:
    drawers = {"utils", "util", "common", "misc", "base", "helpers", "core", "lib", "manager", "handler", "processor"}
    for path in FILES:
        assert not drawers & {path.stem, path.parent.name}, f"{path} says nothing about what it holds"


def test_every_test_file_is_one_that_pytest_runs() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        holds = any(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
        assert not holds or path.name.startswith("test_"), f"{path} holds tests that never run"
        assert holds or not path.name.startswith("test_"), f"{path} collects nothing"
