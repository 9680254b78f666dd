"""Away from the base's own mistakes: the experiment in preset quick."""

import math

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import correction, experiments, rewards
from rgdm_lib.molecules.data import load_qm9, load_set, save_set
from rgdm_lib.molecules.experiments import base_file, sample_and_score
from rgdm_lib.molecules.model import load_model


def test_linear_reward_is_the_tilt_with_these_means():
    """Coins of two strata: odds of 1 : 1 and 3 : 1 are multiplied by one factor of 3."""
    coin = torch.tensor([0.0, 1.0] * 50 + [0.0, 1.0, 1.0, 1.0] * 25)
    strata = torch.arange(200) // 100
    reward = correction.linear_reward(coin[:, None], torch.tensor([(0.75 + 0.9) / 2]), strata)
    assert reward[1] - reward[0] == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="no weights of these 200 samples"):
        correction.linear_reward(coin[:, None], torch.tensor([1.2]), strata)
    with pytest.raises(ValueError, match="means of shape"):
        correction.linear_reward(coin[:, None].expand(-1, 2), torch.tensor([0.8]), strata)


@pytest.mark.parametrize("mean", [2.5, 4.0, 5.5])
def test_linear_reward_finds_means_far_out_in_the_samples_range(mean):
    """Full steps of Newton's method overshoot there."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(2000, 1).exponential_(generator=generator)
    assert float(features.max()) > 6
    reward = correction.linear_reward(features, torch.tensor([mean]), torch.zeros(2000))
    assert float(reward.softmax(0) @ features.double()[:, 0]) == pytest.approx(mean, abs=1e-6)


def test_the_samples_to_get_away_from_are_off_by_more_than_the_base():
    """By the molecules themselves: atoms of a kind among those of the training part's sizes."""
    train, plain = load_qm9().part("train"), correction.mistaken(more=0.0)
    pool = plain.x0
    assert float(plain.ess) == pytest.approx(10_000)  # those without a value, too
    assert 0.2 < np.isnan(pool.property("qed")).mean() < 0.4
    wrong = correction.mistaken(more=0.5)
    weight = wrong.log_weight.exp().numpy()
    sizes = np.bincount(pool.n_atoms, minlength=40) / len(pool)
    assert np.bincount(pool.n_atoms, weight, 40) == pytest.approx(sizes)
    likewise = (sizes / np.maximum(np.bincount(train.n_atoms, minlength=40), 1))[train.n_atoms]
    likewise /= likewise.sum()

    def atoms(molecules, element):
        return np.add.reduceat((molecules.numbers == element).astype(int), molecules.starts[:-1])

    for element in (6, 7, 8):
        of_base, of_data = atoms(pool, element).mean(), likewise @ atoms(train, element)
        off = weight @ atoms(pool, element) - of_data
        assert off == pytest.approx(1.5 * (of_base - of_data), abs=0.01)
    qed = pool.property("qed")
    valued = np.isfinite(qed)
    assert weight[valued].sum() == pytest.approx(valued.mean())
    of_train = rewards.qed(train).numpy()
    stable = np.isfinite(of_train)
    right = np.average(of_train[stable], weights=likewise[stable])
    found = np.average(qed[valued], weights=weight[valued])
    assert found - right == pytest.approx(1.5 * (qed[valued].mean() - right), abs=1e-4)


def test_trained_from_the_base_on_these_samples(tmp_path, monkeypatch):
    seen = {}

    def no_training(preset, out, path, network, target, seed, n, *rest):
        seen.update(target=target, network=network)
        path.with_name(correction.correction_name("corrected")).touch()

    monkeypatch.setattr(correction, "guide_set", no_training)
    correction.correct_base("quick", tmp_path)
    torch.testing.assert_close(seen["target"].log_weight, correction.mistaken().log_weight)
    own = seen["network"].state_dict()
    base = load_model(base_file("heavy7"))[0].state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in base.items())


