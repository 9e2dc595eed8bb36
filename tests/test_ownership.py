"""A run is what its run.yaml says, not how its path is spelled; its data are what its checkpoint remembers."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from robust_train import checkpoint, job, ownership
from robust_train.__main__ import main
from robust_train.data.digits import write
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.ownership import unlike
from robust_train.read.errors import ConfigError, DataError
from robust_train.run import Run

UPDATES = 4


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder in which a run of 4 updates has been killed after its second one: home/run, data in home/digits."""
    home = tmp_path_factory.mktemp("begun")
    write(home / "digits", per_shard=100)
    (home / "small.yaml").write_text(
        f"""name: small
data: {{use: shards, train: '{home}/digits/digits-train-*.tar', validation: '{home}/digits/digits-validation-*.tar',
       classes: 10, size: 8, channels: 1, cache: '{home}/cache'}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective: {{use: plain}}
updates: {UPDATES}
batch: 32
folder: {home}/run
optimiser: {{name: sgd, lr: 0.05}}
validate: {{images: 32}}
checkpoint: {{every: 2}}
records: {{wandb: "off", progress: "off", pictures: false}}
"""
    )
    main([str(home / "small.yaml")])
    shutil.copytree(home / "run", home / "whole")
    (home / "run" / "summary.json").unlink()
    shutil.rmtree(home / "run" / "checkpoints" / "00000004")
    return home


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Path:
    """The same, for one test: run/ and digits/ are its own."""
    for name in ("run", "digits"):
        shutil.copytree(begun / name, tmp_path / name)
    (tmp_path / "small.yaml").write_text((begun / "small.yaml").read_text().replace(str(begun), str(tmp_path)))
    text = (tmp_path / "run" / "run.yaml").read_text().replace(str(begun), str(tmp_path))
    (tmp_path / "run" / "run.yaml").write_text(text)
    return tmp_path


def ended(folder: Path, begun: Path) -> None:
    """The folder holds what the run that nobody disturbed wrote."""
    assert (folder / "metrics.jsonl").read_bytes() == (begun / "whole" / "metrics.jsonl").read_bytes()
    assert checkpoint.saved(folder)[-1].name == "00000004"


@pytest.mark.parametrize(
    "spelling", ["{home}/run/", "{home}//run", "run", "./run/", "{home}/link", "$HERE/run", "~/run"]
)
def test_a_folder_that_is_spelled_otherwise_goes_on(home, begun, monkeypatch, spelling):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HERE", str(home))
    monkeypatch.setenv("HOME", str(home))
    (home / "link").symlink_to(home / "run")
    main([str(home / "small.yaml"), f"folder={spelling.format(home=home)}"])
    ended(home / "run", begun)


@pytest.mark.parametrize("named", ["folder", "run.yaml", "relative", "checkpoint"])
def test_a_folder_that_was_moved_goes_on_where_it_is(home, begun, monkeypatch, named):
    os.rename(home / "run", home / "moved")
    monkeypatch.chdir(home / "moved")
    words = {
        "folder": [str(home / "small.yaml"), f"folder={home}/moved"],
        "run.yaml": [str(home / "moved" / "run.yaml")],
        "relative": ["run.yaml"],
        "checkpoint": ["checkpoints/00000002/run.yaml"],
    }
    main(words[named])
    ended(home / "moved", begun)
    assert not (home / "run").exists()


def test_a_run_yaml_that_is_a_person_s_own_says_its_folder(home):
    (home / "configs").mkdir()
    shutil.copy(home / "run" / "run.yaml", home / "configs" / "run.yaml")
    assert Run.load(home / "configs" / "run.yaml").folder == f"{home}/run"
    assert Run.load(home / "run" / "run.yaml", [f"folder={home}/b"]).folder == f"{home}/b"


def test_data_that_were_moved_are_the_same_data(home, begun):
    os.rename(home / "digits", home / "elsewhere")
    shards = [f"data.{name}={home}/elsewhere/digits-{name}-*.tar" for name in ("train", "validation")]
    main([str(home / "small.yaml"), *shards, "data.workers=1", f"data.cache={home}/another"])
    ended(home / "run", begun)


def test_another_run_is_refused_and_nobody_is_told_to_delete_it(home, capsys):
    for change in ("seed=1", "optimiser.lr=0.1", "start=x", "data.size=9"):
        with pytest.raises(SystemExit):
            main([str(home / "small.yaml"), change])
        said = capsys.readouterr().err
        assert "holds another run" in said
        assert change.partition("=")[0] in said
        assert "delete" not in said


