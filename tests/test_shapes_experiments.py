"""The long experiments on point clouds, in preset quick, and the model's times and files."""

import shutil

import numpy as np
import pytest
import torch

from rgdm_lib.shapes import experiments, rivals
from rgdm_lib.shapes.data import Normalisation, shapes
from rgdm_lib.shapes.model import (
    SAMPLING_STEPS,
    UNIT,
    CloudDiffusion,
    load_classifier,
    load_clouds,
    load_model,
    noise_to_signal,
    rounded,
    sample_clouds,
    sampling_times,
    save_clouds,
    shape_diffusion,
    training_times,
)
from rgdm_lib.shapes.rewards import standing_margin, symmetry
from rgdm_lib.training import load_tensors, save_tensors
from rgdm_lib.worlds.mixtures import GaussianMixture

NORM = Normalisation(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 0.5]), "by hand")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The quick base model's folder."""
    out = tmp_path_factory.mktemp("base")
    experiments.train_base("quick", out)
    return out


def test_stopped_and_resumed_gives_the_same_clouds(base, tmp_path):
    experiments.train_base("quick", tmp_path, until=15)
    assert not (tmp_path / "base.safetensors").exists()
    experiments.train_base("quick", tmp_path)
    for name in ("base.safetensors", "base_samples.npz"):
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes()
    with pytest.raises(ValueError, match="belongs to another run"):
        experiments.train_base("quick", tmp_path, lr=2e-3)


def test_the_base_is_trained_and_ships_its_normalisation_and_rewards(base):
    network, norm, metadata = load_model(base / "base.safetensors")
    assert metadata["clouds_seen"] == 320 and len(metadata["history"]) == 8
    assert network.out.weight.abs().max() > 0.01  # 0 at the start
    assert norm.source == "part train, 20 of each class, 64 points"
    training = shapes("train", 20, 64).points.reshape(-1, 3)
    assert torch.allclose(norm.mean, training.mean(0), atol=1e-5)
    clouds, values = load_clouds(base / "base_samples.npz")
    assert clouds.shape == (12, 64, 3)
    assert torch.equal(values["margin"], standing_margin(clouds))
    assert torch.equal(values["symmetry"], symmetry(clouds))
    torch.manual_seed(0)
    again = sample_clouds(network, norm, 12, 64, 10)
    assert (rounded(again) - clouds).abs().mean() < 0.02  # float16 of the weights


def _sampler_width(sd, times):
    """Sampled over true width for the exact denoiser of N(0, sd^2), which is linear: no noise."""
    diffusion, variance = shape_diffusion(), 1.0
    alpha_bar = diffusion.schedule.alpha_bar
    one = torch.ones(1, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:], strict=True):
        a = float(alpha_bar[t])
        mean, std, _ = diffusion.step(one, t, s, one * (1 - a) ** 0.5 / (a * sd**2 + 1 - a))
        variance = variance * float(mean) ** 2 + std**2
    return variance**0.5 / sd


@pytest.mark.parametrize("sd", [0.2, 1.0, 3.0, 10.0, 17.0])
def test_widths_of_all_scales_of_a_cloud(sd):
    """Right within 2 %; fewer steps, or the same spaced quadratically, are not."""
    assert abs(_sampler_width(sd, sampling_times()) - 1) < 0.02
    assert _sampler_width(sd, sampling_times(150)) < 0.975
    if sd >= 10:
        assert _sampler_width(sd, shape_diffusion().timesteps(SAMPLING_STEPS, 2.0)) < 0.95


def test_a_mixture_keeps_its_shares_and_widths():
    """Unequal modes: widths within 2 %, all within three standard errors besides."""
    law = GaussianMixture(torch.tensor([[-6.0], [6.0]]), torch.tensor([0.2, 1.0]), [0.3, 0.7])
    diffusion = CloudDiffusion.of_clouds()
    torch.manual_seed(0)
    n = 20_000
    *_, last = diffusion.sample(law.denoiser(diffusion.schedule), torch.randn(n, 1))
    x = last.x[:, 0]
    left = x < 0
    assert float(left.double().mean()) == pytest.approx(0.3, abs=3 * (0.21 / n) ** 0.5)
    for part, mean, sd in ((x[left], -6, 0.2), (x[~left], 6, 1.0)):
        assert float(part.mean()) == pytest.approx(mean, abs=3 * sd / len(part) ** 0.5)
        assert float(part.std()) == pytest.approx(sd, rel=0.02 + 3 / (2 * len(part)) ** 0.5)


