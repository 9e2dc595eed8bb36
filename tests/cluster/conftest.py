"""What the cluster's tests share: one run that nobody disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from started_run import launched


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: two processes on a local cluster, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with launched(folder) as run:
        assert run.wait() == 0, run.err
    return folder
