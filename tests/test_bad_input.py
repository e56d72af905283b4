"""Every mistake of the user's ends with one clear line and a code, and loses nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import SETS
from triscale.cli import guarded, main


def complaint(words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """The one error line of a command that must fail; what comes before it is about the data."""
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("triscale: ")]
    assert len(errors) == 1
    assert printed.err.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.fixture
def copied(devkit: Path, tmp_path: Path) -> Path:
    """A copy of the drawn set, to be broken."""
    return Path(shutil.copytree(devkit, tmp_path / "copied"))


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name the data set (DATA)" in complaint(["train"], capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train {tmp}/none", "{tmp}/none: no such folder"),
        ("train {tmp}", "{tmp}: no data set found; looked for VOC"),
        ("train {tmp}/none.toml", "{tmp}/none.toml: can't be read"),
        ("train {data} --recipe smal", "no recipe or recipe file 'smal'; did you mean 'small'?"),
        ("train {data} --recipe {tmp}/none.toml", "{tmp}/none.toml: can't be read"),
        ("train {data} --set train.epoch=3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("train {data} --set trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train {data} --epochs many", "train.epochs: expected a whole number, got 'many'"),
        ("train {data} --epochs 0", "train.epochs: expected at least 1, got 0"),
        ("train {data} --size 416.5", "train.size: expected a whole number, got 416.5"),
        ("train {data} --set epochs=3", "--set epochs=3: expected section.key=value"),
        ("train {data} --set data.train=2007_none", "Main/none.txt: can't read this list"),
        ("train {data} --device gpu", "expected cpu, cuda, cuda:N or auto, got 'gpu'"),
        ("train {data} --batch-size 11 --device cpu", "use --batch-size 10 or less"),
        ("train {data} --batch-size 4 --set model.backbone=resnet", "unknown network 'resnet'"),
        ("train {data} --init {tmp}/none", "{tmp}/none: no such weights file or run folder"),
        ("train --resume {tmp}", "{tmp}: expected a run folder with recipe.toml"),
        ("train {data} --resume {run}", "--resume goes on with a run as it is: data"),
        ("train {data} --out {run}", "{run}: holds a run already; go on with --resume {run}"),
        ("train {data} --out {tmp}/file/run --batch-size 4", "{tmp}/file/run: Not a directory"),
        ("eval {tmp}/none {data}", "{tmp}/none: no such weights file or run folder"),
        ("eval {tmp} {data}", "{tmp}: expected a run folder with best.safetensors"),
        ("eval {tmp}/file {data}", "{tmp}/file: expected a weights file named .safetensors"),
        ("eval {tmp}/foreign.safetensors {data}", "expected a weights file of triscale"),
        ("eval {tmp}/half.safetensors {data}", "{tmp}/half.safetensors: not a whole safetensors"),
        ("eval {run} {tmp}/none", "{tmp}/none: no such folder"),
        ("eval {run} {data} --split 2012_test", "2012"),
        ('train {data} --set data.classes=["","RBC"]', "expected class names to be texts"),
        ("train --resume {run} --set train.init=x", "a run that goes on has its weights"),
        ("eval {run} {data} --size 8", "--size: expected a size from 32 to 8192 pixels, found 8"),
        ("eval {run} {data} --set train.epochs=1", "eval knows the sections data, decode, eval"),
        ("eval {run} {data} --set evaluate.iuo=1", "unknown key 'iuo'; did you mean 'iou'?"),
        ("predict {run} {tmp}/none.jpg", "{tmp}/none.jpg: no picture or video found"),
        ("predict {run} {tmp}/file", "{tmp}/file: "),
        ("predict {run} {tmp}/file --score 2", "--score: expected between 0 and 1, got 2.0"),
        ("predict {run} {data} --out {tmp}/file/x", "{tmp}/file/x: Not a directory"),
        ("recipes bofs", "no recipe or recipe file 'bofs'; did you mean 'bof'?"),
    ],
)
def test_one_clear_line(
    words: str,
    expected: str,
    devkit: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("just text")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    whole = (trained / "best.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    places = {"tmp": tmp_path, "data": devkit, "run": trained}
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    line = complaint([word.format(**places) for word in words.split()], capsys)
    assert line.startswith("triscale: error: ")
    assert expected.format(**places) in line
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def picture(root: Path, name: str) -> Path:
    return root / "VOC2007" / "JPEGImages" / f"{name}.jpg"


def annotation(root: Path, name: str) -> Path:
    return root / "VOC2007" / "Annotations" / f"{name}.xml"


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: picture(root, "000002").unlink(), "000002.jpg"),
        (lambda root: picture(root, "000002").write_bytes(b""), "000002.jpg: the file is empty"),
        (lambda root: picture(root, "000002").write_text("text"), "000002.jpg: not a picture"),
        (lambda root: annotation(root, "000002").unlink(), "000002.xml"),
        (lambda root: annotation(root, "000002").write_text("<annot"), "000002.xml: not an XML"),
        (
            lambda root: replace_in(annotation(root, "000002"), "<xmin>", "<xmin>nan"),
            "000002.xml: object 1",
        ),
        (
            lambda root: replace_in(annotation(root, "000002"), "<xmax>", "<xmax>99"),
            "000002.xml: object 1",
        ),
    ],
)
def test_broken_data_is_refused_by_name_or_skipped(
    damage: Callable[[Path], object],
    expected: str,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copied)
    words = ["train", str(copied), "--out", str(tmp_path / "run"), *SETS, "--epochs", "1"]
    assert main(words) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("triscale: error: 1 broken labels or pictures in 2007_trainval")
    assert "--set data.skip_bad=true" in printed[0]
    assert expected in printed[1]
    assert len(printed) == 2
    assert not (tmp_path / "run").exists()
    more = ["--set", "data.skip_bad=true", "--set", "train.val_interval=0"]
    assert main([*words, *more]) == 0
    skipped = [x for x in capsys.readouterr().err.splitlines() if x.startswith("skipped: ")]
    assert len(skipped) == 1
    assert expected in skipped[0]


def moved_out(path: Path) -> None:
    outside = path.parents[3] / path.name
    path.rename(outside)
    path.symlink_to(outside)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("where", [picture, annotation])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (moved_out, "lies outside of the data set"),
        (piped, "can't be read (expected a file, found a pipe, socket or device)"),
    ],
)
def test_files_that_must_not_be_read(
    where: Callable[[Path, str], Path],
    damage: Callable[[Path], None],
    words: str,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(where(copied, "000002"))
    assert main(["train", str(copied), "--out", str(tmp_path / "run"), *SETS]) == 2
    error = capsys.readouterr().err
    assert f"{where(copied, '000002')}: {words}" in error
    assert "Traceback" not in error
    assert ("--set data.outside=true" in error) == (damage is moved_out)
    assert not (tmp_path / "run").exists()


def test_unknown_class(copied: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights know six classes; a seventh in the data can't be measured."""
    path = annotation(copied, "000011")
    name = path.read_text().split("<name>")[1].split("</name>")[0]
    replace_in(path, f"<name>{name}<", "<name>whale<")
    assert main(["eval", str(trained), str(copied)]) == 2
    error = capsys.readouterr().err
    assert "000011.xml" in error
    assert "whale" in error