def test_thin_surfaces_lose_a_few_percent_with_any_steps():
    assert _sampler_width(0.04, sampling_times()) > 0.96
    assert _sampler_width(0.04, list(range(1000, -1, -1))) < 0.97


@pytest.mark.parametrize("steps", [1, 2, 10, 240, 999])
def test_sampling_times(steps):
    times = sampling_times(steps)
    assert len(times) == steps + 1 and times[0] == 1000 and times[-1] == 0
    assert all(a > b for a, b in zip(times, times[1:], strict=False))
    if steps == 10:  # one ratio between neighbours, as far as whole t allow
        level = noise_to_signal().log()[torch.tensor(times[:-1]) - 1]
        gap = -level.diff()
        assert float(gap.max() / gap.min()) < 1.4


def test_sampling_times_refuses():
    with pytest.raises(ValueError, match="steps = 1001: take 1 to T = 1000"):
        sampling_times(1001)


def test_training_times_are_half_even_half_where_shapes_are_decided():
    p, ratio = training_times(), noise_to_signal()
    assert p[0] == 0 and float(p.sum()) == pytest.approx(1)
    assert float(p[1:].min()) > 0.49 / 1000
    bump = p[1:] - 0.5 / 1000
    middle, high = (float(ratio[int((bump.cumsum(0) < q / 2).sum())]) for q in (0.5, 0.8413))
    assert middle == pytest.approx(2.5, rel=0.02) and high == pytest.approx(2.5 * 3.32, rel=0.03)
    for_classes = training_times(9.0)
    assert float(for_classes.sum()) == pytest.approx(1)
    higher = (for_classes - 0.5 / 1000)[1:].cumsum(0)
    middle = float(ratio[int((higher < 0.25).sum())])  # steps are coarse up there
    assert middle == pytest.approx(9.0, rel=0.05)


def test_samples_are_in_the_clouds_own_unit():
    """The exact denoiser of one cloud gives it back, through the normalisation."""
    torch.manual_seed(0)
    cloud = NORM.undo(torch.randn(1, 7, 3))
    alpha_bar = shape_diffusion().schedule.alpha_bar

    def knows(x_t, t, cond):
        a = alpha_bar[t].float()[:, None, None]
        return (x_t - a.sqrt() * NORM.apply(cloud)) / (1 - a).sqrt()

    made = sample_clouds(knows, NORM, 5, points=7, steps=20, batch=2)
    assert torch.allclose(made, cloud.expand(5, -1, -1), atol=1e-3)


def test_clouds_come_back_rounded_and_diverged_ones_are_cut(tmp_path):
    torch.manual_seed(0)
    clouds = torch.randn(4, 9, 3)
    clouds[2, 0, 0], clouds[2, 1, 1], clouds[3, 0, 2] = torch.nan, torch.inf, -1e6
    save_clouds(tmp_path / "c.npz", clouds, margin=torch.arange(4.0))
    back, values = load_clouds(tmp_path / "c.npz")
    assert torch.equal(back, rounded(clouds)) and values["margin"].tolist() == [0, 1, 2, 3]
    assert (back[:2] - clouds[:2]).abs().max() <= UNIT / 2 + 1e-6
    assert torch.isfinite(back).all() and float(back[3, 0, 2]) == pytest.approx(-65.534)
    with pytest.raises(ValueError, match=r"margin of shape \(3,\)"):
        save_clouds(tmp_path / "d.npz", clouds, margin=torch.zeros(3))


def test_files_that_hold_no_clouds_or_network_are_refused(tmp_path):
    save_clouds(tmp_path / "c.npz", torch.randn(4, 9, 3))
    whole = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("cut.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} is no file of save_clouds"):
            load_clouds(tmp_path / name)
    save_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)}, {})
    for load in (load_model, load_classifier):
        with pytest.raises(ValueError, match=r"x.safetensors: its metadata has no network"):
            load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="n = 0: one cloud or more"):
        sample_clouds(lambda x, t, c: x, NORM, 0)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (experiments.guide, "model"),
        (experiments.strengthen_guided, "model"),
        (rivals.compare, "rival"),
    ],
)
def test_a_name_that_there_is_not_is_refused_before_anything_is_trained(run, what, tmp_path):
    with pytest.raises(ValueError, match=f"no {what} 'stedy': choose from"):
        run("quick", tmp_path, ("stands", "stedy")[what == "rival" :])
    assert not list(tmp_path.iterdir())


