"""States of a run: whole or passed over, never half."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triscale import checkpoint
from triscale.checkpoint import (
    State,
    fingerprint,
    has_state,
    load_state,
    remove_states,
    require_space,
    require_unused,
    save_state,
    save_values,
)
from triscale.data.open import Data
from triscale.errors import UserError


def state(step: int) -> State:
    tensors = {
        "model.a": torch.full((2, 3), float(step)),
        "model.num_batches_tracked": torch.tensor(step),
        "velocity.a": torch.tensor([1e-38, torch.inf, -0.0]),
    }
    values = {"losses": [0.1 + 0.2, 1e-300], "best_lines": ["0000:\t0.5"], "best": 0.5}
    return State(step, tensors, values)


def test_no_state(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"{folder}: no whole state .*--out {folder.parent}"):
            load_state(folder)


def test_round_trip(tmp_path: Path) -> None:
    save_state(tmp_path / "last", state(7), keep=2)
    loaded, damaged = load_state(tmp_path / "last")
    assert damaged == []
    assert loaded.step == 7
    assert loaded.tensors.keys() == state(7).tensors.keys()
    for name, tensor in state(7).tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    for name, value in state(7).values.items():
        assert loaded.values[name] == value  # floats too, to the last bit


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(keep: int, tmp_path: Path) -> None:
    for step in (1, 9, 10, 100):
        save_state(tmp_path, state(step), keep=keep)
    kept = [f"step-{step:08d}" for step in (1, 9, 10, 100)][-keep:]
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == kept
    assert sorted(p.stem for p in tmp_path.glob("*.safetensors")) == kept
    assert len(list(tmp_path.iterdir())) == 2 * keep


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("step-00000002.safetensors", lambda path: path.write_bytes(b"")),
        ("step-00000002.safetensors", truncate),
        ("step-00000002.safetensors", flip_a_bit),
        ("step-00000002.safetensors", Path.unlink),
        ("step-00000002.json", lambda path: path.write_bytes(b"")),
        ("step-00000002.json", truncate),
        ("step-00000002.json", lambda path: path.write_bytes(b"[]")),
        ("step-00000002.json", lambda path: path.write_bytes(b"{}")),
    ],
)
def test_damage_falls_back_to_the_state_before(file: str, damage: object, tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
    assert callable(damage)
    damage(tmp_path / file)
    loaded, damaged = load_state(tmp_path)
    assert loaded.step == 1
    assert loaded.tensors["model.a"][0, 0] == 1
    assert len(damaged) == 1
    assert str(tmp_path / "step-00000002") in damaged[0]
    assert "damaged" in damaged[0] or "No such file" in damaged[0]


def test_any_flipped_bit_of_the_json_is_noticed(tmp_path: Path) -> None:
    """Or changes nothing: blanks may become other blanks."""
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
    whole = load_state(tmp_path)[0].values
    path = tmp_path / "step-00000002.json"
    content, noticed = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 3):  # meets each bit of a byte
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        loaded, damaged = load_state(tmp_path)
        if damaged:
            assert loaded.step == 1
            noticed += 1
        else:
            assert loaded.values == whole
    assert noticed > 2 * len(content)


def test_any_flipped_bit_of_the_tensors_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path, state(2), keep=2)
    path = tmp_path / "step-00000002.safetensors"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"safetensors: damaged \(its SHA-256 is not that of"):
            load_state(tmp_path)


def test_damaged_states_ahead_do_not_count(tmp_path: Path) -> None:
    """The run goes on from before them: what it saves now is its newest state."""
    for step in (1, 8, 9):
        save_state(tmp_path, state(step), keep=3)
    for step in (8, 9):
        flip_a_bit(tmp_path / f"step-{step:08d}.safetensors")
    save_state(tmp_path, state(2), keep=1)
    assert load_state(tmp_path)[0].step == 2
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert len(list(tmp_path.glob("damaged-step-*"))) == 4


def test_halves_go_before_room_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process left may be what fills the disk."""
    (tmp_path / "step-00000001.safetensors").touch()
    (tmp_path / ".step-00000001.json.17.tmp").touch()

    def full(*_: object) -> None:
        assert not list(tmp_path.iterdir())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, state(2), keep=2)


