"""A property near a target: regressors, protocol, reward, and the experiment in preset quick."""

import math

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import properties, regressors
from rgdm_lib.molecules.data import encode
from rgdm_lib.molecules.model import molecule_diffusion
from rgdm_lib.molecules.regressors import Protocol, Regressor, labelled_batches, predict
from rgdm_lib.training import load_tensors


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol("alpha")


def _regressor() -> Regressor:
    torch.manual_seed(0)
    return Regressor(hidden=16, edge=8, layers=2).eval()


def test_a_regressor_heeds_neither_place_nor_direction_nor_order(protocol):
    network = _regressor()
    x = encode(protocol.data, 12)[:5]
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    order = torch.randperm(12)
    moved = torch.cat([x[..., :3] @ rotation + 2.0, x[..., 3:]], -1)[:, order]
    value = network(x).detach()
    torch.testing.assert_close(network(moved), value, atol=1e-5, rtol=0)
    other = torch.cat([1.1 * x[..., :3], x[..., 3:]], -1)
    assert value.shape == (5,) and float((network(other).detach() - value).abs().min()) > 1e-4


def test_a_regressor_learns():
    """Mean over the atoms of 0.5 for each hydrogen, -0.5 for the rest, in 300 steps."""
    torch.manual_seed(0)
    data = Protocol("alpha").data.part("train").subset(np.arange(100, 300))
    label = torch.stack(
        [torch.from_numpy(data.atoms(i)[1] == 1).float().mean() - 0.5 for i in range(len(data))]
    )
    network, batches = _regressor(), labelled_batches(data, label, 32)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        x, wanted = next(batches)
        optimizer.zero_grad()
        (network(x) - wanted).abs().mean().backward()
        optimizer.step()
    assert float((predict(network, data) - label).abs().mean()) < 0.2 * float(label.std())


def test_the_parts_are_disjoint_and_their_units_come_from_a_fourth(protocol):
    parts = [protocol.evaluator_half, protocol.generator_half, protocol.data.part("test")]
    assert [len(part) for part in parts] == [1568, 1568, 393]
    assert len(set(np.concatenate([part.index for part in parts]))) == 1568 + 1568 + 393
    values = protocol.data.part("valid").property("alpha")
    normalised = protocol.normalised(values)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalised.abs().mean()) == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="no property 'G' here: choose from alpha, mu, gap"):
        Protocol("G")


def test_an_error_is_in_the_units_of_the_property(protocol):
    """A network that always says 0 says the mean of the valid part."""
    test = protocol.data.part("test")
    values = test.property("alpha")
    found = protocol.error(lambda x: torch.zeros(len(x)), test, values)
    assert found == pytest.approx(np.abs(values - protocol.mean).mean(), rel=1e-5)


def test_labels_stay_with_their_molecules(protocol):
    """The label is the number of hydrogens, which the batch itself tells; weights are heeded."""
    data = protocol.generator_half
    label = torch.tensor([float((data.atoms(i)[1] == 1).sum()) for i in range(len(data))])
    weight = (label > 6).float()
    torch.manual_seed(0)
    batches = labelled_batches(data, label, 8, weight)
    for _ in range(50):
        x, labels = next(batches)
        assert torch.equal(4 * x[..., 3].sum(1), labels) and bool((labels > 6).all())
    drawn = np.array([next(batches)[0].shape[1] for _ in range(2000)])
    share = float(weight[data.n_atoms == 15].sum() / weight.sum())
    assert abs((drawn == 15).mean() - share) < 4 * math.sqrt(share / 2000)


def test_predictions_come_in_the_order_of_the_molecules(protocol):
    data = protocol.generator_half.subset(np.arange(0, 400, 10))
    made = predict(lambda x: 4 * x[..., 3].sum(1), data, batch=3)
    assert made.tolist() == [float((data.atoms(i)[1] == 1).sum()) for i in range(len(data))]


def test_the_reward_is_minus_the_distance_of_stable_molecules(protocol):
    half = protocol.generator_half.subset([400, 401, 402])
    broken = half.positions.copy()
    broken[half.starts[1] : half.starts[2]] *= 3.0  # the second falls to pieces
    target = protocol.mean + protocol.scale * np.array([0.0, 0.0, 2.0])
    pool = type(half)(half.n_atoms, half.numbers, broken, {"target": target})
    draw = properties.property_draw(protocol, pool, lambda x: torch.full((len(x),), 0.5))
    assert draw.reward[[0, 2]].tolist() == pytest.approx([-0.5, -1.5], abs=1e-5)
    assert bool(draw.reward[1].isnan()) and draw.strata.tolist() == half.n_atoms.tolist()