def test_classifiers_learn_from_parts_of_their_own(tmp_path, monkeypatch):
    asked = []

    def watched(part, *arguments):
        asked.append(part)
        return shapes(part, *arguments)

    monkeypatch.setattr(experiments, "shapes", watched)
    paths = experiments.train_classifiers("quick", tmp_path)
    assert asked == ["validation", "classifier", "judge"]
    reward, judge = (load_classifier(path) for path in paths)
    assert reward.head[1].in_features != judge.head[1].in_features
    seen = shapes("test", 50, 64)
    for network in (reward, judge):
        assert (network(seen.points).argmax(1) == seen.label).float().mean() > 0.8


def test_guided_models_write_their_samples_and_go_on_where_they_were(tmp_path):
    paths = experiments.guide("quick", tmp_path, seeds=(0,))
    assert [path.name.removesuffix("_seed0_samples.npz") for path in paths] == list(
        experiments.GUIDED
    )
    made = [load_clouds(path)[0] for path in paths]
    assert made[0].shape == (6, 64, 3)
    for clouds in made[1:]:  # all differ from the control, which had the same noise
        assert 0 < (clouds - made[0]).abs().mean() < 0.5
    before = [path.stat().st_mtime_ns for path in paths]
    paths[2].unlink()
    experiments.guide("quick", tmp_path, seeds=(0,))
    after = [path.stat().st_mtime_ns for path in paths]
    changed = [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b]
    assert changed == [2]
    assert torch.equal(load_clouds(paths[2])[0], made[2])


def test_a_class_that_is_to_have_its_share_is_trained_where_it_is_decided(base, monkeypatch):
    drawn = {}
    monkeypatch.setattr(experiments.Start, "sample", lambda self, denoiser, seed: None)
    start = experiments.Start.load("quick", base)
    for name in ("class_ess40", "symmetric"):

        def fit(*arguments, loss, name=name, **options):
            drawn[name] = loss.keywords["times"]
            return []

        monkeypatch.setattr(experiments.rgdm, "fit", fit)
        experiments._rgdm(start, name, 0)
    assert torch.equal(drawn["class_ess40"], training_times(9.0))
    assert torch.equal(drawn["symmetric"], training_times())
    ratios = {k: start.trainer(k, 0)["config"]["ratio"] for k in ("class_ess40", "ddpo_class")}
    assert ratios == {"class_ess40": 9.0, "ddpo_class": 2.5}


def test_a_model_and_its_rivals_train_for_as_many_steps(base):
    start = experiments.Start.load("quick", base)
    steps = {
        name: start.trainer(name, 0)["steps"] for name in (*experiments.GUIDED, *experiments.RIVALS)
    }
    short = [name for name, n in steps.items() if n == 10]
    assert short == ["class_ess10", "symmetric"]
    assert set(steps.values()) == {10, 30}
    assert all(steps[name] == steps[of] for name, of in experiments.RIVALS.items())
    assert start.trainer("control", 0)["lr"] == 3 * start.trainer("symmetric", 0)["lr"]


@pytest.fixture(scope="module")
def compared(base, tmp_path_factory):
    """A folder with the quick base and one set of every rival."""
    out = tmp_path_factory.mktemp("rivals")
    shutil.copy(base / "base.safetensors", out)
    rivals.compare("quick", out, seeds=(0,))
    return out


def _set(folder, name):
    return load_clouds(folder / experiments.guided_name(name, 0))


def test_rivals_write_their_samples(compared):
    made = [_set(compared, name)[0] for name in experiments.RIVALS]
    for i, clouds in enumerate(made):
        assert clouds.shape == (6, 64, 3)
        assert all(not torch.equal(clouds, other) for other in made[:i])


OWN_SAMPLES = [name for name in experiments.RIVALS if name.startswith(("reward_w", "part", "ddpo"))]


