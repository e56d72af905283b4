"""`triscale preview` and `triscale anchors` as a user calls them: files, words, refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import SETS, TINY, set_words
from triscale.choosing import choose
from triscale.cli import main
from triscale.data.open import open_dataset
from triscale.kmeans import flat
from triscale.recipe import Recipe, load_recipe


def test_preview(devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seen"
    words = ["preview", str(devkit), "--recipe", "small", *SETS, "--out", str(out)]
    assert main([*words, "--count", "6"]) == 0
    pictures = [f"sample-{k:04d}.png" for k in range(6)]
    others = ["preview.html", "sheet.png"]
    assert sorted(path.name for path in out.iterdir()) == [*others[:1], *pictures, *others[1:]]
    first = cv2.imread(str(out / pictures[0]))
    assert first is not None
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert re.fullmatch(r"samples +6", lines[1])
    assert lines[-1] == f"6 samples in {out}; look at {out}/preview.html or {out}/sheet.png"
    assert "voc data in" in printed.err
    page = (out / "preview.html").read_text()
    assert page.count("<figure>") == 6
    for line in (line for line in lines[1:] if "  " in line):  # the page has the same figures
        name, value = re.split(r" {2,}", line)[:2]
        assert name in page
        assert value in page

    # a later and smaller one takes its place; what isn't its own stays
    (out / "sample-notes.png").write_bytes(b"mine")
    assert main([*words, "--count", "2", "--epoch", "1", "--seed", "5"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *(others[0], *pictures[:2]),
        *("sample-notes.png", others[1]),
    ]
    again = cv2.imread(str(out / pictures[0]))
    assert again is not None
    assert again.shape != first.shape or (again != first).any()
    assert "from epoch 1 of 3 on, with seed 5" in (out / "preview.html").read_text()


def test_it_chooses_as_training_does(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train.device=cpu", "train.workers=0", "train.size=64"]
    words = set_words(*given)
    assert main(["preview", str(devkit), *words, "--count", "1", "--out", str(tmp_path)]) == 0
    keys = {text.partition("=")[0] for text in given}
    recipe = load_recipe("modern", overrides=given)
    data = open_dataset(devkit, recipe.data)
    _, lines = choose(recipe, data, given=keys, base=load_recipe("modern"))
    assert any(line.startswith("train.epochs=200 (10 pictures") for line in lines)
    assert capsys.readouterr().err.splitlines()[-len(lines) :] == lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count 0", "--count: expected at least 1, got 0"),
        ("--epoch 3", "--epoch: expected 0 to 2, as the run has 3 epochs, got 3"),
        ("--set train.batch_size=11", "train.batch_size: 11 is more than the 10 training pictures"),
        ("--set augment.mosaic=1", "augment.mosaic: has no effect"),
        ("--set train.size=0", "train.size"),
        ("--recipe none", "none"),
    ],
)
def test_preview_refuses(
    words: str, message: str, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seen"
    own = ["preview", str(devkit), "--recipe", "small", *SETS, "--out", str(out), *words.split()]
    assert main(own) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_a_damaged_picture_is_named(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(devkit, tmp_path / "VOCdevkit")
    for picture in root.rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:1000])
    words = ["preview", str(root), "--recipe", "small", *SETS, "--out", str(tmp_path / "seen")]
    assert main(words) == 2
    assert re.search(r"error: .*\.jpg: ", capsys.readouterr().err.splitlines()[-1])


# --- anchors --------------------------------------------------------------------------------------


def test_anchors(devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, out = tmp_path / "mine.toml", tmp_path / "plots"
    words = ["anchors", str(devkit), "--recipe", "small", *SETS, "--set", "train.size=96"]
    assert main([*words, "--write", str(target), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "overlap one by half" in printed
    assert "The new ones aren't worth it: " in printed, "too few boxes"
    assert cv2.imread(str(out / "anchors.png")) is not None
    written = load_recipe(target)
    assert len(flat(written.model.anchors)) == 9
    usual = load_recipe("small", overrides=[*TINY, "train.size=96"])
    assert written == Recipe(**{**vars(usual), "model": written.model})
    assert f"--recipe {target}" in printed
    for row in written.model.anchors:
        assert "  ".join(f"{w:g}x{h:g}" for w, h in row) in printed

    # it is a recipe, and isn't lost
    assert (
        main(
            [
                "preview",
                str(devkit),
                "--recipe",
                str(target),
                "--count",
                "1",
                "--out",
                str(tmp_path / "seen"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    before = target.read_bytes()
    assert main([*words, "--write", str(target), "--number", "3"]) == 2
    assert "mine.toml: is there already; --force replaces it" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main([*words, "--write", str(target), "--number", "3", "--force"]) == 0
    assert [len(row) for row in load_recipe(target).model.anchors] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--number 0", "expected a multiple of 3, got 0"),
        ("--number 4", "mobilenet0.1 has 3 strides with equally many anchors each; expected a"),
        ("--number 3000", "expected at least 3000 boxes in"),
        ("--write /nowhere/at/all.toml", "/nowhere/at/all.toml: No such file or directory"),
    ],
)
def test_anchors_refuses(
    words: str, message: str, devkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["anchors", str(devkit), "--recipe", "small", *SETS, *words.split()]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_anchors_are_those_that_training_takes(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On VOC the rule speaks for k-means' anchors, on BCCD it doesn't."""
    target = tmp_path / "voc"  # a name without an end is no shipped recipe's
    path = str(shared / "data" / "voc2007-400")
    assert main(["anchors", path, "--set", "train.device=cpu", "--write", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "`triscale train` takes such by itself" in printed
    base = load_recipe("modern", overrides=["train.device=cpu"])
    chosen, _ = choose(base, open_dataset(Path(path), base.data))
    assert chosen.model.anchors == load_recipe(target).model.anchors
    assert np.array(chosen.model.anchors).shape == (2, 3, 2)
    bccd = str(shared / "data" / "bccd")
    assert main(["anchors", bccd, "--set", "data.skip_bad=true"]) == 0
    assert "aren't worth it: 99% of the boxes overlap" in capsys.readouterr().out
