"""tools.convert: what others read answers as the network does, and says no more than was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import robust_train
from robust_train.attacks.pgd import PGD
from robust_train.data.shards import Shards
from robust_train.losses import cross_entropy
from robust_train.models import exported
from robust_train.models.activations import Activations
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.timm import Timm
from robust_train.nouns import Place
from robust_train.objectives.madry import Madry
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.run import Run
from robust_train.threats.linf import Linf
from robust_train.tools.convert import compared, main
from robust_train.tools.robustbench_entry import Entry
from robust_train.trained import put

LINF = {"use": "linf", "eps": 8 / 255}


def digits(run: Path, number: int) -> Tensor:
    """Validation images of the small run."""
    data = Run.load(run).data
    data.prepare()
    return next(data.shards.validation_batches(Place(), number, number)).to("cpu").images


def saved(folder: Path, network: Blueprint, classes: int, size: int = 16) -> Path:
    """A checkpoint of a run whose images lie nowhere, with BatchNorm statistics that are not those of the start."""
    attack = PGD(Linf(8 / 255), steps=1, step_size=2 / 255)
    data = Shards("/nowhere/*.tar", classes, size, "/nowhere/*.tar")
    run = Run(data, network, Madry(attack), updates=1, batch=8, name="colour", folder=str(folder))
    built = run.build(torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    for name, value in built.model.state_dict().items():
        if "running" in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    place = folder / "checkpoints" / "00000001"
    put(place, run.recipe(built), built.model.state_dict(), {"run.yaml": run.dump()})
    return place


@pytest.fixture(scope="module")
def colour(tmp_path_factory) -> Path:
    """A checkpoint of a residual network of ours for 10 classes of colour images."""
    blueprint = Blueprint(SmallResNet(widths=(4, 8, 8)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return saved(tmp_path_factory.mktemp("colour"), blueprint, 10)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory) -> dict[str, list[str]]:
    """What the command line says of two timm models, convolutional and transformer, by name."""
    from safetensors.torch import save_file

    found = {}
    for name, size in (("test_resnet", 32), ("test_vit", 64)):
        torch.manual_seed(1)
        network = robust_train.load(name, classes=10, size=size)
        path = tmp_path_factory.mktemp(name) / "weights.safetensors"
        save_file({key: value + 0.01 for key, value in network.model.state_dict().items()}, path)
        found[name] = ["--model", name, "--weights", str(path), "--classes", "10", "--size", str(size)]
    return found


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_alone_reads_the_folder_and_answers_as_the_network(timm_file, name, tmp_path):
    import timm

    main([*timm_file[name], "--to", "timm", "--out", str(tmp_path / "model")])
    words = timm_file[name]
    size = int(words[-1])
    network = robust_train.load(words[3], model=name, classes=10, size=size)
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    said = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(said["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    file = str(tmp_path / "model" / "model.safetensors")
    by_file = timm.create_model(said["architecture"], checkpoint_path=file, **said["model_args"]).eval()
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert said["pretrained_cfg"]["input_size"] == [3, size, size]
    with torch.no_grad():
        for model in (by_file, by_folder):
            torch.testing.assert_close(model((images - mean) / std), network(images))


def test_a_model_of_ours_is_built_again_from_the_words_beside_its_weights(small_run, tmp_path, capsys):
    main([str(small_run.parent / "run"), "--to", "timm", "--out", str(tmp_path / "model")])
    assert "on 16 validation images" in capsys.readouterr().out
    said = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert said["built_by"] == "robust_train.models.small_cnn.SmallCNN"
    assert said["architecture"] == "small-cnn(widths=4-8, strides=2-2)"
    assert (said["num_classes"], said["pretrained_cfg"]["input_size"]) == (10, [1, 32, 32])
    images = digits(small_run, 5)
    with torch.no_grad():
        network = robust_train.load(small_run.parent / "run")
        torch.testing.assert_close(exported.read_folder(tmp_path / "model")(images), network(images))


def test_the_averaged_weights_are_written_unless_the_raw_ones_are_asked_for(small_run, tmp_path):
    from safetensors.torch import load_file

    run = small_run.parent / "run"
    for words, averaged in (([], True), (["--raw"], False)):
        main([str(run), *words, "--to", "timm", "--out", str(tmp_path / str(averaged))])
        own = robust_train.load(run, averaged=averaged).model.state_dict()
        file = load_file(tmp_path / str(averaged) / "model.safetensors")
        assert file.keys() == own.keys()
        assert all(torch.equal(file[name], own[name]) for name in own)


def test_an_activation_that_timm_does_not_have_is_no_model_of_timms(tmp_path):
    """Softplus in place of ReLU changes no tensor's name: timm would load the weights and answer otherwise."""
    blueprint = Blueprint(Timm("test_resnet"), edits=(Activations("softplus"),))
    network = blueprint.build(10, (3, 32, 32), "fp32", 1).eval()
    exported.write_folder(network, blueprint, (3, 32, 32), 0.875, tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported.read_folder(tmp_path)(images), network(images))
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "model_args" not in said
    assert said["network"]["edits"] == [{"use": "activation", "name": "softplus"}]


