"""Every planted fault is found, nothing is found in a clean set, and copies are mended.

What is to be found comes from the one who planted it. Boxes and labels of the copies are compared
with those of the clean set, which numpy knows bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.doctor import faults as f
from tests.doctor.sets import write_set
from triscale.cli import main
from triscale.data.open import open_dataset
from triscale.doctor.examine import Report, examine
from triscale.doctor.findings import KINDS
from triscale.doctor.mend import mend
from triscale.errors import UserError
from triscale.recipe import Recipe, load_recipe

FAULTS: list[tuple[str, str, str, f.Plant, str, str]] = [
    # format, kind, what is special, how it is planted, the file told, words of object and fault
    ("voc", "missing-picture", "", f.gone("images", "t0"), "image t0", "no such picture"),
    ("voc", "broken-picture", "empty", f.bytes_of("t0", lambda _: b""), "image t0", "is empty"),
    ("voc", "broken-picture", "cut", f.bytes_of("t0", f.cut_short), "image t0", "cut short"),
    ("voc", "broken-picture", "gif", f.stored("t0", lambda i: i, "GIF"),
     "image t0", "no JPEG, PNG"),
    ("voc", "broken-labels", "gone", f.gone("labels", "t0"), "labels t0", "No such file"),
    ("voc", "broken-labels", "xml", f.text("t0", "</size>", "</siz>"), "labels t0", "not an XML"),
    ("voc", "broken-object", "", f.text("t0", "<xmin>11<", "<xmin>ll<"),
     "labels t0", "object 1 ('"),
    ("voc", "not-finite-box", "", f.text("t0", ">11</xmin>", ">inf</xmin>"),
     "labels t0", "object 1"),
    ("voc", "empty-box", "", f.text("t0", "<xmax>50<", "<xmax>11<"),
     "labels t0", "object 1 ('ant')"),
    ("voc", "outside-box", "", f.text("t0", "<xmax>150<", "<xmax>170<"), "labels t0", "object 4"),
    ("voc", "outside-box", "far", f.text("t0", "<xmax>50<", "<xmax>5e9<"), "labels t0", "object 1"),
    ("voc", "wrong-size", "", f.text("t0", "<width>160", "<width>320"), "labels t0", "of 320x120"),
    ("voc", "wrong-size", "exif", f.turned("t0", turn_pixels=False), "labels t0", "is 120x160"),
    ("voc", "no-size", "", f.text("t0", "<width>160</width>", ""), "labels t0", "no picture size"),
    ("yolo", "broken-labels", "", lambda c: c.labels["t0"].write_bytes(b"\xff\xfe"),
     "labels t0", "UTF-8"),
    ("yolo", "broken-object", "words", f.row("t0", 2, "1 .5 .5 x .2"), "labels t0", "line 2"),
    ("yolo", "broken-object", "count", f.row("t0", 2, "1 .5 .5 .2"),
     "labels t0", "line 2: 4 values"),
    ("yolo", "broken-object", "class", f.row("t0", 2, "7 .5 .5 .2 .2"),
     "labels t0", "line 2: class 7"),
    ("yolo", "outside-box", "", f.row("t0", 2, "1 .95 .5 .2 .2"), "labels t0", "line 2 ('bee')"),
    ("yolo", "outside-box", "pixels", f.row("t0", 2, "1 85 35 50 30"), "labels t0", "line 2"),
    ("yolo", "not-finite-box", "", f.row("t0", 2, "1 nan .5 .2 .2"), "labels t0", "line 2"),
    ("coco", "missing-picture", "", f.gone("images", "t0"), "image t0", "No such file"),
    ("coco", "broken-image", "", f.entry("images", 6, id=1, width=9), "labels t0", "two different"),
    ("coco", "broken-image", "name", f.entry("images", 0, file_name=7), "labels t0", "no text as"),
    ("coco", "broken-category", "", f.entry("categories", 2, name="c"),
     "labels t0", "two different"),
    ("coco", "broken-object", "image", f.entry("annotations", 0, image_id=99),
     "labels t0", "image_id 99"),
    ("coco", "broken-object", "class", f.entry("annotations", 0, category_id=9),
     "labels t0", "category_id 9"),
    ("coco", "broken-object", "box", f.entry("annotations", 0, bbox=[1, 2]),
     "labels t0", "four numbers"),
    ("coco", "no-area", "", f.entry("annotations", 0, area=0), "labels t0", "area is 0"),
    ("coco", "empty-box", "", f.entry("annotations", 0, bbox=[9, 9, 0, 9]),
     "labels t0", "t0.jpg: annotation 1"),
    ("coco", "outside-box", "", f.entry("annotations", 0, bbox=[-9, 9, 40, 9]),
     "labels t0", "annotation 1"),
    ("coco", "wrong-size", "", f.entry("images", 0, width=99),
     "labels t0", "made for a picture of 99x120"),
    ("coco", "no-size", "", f.entry("images", 0, width=None), "labels t0", "no picture size"),
    ("yolo", "damaged-picture", "", f.bytes_of("t0", f.cut_and_closed),
     "image t0", "premature end"),
    ("yolo", "turned-picture", "", f.turned("t0", turn_pixels=True), "image t0", "EXIF"),
    ("yolo", "grey-picture", "", f.stored("t0", lambda i: i.convert("L"), "JPEG"),
     "image t0", "grey"),
    ("yolo", "cmyk-picture", "", f.stored("t0", lambda i: i.convert("CMYK"), "JPEG"),
     "image t0", "CMYK"),
    ("yolo", "deep-picture", "", f.png("t0", np.full((120, 160, 3), 999, np.uint16)),
     "image t0", "16 bits"),
    ("yolo", "palette-picture", "", f.png("t0", lambda i: i.quantize(64)), "image t0", "palette"),
    ("yolo", "alpha-picture", "", f.png("t0", lambda i: i.convert("RGBA")), "image t0", "alpha"),
    ("yolo", "misnamed-picture", "", f.stored("t0", lambda i: i, "PNG"),
     "image t0", "another format"),
    ("voc", "leak", "", f.copied("t1", "v0"), "image v0", "is in train, too, as t1.jpg"),
    ("voc", "leak", "listed", f.file("ImageSets/Main/val.txt", "t3\n"),
     "image t3", "is in train, too"),
    ("voc", "similar-leak", "", f.copied("t1", "v0", quality=60),
     "image v0", "looks like t1.jpg of train"),
    ("voc", "copy", "", f.copied("t1", "t4"), "image t4", "the same file as t1.jpg"),
    ("voc", "similar", "", f.copied("t1", "t4", quality=60), "image t4", "looks like t1.jpg"),
    ("voc", "listed-twice", "", f.file("ImageSets/Main/train.txt", "t3\n"), "image t3", "twice"),
    ("yolo", "listed-twice", "absolute", f.listed, "image t0", "twice"),
    ("voc", "lonely-labels", "", f.file("Annotations/x.xml", "<annotation/>"),
     "Annotations/x.xml", "no picture x"),
    ("yolo", "lonely-labels", "", f.file("labels/train/x.txt", "0 .5 .5 .2 .2"),
     "labels/train/x.txt", "no picture x"),
    ("voc", "unused-pictures", "", f.file("JPEGImages/x.jpg", ""),
     "JPEGImages", "1 in no split: x.jpg"),
    ("yolo", "no-labels", "", f.gone("labels", "t1"), "image t1", "no label file"),
    ("yolo", "no-objects", "", f.emptied, "image t1", "no object"),
    ("yolo", "repeated-box", "", f.row("t0", 5, "0 0.19 0.295 0.25 0.41"),
     "labels t0", "line 5 ('ant')"),
    ("yolo", "two-classes", "", f.row("t0", 5, "1 0.1875 0.291667 .25 .416667"),
     "labels t0", "line 5"),
    ("yolo", "whole-picture", "", f.row("t0", 2, "1 .5 .5 1 1"), "labels t0", "100.0%"),
    ("yolo", "tiny-box", "", f.row("t0", 2, "1 .5 .5 .01 .01"), "labels t0", "2.2 x 2.2 pixels"),
    ("yolo", "odd-shape", "", f.row("t0", 2, "1 .5 .5 .9 .03"),
     "labels t0", "with the best anchor"),
    ("voc", "similar-names", "", f.text("t0", ">ant<", ">Ant <"),
     "", "class 'ant': differs from 'Ant'"),
    ("voc", "absent-class", "", f.text("t0", ">ant<", ">cow<", times=2),
     "", "class 'cow': no object in val"),
    ("voc", "rare-class", "", f.text("t0", ">ant<", ">cow<", times=2),
     "", "class 'cow': 2 objects"),
    ("yolo", "unused-class", "", lambda c: f.text_of(c.root / "data.yaml", "]", ", 'cow']"),
     "", "class 'cow'"),
    ("yolo", "absent-class", "", f.renamed_class(0), "", "class 'bee': no object in val"),
    ("yolo", "imbalance", "", f.many(7), "", "times as many"),
]  # fmt: skip
ERRORS = [row for row in FAULTS if KINDS[row[1]].severity == "error"]


def check(root: Path) -> Report:
    return examine(root, load_recipe("modern"))


def names(rows: Sequence[tuple[str, str, str, f.Plant, str, str]]) -> list[str]:
    return ["-".join(filter(None, row[:3])) for row in rows]


@pytest.mark.parametrize("format", ["voc", "yolo", "coco"])
def test_nothing_is_found_in_a_clean_set(tmp_path: Path, format: str) -> None:
    report = check(write_set(tmp_path / "set", format).root)
    assert report.findings == ()
    assert [(s.role, s.pictures, s.objects, s.per_class) for s in report.splits] == [
        ("train", 6, 24, (12, 12)),
        ("val", 3, 12, (6, 6)),
    ]


@pytest.mark.parametrize(
    ("format", "kind", "special", "plant", "place", "words"), FAULTS, ids=names(FAULTS)
)
def test_planted_faults_are_found(
    tmp_path: Path, format: str, kind: str, special: str, plant: f.Plant, place: str, words: str
) -> None:
    clean = write_set(tmp_path / "set", format)
    plant(clean)
    findings = check(clean.root).findings
    found = [finding for finding in findings if finding.kind == kind]
    assert found, kind
    assert words in found[0].line()
    assert found[0].path == (str(f.path_of(clean, place)) if place else "")
    # with fewer pictures or another class, these are true as well
    assert {f.kind for f in findings} <= {kind, "absent-class", "rare-class", "unused-pictures"}


def test_at_least_25_kinds_are_planted() -> None:
    planted = {kind for _, kind, *_ in FAULTS}
    assert len(planted) >= 25
    assert set(KINDS) - planted == {"unknown-class", "no-split"}  # have tests of their own


def test_classes_that_are_not_listed(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", "voc").root
    recipe = load_recipe("modern", overrides=["data.classes=['ant']"])
    found = [x for x in examine(root, recipe).findings if x.kind == "unknown-class"]
    assert len(found) == 18  # all, not only the first
    assert found[0].path == str(root / "Annotations/t0.xml")
    assert found[0].object == "object 2 ('bee')"
    _, changes = mend(root, tmp_path / "out", recipe.data)
    assert len(changes) == 18
    assert not examine(tmp_path / "out", recipe).findings


def test_a_missing_split(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", "voc").root
    (root / "ImageSets/Main/val.txt").unlink()
    (finding,) = [x for x in check(root).findings if x.kind == "no-split"]
    assert finding.line() == f"{root}: there is no val split"


def test_nothing_but_broken_pictures(tmp_path: Path) -> None:
    clean = write_set(tmp_path / "set", "yolo")
    for path in clean.images.values():
        path.write_bytes(b"")
    report = check(clean.root)
    assert {x.kind for x in report.findings} == {"broken-picture", "unused-class"}
    assert [split.pictures for split in report.splits] == [0, 0]


def state(root: Path) -> dict[str, str]:
    """The content of every file."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def objects(root: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Label and box, bit for bit, of each object, by the picture's name; both splits."""
    data = open_dataset(root, Recipe().data)
    found: dict[str, list[tuple[int, bytes]]] = {}
    for index in (data.train, data.val):
        assert index is not None
        for i, path in enumerate(index.paths):
            part = index.objects(i)
            rows = zip(index.labels[part].tolist(), index.boxes[part], strict=True)
            found[Path(path).stem] = [(label, box.tobytes()) for label, box in rows]
    return found


