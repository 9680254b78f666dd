"""A property near a target: regressors, protocol, reward, and the experiment in preset quick."""

import math

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import properties, regressors
from rgdm_lib.molecules.data import encode, load_set, save_set
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.model import load_model, molecule_diffusion
from rgdm_lib.molecules.regressors import Protocol, Regressor, labelled_batches, predict
from rgdm_lib.training import load_tensors, save_weights

GAINS = {"alpha": 1.0, "mu": 2.0, "gap": 3.0}


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol()


def _regressor() -> Regressor:
    torch.manual_seed(0)
    return Regressor(hidden=16, edge=8, layers=2, values=2).eval()


def test_a_regressor_heeds_neither_place_nor_direction_nor_order(protocol):
    network = _regressor()
    x = encode(protocol.data, 12)[:5]
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    order = torch.randperm(12)
    moved = torch.cat([x[..., :3] @ rotation + 2.0, x[..., 3:]], -1)[:, order]
    value = network(x).detach()
    torch.testing.assert_close(network(moved), value, atol=1e-5, rtol=0)
    assert float((value[:, 0] - value[:, 1]).abs().min()) > 1e-4
    other = torch.cat([1.1 * x[..., :3], x[..., 3:]], -1)
    moves = (network(other).detach() - value).abs().amax(1)
    assert value.shape == (5, 2) and float(moves.min()) > 1e-4


def test_a_regressor_learns():
    """Mean over the atoms of 0.5 for each hydrogen, -0.5 for the rest, minus that; 300 steps."""
    torch.manual_seed(0)
    data = Protocol().data.part("train").subset(np.arange(100, 300))
    label = torch.stack(
        [torch.from_numpy(data.atoms(i)[1] == 1).float().mean() - 0.5 for i in range(len(data))]
    )
    label = torch.stack([label, -label], 1)
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
    valid = protocol.data.part("valid")
    for k, name in enumerate(regressors.UNITS):
        normalised = protocol.normalised(name, valid.property(name))
        assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
        assert float(normalised.abs().mean()) == pytest.approx(1, rel=1e-5)
        assert torch.equal(protocol.labels(valid)[:, k], normalised)


def test_an_error_is_in_the_units_of_the_property(protocol):
    """A word of 0 is the mean of the valid part."""
    values = protocol.data.part("test").property("gap")
    found = protocol.error("gap", torch.zeros(len(values)), values)
    assert found == pytest.approx(np.abs(values - protocol.mean["gap"]).mean(), rel=1e-5)


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


def _asked(molecules, name, target):
    """The molecules, asked for the property."""
    number = np.full(len(molecules), list(regressors.UNITS).index(name))
    return molecules.with_properties(asked=number, target=target)


def test_what_the_network_is_told(protocol):
    """Each molecule asks for each property: one-hot, and its normalised value in the same place."""
    half = protocol.generator_half.subset([5, 6])
    questions = properties.all_questions(half)
    c = properties.conditions(protocol, questions) / properties.CONDITION_SCALE
    assert c.shape == (6, 6) and c[:, :3].argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert bool((c[:, :3].sum(1) == 1).all())
    labels = protocol.labels(half)
    for row, k in enumerate(c[:, :3].argmax(1)):
        values = [float(labels[row % 2, k]) if i == k else 0.0 for i in range(3)]
        assert c[row, 3:].tolist() == pytest.approx(values)
    with pytest.raises(ValueError, match="no property 'homo': choose from alpha, mu, gap"):
        properties.asked_for("homo", questions)


def test_a_louder_question_lies_further_from_the_mean_of_its_size(protocol):
    half = protocol.generator_half
    asked = properties.all_questions(half.subset([3, 900]))
    louder = asked.with_properties(gain=np.array([1.0, 2.0, 1.0, 3.0, 1.0, 1.0]))
    told = properties.conditions(protocol, asked).double()
    changed = (properties.conditions(protocol, louder).double() - told) / 10  # CONDITION_SCALE
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for row, column, name, gain in ((1, 3, "alpha", 2.0), (3, 4, "mu", 3.0)):
        of_size = half.property(name)[half.n_atoms == half.n_atoms[900]]
        away = asked.property("target")[row] - of_size.mean()
        expected[row, column] = (gain - 1) * away / protocol.scale[name]
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=0)
    assert float(expected.abs().max()) > 0.1