def test_a_program_takes_any_batch_and_has_the_networks_image_gradient(colour, tmp_path):
    main([str(colour), "--to", "export", "--out", str(tmp_path / "network.pt2")])
    program, network = torch.export.load(tmp_path / "network.pt2").module(), robust_train.load(colour)
    generator = torch.Generator().manual_seed(3)
    for rows in (1, 2, 5):
        images = torch.rand(rows, 3, 16, 16, generator=generator).requires_grad_()
        targets = torch.arange(rows)
        ours, theirs = network(images), program(images)
        torch.testing.assert_close(theirs, ours)
        (mine,) = torch.autograd.grad(cross_entropy(ours, targets).sum(), images)
        (other,) = torch.autograd.grad(cross_entropy(theirs, targets).sum(), images)
        torch.testing.assert_close(other, mine)


def test_a_network_left_in_train_mode_is_written_with_its_running_statistics(colour, tmp_path):
    """BatchNorm by group would make the logits of an image depend on the others."""
    network = robust_train.load(colour).train()
    exported.write_program(network, (3, 16, 16), tmp_path / "network.pt2")
    program = exported.read_program(tmp_path / "network.pt2")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        alone = torch.cat([program(image[None]) for image in images])
        torch.testing.assert_close(program(images), alone)
        torch.testing.assert_close(alone, robust_train.load(colour)(images))


@pytest.mark.slow
def test_blocks_that_are_recomputed_are_written_plainly(tmp_path):
    network = Blueprint(Timm("test_vit"), checkpointing=True).build(10, (3, 64, 64), "fp32", 1)
    exported.write_program(network, (3, 64, 64), tmp_path / "network.pt2")
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported.read_program(tmp_path / "network.pt2")(images), network(images))


@pytest.mark.slow
def test_onnxruntime_answers_as_pytorch_on_real_images(small_run, tmp_path, capsys):
    import onnx
    import onnxruntime

    main([str(small_run.parent / "run"), "--to", "onnx", "--out", str(tmp_path / "network.onnx")])
    said = capsys.readouterr().out
    assert "on 16 validation images" in said
    assert "opset 20" in said
    file = onnx.load(tmp_path / "network.onnx")
    assert [(one.domain, one.version) for one in file.opset_import] == [("", 20)]
    assert [one.name for one in (*file.graph.input, *file.graph.output)] == ["images", "logits"]
    assert not any(one.name == "training_mode" and one.i for node in file.graph.node for one in node.attribute)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    network = robust_train.load(small_run.parent / "run")
    for rows in (1, 7):
        images = digits(small_run, rows)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_without_the_packages_of_onnx_the_extra_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    write_or_read = {"onnxscript": exported.write_onnx, "onnxruntime": exported.read_onnx}[package]
    words = (robust_train.load("test_resnet"), (3, 32, 32)) if package == "onnxscript" else ()
    with pytest.raises(ConfigError, match=rf"needs {package}.*robust-train\[export\]"):
        write_or_read(*words, tmp_path / "network.onnx")


def test_an_entry_of_timms_model_needs_nothing_of_ours(timm_file, tmp_path):
    words = [*timm_file["test_resnet"], "--to", "robustbench", "--dataset", "cifar10", "--threat", "linf"]
    main([*words, "--eps", "8/255", "--name", "Tiny2026Test", "--out", str(tmp_path / "entry")])
    code = (tmp_path / "entry" / "entry.py").read_text(encoding="utf-8")
    assert "import timm" in code
    assert "robust_train" not in code
    module = loaded(tmp_path / "entry")
    images = torch.rand(3, 3, 32, 32)
    network = robust_train.load(timm_file["test_resnet"][3], model="test_resnet", classes=10, size=32)
    with torch.no_grad():
        torch.testing.assert_close(module.load()(images), network(images))


