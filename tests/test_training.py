import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from rgdm_lib.training import Trainer, load_tensors, muon, save_tensors, save_weights

SCRIPT = textwrap.dedent(
    """
    import sys
    import time
    import torch
    from rgdm_lib import schedules
    from rgdm_lib.diffusion import Diffusion
    from rgdm_lib.training import Trainer
    from rgdm_lib.worlds import nets, toy

    path, sleep = sys.argv[1], float(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    schedule = schedules.cosine(20)
    diffusion = Diffusion(schedule)
    net = nets.MLPDenoiser(2, schedule.alpha_bar, hidden=16, layers=2)

    def loss(model):
        time.sleep(sleep)  # the one to be killed runs slowly
        return diffusion.loss(model, toy.moons(32))

    Trainer(
        net, loss, 60, checkpoint=path, save_every=0.0, warmup=10, config={"world": "moons"}
    ).run(log_every=5, progress=False)
    """
)


def start(path, sleep):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), str(sleep)])


def test_killed_and_resumed_is_bitwise_the_unbroken_run(tmp_path):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert start(whole, 0).wait(timeout=120) == 0
    process = start(broken, 0.1)
    for _ in range(1200):  # until it has saved a middle state
        if broken.exists() and load_tensors(broken)[1]["step"] >= 10:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    at_kill = load_tensors(broken)[1]["step"]
    assert 10 <= at_kill < 60
    assert start(broken, 0).wait(timeout=120) == 0
    (expected, meta), (resumed, resumed_meta) = load_tensors(whole), load_tensors(broken)
    assert meta["step"] == resumed_meta["step"] == 60
    assert expected.keys() == resumed.keys()
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    assert [step for step, _ in resumed_meta["history"]] == list(range(5, 61, 5))
    assert resumed_meta["history"] == meta["history"]