@pytest.mark.parametrize(
    ("format", "kind", "special", "plant", "place", "words"), ERRORS, ids=names(ERRORS)
)
def test_copies_have_no_errors(
    tmp_path: Path, format: str, kind: str, special: str, plant: f.Plant, place: str, words: str
) -> None:
    clean = write_set(tmp_path / "set", format)
    expected = objects(clean.root)
    plant(clean)
    before, report = state(clean.root), check(clean.root)
    copy, changes = mend(
        clean.root, tmp_path / "out", Recipe().data, unreadable=report.unreadable()
    )
    assert state(clean.root) == before
    assert copy == tmp_path / "out"
    assert changes
    assert [x for x in check(copy).findings if x.severity == "error"] == []
    # all pictures but t0 have all their objects, and t0 those whose label wasn't touched
    found = objects(copy)
    assert {n: rows for n, rows in found.items() if n != "t0"} == {
        n: rows for n, rows in expected.items() if n != "t0"
    }
    kept = [row for row in expected["t0"] if row in found.get("t0", [])]
    whole = kind in ("no-size", "no-area", "broken-category") or (kind, special) in (
        ("wrong-size", "exif"),
        ("broken-image", ""),
    )
    left_out = kind in ("missing-picture", "broken-picture", "broken-labels", "wrong-size")
    assert len(kept) == (4 if whole else 0 if left_out or special == "name" else 3)
    # files that were right are the same bytes
    after = state(copy)
    changed = {name for name in before if after.get(name) != before[name]}
    lists = {"ImageSets/Main/train.txt"} if left_out and not whole else set[str]()
    assert (
        changed
        <= {str(f.path_of(clean, p).relative_to(clean.root)) for p in ("image t0", "labels t0")}
        | lists
    )