def test_the_base_is_strength_1_and_beyond_it_lies_the_other_side_of_what_learned_from_it(tmp_path):
    train, noise = load_qm9().part("train"), correction.NOISE
    sets = {}
    for s in (0.0, 1.0, 2.0):
        own, corrected = correction.correct_base("quick", tmp_path / str(s), strength=s)
        assert [own.name, corrected.name] == [
            "base_heavy7_own_samples.npz", "base_heavy7_corrected_samples.npz"
        ]  # fmt: skip
        sets[s] = load_set(corrected)
        assert bool((sets[s].property("strength") == s).all()) and len(sets[s]) == 40
    learned = own.with_name("base_heavy7_own.safetensors")
    for s, weights in ((1.0, base_file("heavy7")), (0.0, learned)):
        alone = tmp_path / f"{s}.npz"
        sample_and_score(load_model(weights)[0], alone, "quick", noise, 40, train)
        # sums in another order
        np.testing.assert_allclose(load_set(alone).positions, sets[s].positions, atol=0.01)
    apart = [sets[s].positions - sets[1.0].positions for s in (0.0, 2.0)]
    assert (apart[0] * apart[1]).sum() < 0
    written = corrected.read_bytes()
    correction.correct_base("quick", tmp_path / "2.0", strength=5.0)  # the sets are there
    assert corrected.read_bytes() == written
    with pytest.raises(ValueError, match="choose from own, corrected"):
        correction.correction_name("other")


def test_the_correction_goes_on_after_the_parts_that_are_there(tmp_path, monkeypatch):
    drawn = []

    def sample(denoiser, path, preset, seed, n, data, strength):
        drawn.append((path.name, seed, n))
        qed, s = np.full(n, 0.4), np.full(n, strength)
        first = len(drawn)
        molecules = load_qm9().subset(range(first, first + n))
        save_set(path, molecules.with_properties(qed=qed, strength=s))

    monkeypatch.setattr(correction, "PART", 16)
    monkeypatch.setattr(correction, "guide_set", lambda *_: None)
    monkeypatch.setattr(correction, "sample_and_score", sample)
    _, corrected = correction.correct_base("quick", tmp_path)
    parts = [f"base_heavy7_corrected_samples_strength3_part{k}.npz" for k in range(3)]
    assert [(name, n) for name, _, n in drawn] == list(zip(parts, (16, 16, 8), strict=True))
    assert len({seed for _, seed, _ in drawn}) == 3
    whole = load_set(corrected)
    assert len(whole) == 40 and (whole.property("strength") == correction.STRENGTH).all()
    last = load_set(tmp_path / parts[2])
    np.testing.assert_array_equal(whole.subset(range(32, 40)).positions, last.positions)
    np.testing.assert_allclose(whole.property("qed"), rewards.qed(whole).numpy(), atol=1e-6)

    corrected.unlink()
    (tmp_path / parts[1]).unlink()
    correction.correct_base("quick", tmp_path)
    assert [name for name, *_ in drawn[3:]] == [parts[1]]


def test_two_directions_from_the_base_are_added():
    base, own, guided = (lambda x, t, cond=None, k=k: k * x for k in (1.0, 0.5, 1.2))
    eps = correction.corrected_toward(guided, base, own, 2.0, away=3.0)
    one = torch.ones(1)
    assert float(eps(one, one)) == pytest.approx(0.5 + 3 * (1 - 0.5) + 2 * (1.2 - 1))
    # neither: the base; toward the reward alone: the guided model
    assert float(correction.corrected_toward(guided, base, own, 0.0, away=1.0)(one, one)) == 1.0
    plain = correction.corrected_toward(guided, base, own, 1.0, away=1.0)
    assert float(plain(one, one)) == pytest.approx(1.2)


