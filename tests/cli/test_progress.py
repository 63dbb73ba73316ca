"""The progress bar where standard error is a file: one line for each thing, and nothing else."""

import pytest

from pellucid.cli.progress import ProgressBar


def test_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        assert capsys.readouterr().err == ""
        bar.percent("fetching", 0.0)
        bar.percent("fetching", 50.0)
        bar.steps("compiling", 0, 0)
        bar.steps("compiling", 3, 10)
    assert capsys.readouterr().err == "pellucid: fetching\npellucid: compiling\n"