@pytest.mark.parametrize("name", OWN_SAMPLES)
def test_rivals_with_samples_of_their_own_have_as_many_evaluations(
    name, base, compared, monkeypatch
):
    """At preset quick as many as there are shapes, 3 x 20; counted where the reward is called."""
    count, reward_named = [], experiments.reward_named

    def counting(name):
        reward = reward_named(name)

        def call(clouds):
            count.append(len(clouds))
            return reward(clouds)

        return call

    monkeypatch.setattr(rivals, "reward_named", counting)
    start = experiments.Start.load("quick", compared)
    for path in compared.glob(f"{name}_*checkpoint*"):
        path.unlink()
    torch.manual_seed(1000)
    clouds, settings = rivals.KINDS[name.rpartition("_")[0]](start, name, 0)
    there, values = _set(compared, name)
    assert sum(count) == 60 == settings["evaluations"]
    assert values["evaluations"].tolist() == [60.0] * 6
    assert torch.equal(rounded(clouds), there)


def test_policy_gradients_may_see_fewer_points(base, tmp_path, monkeypatch):
    """Paths have the points of their setting, samples those of the preset."""
    shutil.copy(base / "base.safetensors", tmp_path)
    monkeypatch.setitem(rivals.DDPO["quick"], "points", 16)
    shapes_seen, method = [], rivals._Counted.__call__

    def seen(self, x0):
        shapes_seen.append(tuple(x0.shape))
        return method(self, x0)

    monkeypatch.setattr(rivals._Counted, "__call__", seen)
    (path,) = rivals.compare("quick", tmp_path, rivals=("ddpo_class",), seeds=(0,))
    assert shapes_seen == [(15, 16, 3)] * 4
    assert load_clouds(path)[0].shape == (6, 64, 3)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("name", OWN_SAMPLES)
def test_a_stopped_rival_goes_on(name, base, compared, tmp_path, monkeypatch):
    """Stopped at the third call of the reward, or the second of two; the same bits at the end."""
    shutil.copy(base / "base.safetensors", tmp_path)
    calls, method = [], rivals._Counted.__call__

    def stops(self, x0):
        calls.append(len(x0))
        if len(calls) == 3 or (name.startswith("reward_w") and len(calls) == 2):
            raise _Stop
        return method(self, x0)

    with monkeypatch.context() as patch:
        patch.setattr(rivals._Counted, "__call__", stops)
        with pytest.raises(_Stop):
            rivals.compare("quick", tmp_path, rivals=(name,), seeds=(0,))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*_part*")}
    assert len(kept) == (10 if name.startswith("reward_w") else 0)  # 2 rounds of 30 in sixes
    rivals.compare("quick", tmp_path, rivals=(name,), seeds=(0,))
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    for mine, theirs in zip(_set(tmp_path, name), _set(compared, name), strict=True):
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs)
    trained = tmp_path / f"{name}_seed0.checkpoint.safetensors"
    (tmp_path / experiments.guided_name(name, 0)).unlink()  # trained, and stopped before its set
    if trained.exists():
        before = trained.read_bytes()
        rivals.compare("quick", tmp_path, rivals=(name,), seeds=(0,))
        assert trained.read_bytes() == before
        assert torch.equal(_set(tmp_path, name)[0], _set(compared, name)[0])


@pytest.mark.parametrize("n", [20, 60])
def test_particles_are_tilted(n, base, tmp_path, monkeypatch):
    """By a reward of slope 1 / sd in the mean height, tau = 1: the mean moves by about one sd.

    60 evaluations: three looks at 20 particles, or one at the end, where weights do all.
    """
    shutil.copy(base / "base.safetensors", tmp_path)
    monkeypatch.setitem(experiments.GUIDANCE["quick"], "samples", n)
    start = experiments.Start.load("quick", tmp_path)
    plain = start.sample(start.network, 0)[..., 2].mean(1)
    height = lambda x: x[..., 2].mean(1) / plain.std()  # noqa: E731
    monkeypatch.setattr(rivals, "reward_named", lambda name: height)
    clouds, _ = rivals._particles(start, "particles_class", 0)
    moved = (clouds[..., 2].mean() - plain.mean()) / plain.std()
    assert 0.5 < float(moved) < 1.5