def loaded(folder: Path) -> SimpleNamespace:
    """entry.py as `import entry` has it."""
    names = {"__file__": str(folder / "entry.py"), "__name__": "entry"}
    exec(compile((folder / "entry.py").read_text(encoding="utf-8"), "entry.py", "exec"), names)
    return SimpleNamespace(**names)


def test_an_entry_of_our_model_needs_torch_alone_and_load_model_finds_it(colour, tmp_path, monkeypatch):
    """RobustBench's list of models is stood for by a dict; its load_model reads models/DATASET/THREAT/NAME.pt."""
    import sys

    main([str(colour), "--to", "robustbench", "--dataset", "cifar10", "--out", str(tmp_path / "entry")])
    code = (tmp_path / "entry" / "entry.py").read_text(encoding="utf-8")
    assert "robust_train" not in code
    assert "timm" not in code
    module = loaded(tmp_path / "entry")
    lists: dict = {"cifar10": {"Linf": {}}}
    enums = SimpleNamespace(BenchmarkDataset=str, ThreatModel=str)
    for name, stand_in in (("", SimpleNamespace()), (".model_zoo", SimpleNamespace(model_dicts=lists))):
        monkeypatch.setitem(sys.modules, f"robustbench{name}", stand_in)
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo.enums", enums)
    module.register()
    made = lists["cifar10"]["Linf"]["colour"]
    assert made["gdrive_id"] is not None
    network = made["model"]()
    weights = torch.load(tmp_path / "entry" / "models" / "cifar10" / "Linf" / "colour.pt", weights_only=True)
    assert not any("model." in name or "module." in name for name in weights)
    network.load_state_dict(weights)
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        for one in (network.eval(), module.load()):
            torch.testing.assert_close(one(images), robust_train.load(colour)(images))


@pytest.mark.slow
@pytest.mark.parametrize("model", [Timm("test_resnet"), SmallResNet(widths=(4, 8, 8))])
def test_an_entry_for_imagenet_has_the_names_that_robustbench_gives_there(model, tmp_path):
    blueprint = Blueprint(model, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    network = blueprint.build(1000, (3, 32, 32), "fp32", 1).eval()
    entry = Entry("Tiny2026Test", "imagenet", LINF, {}, None)
    entry.write(network, blueprint, (3, 32, 32), 0.875, tmp_path)
    weights = torch.load(tmp_path / "models" / "imagenet" / "Linf" / "Tiny2026Test.pt", weights_only=True)
    module = loaded(tmp_path)
    made = module.build()
    made.load_state_dict({f"model.{name}": value for name, value in weights.items()})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for one in (made.eval(), module.load(), entry.read(tmp_path)):
            torch.testing.assert_close(one(images), network(images))


def test_a_report_of_other_weights_is_refused(colour, tmp_path, capsys):
    """Told apart by checksum, wherever they lie; the averaged weights are others than the raw ones."""
    words = [str(colour), "--to", "robustbench", "--dataset", "cifar10", "--out", str(tmp_path / "entry")]
    words += ["--report", str(tmp_path / "eval.json")]
    clean = {"name": "clean", "threat": "", "accuracy": 2 / 3, "images": 900, "eps": 0.0}
    judged = {"figures": [clean], "flags": []}
    checksum = hashlib.sha256((colour / "manifest.json").read_bytes()).hexdigest()
    for identity in ({"weights": "0" * 64, "averaged": True}, {"weights": checksum, "averaged": False}):
        said = {**judged, "weights": "runs/other", "identity": identity}
        (tmp_path / "eval.json").write_text(json.dumps(said), encoding="utf-8")
        with pytest.raises(SystemExit):
            main(words)
        assert "judges runs/other, and other weights than" in capsys.readouterr().err
    said = {**judged, "weights": "runs/moved", "identity": {"weights": checksum, "averaged": True}}
    (tmp_path / "eval.json").write_text(json.dumps(said), encoding="utf-8")
    main([*words, "--say", "venue=Unpublished"])
    info = json.loads((tmp_path / "entry/model_info/cifar10/Linf/colour.json").read_text(encoding="utf-8"))
    assert (info["clean_acc"], info["venue"], info["authors"]) == ("66.67", "Unpublished", None)
    said = capsys.readouterr().out
    assert "left open (null in model_info): link, name, authors, additional_data, reported, autoattack_acc" in said


def test_what_is_no_report_is_refused(colour, tmp_path, capsys):
    words = [str(colour), "--to", "robustbench", "--dataset", "cifar10", "--out", str(tmp_path / "entry"), "--report"]
    for text in ("{}", "no json"):
        (tmp_path / "eval.json").write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit):
            main([*words, str(tmp_path / "eval.json")])
        assert "is no report of tools.eval" in capsys.readouterr().err


