"""A study as a value: which runs, ensembles, students and networks it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from robust_train.launch import distill
from robust_train.launch.distill import Distillation, course_of, join, told
from robust_train.objectives.distill import Distill
from robust_train.read.errors import ConfigError, DataError
from robust_train.trained import Members

STUDY = Path("configs/v1/cifar-distill.yaml")


@pytest.fixture
def study() -> Distillation:
    return Distillation.load(STUDY, ["sweep.seeds=[0, 2]"])


def test_students_are_the_sweeps_run_with_another_objective_and_the_first_members_seed(study):
    taught, members = study.taught(), study.sweep.runs()
    assert list(taught) == ["seed0/student", "seed0/student-of-plain", "seed2/student", "seed2/student-of-plain"]
    student, standard = taught["seed2/student"], members["seed2/standard-0"]
    assert isinstance(student.objective, Distill)
    assert student.objective.teachers == ("runs/v1-cifar10/seed2/variants.yaml",)
    assert (student.seed, student.network, student.updates) == (standard.seed, standard.network, standard.updates)
    assert student.folder == "runs/v1-cifar10/seed2/student"


def test_every_network_of_every_seed_is_judged_by_a_name_of_its_own(study):
    entries = {entry.name: entry for entry in study.entries()}
    assert len(entries) == 2 * (11 + 3 + 2)
    assert entries["seed2/plain-x4"].members == tuple(f"runs/v1-cifar10/seed2/plain-{copy}" for copy in range(4))
    assert entries["seed0/low-sf"].members == ("runs/v1-cifar10/seed0/low-sf",)
    assert set(study.roles.names) <= {name.partition("/")[2] for name in entries}


def test_ensembles_are_files_that_name_their_members_beside_them(tmp_path: Path):
    study = Distillation.load(STUDY, ["sweep.seeds=[1]", f"sweep.folder={tmp_path}"])
    (tmp_path / "seed1").mkdir()
    join(study)
    path = tmp_path / "seed1" / "variants.yaml"
    here = Members.load(path)
    assert here.members[1] == str(tmp_path / "seed1" / "low-sf")
    written = path.stat().st_mtime_ns
    join(study)
    assert path.stat().st_mtime_ns == written, "what is there is not written again"


def test_a_dry_run_names_everything(study):
    text = "\n".join(told(study))
    for name in ("seed0/standard-3", "seed2/variants", "seed2/student-of-plain", "32 networks"):
        assert name in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ensembles.variants.members=[standard-0, low]", r"ensembles.variants.members: 'low'.*low-sf"),
        ("students.student.teachers=variant", r"students.student.teachers: 'variant'.*variants"),
        ("roles.base=plain", r"roles: 'plain' is no network"),
        ("ensembles.low-sf={members: [plain-0]}", "names two networks"),
        ("judge.images=0", "images=0 must be at least 1"),
        ("judge.corruption=all", "corruption"),
        ("sweep.settings.updats=3", "updats"),
        ("sweep=3", "sweep must name"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused_by_name(change, said):
    def runs() -> None:
        Distillation.load(STUDY, [change]).sweep.runs()

    with pytest.raises(ConfigError, match=said):
        runs()


def test_frost_without_textures_is_refused_before_anything_is_trained(study, tmp_path):
    images = next(iter(study.sweep.runs().values())).data
    with pytest.raises(ConfigError, match=r"judge\.frost=FOLDER with frost1 to frost5"):
        course_of(Distillation.load(STUDY, ["judge.frost=null"]).judge, images)
    (tmp_path / "frost1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"frost1\.png cannot be read"):
        course_of(Distillation.load(STUDY, [f"judge.frost={tmp_path}"]).judge, images)
    with pytest.raises(ConfigError, match="224, 64 and 32 pixels, not of 28"):
        course_of(study.judge, replace(images, size=28))


def test_a_member_that_fails_ends_the_study_with_code_1_before_its_students(study, monkeypatch, capsys):
    """As it ends a sweep: bad input has code 2, and its remedy is another."""
    from robust_train.launch.packing import Unfinished

    def fails(runs, retries, address):
        raise Unfinished({}, {"seed0/low-sf": "its process was killed"})

    monkeypatch.setattr(distill, "sweep", fails)
    with pytest.raises(SystemExit) as ended:
        distill.main([str(STUDY), "judge.corruptions=blur"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "seed0/low-sf: its process was killed" in said.err
    assert "students" not in said.out
