"""Networks on the device of their preset; bfloat16 only where the hardware has it."""

import copy
import sys

import pytest
import torch
from torch import nn

from rgdm_lib import hardware
from rgdm_lib.in_parts import InParts
from rgdm_lib.molecules.data import CHANNELS
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import sample_molecules
from rgdm_lib.molecules.regressors import NoisyRegressor
from rgdm_lib.shapes.data import Normalisation
from rgdm_lib.shapes.model import sample_clouds
from rgdm_lib.shapes.nets import NoisyPointNet, SetDenoiser


def processor(monkeypatch, **has):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **has})


@pytest.mark.parametrize(
    "has", [{"amx_bf16": True}, {"avx512_bf16": True}, {"bf16": True}, {"sve_bf16": True}]
)
def test_it_pays_where_the_processor_has_an_instruction(monkeypatch, has):
    processor(monkeypatch, **has)
    assert hardware.bf16_pays()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not hardware.bf16_pays()


@pytest.mark.parametrize("has", [{}, {"amx_bf16": False, "avx512_f": True, "amx_tile": True}])
def test_it_does_not_elsewhere(monkeypatch, has):
    processor(monkeypatch, **has)
    assert not hardware.bf16_pays()


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


@pytest.mark.parametrize("wanted", [True, False])
def test_who_does_not_ask_for_it_does_not_get_it(monkeypatch, wanted):
    processor(monkeypatch, amx_bf16=True)
    with hardware.bf16_products(wanted):
        assert torch.is_autocast_enabled("cpu") is wanted


@pytest.mark.parametrize("has", [True, False])
def test_of_a_gpu_the_gpu_is_asked(monkeypatch, has):
    processor(monkeypatch, amx_bf16=not has)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert hardware.bf16_pays("cuda") is has
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not hardware.bf16_pays("cuda")


@pytest.mark.parametrize("there", [True, False])
def test_preset_full_runs_on_a_gpu_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    kinds = {preset: hardware.device_for(preset).type for preset in ("quick", "laptop", "full")}
    assert kinds == {"quick": "cpu", "laptop": "cpu", "full": "cuda" if there else "cpu"}


class Answer(torch.Tensor):
    """A tensor of the other device, whose way back to the processor can be seen."""

    def cpu(self):
        return "on the processor"


class Far(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, x_t, t, cond=None):
        self.seen.append({x_t.device.type, t.device.type, cond.device.type})
        return (self.weight * x_t).as_subclass(Answer)


def test_a_network_elsewhere_takes_inputs_from_the_processor_and_answers_there():
    """On torch's device "meta", which holds no numbers but is strict about where tensors are."""
    near, far = Far(), hardware.place(Far(), torch.device("meta"))
    x, t = torch.ones(2, 3), torch.ones(2, dtype=torch.long)
    assert hardware.place(near, torch.device("cpu")) is near and not near._forward_pre_hooks
    assert far(x, t, x) == far(x, t, cond=x) == copy.deepcopy(far)(x, t, x) == "on the processor"
    assert far.seen == [{"meta"}, {"meta"}]
    hooks = len(far._forward_hooks)
    assert len(hardware.place(far, torch.device("meta"))._forward_hooks) == hooks == 1
    assert far.state_dict().keys() == near.state_dict().keys()


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (lambda schedule: EGNN(schedule, hidden=16, edge=8, layers=1), CHANNELS),
        (lambda schedule: EGNN(schedule, hidden=16, edge=8, layers=1, conditions=1), CHANNELS),
        (lambda schedule: SetDenoiser(schedule, 16, 1, 4, 2), 3),
        (lambda schedule: SetDenoiser(schedule, 16, 1, 4, 2, cond_dim=1), 3),
        (lambda schedule: NoisyPointNet(len(schedule) - 1, 1), 3),
        (lambda schedule: NoisyRegressor(schedule, 16, 8, 1), CHANNELS),
    ],
)
def test_the_networks_make_no_tensor_on_another_device(network, channels):
    net = network(torch.linspace(1, 0.01, 11)).to("meta")
    x, t = torch.randn(4, 5, channels), torch.full((4,), 3)
    told = getattr(net, "settings", {})
    cond = [torch.ones(4, 1)] if told.get("conditions") or told.get("cond_dim") else []
    there = [value.to("meta") for value in (x, t, *cond)]
    with pytest.raises(RuntimeError, match="device"):
        net(x, *there[1:])
    assert net(*there).device.type == "meta"
