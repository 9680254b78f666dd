"""What notebooks 00 to 02 build equals what the library does.

The definitions are cut out of the notebooks' sources, exercises solved, and run on their own.
"""

import ast
import math
from functools import cache
from pathlib import Path

import pytest
import torch

from rgdm_lib import payoff, schedules
from rgdm_lib.course.source import solved_cells
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import mixtures, toy
from rgdm_lib.worlds.nets import MLPDenoiser

SOURCES = Path(__file__).resolve().parent.parent / "notebooks" / "src"
T = 50
SCHEDULES = [schedules.linear(T), schedules.cosine(T), schedules.polynomial(T)]
NAMES = ["linear", "cosine", "polynomial"]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)


@cache
def cells(name):
    return solved_cells((SOURCES / f"{name}.py").read_text(encoding="utf-8"))


def definitions(name, **given):
    """A notebook's imports, CONSTANTS and functions as a namespace, on top of ``given`` globals."""
    kept = []
    for cell in cells(name):
        if cell.kind != "code" or set(cell.tags) & {"bootstrap", "parameters", "check"}:
            continue
        for node in ast.parse(cell.source).body:
            constant = isinstance(node, ast.Assign) and all(
                isinstance(target, ast.Name) and target.id.isupper() for target in node.targets
            )
            wanted = constant or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)
            if wanted and not (constant and node.targets[0].id in given):
                kept.append(node)
    namespace = dict(given)
    exec(compile(ast.Module(kept, []), name, "exec"), namespace)  # noqa: S102
    return namespace


@pytest.fixture(scope="module")
def nb00():
    return definitions("00_start_here", dx=torch.tensor(0.01))


def nb01(schedule):
    return definitions("01_adding_noise", T=T, schedule=schedule, alpha_bar=schedule.alpha_bar)


def nb02(schedule):
    given = {"diffusion": Diffusion(schedule), "alpha_bar": schedule.alpha_bar}
    return definitions("02_ddpm_from_scratch", T=T, N=500, **given)


def points(n=T, d=2):
    torch.manual_seed(1)
    x0 = torch.randn(n, d, dtype=torch.float64)
    return x0, torch.randn_like(x0), torch.arange(1, n + 1).clamp(max=T)


# ---- 00 ----------------------------------------------------------------------------------


def test_weights_and_ess_of_00(nb00):
    reward = torch.randn(200, dtype=torch.float64)
    reward[::7] = math.nan
    weight = nb00["payoff_weights"](reward, 0.3)
    expected = payoff.log_weights(reward, 0.3)
    assert torch.allclose(weight, expected.exp(), atol=1e-12, rtol=0)
    ess = nb00["effective_sample_size"](weight)
    assert ess == pytest.approx(payoff.effective_sample_size(expected), rel=1e-9)


# ---- 01 ----------------------------------------------------------------------------------


@each_schedule
def test_q_sample_of_01(schedule):
    x0, noise, t = points()
    ours = nb01(schedule)["q_sample"](x0, t, noise, schedule.alpha_bar)
    assert torch.allclose(ours, Diffusion(schedule).q_sample(x0, t, noise), atol=1e-12, rtol=0)


@each_schedule
def test_posterior_of_01(schedule):
    x0, x_t, _ = points()
    posterior = nb01(schedule)["posterior"]
    for t in range(1, T + 1):
        mean, variance = posterior(x0, x_t, t, schedule.alpha_bar)
        expected_mean, expected_variance = Diffusion(schedule).posterior(x0, x_t, t)
        assert torch.allclose(mean, expected_mean, atol=1e-9, rtol=0)
        assert float(variance) == pytest.approx(float(expected_variance), abs=1e-12)


@each_schedule
def test_denoiser_and_density_of_01(schedule):
    notebook = nb01(schedule)
    world = mixtures.GaussianMixture(
        notebook["MEANS"][:, None], notebook["STD"], notebook["WEIGHTS"]
    )
    exact = world.denoiser(schedule)
    x_t = torch.linspace(-3, 3, 40, dtype=torch.float64)
    for t in range(1, T + 1):
        a = schedule.alpha_bar[t]
        eps = notebook["best_eps"](x_t, notebook["ideal_x0_hat"](x_t, a), a)
        expected = exact(x_t[:, None], torch.full((40,), t), None)[:, 0]
        assert torch.allclose(eps, expected, atol=1e-8, rtol=0)
    density = notebook["marginal_density"](x_t, schedule.alpha_bar[0])
    assert torch.allclose(density, world.log_prob(x_t[:, None]).exp(), atol=1e-12)


