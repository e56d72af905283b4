"""`triscale report` from the command line, and runs that kept no detections."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.running import records
from triscale.cli import main
from triscale.report.found import BEST, load_found


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of an older version: weights, log and recipe."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_an_old_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured once, with the mAP that was logged; the second time from what was kept."""
    best = max(records(run, "eval"), key=lambda each: each["metrics"]["mAP"])
    assert main(["report", str(run)]) == 0
    first = capsys.readouterr()
    assert first.out == f"{run}/report.html\n"
    assert "measuring the weights again" in first.err
    about = load_found(run / BEST).about
    assert about["mAP"] == pytest.approx(best["metrics"]["mAP"], abs=1e-4)  # folded: other sums
    assert about["step"] == best["step"]
    assert main(["report", str(run), "--out", str(run / "again.html")]) == 0
    assert "measuring" not in capsys.readouterr().err
    assert (run / "again.html").read_text() == (run / "report.html").read_text()


def test_data_or_weights_are_gone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "best.safetensors").unlink()
    for path in run.glob("epoch_*"):
        path.unlink()
    assert main(["report", str(run)]) == 0
    assert "warning: " in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "not measured again: " in page
    assert "<h2>Curves</h2>" in page
    assert not (run / BEST).exists()


def test_several(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(other)]) == 0
    assert "2 runs compared" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize("words", [["nowhere"], ["."], ["run", "run"]])
def test_mistakes(
    words: list[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("triscale: error: ")
