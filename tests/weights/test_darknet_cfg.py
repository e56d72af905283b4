"""Darknet's .cfg files: the official ones, those that we write, and those that must be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.watching import peak_memory
from tests.weights.darknet_files import FULL, SPP, TINY
from triscale.anchors import TINY_ANCHORS, YOLO3_ANCHORS
from triscale.errors import UserError
from triscale.model.yolo import ModelConfig
from triscale.weights.contents import MAX_TEXT_BYTES
from triscale.weights.darknet_cfg import cfg_text, read_cfg
from triscale.weights.darknet_layers import Network, classifier, layers

# What stands in cfg/yolov3-spp.cfg after the third convolution of yolov3's head.
PYRAMID = """
### SPP ###
[maxpool]
stride=1
size=5

[route]
layers=-2

[maxpool]
stride=1
size=9

[route]
layers=-4

[maxpool]
stride=1
size=13

[route]
layers=-1,-3,-5,-6

### End SPP ###

[convolutional]
batch_normalize=1
filters=512
size=1
stride=1
pad=1
activation=leaky
"""
CLASSIFIER = """
[avgpool]

[convolutional]
filters=1000
size=1
stride=1
pad=1
activation=linear

[softmax]
groups=1
"""


def network(config: ModelConfig, num_classes: int = 3, size: int = 64) -> Network:
    return Network(config, num_classes, layers(config, num_classes), size)


def text_of(config: ModelConfig, num_classes: int = 3) -> str:
    return cfg_text(network(config, num_classes), path=Path("x.cfg"))


def read(tmp_path: Path, text: str | bytes) -> Network:
    path = tmp_path / "x.cfg"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_cfg(path)


def spp_text(shared: Path) -> str:
    """yolov3-spp.cfg: yolov3.cfg with the pyramid after layer 77."""
    head, *parts = (shared / "weights" / "yolov3.cfg").read_text().split("\n[")
    parts = [f"\n[{part}" for part in parts]  # layer i is part i
    return "".join([head, *parts[:78], PYRAMID, *parts[78:]])


def plain(text: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of a .cfg, read as simply as possible."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in text.replace(" ", "").split("\n"):
        if line.startswith("["):
            sections.append((line, {}))
        elif line and not line.startswith("#"):
            key, value = line.split("=")
            sections[-1][1][key] = value
    return sections


@pytest.mark.parametrize(
    ("file", "config", "num_classes", "size"),
    [("yolov3", FULL, 80, 608), ("yolov3-voc", FULL, 20, 416), ("yolov3-tiny", TINY, 80, 416)],
)
def test_official_files(
    file: str, config: ModelConfig, num_classes: int, size: int, shared: Path
) -> None:
    path = shared / "weights" / f"{file}.cfg"
    expected = network(config, num_classes, size)
    assert read_cfg(path) == expected
    assert expected.fit == "letterbox"
    theirs, ours = plain(path.read_text()), plain(cfg_text(expected, path=path))
    for (kind, keys), (our_kind, our_keys) in zip(theirs[1:], ours[1:], strict=True):
        assert our_kind == kind
        for table in (keys, our_keys):
            table.pop("ignore_thresh", None)  # of the training; 0.5 in yolov3-voc.cfg
        assert our_keys == keys
    ours[0][1].pop("letter_box")
    assert ours[0][1].items() <= {**theirs[0][1], "batch": "1", "subdivisions": "1"}.items() | {
        ("max_batches", "500200"),
        ("steps", "400000,450000"),
    }


def test_official_spp_and_classifier(shared: Path, tmp_path: Path) -> None:
    assert read(tmp_path, spp_text(shared)) == network(SPP, 80, 608)
    head, *parts = (shared / "weights" / "yolov3.cfg").read_text().split("\n[")
    text = "\n[".join([head, *parts[:75]]) + CLASSIFIER
    assert read(tmp_path, text) == Network(FULL, 0, classifier(), 608)


@pytest.mark.parametrize(
    ("config", "num_classes", "size", "fit"),
    [
        (FULL, 1, 320, "letterbox"),
        (SPP, 2, 416, "stretch"),
        (TINY, 7, 32, "stretch"),
        (replace(TINY, anchors=(((9.5, 3.25),), ((1e-3, 7.0),))), 3, 64, "letterbox"),
        (
            replace(FULL, anchors=tuple((*row, (5.0, 6.0)) for row in YOLO3_ANCHORS)),
            3,
            64,
            "stretch",
        ),
    ],
)
def test_what_is_written_is_read(
    config: ModelConfig, num_classes: int, size: int, fit: str, tmp_path: Path
) -> None:
    expected = Network(config, num_classes, layers(config, num_classes), size, fit)
    assert read(tmp_path, cfg_text(expected, path=tmp_path)) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"),
        ("\n[", "\n  # a comment\n; another\n\n["),
        ("size=3", "  size =  3 # three"),
        ("[convolutional]", "[conv]"),
        ("[maxpool]", "[ max ]"),
        ("[net]", "[network]"),
        ("[net]", "\ufeff[net]"),
        ("batch=1\n", "batch=1\nbatch=64\n"),  # as in yolov3-openimages.cfg; the first counts
        ("width=64", "width=64\nwidth=64"),
        ("width=64", "width=64\nmosaic=1\nsome_new_key=x"),
        ("size=1\nstride=1\npad=1", "size=1\nstride=1"),  # nothing to pad
        ("size=3\nstride=1\npad=1", "size=3\npadding=1"),
        ("size=3\nstride=1\npad=1", "size=3\npad=1\npadding=5"),
        ("size=2\nstride=2", "stride=2"),
        ("size=2\nstride=1", "size=2\npadding=1"),
        ("layers=-4", "layers=13"),
        ("layers=-1,8", "layers=-1, -12"),
        ("[upsample]\nstride=2", "[upsample]\nscale=1.0"),
        ("stride=2", "stride=2\nlearning_rate=0.1"),
        ("classes=3", "classes=3\nscale_x_y = 1.0\nnew_coords=0\niou_loss=mse\nnms_kind=greedynms"),
    ],
)
def test_forms_that_mean_the_same(old: str, new: str, tmp_path: Path) -> None:
    text = text_of(TINY)
    assert old in text
    assert read(tmp_path, text.replace(old, new)) == network(TINY)


def test_grid_sensitive_decoding(tmp_path: Path) -> None:
    text = text_of(TINY)
    other = replace(TINY, scale_x_y=1.05)
    assert read(tmp_path, text.replace("classes=3", "classes=3\nscale_x_y=1.05")) == network(other)
    assert read(tmp_path, text_of(other)) == network(other)
    with pytest.raises(UserError, match=r"the same in all \[yolo\], found scale_x_y=1$"):
        read(tmp_path, text.replace("classes=3", "classes=3\nscale_x_y=1.05", 1))


def test_comments_in_any_encoding(tmp_path: Path) -> None:
    text = "# für\n".encode("latin-1") + text_of(TINY).encode()
    assert read(tmp_path, text) == network(TINY)


@pytest.mark.parametrize(
    ("line", "fit"),
    [("", "letterbox"), ("letter_box=1\n", "letterbox"), ("letter_box=0\n", "stretch")],
)
def test_letter_box(line: str, fit: str, tmp_path: Path) -> None:
    assert read(tmp_path, text_of(TINY).replace("letter_box=1\n", line)).fit == fit


def test_anchors_are_picked_by_the_masks(tmp_path: Path) -> None:
    text = text_of(TINY).replace("mask=0,1,2", "mask=1,2,3")
    expected = (TINY_ANCHORS[0], ((23.0, 27.0), (37.0, 58.0), (81.0, 82.0)))
    assert read(tmp_path, text).model == replace(TINY, anchors=expected)


TINY_TEXT_CASES = [  # what, by what, the message
    ("[net]", "", "expected the section \\[net\\], found 'batch=1'"),
    ("[net]", "[yolo]", "begins with \\[net\\], found '\\[yolo\\]'"),
    ("batch=1\n", "batch\n", "x.cfg:2: expected key=value or \\[section\\], found 'batch'"),
    ("batch=1\n", "batch=\n", "x.cfg:2: expected key=value"),
    ("batch=1\n", "[batch\n", "x.cfg:2: expected key=value"),
    ("batch=1\n", f"x={'y' * 1000}\n", "x.cfg:2: expected at most 1000 characters, found 'xxx|x=y"),
    ("width=64\n", "", "found width=0 and height=64; set height=0"),
    ("height=64", "height=96", "x.cfg:5: .* square here, found width=64 and height=96; set height"),
    ("=64", "=65", "x.cfg:5: expected a width that 32 divides, found 65"),
    ("=64", "=0", "expected a size from 32 to 8192 pixels, found 0"),
    ("=64", "=-64", "expected a size from 32 to 8192 pixels, found -64"),
    ("=64", "=65536", "expected a size from 32 to 8192 pixels, found 65536"),
    ("width=64", "width=64.0", "x.cfg:4: \\[net\\] width: expected a whole number, found '64.0'"),
    ("width=64", "width=64\nwidth=96", "x.cfg:5: expected width=64 as in line 4, found '96'"),
    ("channels=3", "channels=1", "x.cfg:6: expected channels=3 \\(RGB\\), found 1"),
    (
        "filters=16",
        "filters=17",
        "layer 0: \\[convolutional\\] expected filters=16, found filters=17",
    ),
    ("filters=16\n", "", "layer 0: \\[convolutional\\] expected filters=16, found filters=1 "),
    ("filters=16", "filters=1_6", "filters: expected a whole number, found '1_6'"),
    ("filters=16", f"filters={'9' * 99}", "expected a whole number, found '9{57}\\.\\.\\.'"),
    ("size=3", "size=5", "layer 0: .* expected size=3, found size=5"),
    ("stride=1\npad=1", "stride=2\npad=1", "expected stride=1, found stride=2"),
    ("size=3\nstride=1\npad=1", "size=3\nstride=1", "expected pad=1, found pad=0"),
    (
        "leaky",
        "mish",
        "layer 0: .* activation=leaky, found activation=mish \\(compared with yolov3-tiny;",
    ),
    ("activation=leaky\n", "", "expected activation=leaky, found activation=logistic"),
    ("linear", "leaky", "layer 15: .* expected activation=linear, found"),
    ("batch_normalize=1\n", "", "expected batch_normalize=1, found batch_normalize=0"),
    ("filters=16", "filters=16\ngroups=2", "x.cfg:21: layer 0: .* groups=1, found groups=2"),
    ("filters=16", "filters=16\ndontload=1", "expected dontload=0"),
    ("filters=16", "filters=16\ndeform=1", "x.cfg:21: .*deform: unknown key; delete it"),
    ("filters=24", "filters=27", "layer 15: .* expected filters=24, found filters=27"),
    (
        "size=2\nstride=1",
        "size=2\nstride=1\npadding=0",
        "layer 11: .*expected padding=1, found pad",
    ),
    ("size=2\nstride=1", "size=2\nstride=2", "layer 11: .*expected stride=1, found stride=2"),
    ("layers=-4", "layers=-3", "layer 17: \\[route\\] expected layers=-4, found layers=-3"),
    ("layers=-1,8", "layers=8,-1", "layer 20: \\[route\\] expected layers=-1,8, found layers=8,-1"),
    ("layers=-1,8", "layers=-1,x", "layers: expected whole numbers, found '-1,x'"),
    ("layers=-1,8", "layers=-1,8\ngroups=2", "layer 20: .* expected groups=1, found groups=2"),
    ("[upsample]\nstride=2", "[upsample]\nstride=1", "layer 19: .*expected stride=2"),
    ("[upsample]\n", "[upsample]\nscale=2\n", "layer 19: .*expected scale=1.0, found scale=2.0"),
    ("[upsample]\n", "[upsample]\nscale=nan\n", "scale: expected a number, found 'nan'"),
    ("[upsample]", "[deconvolutional]", "layer 19: expected \\[upsample\\], found \\[deconv"),
    ("[upsample]", "[net]", "layer 19: expected \\[upsample\\], found \\[net\\]"),
    (
        "[yolo]",
        "[region]",
        "layer 0: .*compared with darknet53, as there is no \\[yolo\\]; known are yolov3",
    ),
    ("classes=3", "classes=9999999999", "classes: expected a whole number, found '9999999999'"),
    ("classes=3", "classes=0", "\\[yolo\\]: expected at least one class, found classes=0"),
    ("classes=3", "classes=4", "layer 15: .* expected filters=27, found filters=24"),
    ("classes=3", "classes=3\nscale_x_y=0.5", "a scale_x_y from 1 to 3, .*found scale_x_y=0.5"),
    ("classes=3", "classes=3\nscale_x_y=nan", "scale_x_y: expected a number, found 'nan'"),
    ("classes=3", "classes=3\nnew_coords=1", "layer 16: .* expected new_coords=0"),
    ("classes=3", "classes=3\nmap=x", "\\[yolo\\] map: unknown key"),
    ("num=6", "num=9", "\\[yolo\\]: expected num=9 anchors, found 6 pairs"),
    ("mask=3,4,5", "mask=3,4,6", "expected a mask of numbers from 0 to 5, found mask=3,4,6"),
    ("mask=3,4,5", "mask=3,4,-1", "numbers from 0 to 5, found mask=3,4,-1"),
    ("mask=3,4,5\n", "", "expected a mask of numbers from 0 to 5, found mask=$"),
    ("mask=0,1,2", "mask=0,1", "a mask of 3 numbers as in the first \\[yolo\\], found mask=0,1"),
    ("anchors=10,14,", "anchors=10,", "expected anchors=w,h, w,h, ... above 0, found '10,  23"),
    ("anchors=10,14,", "anchors=10,0,", "above 0, found '10,0"),
    ("anchors=10,14,", "anchors=10,nan,", "above 0, found '10,nan"),
    ("anchors=10,14,", "anchors=10,inf,", "above 0, found '10,inf"),
    ("anchors=10,14,", "anchors=10,y,", "above 0, found '10,y"),
]


@pytest.mark.parametrize(("old", "new", "message"), TINY_TEXT_CASES)
def test_what_changes_the_result_is_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = text_of(TINY)
    assert old in text
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path / 'x.cfg'}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from=-3", "from=-2", "layer 4: \\[shortcut\\] expected from=-3, found from=-2"),
        ("from=-3", "from=-3\nalpha=.5", "layer 4: .*expected alpha=1.0, found alpha=0.5"),
        ("=linear", "=leaky", "layer 4: .*expected activation=linear, found activation=leaky"),
        ("size=9", "size=7", "layer 80: .*size=9, found size=7 \\(compared with yolov3-spp;"),
        ("-1,-3,-5,-6", "-6,-5,-3,-1", "layer 83: .*layers=-1,-3,-5,-6, found layers=-6,-5,-3,-1"),
        (",36", ",37", "layer 105: \\[route\\] expected layers=-1,36, found layers=-1,37"),
    ],
)
def test_what_changes_the_result_of_the_larger_networks(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = text_of(SPP)
    assert old in text
    with pytest.raises(UserError, match=message):
        read(tmp_path, text.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with \\[net\\], found 'nothing'"),
        (
            "[net]\nwidth=64\nheight=64\nchannels=3",
            "x.cfg:1: layer 0: expected \\[convolutional\\]",
        ),
        (text_of(TINY) + "[route]\nlayers=-4\n", "layer 24: expected the end of the file, found"),
        (text_of(TINY)[: -len("[yolo]") - 1].rpartition("[yolo]")[0], "found the end of the file"),
        (
            text_of(FULL, 80).partition("[yolo]")[0],
            "layer 75: expected \\[avgpool\\], found .* \\(compared with darknet53, as there is no",
        ),
        (
            text_of(TINY).replace("classes=3", "classes=4", 1).replace("filters=24", "filters=27"),
            "layer 23: \\[yolo\\] expected classes=4, found classes=3",
        ),
        (" " * (MAX_TEXT_BYTES + 1), f"at most {MAX_TEXT_BYTES} bytes, found more"),
    ],
    ids=["empty", "no layers", "longer", "shorter", "no yolo", "heads differ", "large"],
)
def test_what_is_no_network(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.cfg: can't be read \(No such file"):
        read_cfg(tmp_path / "none.cfg")
    with pytest.raises(UserError, match="can't be read"):
        read_cfg(tmp_path)


def test_what_darknet_has_no_place_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="32 divides, found 300"):
        cfg_text(network(TINY, size=300), path=tmp_path)
    with pytest.raises(UserError, match="no YOLOv3 on MobileNet"):
        layers(ModelConfig("mobilenet0.25"), 3)


VALID = text_of(TINY)
PIECES = st.sampled_from(
    ["=", "[", "]", ",", "#", "\n", "-", "9" * 30, "1e999", "nan", "\0", "ÿ", "[net]", "[yolo]\n"]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(VALID)),
        st.integers(0, 30),
        st.one_of(PIECES, st.text(max_size=5)),
    ),
    max_size=3,
)


def edited(edits: list[tuple[int, int, str]], length: int) -> bytes:
    text = VALID
    for position, removed, inserted in edits:
        text = text[:position] + inserted + text[position + removed :]
    return text[:length].encode(errors="surrogatepass")


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(edited, EDITS, st.integers(0, 2 * len(VALID))),
    )
)
def test_any_text_is_read_or_refused(content: bytes) -> None:
    """No other exception, and little memory whatever the numbers in the text say."""
    peak = peak_memory(read_cfg, "x.cfg", content)
    assert peak < 10_000_000


def test_large_numbers_cost_nothing(tmp_path: Path) -> None:
    text = text_of(TINY).replace("classes=3", f"classes={10**9 - 1}")
    with pytest.raises(UserError, match="expected filters=3000000012, found filters=24"):
        read(tmp_path, text)