def test_what_is_heard_is_the_correlation_within_a_size(protocol):
    half = protocol.generator_half
    asked = _asked(half, "alpha", half.property("alpha"))
    mean, rng = protocol.mean_of_size("alpha", half.n_atoms), np.random.default_rng(0)
    deaf = asked.with_properties(evaluator=mean + rng.normal(size=len(half)))
    away = half.property("alpha") - mean
    half_heard = mean + 0.5 * away + 3**0.5 / 2 * away.std() * rng.normal(size=len(half))
    said = asked.with_properties(evaluator=half_heard)
    assert np.corrcoef(deaf.property("evaluator"), half.property("alpha"))[0, 1] > 0.4
    assert abs(properties.heard(protocol, "alpha", deaf)) < 4 / len(half) ** 0.5
    assert abs(properties.heard(protocol, "alpha", said) - 0.5) < 4 / len(half) ** 0.5
    echo = asked.with_properties(evaluator=half.property("alpha"))
    assert properties.heard(protocol, "alpha", echo) == pytest.approx(1)


def test_the_gain_is_the_one_whose_answers_are_nearest(protocol, tmp_path, monkeypatch):
    """Answers off by |log2(gain / best)|, by the reward network; best at 2, 8 and 1."""
    best, made = {"alpha": 2.0, "mu": 8.0, "gap": 1.0}, []

    def sample(protocol, denoiser, path, out, preset, n, noise, gains):
        made.append((denoiser, path.parent, n, noise, tuple(gains.values())))
        some = protocol.generator_half.subset(np.arange(4))
        asked = np.repeat(np.arange(3), 4)
        off = [math.log2(gains[k] / best[k]) * protocol.scale[k] for k in best]
        both = type(some).concatenate([some] * 3)
        save_set(
            path, both.with_properties(asked=asked, target=np.zeros(12), reward=np.repeat(off, 4))
        )

    monkeypatch.setattr(properties, "sample_questions", sample)
    monkeypatch.setattr(properties, "with_predictions", lambda protocol, made, kinds: made)
    given = protocol, "the denoiser", tmp_path / "set.npz", tmp_path, "quick"
    assert properties.tuned_gains(*given) == best
    louder = [(g, g, g) for g in (1.0, 2.0, 4.0, 8.0)]
    assert made == [("the denoiser", tmp_path, 5, 2000, gains) for gains in louder]
    properties.tuned_gains(*given)
    assert len(made) == 4


def test_the_reward_is_minus_the_distance_of_stable_molecules(protocol):
    half = protocol.generator_half.subset([400, 401, 402])
    broken = half.positions.copy()
    broken[half.starts[1] : half.starts[2]] *= 3.0  # the second falls to pieces
    target = protocol.mean["mu"] + protocol.scale["mu"] * np.array([0.0, 0.0, 2.0])
    pool = _asked(type(half)(half.n_atoms, half.numbers, broken), "mu", target)
    both = type(half).concatenate([pool, _asked(half, "gap", target)])
    said = protocol.mean["mu"] + 0.5 * protocol.scale["mu"]
    both = both.with_properties(reward=np.full(6, said))
    draw = properties.property_draw(protocol, "mu", both)
    assert draw.reward[[0, 2]].tolist() == pytest.approx([-0.5, -1.5], abs=1e-5)
    assert bool(draw.reward[1].isnan()) and len(draw.reward) == 3


