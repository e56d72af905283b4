"""The demonstration, on a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from triscale.demo import __main__ as demo


def test_ends_with_the_result_and_the_files_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 8)
    monkeypatch.setattr(demo, "NUM_TEST", 3)
    results: list[str] = []
    for run in ("run-1", "run-2"):  # a second run keeps the first
        assert demo.main(["--out", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        results += [line for line in lines if line.startswith("VOC07 mAP")]
        for name in ("pictures.png", "best.safetensors", "log.jsonl"):
            assert (tmp_path / run / name).is_file()
            assert any(line.endswith(str(tmp_path / run / name)) for line in lines)
    assert results[0] == results[1]
    assert results[0].endswith("on 3 held-out pictures")


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "VOCdevkit" / "mine").mkdir(parents=True)
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "VOCdevkit" in capsys.readouterr().err