@pytest.mark.parametrize(
    ("format", "plant", "box"),
    [
        ("voc", f.text("t0", "<xmax>150<", "<xmax>170<"), (90, 60, 160, 110)),
        ("voc", f.text("t0", "<xmin>11<", "<xmin>-20<"), (0, 10, 50, 60)),
        ("yolo", f.row("t0", 1, "0 .95 .5 .2 .2"), (136, 48, 160, 72)),
        ("yolo", f.row("t0", 1, "0 -.1 -.1 .5 -.1 .5 .5"), (0, 0, 80, 60)),
        ("coco", f.entry("annotations", 0, bbox=[-9, 9, 40, 9]), (0, 9, 31, 18)),
        ("coco", f.entry("annotations", 0, bbox=[100, 100, 60, 40]), (100, 100, 160, 120)),
    ],
)
def test_boxes_are_clipped(
    tmp_path: Path, format: str, plant: f.Plant, box: tuple[float, ...]
) -> None:
    clean = write_set(tmp_path / "set", format)
    plant(clean)
    _, changes = mend(clean.root, tmp_path / "out", Recipe().data)
    assert [change.what.split(":")[0] for change in changes] == ["clipped to the picture"]
    data = open_dataset(tmp_path / "out", Recipe().data)
    assert data.train is not None
    number = 3 if box == (90, 60, 160, 110) else 0
    expected = [box if i == number else own for i, own in enumerate(f.BOXES)]
    np.testing.assert_allclose(data.train.boxes[:4], expected, atol=1e-3)