def test_empty_split(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("")
    words = ["train", str(copied), "--out", str(tmp_path / "run"), *SETS]
    assert "2007_test: no usable picture in this split" in complaint(words, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_while_training(
    workers: int, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header is whole, so the check at the start passes; the reader must notice."""
    path = picture(copied, "000005")
    path.write_bytes(path.read_bytes()[:-200])
    words = ["train", str(copied), "--out", str(tmp_path / "run"), *SETS]
    line = complaint([*words, "--set", f"train.workers={workers}"], capsys)
    assert f"{path}: the JPEG is cut short" in line


class Broken:
    """What `raises` makes of a function."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_: object, **__: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f8")),
    ],
)
def test_out_of_memory(
    error: Exception,
    devkit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import triscale.runs  # noqa: F401  # so that it is there to be changed

    monkeypatch.setattr(sys.modules["triscale.training"], "batch_losses", Broken(error))
    words = ["train", str(devkit), "--out", str(tmp_path / "run"), *SETS]
    line = complaint(words, capsys, code=3)
    assert "out of memory; try a smaller --batch-size or --size" in line


def test_memory_really_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    """What torch itself raises, not what we think it raises."""
    assert guarded(lambda: print(torch.empty(1 << 60, dtype=torch.uint8).sum())) == 3
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("bug"), AssertionError()])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(Broken(error))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: /x/y: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_the_system_says_no(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(Broken(error)) == code
    assert capsys.readouterr().err == f"triscale: {text}\n"


def test_no_write_permission(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    words = ["train", str(devkit), "--out", str(tmp_path / "locked" / "run"), *SETS]
    assert "locked/run: Permission denied" in complaint(words, capsys)


def test_a_full_disk_keeps_what_was_saved(
    devkit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the second epoch on nothing can be written; the first one's state stays whole."""
    from triscale import checkpoint, files

    write = files.write_atomically

    def full(path: Path, data: bytes) -> None:
        if "step-00000005" in path.name:
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    run = tmp_path / "run"
    words = ["train", str(devkit), "--out", str(run), *SETS]
    assert "No space left on device" in complaint(words, capsys)
    monkeypatch.undo()
    assert checkpoint.load_state(run / "last")[0].step == 2
    assert main(["train", "--resume", str(run)]) == 0
