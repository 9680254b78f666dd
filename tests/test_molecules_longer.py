"""Guidance looked at on the way: the looks change nothing, and say after how many batches."""

import numpy as np
import pytest
import torch
from torch import nn

from rgdm_lib.molecules import experiments, longer
from rgdm_lib.molecules.data import load_set
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import load_model


class Line(nn.Module):
    settings = {}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])
        nn.init.ones_(self.blocks[0].weight)

    def forward(self, x):
        return self.blocks[0](x)


def _train(folder, **looks):
    torch.manual_seed(3)
    net = train_and_save(
        Line(),
        lambda net: (net(torch.randn(4, 2)) - 1).square().mean(),
        folder / "weights.safetensors",
        folder / "checkpoint.safetensors",
        steps=6,
        lr=0.1,
        config={},
        command="none",
        **looks,
    )
    return net.blocks[0].weight.detach()


def test_looks_leave_the_training_as_it_is_even_one_that_breaks_off(tmp_path):
    seen = []

    def look(step, average):
        torch.rand(7)
        seen.append((step, average.blocks[0].weight.detach().clone()))
        if len(seen) == 2:
            raise KeyboardInterrupt

    plain = _train(tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "looked", looks=(2, 4), look=look)
    looked = _train(tmp_path / "looked", looks=(2, 4), look=look)
    assert torch.equal(plain, looked)
    assert [step for step, _ in seen] == [2, 4, 4]
    assert torch.equal(seen[1][1], seen[2][1]) and not torch.equal(seen[0][1], seen[1][1])


def test_the_longer_run_starts_from_the_base_and_says_when_it_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.setitem(experiments.GUIDANCE["quick"], "steps", 4)
    looks, end = longer.guide_longer("quick", tmp_path)
    on_the_way, last = load_set(looks), load_set(end)
    assert on_the_way.property("batches").tolist() == np.repeat([1, 2, 4, 8, 12], 8).tolist()
    assert last.property("batches").tolist() == 8 * [16]
    assert np.array_equal(on_the_way.n_atoms, np.tile(last.n_atoms, 5))  # one noise for all
    first, second = (on_the_way.subset(range(8 * k, 8 * k + 8)).positions for k in (0, 4))
    assert 0 < np.abs(first - second).max()
    trained, _ = load_model(tmp_path / longer.longer_name(ending=".safetensors"))
    base, _ = load_model()
    moved = [
        (a - b).abs().max() for a, b in zip(trained.parameters(), base.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1
    kept = [path.read_bytes() for path in (looks, end)]
    assert longer.guide_longer("quick", tmp_path, lr=0.1) == [looks, end]  # they are there
    assert [path.read_bytes() for path in (looks, end)] == kept