def test_pictures_turned_for_the_labels(tmp_path: Path) -> None:
    """Only two bytes of the file change: the orientation becomes 1."""
    clean = write_set(tmp_path / "set", "coco")
    f.turned("t0", turn_pixels=False)(clean)
    mend(clean.root, tmp_path / "out", Recipe().data)
    before = clean.images["t0"].read_bytes()
    after = (tmp_path / "out/train/t0.jpg").read_bytes()
    assert len(before) == len(after)
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [(6, 1)]


def test_an_object_without_any_area(tmp_path: Path) -> None:
    """The area of its box is no better, so it goes."""
    clean = write_set(tmp_path / "set", "coco")
    f.entry("annotations", 0, area=0, bbox=[9, 9, 0, 9])(clean)
    _, changes = mend(clean.root, tmp_path / "out", Recipe().data)
    assert [change.what.split(":")[0] for change in changes] == [
        "now the area of the box",
        "deleted",
    ]
    assert len(objects(tmp_path / "out")["t0"]) == 3


def test_labels_elsewhere_are_not_touched(tmp_path: Path) -> None:
    """A set that may name files outside of it isn't copied, and what is outside stays as it is."""
    clean = write_set(tmp_path / "set", "coco")
    f.entry("annotations", 0, area=0)(clean)
    clean.labels["t0"].rename(tmp_path / "train.json")
    config = replace(Recipe().data, outside=True, train="../train.json")
    before = state(tmp_path)
    with pytest.raises(UserError, match="lies outside of"):
        mend(clean.root, tmp_path / "out", config)
    assert state(tmp_path) == before


def test_lists_of_absolute_paths_speak_of_the_copy(tmp_path: Path) -> None:
    clean = write_set(tmp_path / "set", "yolo")
    f.listed(clean)
    f.row("t0", 2, "1 .95 .5 .2 .2")(clean)
    yaml = clean.root / "data.yaml"
    yaml.write_text(f"path: {clean.root.absolute()}\n{yaml.read_text()}")
    copy, _ = mend(yaml, tmp_path / "out", Recipe().data)
    clean.root.rename(tmp_path / "elsewhere")
    assert copy == tmp_path / "out/data.yaml"
    assert (tmp_path / "out/val.txt").read_text() == "images/val/v0.jpg\n"
    assert set(objects(copy)) == {"t0", "t1", "v0"}