def test_regression_goes_on_from_its_own_samples_at_the_same_temperature(
    base, compared, tmp_path, monkeypatch
):
    shutil.copy(base / "base.safetensors", tmp_path)
    fit, taus = rivals.reward_weighted.fit, []

    def watched(net, diffusion, sampler, tau, **options):
        taus.append(tau)
        return fit(net, diffusion, sampler, tau, **options)

    monkeypatch.setattr(rivals.reward_weighted, "fit", watched)
    rivals.compare("quick", tmp_path, rivals=("reward_weighted_stands",), seeds=(0,))
    assert taus == [0.2, 0.2]
    start = experiments.Start.load("quick", tmp_path)
    for k, seed in ((0, 1001), (1, 1101)):
        used, _ = load_clouds(tmp_path / f"reward_weighted_stands_seed0_round{k}_part0.npz")
        assert torch.equal(used, rounded(start.sample(start.network, seed))) == (k == 0)


def _strength_of(denoiser, base, guided):
    """Where a denoiser is on the line from the base to the guided model."""
    torch.manual_seed(5)
    x, t = torch.randn(4, 64, 3), torch.tensor([50, 300, 600, 900])
    with torch.no_grad():
        there, zero, one = (net(x, t, None) for net in (denoiser, base, guided))
    return float(((there - zero) * (one - zero)).sum() / (one - zero).square().sum())


def test_strength_meets_the_payoffs_share_that_falls(base, tmp_path, monkeypatch):
    """Made-up sampling: the log-odds of standing are 0.5 + 1.25 strength, seldom what is trained.

    The payoff has the log-odds of the shapes plus 1 / 0.2.
    """
    for name in ("base.safetensors", "base_samples.npz"):
        shutil.copy(base / name, tmp_path)
    seen = shapes("train", 20, 64)
    up, down = (seen.points[(experiments.stands(seen.points) == k).nonzero()[0, 0]] for k in (1, 0))
    drawn = []

    def sample(denoiser, norm, n, **setting):
        seed = torch.initial_seed()
        strength = _strength_of(denoiser, *nets) if nets else 1.0
        drawn.append((strength, seed))
        stand = round(4000 * float(torch.tensor(0.5 + 1.25 * strength).sigmoid()))
        return torch.stack([up] * stand + [down] * (4000 - stand))

    nets = ()
    with pytest.raises(FileNotFoundError, match="Run first: .* shapes-rgdm --preset quick"):
        experiments.strengthen_guided("quick", tmp_path)
    monkeypatch.setattr(experiments, "sample_clouds", sample)
    experiments.guide("quick", tmp_path, models=("stands",), seeds=(0,))
    stand = round(4000 * float(torch.tensor(0.5).sigmoid()))
    save_clouds(tmp_path / "base_samples.npz", torch.stack([up] * stand + [down] * (4000 - stand)))
    start = experiments.Start.load("quick", tmp_path)
    trained, _ = load_tensors(tmp_path / "stands_seed0.checkpoint.safetensors")
    guided = load_model(tmp_path / "base.safetensors")[0]
    guided.load_state_dict({k: trained[f"ema.module.{k}"] for k in guided.state_dict()})
    nets, drawn[:] = (start.network, guided), []
    (path,) = experiments.strengthen_guided("quick", tmp_path)
    share = experiments.stands(seen.points).mean()
    wanted = (float(share.logit()) + 5 - 0.5) / 1.25
    assert path.name == "stands_strength_seed0_samples.npz"
    clouds, values = load_clouds(path)
    assert values["strength"][0] == pytest.approx(wanted, rel=0.05)
    assert [strength for strength, _ in drawn[1:]] == pytest.approx([wanted] * 2, rel=0.05)
    assert [seed for _, seed in drawn] == [0, 3, 6]  # the last on fresh noise
    assert torch.equal(values["margin"], standing_margin(clouds))
    path.unlink()
    experiments.strengthen_guided("quick", tmp_path)  # the trials are kept
    assert len(drawn) == 4 and drawn[3] == drawn[2]