def test_each_molecule_is_sampled_for_its_own_target(protocol):
    """A denoiser of rods of hydrogen that are as long as it is told."""
    alpha_bar = molecule_diffusion().schedule.alpha_bar
    told = []

    def knows(x_t, t, c):
        told.append(c)
        a = alpha_bar[t].float()[:, None, None]
        x0 = torch.zeros_like(x_t)
        x0[..., 3] = 0.25
        x0[:, :, 0] = c * torch.linspace(-1, 1, x_t.shape[1])
        return (x_t - a.sqrt() * x0) / (1 - a).sqrt()

    sizes, c = torch.tensor([5, 3, 5, 3, 5, 5]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    made = properties.sample_conditional(knows, sizes, c, "quick", batch=2)
    assert made.n_atoms.tolist() == sizes.tolist() and told[0].shape == (2, 1)
    length = [float(np.ptp(made.atoms(i)[0][:, 0])) for i in range(6)]
    assert length == pytest.approx((2 * c).tolist(), abs=0.02)


def test_the_table_and_its_alarm(protocol, monkeypatch):
    """An evaluator that says 0 of everything; targets that are there or one unit away."""
    monkeypatch.setattr(protocol, "regressor", lambda kind: lambda x: torch.zeros(len(x)))
    half = protocol.generator_half.subset(np.arange(300, 400))
    far = half.with_properties(target=np.full(100, protocol.mean + 2 * protocol.scale))
    own = half.with_properties(target=half.property("alpha"))
    found = properties.errors(protocol, {"conditional": own, "guided": far})
    test = protocol.data.part("test").property("alpha")
    assert found["evaluator"] == pytest.approx(np.abs(test - protocol.mean).mean(), rel=1e-5)
    assert found["guided"] == pytest.approx(2 * protocol.scale, rel=1e-5)
    spread = np.abs(half.property("alpha") - protocol.mean).mean()
    assert 0 < found["atoms only"] < 0.8 * spread
    near = half.with_properties(target=np.full(100, protocol.mean))
    with pytest.warns(UserWarning, match="guided: alpha is 0 from its targets, less than the eval"):
        properties.errors(protocol, {"conditional": own, "guided": near})


def _distance(a: dict, b: dict) -> float:
    return sum(float((a[key].float() - b[key].float()).square().sum()) for key in a) ** 0.5


def test_experiment_all_from_the_conditional_model(tmp_path, capsys):
    options = {"properties": ("mu",), "seeds": (0,)}
    paths = properties.target_properties("quick", tmp_path, **options)
    protocol = Protocol("mu", home=tmp_path)
    assert paths == [protocol.path(kind) for kind in ("conditional", "control_seed0", "seed0")]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mu")]
    assert lines[0].startswith("mu: error of the evaluator ") and lines[0].endswith(" Debye")
    assert "conditional" in lines[1] and "atoms only" in lines[-1]
    sets = properties.load_sets(protocol, 0)
    assert [len(molecules) for molecules in sets.values()] == [200, 40, 40]
    control, guided = sets["control"], sets["guided"]
    assert control.n_atoms.tolist() == guided.n_atoms.tolist()  # the same draws
    assert control.property("target").tolist() == guided.property("target").tolist()
    conditional, control, guided = (
        load_tensors(path.with_name(path.name.replace("_samples.npz", ".safetensors")))[0]
        for path in paths
    )
    assert bool((conditional["embed.weight"][:, -1] != 0).any())  # it heeds what it is told
    step = _distance(conditional, control)
    assert 0 < step and _distance(conditional, guided) < 1.3 * step  # both from the conditional
    assert _distance(control, guided) > 0
    evaluator, reward = (protocol.regressor(kind) for kind in regressors.REGRESSORS)
    assert _distance(evaluator.state_dict(), reward.state_dict()) > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    content = paths[-1].read_bytes()
    paths[-1].unlink()
    properties.target_properties("quick", tmp_path, **options)
    assert paths[-1].read_bytes() == content  # made again, to the bit
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert all(name.startswith("property_heavy7_mu_seed0") for name in changed)
