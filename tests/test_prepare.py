"""What a run is made of: as many pictures as were asked for, and batches that there can be."""

from __future__ import annotations

import pytest

from tests.running import MakeRecipe
from triscale.data.open import Data
from triscale.distributed import Processes
from triscale.errors import UserError
from triscale.prepare import make_plan, training_index


def test_num_samples(data: Data, tiny_recipe: MakeRecipe) -> None:
    assert data.train is not None
    chosen = [
        set(training_index(tiny_recipe(f"data.num_samples={n}"), data).ids) for n in (0, 3, 5, 10)
    ]
    assert [len(names) for names in chosen] == [10, 3, 5, 10]
    assert chosen[1] < chosen[2] < chosen[3] == chosen[0]
    other = training_index(tiny_recipe("data.num_samples=3", "train.seed=5"), data)
    assert set(other.ids) != chosen[1]
    with pytest.raises(UserError, match=r"data\.num_samples: 11 samples wanted"):
        training_index(tiny_recipe("data.num_samples=11"), data)
    with pytest.raises(UserError, match=r"data\.num_samples: expected at least 0, got -1"):
        tiny_recipe("data.num_samples=-1")


def test_batch_size_must_fit(data: Data, tiny_recipe: MakeRecipe) -> None:
    assert data.train is not None
    plan = make_plan(tiny_recipe("train.batch_size=10"), data.train, Processes())
    assert plan.steps == 3
    with pytest.raises(UserError, match="11 is more than the 10 training pictures"):
        make_plan(tiny_recipe("train.batch_size=11"), data.train, Processes())
    make_plan(tiny_recipe(), data.train, Processes(3, 4))
    with pytest.raises(UserError, match="4 is less than one picture for each of 5 processes"):
        make_plan(tiny_recipe(), data.train, Processes(0, 5))