def test_a_condition_asks_for_the_class_or_for_the_payoffs_rewards(tmp_path, monkeypatch):
    """What the sampler is asked for; the network itself is tested with its loss."""
    asked = {}

    def sample(denoiser, norm, n, cond=None, **setting):
        asked[name] = cond
        return torch.zeros(n, 64, 3)

    experiments.train_base("quick", tmp_path)
    monkeypatch.setattr(experiments, "sample_clouds", sample)
    monkeypatch.setitem(experiments.GUIDANCE["quick"], "samples", 300)
    for name in ("conditional_class", "classifier_class", "conditional_steady", "value_steady"):
        rivals.compare("quick", tmp_path, rivals=(name,), seeds=(0,))
    assert asked["classifier_class"] is None and asked["value_steady"] is None
    assert torch.equal(asked["conditional_class"], torch.tensor([[1.0, 0, 0]]).expand(300, -1))
    seen = shapes("train", 20, 64)
    draw, tau = experiments.payoff_draw("steady", seen.points)
    exact = float(draw.weigh(tau).expectation(draw.reward))
    assert float(draw.reward.mean()) < 0.9
    assert float(asked["conditional_steady"].mean()) == pytest.approx(exact, abs=1 / 300)


def test_the_base_can_be_its_own_reference(base):
    start = experiments.Start.load("quick", base)
    draw, tau = start.draw("steady_model")
    own, _ = load_clouds(base / experiments.BASE_FILE)
    assert tau == 0.2 and torch.allclose(start.norm.undo(draw.x0), own, atol=1e-5)
    assert torch.equal(draw.reward > 0, standing_margin(own) >= experiments.SPARE)
    assert len(start.draw("steady")[0].x0) == len(start.seen) != len(own)


def test_shipped_sets_are_those_in_the_manifest(monkeypatch):
    there = ["shapes/stands_seed0_samples.npz", "shapes/stands_seed2_samples.npz", "shapes/x.npz"]
    there += ["shapes/ddpo_class_seed1_samples.npz", "shapes/stands_strength_seed0_samples.npz"]
    monkeypatch.setattr(experiments, "read_manifest", lambda root: dict.fromkeys(there, ""))
    assert experiments.shipped_seeds("stands") == [0, 2]
    assert experiments.shipped_seeds("control") == []
    shipped = experiments.shipped_sets()
    assert shipped == {"stands": [0, 2], "stands_strength": [0], "ddpo_class": [1]}


def test_payoffs_are_tilted_by_what_they_name():
    seen = shapes("test", 100, 256)
    shares, chair = {}, (seen.label == 0).double()
    for name, target in experiments.GUIDED.items():
        draw, tau = experiments.payoff_draw(name, seen.points)
        weighted = draw.weigh(tau)
        shares[name] = float(weighted.expectation(chair))
        if "share" in target:
            assert weighted.ess == pytest.approx(300 * target["share"], rel=0.01)
    assert shares["control"] == pytest.approx(1 / 3)
    assert 0.4 < shares["class_ess80"] < shares["class_ess40"] and shares["class_ess10"] > 0.99
    assert shares["class_probability"] > 0.99
    draw, tau = experiments.payoff_draw("class_probability", seen.points)
    assert tau == 1 and draw.weigh(tau).ess == pytest.approx(100, rel=0.01)  # flat within the class
    draw, tau = experiments.payoff_draw("stands", seen.points)
    falls = 1 - draw.reward
    odds = [float(p / (1 - p)) for p in (falls.mean(), draw.weigh(tau).expectation(falls))]
    assert odds[0] / odds[1] == pytest.approx(148.4, rel=0.01)
    steady, _ = experiments.payoff_draw("steady", seen.points)
    assert torch.equal(steady.reward > 0, standing_margin(seen.points) >= experiments.SPARE)
    draw, tau = experiments.payoff_draw("symmetric", seen.points)
    assert torch.equal(draw.reward, symmetry(seen.points))


def test_trainings_are_in_bfloat16_only_where_it_pays(monkeypatch, tmp_path):
    start = experiments.Start("laptop", tmp_path, None, None, None)
    for pays in (True, False):
        monkeypatch.setattr(experiments, "bf16_pays", lambda kind, pays=pays: pays)
        assert start.trainer("steady", 0)["bf16"] is pays
    assert (
        experiments.Start("quick", tmp_path, None, None, None).trainer("steady", 0)["bf16"] is False
    )