def test_qed_from_the_corrected_base_at_the_payoffs_mean(tmp_path, monkeypatch):
    """Networks that answer with a number each: the base 0, its copy 1, the guided model 10."""
    drawn, trained = [], []

    class Number(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # says where the network is
            self.value = value

        def load_state_dict(self, state):
            self.value = state

        def state_dict(self):
            return self.value

        def forward(self, x_t, t, cond=None):
            return torch.full_like(x_t, self.value)

    def load(path):
        values = {"_own": 1.0, "ess40": 10.0, "ess100": -5.0}
        return Number(next((v for kind, v in values.items() if kind in path.name), 0.0)), {}

    def write(path, qed, strength):
        columns = {"qed": np.full(40, qed), "strength": np.full(40, strength)}
        save_set(path, load_qm9().subset(range(40)).with_properties(**columns))

    def sample(denoiser, path, preset, seed, n, data, strength):
        value = float(denoiser(torch.zeros(1), torch.zeros(1)))
        drawn.append((path.name, seed, strength, value))
        assert n == 40
        write(path, 0.43 + 0.02 * strength, strength)

    def train(preset, out, weights, network, target, seed, steps, lr, reward, config):
        trained.append((network.value, weights, seed, steps))
        torch.testing.assert_close(target.log_weight, wanted.log_weight)
        network.value = 20.0

    def run(seeds, shares=(40,)):
        return correction.guide_corrected("quick", tmp_path, shares, seeds)

    def names(seed):
        return [experiments.guided_name("data", 40, seed, ending=e) for e in correction.GUIDED]

    monkeypatch.setattr(correction, "load_model", load)
    monkeypatch.setattr(experiments, "load_model", load)
    monkeypatch.setattr(correction, "sample_and_score", sample)
    monkeypatch.setattr(correction, "train_toward", train)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(correction, "output_folder", lambda preset, out: home)
    write(home / correction.correction_name("corrected"), 0.43, 3.0)
    wanted = experiments.targets(experiments.payoff_draw("data"))[40]
    aim = float(wanted.expectation(wanted.reward))
    with pytest.raises(FileNotFoundError, match="Run .* molecules-strength --preset quick first"):
        run((0,))
    from_base = experiments.guided_name("data", 40, 0, ending=experiments.STRENGTHENED)
    write(home / from_base, 0.48, 2.0)

    # seed 0 is trained; tried at the strength that it had from the base as it is
    trial, path, control = run((0,))
    assert [trial.name, path.name] == names(0) and not trained
    assert drawn[0] == (trial.name, 4, 2.0, -2 * 1.0 + 2 * 10.0)
    (name, fresh, own, value), of_control = drawn[1:]
    assert (name, fresh) == (path.name, 13) and own == pytest.approx((aim - 0.43) / 0.02, rel=1e-3)
    assert value == pytest.approx(-2 + 10 * own, rel=1e-5)
    # the control has learned something else; it is heeded as strongly
    assert of_control[0] == control.name and of_control[2] == pytest.approx(own)
    assert of_control[3] == pytest.approx(-2 - 5 * own, rel=1e-5)
    assert run((0,)) == [trial, path, control] and len(drawn) == 3

    # a further training seed: from the base, in fewer steps; tried at seed 0's strength
    both = run((1,))
    assert [file.name for file in both] == names(1)
    weights = tmp_path / experiments.guided_name("data", 40, 1, ending=".safetensors")
    assert trained == [(0.0, weights, 1, correction.FURTHER_STEPS["quick"])]  # its own folder
    (name, noise, tried, value), (fresh_name, fresh, at, _) = drawn[3:]
    assert (name, noise, tried) == (names(1)[0], 7, own)
    assert value == pytest.approx(-2 + 20 * tried, rel=1e-5)
    # the rewards of these networks lie on a line: the trial met the aim, and its strength stays
    assert (fresh_name, fresh) == (names(1)[1], 16) and at == pytest.approx(tried, rel=1e-3)
    assert run((1,)) == both and len(drawn) == 5

    # a trial that is there counts: its rewards, not the first seed's, set the strength
    both[1].unlink()
    write(both[0], 0.43 + (aim - 0.43) / 2, tried)
    run((2, 1))
    assert [name for name, *_ in drawn[5:]] == [*names(2), names(1)[1]]
    assert drawn[-1][2] == pytest.approx(2 * tried, rel=1e-3)
    assert [value for value, *_ in trained] == [0.0] * 3  # each from the base
    with pytest.raises(FileNotFoundError, match="Run this with seed 0 first"):
        run((1,), (10,))