def _pool(protocol, n=1500):
    """Answers to questions about mu: off by more, the larger the target, and a third unstable."""
    half = protocol.generator_half.subset(np.arange(n))
    target = np.random.default_rng(0).gamma(4.0, 0.5, n)
    off = np.random.default_rng(1).exponential(0.2 * target)
    pool = _asked(half, "mu", target).with_properties(reward=target + off)
    positions = half.positions.copy()
    for i in range(0, n, 3):
        positions[half.starts[i] : half.starts[i + 1]] *= 3.0
    return type(half)(pool.n_atoms, pool.numbers, positions, pool.properties)


def test_questions_stay_as_they_were_asked(protocol):
    """Within a size every quarter of the targets keeps its share of the weight."""
    pool = _pool(protocol)
    draw = properties.property_draw(protocol, "mu", pool)
    targets = properties.property_targets(draw)
    valued = int(torch.isfinite(draw.reward).sum())
    assert valued < 0.7 * 1500 and targets["guided"].ess == pytest.approx(0.4 * valued, rel=1e-3)
    for n, index in pool.by_size().items():
        own = pool.property("target")[index]
        parts = np.array_split(np.sort(own), min(4, max(1, len(index) // 50)))
        for part in parts:
            here = index[(own >= part[0]) & (own <= part[-1])]
            share = float(np.isin(np.arange(1500), here).mean())
            for target in targets.values():
                weight = float(target.log_weight.exp()[torch.from_numpy(here)].sum())
                assert weight == pytest.approx(share, abs=2 / 1500), (n, len(part))
    asked, weight = pool.property("target"), targets["guided"].log_weight.exp().numpy()
    by_size = properties.Draw(pool, draw.reward, torch.from_numpy(pool.n_atoms)).weigh(
        properties.temperature_for_ess(draw.reward, 0.4, torch.from_numpy(pool.n_atoms))
    )
    drift = [float(w @ asked) - asked.mean() for w in (weight, by_size.log_weight.exp().numpy())]
    assert abs(drift[0]) < 0.5 * abs(drift[1])  # by size alone easy questions come up more often


def test_the_level_is_the_mean_over_the_properties(protocol, monkeypatch):
    """Rewards of -1, -2 and -3 in units of each; those of an unstable molecule do not count."""
    half = protocol.generator_half.subset([400, 401, 402])
    broken = half.positions.copy()
    broken[half.starts[1] : half.starts[2]] *= 3.0
    questions = properties.all_questions(type(half)(
        half.n_atoms, half.numbers, broken, {k: half.property(k) for k in regressors.UNITS}
    ))  # fmt: skip
    off = np.array([1.0, 50.0, 1.0, 2.0, 50.0, 2.0, 3.0, 50.0, 3.0])
    scale = np.repeat([protocol.scale[name] for name in regressors.UNITS], 3)
    said = questions.property("target") + off * scale
    judged = questions.with_properties(reward=said, evaluator=questions.property("target"))
    monkeypatch.setattr(properties, "with_predictions", lambda protocol, made, kinds: judged)
    assert properties._level(protocol, questions) == pytest.approx(-2.0, rel=1e-4)


def test_each_molecule_is_sampled_for_its_own_target(protocol):
    """A denoiser of rods of hydrogen that are as long as it is told."""
    alpha_bar = molecule_diffusion().schedule.alpha_bar
    told = []

    def knows(x_t, t, c):
        told.append(c)
        a = alpha_bar[t].float()[:, None, None]
        x0 = torch.zeros_like(x_t)
        x0[..., 3] = 0.25
        x0[:, :, 0] = c[:, 1:] * torch.linspace(-1, 1, x_t.shape[1])
        return (x_t - a.sqrt() * x0) / (1 - a).sqrt()

    sizes, c = torch.tensor([5, 3, 5, 3, 5, 5]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    made = properties.sample_conditional(knows, sizes, torch.stack([-c, c], 1), "quick", batch=2)
    assert made.n_atoms.tolist() == sizes.tolist() and told[0].shape == (2, 2)
    length = [float(np.ptp(made.atoms(i)[0][:, 0])) for i in range(6)]
    assert length == pytest.approx((2 * c).tolist(), abs=0.02)


def test_questions_are_those_of_the_half_and_the_noise_alone(protocol, tmp_path, monkeypatch):
    """A denoiser of rods as long as the wanted value: each answer has its own question's."""
    alpha_bar = molecule_diffusion().schedule.alpha_bar

    def rods(x_t, t, c):
        a = alpha_bar[t].float()[:, None, None]
        x0 = torch.zeros_like(x_t)
        x0[..., 3] = 0.25
        value = c[:, 3:].sum(1, keepdim=True) / properties.CONDITION_SCALE
        x0[:, :, 0] = (3 + value) * torch.linspace(-1, 1, x_t.shape[1])
        return (x_t - a.sqrt() * x0) / (1 - a).sqrt()

    def sample(folder, noise=5, **settings):
        folder.mkdir(exist_ok=True)
        path = folder / "set.npz"
        return properties.sample_questions(
            protocol, rods, path, folder, "quick", 6, noise, GAINS, **settings
        )

    path = sample(tmp_path / "a", s=2.0)
    made = load_set(path)
    assert made.property("s").tolist() == [2.0] * 18
    assert made.property("asked").tolist() == [0] * 6 + [1] * 6 + [2] * 6
    questions = []
    for name in regressors.UNITS:
        asked, half = properties.asked_for(name, made), protocol.generator_half
        length = [float(np.ptp(asked.atoms(i)[0][:, 0])) for i in range(6)]
        mean, target = protocol.mean_of_size(name, asked.n_atoms), asked.property("target")
        louder = mean + GAINS[name] * (target - mean)
        wanted = 2 * (3 + protocol.normalised(name, louder))
        assert length == pytest.approx(wanted.tolist(), abs=0.05)
        known = dict(zip(half.property(name).astype("float32"), half.n_atoms, strict=True))
        target = asked.property("target").astype("float32")
        assert set(target) <= set(known)  # real pairs of size and value, but for equal values
        assert sum(known[c] == n for c, n in zip(target, asked.n_atoms, strict=True)) >= 5
        questions.append(tuple(asked.n_atoms))
    for noise in (4, 6):
        other = load_set(sample(tmp_path / "b", noise))
        questions += [tuple(properties.asked_for(k, other).n_atoms) for k in regressors.UNITS]
    assert len(set(questions)) == 9  # no property and no noise has the molecules of another


def test_a_stopped_run_goes_on_after_the_parts_that_are_there(protocol, tmp_path, monkeypatch):
    path, made = tmp_path / "set.npz", []

    def sample(denoiser, sizes, c, preset, batch):
        if len(made) == 2 and not path.with_name("go").exists():
            raise KeyboardInterrupt
        made.append(int(c[0, :3].argmax()))
        return protocol.generator_half.subset(np.arange(4))

    monkeypatch.setattr(properties, "sample_conditional", sample)

    def run(strength):
        properties.sample_questions(
            protocol, None, path, tmp_path, "quick", 4, 0, GAINS, strength=strength
        )
        return load_set(path).property("strength").tolist()

    with pytest.raises(KeyboardInterrupt):
        run(1.0)
    path.with_name("go").touch()
    assert run(1.0) == [1.0] * 12 and made == [0, 1, 2]
    assert run(2.0) == [2.0] * 12 and made == [0, 1, 2, 0, 1, 2]
    path.unlink()
    assert run(2.0) == [2.0] * 12 and len(made) == 9  # what is asked for again is made again


def test_the_words_are_those_on_what_was_asked(protocol, monkeypatch):
    """Networks that say 1, 2 and 3 of everything, in units of alpha, mu and gap, or minus that."""
    sign = {"evaluator": 1.0, "reward": -1.0}
    word = torch.tensor([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        protocol, "regressor", lambda kind: lambda x: sign[kind] * word.expand(len(x), 3)
    )
    half = protocol.generator_half.subset([5, 300])
    made = properties.with_predictions(protocol, properties.all_questions(half))
    for kind, s in sign.items():
        for k, name in enumerate(regressors.UNITS):
            expected = protocol.mean[name] + s * (k + 1) * protocol.scale[name]
            said = properties.asked_for(name, made).property(kind)
            assert said.tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_the_table_and_its_alarm(protocol):
    """Judges whose word is off by 1, or by 2 and 4 of what was asked; one that meets the target."""
    half = protocol.generator_half.subset(np.arange(300, 400))
    own = _asked(half, "alpha", half.property("alpha"))
    real = own.with_properties(evaluator=half.property("alpha") - 1)
    off = np.where(np.arange(100) % 2, 2.0, -4.0)
    far = own.with_properties(evaluator=half.property("alpha") + off)
    other = _asked(half, "mu", half.property("mu")).with_properties(evaluator=np.zeros(100))
    sets = {"guided": type(half).concatenate([far, other])}
    found = properties.errors("alpha", sets, real)
    assert found["judge"] == pytest.approx((1.0, 0.0), abs=1e-4)
    assert found["guided"] == pytest.approx((3.0, 0.1), abs=1e-4)  # sd 1 of 100
    met = {"guided": own.with_properties(evaluator=half.property("alpha"))}
    with pytest.warns(UserWarning, match="guided: alpha is 0 from its targets by evaluator, less"):
        properties.errors("alpha", met, real)
    with pytest.raises(ValueError, match="GFN2-xTB is no judge of alpha: choose from mu, gap"):
        properties.errors("alpha", met, real, by="gfn2")
    spread = np.abs(half.property("alpha") - protocol.mean["alpha"]).mean()
    assert 0 < properties.atoms_only(protocol, "alpha", own) < 0.8 * spread
    sizes = type(half)(half.n_atoms, half.numbers, half.positions)
    median = np.array([np.median(protocol.generator_half.property("alpha")[i]) for n in half.n_atoms
                       for i in [protocol.generator_half.n_atoms == n]])  # fmt: skip
    assert properties.atoms_only(protocol, "alpha", _asked(sizes, "alpha", median + 2)) == 2.0


def _distance(a: dict, b: dict) -> float:
    return sum(float((a[key].float() - b[key].float()).square().sum()) for key in a) ** 0.5


def test_experiment_all_from_the_conditional_model(tmp_path, capsys, monkeypatch):
    learned, order = {}, iter(("evaluator", "reward", "conditional", "longer", "control", "guided"))

    def watched(molecules, label, batch, weight=None):
        batches = labelled_batches(molecules, label, batch, weight)
        x, first = next(batches)
        seen = {"first": x, "index": [] if molecules.index is None else molecules.index}
        if "asked" in molecules.properties:
            seen |= {"asked": torch.from_numpy(molecules.property("asked").astype(int))}
            seen |= {"gain": molecules.properties.get("gain")}
        learned[next(order)] = seen | {"weight": weight}
        yield x, first
        yield from batches

    for module in (properties, regressors):
        monkeypatch.setattr(module, "labelled_batches", watched)
    gains = iter(
        [{"alpha": 4.0, "mu": 2.0, "gap": 8.0}] + 8 * [{"alpha": 1.0, "mu": 8.0, "gap": 2.0}]
    )
    tuned = properties.tuned_gains

    def known_gains(protocol, denoiser, path, out, preset):
        assert tuned(protocol, denoiser, path, out, preset).keys() == set(regressors.UNITS)
        return next(gains)

    monkeypatch.setattr(properties, "tuned_gains", known_gains)
    paths = properties.target_properties("quick", tmp_path, seeds=(0,))
    protocol = Protocol(home=tmp_path)
    kinds = ["conditional", "longer_seed0", "control_seed0", "guided_seed0"]
    assert paths == [protocol.path(kind) for kind in kinds]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["alpha", "mu", "gap"]
    assert lines[1].startswith("mu: error of the evaluator ") and lines[1].endswith(" Debye")
    sets = properties.load_sets(protocol, 0)
    assert {kind: len(molecules) for kind, molecules in sets.items()} == {
        "conditional": 240, "longer": 120, "control": 120, "guided": 120,
    }  # fmt: skip
    for name in ("asked", "target"):  # the same draws
        assert sets["control"].property(name).tolist() == sets["guided"].property(name).tolist()
    assert properties.set_gains(sets["conditional"]) == {"alpha": 4.0, "mu": 2.0, "gap": 8.0}
    assert properties.set_gains(sets["guided"]) == {"alpha": 1.0, "mu": 8.0, "gap": 2.0}
    assert not list(tmp_path.glob("*trial*"))
    assert learned["conditional"]["gain"] is learned["longer"]["gain"] is None
    for kind in ("control", "guided"):  # told what their answers were answers to
        for k, gain in enumerate((4.0, 2.0, 8.0)):
            assert set(learned[kind]["gain"][learned[kind]["asked"] == k]) == {gain}
    networks = [load_tensors(protocol.path(kind, ".safetensors"))[0] for kind in kinds]
    conditional, longer, control, guided = networks
    assert bool((conditional["embed.weight"][:, -6:] != 0).any(0).all())  # it heeds all it is told
    step = _distance(conditional, control)
    assert 0 < step and _distance(conditional, guided) < 1.3 * step  # all from the conditional
    assert 0 < _distance(conditional, longer) < 1.3 * step
    halves = protocol.evaluator_half.index, protocol.generator_half.index
    for name, seen in learned.items():
        half = halves[0] if name == "evaluator" else halves[1]
        assert len(half) == 1568 and set(seen["index"]) <= set(half), name
    assert set(learned) == {"evaluator", "reward", "conditional", "longer", "control", "guided"}
    for name in ("control", "guided"):
        assert torch.bincount(learned[name]["asked"], learned[name]["weight"]).tolist() == (
            pytest.approx([1.0, 1.0, 1.0])
        )
    assert not torch.equal(learned["conditional"]["first"], learned["longer"]["first"])
    assert min(_distance(control, guided), _distance(control, longer)) > 0
    evaluator, reward = (protocol.regressor(kind) for kind in regressors.REGRESSORS)
    assert _distance(evaluator.state_dict(), reward.state_dict()) > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    content = paths[-1].read_bytes()
    paths[-1].unlink()
    properties.target_properties("quick", tmp_path, seeds=(0,))
    assert paths[-1].read_bytes() == content  # made again, to the bit
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert all(name.startswith("property_heavy7_guided_seed0") for name in changed)


def test_the_strength_is_where_the_difference_would_meet_the_payoff(tmp_path, monkeypatch):
    """Levels -0.5 of the conditional model and its control, -0.45 guided, -0.3 of the payoff."""
    protocol, drawn = Protocol(home=tmp_path), []
    half = protocol.generator_half.subset(np.arange(200))
    questions = properties.all_questions(half)

    def set_of(level):
        return questions.with_properties(
            level=np.full(len(questions), level), gain=np.full(len(questions), 4.0)
        )

    def sample(protocol, denoiser, path, out, preset, n, noise, gains, strength):
        assert gains == {"alpha": 4.0, "mu": 4.0, "gap": 4.0}  # those of the conditional model
        drawn.append((path, noise, strength))
        ones = torch.ones(2, 9, 9), torch.tensor([500, 500]), torch.ones(2, 6)
        with torch.no_grad():
            said = {kind: network(*ones) for kind, network in networks.items()}
            expected = said["conditional"] + strength * (said["guided"] - said["control"])
            torch.testing.assert_close(denoiser(*ones), expected)
        save_set(path, set_of(0.0))

    monkeypatch.setattr(properties, "sample_questions", sample)
    monkeypatch.setattr(
        properties, "_level", lambda protocol, made: float(made.property("level")[0])
    )
    monkeypatch.setattr(properties, "payoff_level", lambda target: -0.3)
    monkeypatch.setattr(Protocol, "regressor", lambda self, kind: lambda x: torch.zeros(len(x), 3))
    networks = {}
    for name, level in (("conditional", -0.5), ("control_seed0", -0.5), ("guided_seed0", -0.45)):
        save_set(protocol.path(name), set_of(level))
        path = protocol.path(name, ".safetensors")
        network = EGNN(molecule_diffusion().schedule.alpha_bar, 6, 16, 8, 1, conditions=6)
        save_weights(path, network, {"network": network.settings})
        networks[name.removesuffix("_seed0")] = load_model(path)[0]
    (path,) = properties.strengthen_properties("quick", tmp_path, seeds=(0,))
    ((made, noise, strength),) = drawn
    assert made == path == protocol.path("guided_seed0", "_strengthened_samples.npz")
    assert noise not in (0, 1, 2)  # no noise of another set
    assert strength == pytest.approx(0.2 / 0.05, rel=1e-5)
    properties.strengthen_properties("quick", tmp_path, seeds=(0,))
    assert len(drawn) == 1 and set(properties.load_sets(protocol)) >= {"strengthened"}
    path.unlink()
    save_set(protocol.path("guided_seed0"), set_of(-0.6))
    with pytest.raises(ValueError, match="of its control: no strength"):
        properties.strengthen_properties("quick", tmp_path, seeds=(0,))


def test_physics_judges_what_it_was_asked_on_its_own_scale(tmp_path, monkeypatch, protocol):
    """A dipole of 3 less twice what is right, of all but the first molecule."""
    half = protocol.generator_half.subset(np.arange(250, 290))
    real = _asked(half, "mu", half.property("mu"))
    told = (3 - half.property("mu")) / 2
    told[0] = np.nan
    real = real.with_properties(gfn2=told)
    off = _asked(half, "mu", half.property("mu") + 0.25).with_properties(gfn2=told)
    other = _asked(half, "gap", half.property("gap")).with_properties(gfn2=np.full(40, 7.0))
    both = type(half).concatenate([off, other])
    found = properties.errors("mu", {"guided": both}, real, by="gfn2")
    assert found["judge"] == pytest.approx((0, 0), abs=1e-5)
    assert found["guided"] == pytest.approx((0.25, 0), abs=1e-5)


def test_experiment_every_set_is_judged_once(tmp_path, monkeypatch):
    protocol = Protocol(home=tmp_path)
    questions = properties.all_questions(protocol.generator_half.subset(np.arange(20)))
    for kind in ("conditional", "control_seed0", "guided_seed0", "longer_seed0"):
        save_set(protocol.path(kind), questions)
    asked = []

    def judge(name):
        def value(molecules):
            asked.append((name, len(molecules)))
            return torch.from_numpy(molecules.property("target")).float() + 1

        return lambda: value

    monkeypatch.setattr(properties, "PHYSICS", {name: judge(name) for name in ("mu", "gap")})
    monkeypatch.setattr(Protocol, "regressor", lambda self, kind: lambda x: torch.zeros(len(x), 3))
    paths = properties.judge_properties("quick", tmp_path, seeds=(0, 1))  # of seed 1 nothing
    assert len(paths) == 5 and asked == [("mu", 40), ("gap", 40)] + 4 * [("mu", 20), ("gap", 20)]
    for path in paths:
        molecules = load_set(path)
        alpha, mu, gap = (properties.asked_for(name, molecules) for name in regressors.UNITS)
        assert bool(np.isnan(alpha.property("gfn2")).all())
        for one in (mu, gap):
            expected = one.property("target") + 1
            assert one.property("gfn2").tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    real = load_set(paths[0])
    assert set(real.properties) == {"asked", "target", "gfn2", "evaluator", "reward", "qed"}
    properties.judge_properties("quick", tmp_path, seeds=(0, 1))
    assert len(asked) == 10
    assert (
        len(properties.load_sets(protocol, 0)) == 4 and len(properties.load_sets(protocol, 1)) == 1
    )