@pytest.mark.parametrize(
    ("out", "words"),
    [("set/inner", "lies in the data set itself"), ("full", "expected a new or empty folder")],
)
def test_copies_need_a_new_folder(
    tmp_path: Path, out: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "set", "voc").root
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    before = state(tmp_path)
    assert main(["check", str(root), "--fix", str(tmp_path / out), "--workers", "0"]) == 2
    assert words in capsys.readouterr().err
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("plant", "strict", "fix", "code", "words"),
    [
        (None, True, False, 0, ""),
        (f.gone("labels", "t1"), True, False, 0, ""),
        (f.copied("t1", "t4"), False, False, 0, ""),
        (f.copied("t1", "t4"), True, False, 2, "0 errors, 1 warning found"),
        (f.row("t0", 2, "7 .5 .5 .2 .2"), False, False, 2, "1 error found; --fix OUT writes a"),
        (f.row("t0", 2, "7 .5 .5 .2 .2"), False, True, 0, ""),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_command(
    tmp_path: Path,
    plant: f.Plant | None,
    strict: bool,
    fix: bool,
    code: int,
    words: str,
    as_json: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean = write_set(tmp_path / "set", "yolo")
    if plant:
        plant(clean)
    line = ["check", str(clean.root), "--workers", "0", "--out", str(tmp_path / "report")]
    line += ["--strict"] * strict + ["--json"] * as_json
    line += ["--fix", str(tmp_path / "copy")] * fix
    assert main(line) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert bool(printed.err) == bool(words)
    written = json.loads((tmp_path / "report/check.json").read_text())
    assert written["splits"]["train"]["classes"].keys() == {"ant", "bee"}
    assert sum(written["kinds"].values()) == len(written["findings"]) == bool(plant)
    if as_json:
        assert json.loads(printed.out) == written
    else:
        assert printed.out.startswith(f"yolo data in {clean.root}: 2 classes")
    assert (tmp_path / "copy/mended.txt").exists() == fix
    page = (tmp_path / "report/check.html").read_text()
    assert 'src="http' not in page
    assert page.count("<figure>") == (plant is not None)


def test_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes any bytes as a name; a terminal or a page doesn't."""
    clean = write_set(tmp_path / "set", "yolo")
    for path in (clean.images["t0"], clean.labels["t0"]):
        path.rename(path.with_name(f"t\udcff{path.suffix}"))
    clean.labels["t0"].with_name("t\udcff.txt").write_text("0 .95 .5 .2 .2\n")
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", terminal)
    line = ["check", str(clean.root), "--workers", "0", "--out", str(tmp_path / "report")]
    assert main([*line, "--fix", str(tmp_path / "copy")]) == 0
    terminal.seek(0)
    page = (tmp_path / "report/check.html").read_text()
    for said in (terminal.read(), page):
        assert "t\\udcff.txt" in said
    assert page.count("<figure>") == 1
    assert b"t\xff.txt: line 1" in (tmp_path / "copy/mended.txt").read_bytes()


def test_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write_set(tmp_path / "set", "yolo")
    f.row("t0", 2, "1 .5 .5 .01 .01")(clean)
    for size, number in ((320, 1), (640, 0)):  # 3.2 and 6.4 pixels
        line = ["check", str(clean.root), "--json", "--workers", "0", "--size", str(size)]
        assert main(line) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["size"], found["kinds"].get("tiny-box", 0)) == (size, number)


def test_known_faults_of_real_data(shared: Path) -> None:
    """BCCD has two boxes without an area, as its README says."""
    errors = [x for x in check(shared / "data/bccd").findings if x.severity == "error"]
    assert [Path(x.path).stem for x in errors] == ["BloodImage_00338", "BloodImage_00343"]
    assert {x.kind for x in errors} == {"empty-box"}


def test_pictures_agree_for_any_number_of_processes(shared: Path) -> None:
    """With coco-mini, whose pictures lie in two folders, and whose train has empty ones."""
    root, recipe = shared / "data/coco-mini", load_recipe("modern")
    reports = [examine(root, recipe, workers=n) for n in (0, 2)]
    assert reports[0] == reports[1]
