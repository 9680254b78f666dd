"""bfloat16 only where the processor has it."""

import pytest
import torch
from torch import nn

from rgdm_lib import precision
from rgdm_lib.in_parts import InParts
from rgdm_lib.molecules.data import CHANNELS
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import sample_molecules
from rgdm_lib.shapes.data import Normalisation
from rgdm_lib.shapes.model import sample_clouds


def processor(monkeypatch, **has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **has})


@pytest.mark.parametrize(
    "has", [{"amx_bf16": True}, {"avx512_bf16": True}, {"bf16": True}, {"sve_bf16": True}]
)
def test_it_pays_where_the_processor_has_an_instruction(monkeypatch, has):
    processor(monkeypatch, **has)
    assert precision.bf16_pays()


@pytest.mark.parametrize("has", [{}, {"amx_bf16": False, "avx512_f": True, "amx_tile": True}])
def test_it_does_not_elsewhere(monkeypatch, has):
    processor(monkeypatch, **has)
    assert not precision.bf16_pays()


class Recorder(nn.Module):
    """A denoiser that notes whether it is called in bfloat16."""

    settings: dict[str, int] = {}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])
        self.seen = set()

    def forward(self, x_t, t, cond=None):
        self.seen.add(torch.is_autocast_enabled("cpu"))
        return torch.zeros_like(x_t)


def in_molecules(net, folder):
    sample_molecules(net, torch.tensor([3]), steps=2, bf16=True)


def in_clouds(net, folder):
    norm = Normalisation(torch.zeros(3), torch.ones(3), "none")
    sample_clouds(net, norm, 1, points=4, steps=2, bf16=True)


def in_parts(net, folder):
    InParts(net, bf16=True)(torch.zeros(2, CHANNELS), torch.ones(2, dtype=torch.long))


def in_training(net, folder):
    def loss(network):
        network.seen.add(torch.is_autocast_enabled("cpu"))
        return network.blocks[0](torch.ones(2, 3)).square().mean()

    files = folder / "weights.safetensors", folder / "state.safetensors"
    train_and_save(net, loss, *files, 2, 1e-3, {}, "none")


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("use", [in_molecules, in_clouds, in_parts, in_training])
def test_who_asks_for_bfloat16_gets_it_where_it_pays(monkeypatch, tmp_path, use, has):
    processor(monkeypatch, avx512_bf16=has)
    net = Recorder()
    use(net, tmp_path)
    assert net.seen == {has}