def test_grey_images_stand_in_no_list_of_robustbench(small_run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [str(small_run.parent / "run"), "--to", "robustbench", "--dataset", "cifar10", "--out", str(tmp_path / "e")]
        )
    assert "images of 1 channel to 10 classes; RobustBench cannot list it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_allowed_difference_is_a_ten_thousandth_of_the_largest_logit():
    images = torch.zeros(3, 1, 1, 1)

    def network(scale: float):
        return lambda images: scale * torch.arange(4.0).expand(len(images), 4) / 3

    assert compared(network(50.0), lambda images: network(50.0)(images) + 0.004, images).endswith("3 of 3")
    with pytest.raises(CheckpointError, match=r"largest logit difference 0.006 \(allowed: 0.005; largest logit: 50\)"):
        compared(network(50.0), lambda images: network(50.0)(images) + 0.006, images)
    with pytest.raises(CheckpointError, match=r"allowed: 0.0001"):  # of 1, where logits are smaller
        compared(network(0.1), lambda images: network(0.1)(images) + 2e-4, images)
    with pytest.raises(CheckpointError, match="difference nan"):
        compared(network(1.0), lambda images: network(1.0)(images) * torch.nan, images)


def test_what_answers_otherwise_is_removed_and_what_was_there_stays(small_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "network.pt2"
    out.write_text("before", encoding="utf-8")
    read = exported.read_program
    monkeypatch.setattr(exported, "read_program", lambda path: lambda images: read(path)(images) + 0.1)
    with pytest.raises(SystemExit) as error:
        main([str(small_run.parent / "run"), "--to", "export", "--out", str(out), "--force"])
    assert error.value.code == 2
    assert "answers otherwise than the network" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["network.pt2"]
    assert out.read_text(encoding="utf-8") == "before"


def test_nothing_is_written_over_unless_it_is_forced_and_other_files_stay(small_run, tmp_path, capsys):
    out = tmp_path / "model"
    out.mkdir()
    (out / "letters.txt").write_text("mine", encoding="utf-8")
    (out / "config.json").write_text("old", encoding="utf-8")
    words = [str(small_run.parent / "run"), "--to", "timm", "--out", str(out)]
    with pytest.raises(SystemExit):
        main(words)
    assert "is there already: name another place by --out, or write over it by --force" in capsys.readouterr().err
    assert (out / "config.json").read_text(encoding="utf-8") == "old"
    main([*words, "--force"])
    assert (out / "letters.txt").read_text(encoding="utf-8") == "mine"
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["num_classes"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_where_no_images_can_be_read_random_pixels_stand_in_and_that_is_said(colour, tmp_path, capsys):
    main([str(colour), "--to", "timm", "--images", "3", "--out", str(tmp_path / "model")])
    said = capsys.readouterr()
    assert "checked on 3 images of random pixels" in said.out
    assert "note: random pixels stand in for validation images" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "onnx", "--out", "a.onnx"], "name a checkpoint, or a timm model"),
        (["runs/x", "--weights", "w.pth", "--to", "onnx", "--out", "a.onnx"], "--model and --weights go together"),
        (["runs/x", "--to", "robustbench", "--out", "a"], "needs --dataset"),
        (["runs/x", "--to", "onnx", "--out", "a.pt"], "ends in .onnx"),
        (["runs/x", "--to", "export", "--out", "a"], "ends in .pt2"),
        (["runs/x", "--to", "tf", "--out", "a"], "invalid choice"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_with_what_it_needs(words, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_help_says_what_each_form_is_and_how_it_is_read(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for word in ("timm.create_model", "load_model", "torch.export.load", "1e-4", "python -m tools.convert runs/demo"):
        assert word in said