def test_a_deleted_run_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_state(tmp_path / "run" / "last", state(1), keep=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (None, None),
        ("log.jsonl", None),
        ("last/step-00000001.safetensors", None),
        ("last/step-00000001.json", "holds a run already; go on with --resume"),
        ("best.safetensors", "holds the weights of a run already; choose another --out"),
    ],
)
def test_a_folder_is_used(file: str | None, text: str | None, tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    if file:
        (tmp_path / file).touch()
    if text is None:
        require_unused(tmp_path)
        return
    with pytest.raises(UserError, match=text):
        require_unused(tmp_path)


def test_all_damaged_says_so_for_each(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
        flip_a_bit(tmp_path / f"step-{step:08d}.safetensors")
    with pytest.raises(UserError) as caught:
        load_state(tmp_path)
    first, *others = str(caught.value).splitlines()
    assert first.endswith("no whole state to resume from; start the run anew in another folder")
    assert len(others) == 2


def test_weights_without_their_json_do_not_count(tmp_path: Path) -> None:
    """A crash between the two files of a state: the one before is the newest whole one."""
    save_state(tmp_path, state(1), keep=2)
    save_state(tmp_path, state(2), keep=2)
    (tmp_path / "step-00000002.json").unlink()
    loaded, damaged = load_state(tmp_path)
    assert (loaded.step, damaged) == (1, [])


def test_fingerprint_sees_every_label(data: Data) -> None:
    index = data.train
    assert index is not None
    moved = index.boxes.copy()
    moved[-1, 0] += 1
    other = index.labels.copy()
    other[0] += 1
    changed = [
        index.select(np.arange(len(index) - 1)),
        index.select(np.arange(len(index))[::-1]),
        replace(index, boxes=moved),
        replace(index, labels=other),
        replace(index, classes=index.classes[::-1]),
    ]
    prints = [fingerprint(i) for i in [index, *changed]]
    assert len({json.dumps(p) for p in prints}) == len(prints)
    assert fingerprint(index.select(np.arange(len(index)))) == prints[0]


def test_values_are_replaced_and_tensors_stay(tmp_path: Path) -> None:
    save_state(tmp_path, state(3), keep=2)
    before = (tmp_path / "step-00000003.safetensors").stat()
    changed = state(3)._replace(values={"best": 0.75})
    save_values(tmp_path, changed)
    loaded, damaged = load_state(tmp_path)
    assert (loaded.values["best"], damaged) == (0.75, [])
    assert (tmp_path / "step-00000003.safetensors").stat() == before


def test_has_state(tmp_path: Path) -> None:
    assert not has_state(tmp_path)
    (tmp_path / "last").mkdir()
    assert not has_state(tmp_path)
    save_state(tmp_path / "last", state(1), keep=1)
    assert has_state(tmp_path)


def test_room_on_the_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, -1)
    require_space(tmp_path, free // 2)
    with pytest.raises(UserError, match=r"need [\d,]+ MB, [\d,]+ MB are free; make room"):
        require_space(tmp_path, 2 * free)


def test_a_state_of_another_version_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, state(1), keep=2)
    monkeypatch.setattr(checkpoint, "_FORMAT", "triscale-state-99")
    save_state(tmp_path, state(2), keep=2)
    monkeypatch.undo()
    loaded, passed_over = load_state(tmp_path)
    assert loaded.step == 1
    assert "written by another version of triscale ('triscale-state-99')" in passed_over[0]


def test_what_could_not_be_read_is_put_aside(tmp_path: Path) -> None:
    """A disk that failed once may be right the next time."""
    for step in (1, 2, 3):
        save_state(tmp_path, state(step), keep=3)
    remove_states(tmp_path, 2, keep=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    pair = ("json", "safetensors")
    assert names == [*(f"damaged-step-00000003.{s}" for s in pair)] + [
        f"step-00000002.{s}" for s in pair
    ]
    for name in names[:2]:
        (tmp_path / name).rename(tmp_path / name.removeprefix("damaged-"))
    assert load_state(tmp_path)[0].step == 3