def test_prior_kl_of_01_is_torchs():
    normal = torch.distributions.Normal
    for a in (0.36, 1e-3):
        a = torch.tensor(a, dtype=torch.float64)
        x0 = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        ours = nb01(SCHEDULES[0])["prior_kl"](x0, a)
        law = normal(a.sqrt() * x0, (1 - a).sqrt())
        expected = torch.distributions.kl_divergence(law, normal(torch.zeros_like(x0), 1.0))
        assert torch.allclose(ours, expected, atol=1e-12)


# ---- 02 ----------------------------------------------------------------------------------


@each_schedule
def test_simple_loss_of_02(schedule):
    x0 = toy.moons(300)
    network = MLPDenoiser(2, schedule.alpha_bar, hidden=8, layers=1)
    torch.manual_seed(3)
    ours = nb02(schedule)["simple_loss"](network, x0, schedule.alpha_bar)
    torch.manual_seed(3)
    assert torch.allclose(ours, Diffusion(schedule).loss(network, x0), atol=1e-6)


@each_schedule
def test_predict_x0_of_02(schedule):
    x_t, eps, t = points()
    ours = nb02(schedule)["predict_x0"](x_t, t, eps, schedule.alpha_bar)
    assert torch.allclose(ours, Diffusion(schedule).predict_x0(x_t, t, eps), rtol=1e-10)


@each_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_reverse_step_of_02(schedule, eta):
    x_t, eps, _ = points()
    reverse_step = nb02(schedule)["reverse_step"]
    for t, s in [(t, t - 1) for t in range(1, T + 1)] + [(T, 0), (T, 10), (30, 3)]:
        mean, std = reverse_step(x_t, t, s, eps, schedule.alpha_bar, eta)
        expected_mean, expected_std, _ = Diffusion(schedule).step(x_t, t, s, eps, eta)
        assert torch.allclose(mean, expected_mean, rtol=1e-10, atol=1e-10)
        assert std == pytest.approx(expected_std, abs=1e-12)


@pytest.mark.parametrize(("steps", "eta"), [(None, 1.0), (7, 1.0), (7, 0.0), (13, 0.5)])
def test_sampler_of_02(steps, eta):
    schedule = SCHEDULES[1]
    denoiser = mixtures.ring().denoiser(schedule)
    x_T = torch.randn(40, 2, dtype=torch.float64)
    torch.manual_seed(4)
    ours = nb02(schedule)["sample"](denoiser, x_T, steps, eta)
    torch.manual_seed(4)
    expected = list(Diffusion(schedule).sample(denoiser, x_T, steps=steps, eta=eta))
    assert [state[0] for state in ours] == [state.t for state in expected]
    for (_, x, _), state in zip(ours, expected, strict=True):
        assert torch.allclose(x, state.x, atol=1e-12)


def test_sampler_without_a_fault_in_02_is_the_sampler():
    schedule = SCHEDULES[1]
    notebook = nb02(schedule)
    notebook["denoiser"] = mixtures.ring().denoiser(schedule)
    torch.manual_seed(5)
    ours = notebook["broken_sample"]("none", 10)
    torch.manual_seed(5)
    x_T = torch.randn(500, 2)
    assert torch.allclose(ours, notebook["sample"](notebook["denoiser"], x_T, 10)[-1][1], atol=1e-5)
    for fault in ("beta", "no denominator", "last step noisy", "noise reused", "time frozen"):
        torch.manual_seed(5)
        assert not torch.allclose(ours, notebook["broken_sample"](fault, 10), atol=1e-3), fault


def test_training_of_02_is_the_librarys():
    schedule = SCHEDULES[1]
    diffusion = Diffusion(schedule)

    def loss(network):
        return diffusion.loss(network, toy.moons(64))

    def fresh():
        torch.manual_seed(6)
        return MLPDenoiser(2, schedule.alpha_bar, hidden=16, layers=1)

    ours, history = nb02(schedule)["train"](fresh(), loss, steps=60, warmup=10)
    trainer = Trainer(fresh(), loss, steps=60, lr=2e-3, warmup=10, decay_share=0.5)
    expected = trainer.run(log_every=1, progress=False)
    assert history == pytest.approx([value for _, value in trainer.history], rel=1e-4)
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
