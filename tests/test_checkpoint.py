"""States of a run: whole or passed over, never half."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triscale.checkpoint import State, fingerprint, load_state, save_state
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
        with pytest.raises(UserError, match="no whole state to resume from"):
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


def test_all_damaged_says_so_for_each(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), keep=2)
        flip_a_bit(tmp_path / f"step-{step:08d}.safetensors")
    with pytest.raises(UserError) as caught:
        load_state(tmp_path)
    assert len(str(caught.value).splitlines()) == 3


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
    assert len(set(prints)) == len(prints)
    assert fingerprint(index.select(np.arange(len(index)))) == prints[0]