def swapped(folder: Path) -> str:
    """Two shards of one size in each other's place, the manifest as it was; both older than it."""
    alike: dict[int, list[Path]] = {}
    for shard in sorted(folder.glob("digits-train-*.tar")):
        alike.setdefault(shard.stat().st_size, []).append(shard)
    one, other = next(shards for shards in alike.values() if len(shards) > 1)[:2]
    os.rename(one, folder / "x")
    os.rename(other, one)
    os.rename(folder / "x", other)
    return one.name


def relabelled(folder: Path) -> str:
    """Other samples in a shard, and a manifest that says so."""
    from robust_train.tools.make_shards import main as make

    shard = sorted(folder.glob("digits-train-*.tar"))[0]
    with tarfile.open(shard) as there, tarfile.open(shard.with_name("new"), "w") as new:
        members = there.getmembers()
        for member in members[2:]:
            new.addfile(member, there.extractfile(member))
    os.replace(shard.with_name("new"), shard)
    (folder / "manifest.json").unlink()
    make([str(folder), "--index"])
    return shard.name


@pytest.mark.parametrize("change", [swapped, relabelled])
def test_data_that_have_changed_since_are_refused_by_name_or_gone_on_with(home, capsys, change):
    name = change(home / "digits")
    with pytest.raises(SystemExit):
        main([str(home / "small.yaml")])
    said = capsys.readouterr().err
    assert "trained on other data until update 2" in said
    assert f"{name} has changed" in said
    assert "changed_data=accept" in said
    with pytest.raises(SystemExit):
        main([str(home / "small.yaml"), "--check"])
    main([str(home / "small.yaml"), "changed_data=accept"])
    assert checkpoint.saved(home / "run")[-1].name == "00000004"
    main([str(home / "small.yaml")])  # done: nothing to refuse


def test_a_shard_that_is_younger_than_its_manifest_is_not_what_that_says(home):
    """Labels of equal length put right in place: the manifest would speak for the file that was."""
    run = Run.load(home / "small.yaml", [f"folder={home}/new", f"data.cache={home}/new-cache"])
    shard = sorted((home / "digits").glob("digits-train-*.tar"))[0]
    bytes = bytearray(shard.read_bytes())
    bytes[-2000] ^= 1
    shard.write_bytes(bytes)
    os.utime(shard, (2**31, 2**31))
    with pytest.raises(DataError, match=r"digits-train-000000.tar has sha256 .* manifest.json beside it says"):
        ownership.prepare(run, Place())


def test_what_differs_between_data_sets_is_said():
    assert unlike({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == []
    assert unlike({"a": "1", "b": "2"}, {"c": "1", "d": "2"}) == []  # renamed: the same samples in the same order
    assert unlike({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == ["the shards stand in another order"]
    assert unlike({"a": "1"}, {"a": "2", "b": "3"}) == ["a has changed", "b is new"]
    assert unlike({"a": "1", "b": "2"}, {"a": "1"}) == ["b is gone"]
    assert len(unlike({str(n): "1" for n in range(30)}, {str(n): "2" for n in range(30)})) == 11


def test_a_folder_of_another_machine_s_variable_is_read(home, monkeypatch):
    text = (home / "run" / "run.yaml").read_text()
    (home / "run" / "run.yaml").write_text(text.replace(f"folder: {home}/run", "folder: $NOT_SET_ANYWHERE/run"))
    assert Run.load(home / "run" / "run.yaml").path == home / "run"


def test_a_finished_folder_stays_as_it_is(home, begun):
    shutil.copytree(begun / "whole", home / "done")
    before = {path: path.read_bytes() for path in (home / "done").rglob("*") if path.is_file()}
    assert job.do(Run.load(home / "small.yaml", [f"folder={home}/done"]), PlainEngine, Place())["updates"] == UPDATES
    assert {path: path.read_bytes() for path in (home / "done").rglob("*") if path.is_file()} == before


def test_a_run_without_validation_images_is_refused_before_it_trains_for_nothing(home, capsys):
    for words in ([], ["--check"]):
        with pytest.raises(SystemExit):
            main([str(home / "small.yaml"), f"folder={home}/new", "data.validation=null", *words])
        assert "name data.validation" in capsys.readouterr().err
    assert not (home / "new" / "metrics.jsonl").exists()


def test_a_run_that_another_process_has_named_otherwise_is_refused(home):
    with pytest.raises(ConfigError, match="holds another run"):
        ownership.same(Run.load(home / "small.yaml", ["batch=16"]))