def linear_trainer(path=None, steps=30, **options):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)

    def loss(model):
        x = torch.randn(64, 2)
        return (model(x)[:, 0] - 3 * x[:, 0]).square()

    options = {"lr": 0.05, "warmup": 5} | options
    return Trainer(net, loss, steps, checkpoint=path, **options)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    linear_trainer(path, config={"width": 1}).run(progress=False)
    linear_trainer(path, config={"width": 1})
    with pytest.raises(ValueError, match="belongs to another run.*'width': 2"):
        linear_trainer(path, config={"width": 2})


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    path = tmp_path / "state.safetensors"
    linear_trainer(path).run(progress=False)
    size = os.path.getsize(path)
    os.truncate(path, int(keep * size))
    with pytest.raises(ValueError, match="not a whole safetensors file.*delete it"):
        linear_trainer(path)


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"step": 1})

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("rgdm_lib.training.os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    tensors, meta = load_tensors(path)
    assert meta == {"step": 1} and torch.equal(tensors["a"], torch.ones(2))


def test_it_learns_and_the_average_is_the_weighted_mean_of_the_weights():
    trainer = linear_trainer(steps=40, ema_decay=0.9)
    history = []
    loss = trainer.loss

    def watched(model):
        history.append(model.weight.detach().clone())
        return loss(model)

    trainer.loss = watched
    ema = trainer.run(progress=False, log_every=10)
    history = history[1:] + [trainer.model.weight.detach().clone()]
    average = history[0]  # the first update copies: no trace of the initial weights
    for n, weight in enumerate(history[1:], 1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(ema.weight, average)
    assert not ema.training
    first, last = trainer.history[0][1], trainer.history[-1][1]
    assert last < 0.5 * first
    assert [step for step, _ in trainer.history] == [10, 20, 30, 40]


def test_learning_rate_warms_up_holds_and_decays():
    trainer = linear_trainer(steps=100, lr=1.0, warmup=10, decay_share=0.2)
    rate = [trainer.learning_rate(step) for step in range(100)]
    assert math.isclose(rate[0], 0.1) and rate[9] == rate[50] == rate[80] == 1.0
    assert math.isclose(rate[90], 0.5) and math.isclose(rate[99], 0.05)


class Poison(torch.autograd.Function):
    """The loss as it is, a gradient that is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


BAD = {
    "loss": lambda model: model(torch.full((4, 2), float("inf"))).square(),
    "gradient": lambda model: Poison.apply(model(torch.ones(4, 2)).square()),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_finite_reaches_nothing(tmp_path, what):
    path = tmp_path / "state.safetensors"
    trainer = linear_trainer(path, warmup=0)
    trainer.run(until=10, progress=False)
    good, trainer.loss = trainer.loss, BAD[what]
    with pytest.raises(FloatingPointError, match=f"{what}.* at step 11: lower lr = 0.05.*state.s"):
        trainer.run(progress=False)
    unbroken = linear_trainer(warmup=0)
    unbroken.run(until=10, progress=False)
    for mine, expected in ((trainer.model, unbroken.model), (trainer.ema, unbroken.ema)):
        assert torch.equal(mine.weight, expected.weight)
    resumed = linear_trainer(path, warmup=0)
    assert resumed.step == 10 and torch.equal(resumed.ema.weight, unbroken.ema.weight)
    assert all(math.isfinite(value) for _, value in resumed.history)
    resumed.loss = good
    assert resumed.run(progress=False).weight.isfinite().all()


def test_settings_count():
    """The clip, the average's decay and bfloat16 change the weights that come out."""

    def weight(**options):
        trainer = linear_trainer(steps=20, **options)
        return trainer.run(progress=False).weight

    plain = weight()
    assert torch.equal(plain, weight())
    for options in ({"clip": 0.01}, {"ema_decay": 0.5}, {"bf16": True}):
        assert not torch.allclose(plain, weight(**options), rtol=1e-5)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    linear_trainer(path).run(until=5, progress=False)
    changes = ({"lr": 0.1}, {"clip": 2.0}, {"ema_decay": 0.5}, {"warmup": 0}, {"optimizer": sgd})
    for change in changes:
        with pytest.raises(ValueError, match="belongs to another run.*settings"):
            linear_trainer(path, **change)


def sgd(model):
    return [torch.optim.SGD(model.parameters())]


def test_steps_may_change_on_the_plateau_only(tmp_path):
    """A run can be made longer or shorter while its learning rate has not begun to fall."""
    path = tmp_path / "state.safetensors"
    linear_trainer(path, steps=100, decay_share=0.5).run(until=40, progress=False)
    longer = linear_trainer(path, steps=200, decay_share=0.5)
    longer.run(until=60, progress=False)
    whole = linear_trainer(steps=200, decay_share=0.5)
    whole.run(until=60, progress=False)
    assert torch.equal(longer.model.weight, whole.model.weight)
    with pytest.raises(ValueError, match="step 60.*falls from step 100.*would from 50"):
        linear_trainer(path, steps=100, decay_share=0.5)
    longer.run(until=120, progress=False)
    with pytest.raises(ValueError, match="too late"):
        linear_trainer(path, steps=300, decay_share=0.5)


def test_what_cannot_be_a_checkpoint_is_refused_before_the_first_step(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, nn.Linear(2, 1), {})
    with pytest.raises(ValueError, match="not a checkpoint of a training run"):
        linear_trainer(weights)
    with pytest.raises(TypeError, match="not JSON serializable"):
        linear_trainer(tmp_path / "a.safetensors", config={"data": object()})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        linear_trainer(tmp_path / "file" / "a.safetensors")


def test_flipped_bits_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    linear_trainer(path).run(until=5, progress=False)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not those that were written.*restore it"):
        linear_trainer(path)


class Blocks(nn.Module):
    """A network with an inside, for Muon."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


def test_muon_takes_the_matrices_inside_and_resumes_bit_by_bit(tmp_path):
    def trainer(path=None):
        torch.manual_seed(0)
        net = Blocks()

        def loss(model):
            x = torch.randn(64, 2)
            return (model(x)[:, 0] - x.prod(1)).square()

        return Trainer(net, loss, 40, lr=0.01, optimizer=muon, warmup=5, checkpoint=path)

    whole = trainer()
    matrices, rest = ([p for g in o.param_groups for p in g["params"]] for o in whole.optimizers)
    assert [id(p) for p in matrices] == [id(block.weight) for block in whole.model.blocks]
    assert len(matrices) + len(rest) == len(list(whole.model.parameters()))
    before = whole.model.blocks[0].weight.detach().clone()
    whole.run(until=1, progress=False)
    step = torch.linalg.svdvals(whole.model.blocks[0].weight.detach() - before)
    # a step is an orthogonal matrix (on the gradient's space) times 0.2 sqrt(8) lr; lr is 0.01 / 5
    assert float(step[0]) == pytest.approx(0.2 * 8**0.5 * 0.01 / 5, rel=0.35)
    assert float(step[1]) > 0.4 * float(step[0])
    whole.run(progress=False)
    path = tmp_path / "state.safetensors"
    trainer(path).run(until=17, progress=False)
    resumed = trainer(path)
    assert resumed.step == 17
    resumed.run(progress=False)
    assert not torch.equal(whole.model.last.weight, trainer().model.last.weight)  # Adam's part
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_shipped_weights_are_half_precision_with_metadata(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, nn.Linear(3, 2), {"hidden": 3, "command": "train"})
    tensors, meta = load_tensors(path)
    assert tensors["weight"].dtype == torch.float16 and tensors["weight"].shape == (2, 3)
    assert meta == {"hidden": 3, "command": "train"}
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "nothing")
