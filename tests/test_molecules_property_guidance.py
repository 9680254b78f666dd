"""Classifier guidance of the conditional model: likelihood, steering, the experiment in quick."""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import properties, property_guidance, regressors
from rgdm_lib.molecules.data import load_set
from rgdm_lib.molecules.model import molecule_diffusion
from rgdm_lib.molecules.property_guidance import log_likelihood, steered, train_reader
from rgdm_lib.training import load_tensors


def test_the_likelihood_is_a_normal_one():
    torch.manual_seed(0)
    said, c = torch.randn(7, 4), torch.randn(7, 2)
    normal = torch.distributions.Normal(said[:, :2], said[:, 2:].exp())
    constant = 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(log_likelihood(said, c), normal.log_prob(c) + constant)
    sure = torch.tensor([[0.0, -50.0]], requires_grad=True)
    log_likelihood(sure, torch.tensor([[0.02]])).sum().backward()
    assert float(sure.grad[0, 0]) == pytest.approx(0.02 / 0.01**2, rel=1e-4)  # bounded


def test_steering_adds_the_gradient_of_what_was_asked():
    """A reader whose means are sums over x, of sd e^(1/2): the gradient is (c - mean) / e."""
    schedule = molecule_diffusion().schedule
    protocol = regressors.Protocol()
    x, t = torch.randn(2, 12, 9), torch.tensor([300, 700])

    def reader(x_t, t):
        total = x_t.sum((1, 2))[:, None] * torch.tensor([1.0, 2.0, 3.0])
        return torch.cat([total, torch.full_like(total, 0.5)], 1)

    heard = []

    def denoiser(x_t, t, cond):
        heard.append(cond)
        return torch.zeros_like(x_t)

    asked, c = torch.tensor([0, 2]), torch.tensor([0.7, -0.4])
    gains, half = {"alpha": 4.0, "mu": 2.0, "gap": 8.0}, protocol.generator_half
    mean = [half.property(name)[half.n_atoms == 12].mean() for name in ("alpha", "gap")]
    mean = [
        float(protocol.normalised(k, np.array([x])))
        for k, x in zip(("alpha", "gap"), mean, strict=True)
    ]
    mean = torch.tensor(mean)
    told = mean + torch.tensor([4.0, 8.0]) * (c - mean)  # as loudly as the denoiser is asked
    cond = properties.condition_vector(asked, told)
    scales = {"alpha": 0.5, "mu": 100.0, "gap": 2.0}
    eps = steered(protocol, denoiser, reader, scales, gains)(x, t, cond)
    assert torch.equal(heard[0], cond)
    total = x.sum((1, 2))
    slope = torch.tensor([0.5 * 1.0, 2.0 * 3.0])  # scale times d mean / dx
    gradient = slope * (c - torch.tensor([1.0, 3.0]) * total) / np.e
    expected = -(1 - schedule.alpha_bar[t]).sqrt().float() * gradient
    torch.testing.assert_close(eps, expected[:, None, None].expand_as(x), rtol=1e-4, atol=1e-4)


class Marked(NamedTuple):
    """A steered denoiser that remembers how."""

    steered: object
    scales: dict
    gains: dict

    def __call__(self, *arguments):
        return self.steered(*arguments)


def test_experiment_quick(tmp_path, monkeypatch):
    properties.target_properties("quick", tmp_path, kinds=(), seeds=(0,))
    scales, made = {"alpha": 0.5, "mu": 4.0, "gap": 1.0}, []
    nearest = properties.nearest_by_trial

    def known(protocol, stem, out, values, sample):
        assert nearest(protocol, stem, out, values, sample).keys() == scales.keys()
        assert values == property_guidance.SCALES
        return scales

    def fit(network, loss, *arguments, **options):
        made.append(float(loss(network).mean().detach()))
        return train(network, loss, *arguments, **options)

    def known_steered(protocol, denoiser, reader, scales, gains):
        networks.append(copy.deepcopy(reader.state_dict()))
        return Marked(steered(protocol, denoiser, reader, scales, gains), scales, gains)

    def asked(protocol, denoiser, path, out, preset, n, noise, gains, **settings):
        assert isinstance(denoiser, Marked) and denoiser.gains == gains
        assert settings == {f"scale_{k}": x for k, x in denoiser.scales.items()}
        used.append((n, noise, *denoiser.scales.values()))
        return sample(protocol, denoiser, path, out, preset, n, noise, gains, **settings)

    def watched(molecules, label, batch, weight=None):
        halves.append(molecules)
        return regressors.labelled_batches(molecules, label, batch, weight)

    networks, used, halves, sample = [], [], [], properties.sample_questions
    monkeypatch.setattr(property_guidance, "steered", known_steered)
    monkeypatch.setattr(property_guidance, "sample_questions", asked)
    monkeypatch.setattr(property_guidance, "labelled_batches", watched)
    train = property_guidance.train_and_save
    monkeypatch.setattr(property_guidance, "nearest_by_trial", known)
    monkeypatch.setattr(property_guidance, "train_and_save", fit)
    (path,) = property_guidance.steer_properties("quick", tmp_path, seeds=(0,))
    protocol = regressors.Protocol(home=tmp_path)
    assert path == protocol.path("classifier_seed0")
    answers = properties.load_sets(protocol)["classifier"]
    assert len(answers) == 120
    conditional = properties.load_sets(protocol)["conditional"]
    assert properties.set_gains(answers) == properties.set_gains(conditional)
    trials = [(5, 2000, x, x, x) for x in property_guidance.SCALES]
    assert used == [*trials, (40, 6, 0.5, 4.0, 1.0)]
    assert set(halves[0].index) == set(protocol.generator_half.index)
    for name, scale in scales.items():
        assert set(answers.property(f"scale_{name}")) == {scale}
    weights = protocol.path("reader_seed0", ".safetensors")
    saved = load_tensors(weights)[0]
    for network in networks:  # what steers is what the file holds
        assert all(torch.equal(value, saved[name].float()) for name, value in network.items())
    assert len(made) == 1 and np.isfinite(made[0])
    before = path.stat().st_mtime_ns
    property_guidance.steer_properties("quick", tmp_path, seeds=(0,))
    assert path.stat().st_mtime_ns == before and len(load_set(path)) == 120
    assert not list(tmp_path.glob("*trial*"))


def test_the_reader_learns_from_noisy_molecules(tmp_path, monkeypatch):
    """How many of its atoms are hydrogen, at little noise: nearly all of it."""
    protocol = regressors.Protocol(home=tmp_path)
    monkeypatch.setitem(property_guidance.FURTHER_STEPS, "quick", 300)
    monkeypatch.setattr(
        regressors.Protocol,
        "labels",
        lambda self, molecules: torch.tensor(
            [[float((molecules.atoms(i)[1] == 1).mean())] * 3 for i in range(len(molecules))]
        ),
    )
    reader, diffusion = train_reader(protocol, 0, "quick", tmp_path, lr=3e-3), molecule_diffusion()
    half = protocol.generator_half
    (x, label), noise = next(
        regressors.labelled_batches(half, protocol.labels(half), 200)
    ), diffusion.noise_like  # fmt: skip
    t = torch.full((200,), 50)
    with torch.no_grad():
        mean, log_spread = reader(diffusion.q_sample(x, t, noise(x)), t).chunk(2, 1)
        late = reader(noise(x), torch.full((200,), 1000))[:, 3:]
    off, spread = (mean - label).square().mean().sqrt(), protocol.labels(half).std()
    assert float(off) < 0.5 * float(spread)
    assert float(late.mean()) > float(log_spread.mean())  # of noise it is less sure
