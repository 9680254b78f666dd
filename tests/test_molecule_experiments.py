"""The long experiments on molecules, in preset quick: killed, resumed, guided."""

import math
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from rgdm_lib._data import data_path
from rgdm_lib.molecules import correction, experiments, longer, properties
from rgdm_lib.molecules.data import encode, load_qm9, load_set, save_set
from rgdm_lib.molecules.model import (
    BASE_SAMPLES,
    draw_sizes,
    load_model,
    molecule_diffusion,
    redraw,
    sample_molecules,
    sized_batches,
    training_times,
    weigh,
)
from rgdm_lib.training import load_tensors, save_tensors, save_weights

BASE = ["-m", "rgdm_lib.course", "experiment", "molecules-base", "--preset", "quick", "--out"]


def test_killed_and_resumed_gives_the_same_molecules(tmp_path):
    """kill -9 in mid-training, the same command again: the same bits as an unbroken run."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run([sys.executable, *BASE, str(unbroken)], check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, *BASE, str(broken)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = broken / "checkpoint.safetensors"
    while not checkpoint.exists() or load_tensors(checkpoint)[1]["step"] == 0:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < load_tensors(checkpoint)[1]["step"] < experiments.TRAINING["quick"]["steps"]
    assert not (broken / "base_heavy7_samples.npz").exists()
    subprocess.run([sys.executable, *BASE, str(broken)], check=True, capture_output=True)
    for name in ("base_heavy7.safetensors", "base_heavy7_samples.npz"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    experiments.train_base("quick", tmp_path, until=5)
    with pytest.raises(ValueError, match="belongs to another run"):
        experiments.train_base("quick", tmp_path, lr=2e-3)


def test_batches_keep_the_shares_of_sizes():
    molecules = load_qm9().part("train")
    torch.manual_seed(0)
    draw = sized_batches(molecules, 1)
    drawn = np.array([next(draw).shape[1] for _ in range(4000)])
    for n in (12, 15, 17):
        share = (molecules.n_atoms == n).mean()
        assert abs((drawn == n).mean() - share) < 4 * np.sqrt(share / 4000)


def test_batches_follow_the_weights():
    molecules = load_qm9().part("train")
    weight = torch.zeros(len(molecules))
    chosen = molecules.by_size()[14][3]
    weight[chosen] = 1.0
    batch = next(sized_batches(molecules, 5, weight))
    assert batch.shape == (5, 14, 9)
    positions = torch.from_numpy(molecules.subset([chosen]).of_size(14)[0])
    torch.testing.assert_close(batch[:, :, :3], positions.expand(5, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("run", "asked", "message"),
    [
        (experiments.guide_qed, {"references": ("dat",)}, "no reference 'dat': choose from data"),
        (experiments.strengthen_qed, {"references": ("dat",)}, "no reference 'dat'"),
        (experiments.strengthen_qed, {"shares": (100,)}, "no share 100: choose from 80, 40, 10"),
        (experiments.redraw_qed, {"share": 50}, "no share 50: choose from 100, 80, 40, 10"),
        (longer.guide_longer, {"share": 50}, "no share 50"),
        (correction.guide_corrected, {"shares": (40, 30)}, "no share 30"),
        (properties.target_properties, {"kinds": ("control", "base")}, "no kind 'base'"),
    ],
)
def test_a_name_that_there_is_not_is_refused_before_anything_is_trained(
    run, asked, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        run("quick", tmp_path, **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(300), "weight of shape"),
        (torch.zeros(200), "weights from 0 to 0"),
        (torch.cat([torch.ones(199), torch.tensor([math.nan])]), "from nan"),
        (torch.cat([torch.ones(199), torch.tensor([-1.0])]), "weights from -1"),
    ],
)
def test_weights_that_would_drop_molecules_unseen_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        next(sized_batches(load_qm9().subset(range(200)), 5, weight))


def test_what_is_no_model_or_no_size_is_refused(tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"x": torch.ones(2)}, {})
    with pytest.raises(ValueError, match=r"other.safetensors: its metadata names no network"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="n_atoms is empty"):
        sample_molecules(load_model()[0], [])


def test_weights_keep_or_tilt_the_sizes():
    molecules = load_qm9().part("train")
    reward = torch.from_numpy(molecules.n_atoms / 10.0)
    mean = float(molecules.n_atoms.mean())
    sizes = torch.from_numpy(molecules.n_atoms).double()
    kept = weigh(molecules, reward, 0.1).expectation(sizes)
    tilted = weigh(molecules, reward, 0.1, keep_sizes=False).expectation(sizes)
    assert float(kept) == pytest.approx(mean, abs=1e-9)
    assert float(tilted) > mean + 1


def test_samples_come_in_the_order_of_their_sizes():
    torch.manual_seed(0)
    sizes = draw_sizes(load_qm9(), 12)

    def quiet(x_t, t, cond):
        return torch.zeros_like(x_t)

    made = sample_molecules(quiet, sizes, steps=3, batch=2)
    assert made.n_atoms.tolist() == sizes.tolist()


def test_redraw_starts_at_the_time_it_is_told():
    """An exact denoiser of one molecule brings it back from t = 100."""
    molecules = load_qm9().part("train").subset([5, 900, 5])
    times, alpha_bar = [], molecule_diffusion().schedule.alpha_bar

    def knows(x_t, t, cond):
        times.append(int(t[0]))
        x0 = encode(molecules, x_t.shape[1])[:1]
        a = alpha_bar[t].float()[:, None, None]
        return (x_t - a.sqrt() * x0) / (1 - a).sqrt()

    again = redraw(knows, molecules, 100)
    walk = sorted(set(times), reverse=True)
    assert times == walk + walk and walk[0] == 100 and walk[-1] == 1  # two sizes, two walks
    assert again.n_atoms.tolist() == molecules.n_atoms.tolist()
    for i in range(3):
        centred = molecules.atoms(i)[0] - molecules.atoms(i)[0].mean(0)
        np.testing.assert_allclose(again.atoms(i)[0], centred, atol=1e-3)
        assert again.atoms(i)[1].tolist() == molecules.atoms(i)[1].tolist()


def test_guidance_from_the_shipped_base(tmp_path):
    """The control from the base, each temperature from the warmer one; every one is written."""
    options = {"references": ("data",), "seeds": (0, 1)}
    paths = experiments.guide_qed("quick", tmp_path, **options)
    assert [load_set(path).property("qed").shape for path in paths] == 8 * [(40,)]
    networks = [load_model()[0]]
    for share in experiments.SHARES:
        name = experiments.guided_name("data", share, 0, ending=".safetensors")
        networks.append(load_model(tmp_path / name)[0])
    step = [_distance(a, b) for a, b in pairwise(networks)]
    assert 0 < max(step) < 1.3 * min(step)
    for i, network in enumerate(networks[2:], 1):  # one step from the last, further from the base
        assert _distance(network, networks[0]) > 1.2 * step[i]
    first = experiments.guided_name("data", 100, 1, ending=".safetensors")
    assert _distance(load_model(tmp_path / first)[0], networks[0]) < 1.3 * step[0]
    redrawn = [load_set(path) for path in experiments.redraw_qed("quick", tmp_path)]
    for molecules in redrawn:
        assert molecules.property("t").tolist() == np.repeat(experiments.REDRAW_TIMES, 8).tolist()
    assert (redrawn[0].positions != redrawn[1].positions).any()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    cold = tmp_path / experiments.guided_name("data", 10, 1)
    content = cold.read_bytes()
    for path in tmp_path.glob(cold.name.replace("_samples.npz", "*")):  # its training, too
        path.unlink()
    experiments.guide_qed("quick", tmp_path, **options)
    assert cold.read_bytes() == content  # made again, to the bit, from the warmer one's file
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert len(changed) == 3
    assert all("ess10_seed1" in name for name in changed)  # what is there stays


def _distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    with torch.no_grad():
        return sum(float((p - q).square().sum()) for p, q in pairs) ** 0.5


def _qed_rises_with_the_strength(calls, slope):
    """In place of sampling: a set whose QED says how far the denoiser is from the base."""
    x_t, t = torch.randn(1, 12, 9), torch.tensor([300])
    base = load_model()[0](x_t, t).detach()

    @torch.no_grad()
    def sample(denoiser, path, preset, seed, n, data, **settings):
        guided = load_model(path.parent / "guided.safetensors")[0](x_t, t)
        strength = float((denoiser(x_t, t) - base).sum() / (guided - base).sum())
        calls.append((path.name, seed, strength))
        columns = {"qed": np.full(n, 0.42 + slope * strength)}
        columns |= {name: np.full(n, value) for name, value in settings.items()}
        save_set(path, load_qm9().subset(range(n)).with_properties(**columns))

    return sample


def test_a_strength_meets_the_mean_of_the_payoff(tmp_path, monkeypatch):
    """Set on two trials, the first on the model's own noise, judged on samples of other noise."""
    calls = []
    monkeypatch.setattr(experiments, "sample_and_score", _qed_rises_with_the_strength(calls, 0.02))
    guided, _ = load_model()
    with torch.no_grad():
        guided.out[3].bias += 0.01
    for path in (
        tmp_path / experiments.guided_name("data", 40, 0, ending=".safetensors"),
        tmp_path / "guided.safetensors",
    ):
        save_weights(path, guided, {"network": guided.settings})
    at_one = load_qm9().subset(range(40)).with_properties(qed=np.full(40, 0.45))
    save_set(tmp_path / experiments.guided_name("data", 40, 0), at_one)
    options = {"references": ("data",), "seeds": (0,), "shares": (40,)}
    [path] = experiments.strengthen_qed("quick", tmp_path, **options)
    target = experiments.targets(experiments.payoff_draw("data"))[40]
    aim = float(target.expectation(target.reward))
    (first, noise, further), (second, other, between), (final, fresh, strength) = calls
    start = np.nanmean(load_set(data_path(BASE_SAMPLES)).property("qed"))
    assert further == pytest.approx(1 + 1.5 * (aim - 0.45) / (0.45 - start), rel=1e-3)
    rise = (0.42 + 0.02 * further - 0.45) / (further - 1)
    assert between == pytest.approx(1 + (aim - 0.45) / rise, rel=1e-3)
    left = aim - 0.42 - 0.02 * between
    assert strength == pytest.approx(between + left / rise, rel=1e-3)
    assert (noise, other, fresh) == (0, 3, 6) and len({first, second, final}) == 3
    assert final == path.name
    assert load_set(path).property("strength") == pytest.approx(np.full(40, strength), rel=1e-3)
    assert experiments.strengthen_qed("quick", tmp_path, **options) == [path] and len(calls) == 3
    path.unlink()
    save_set(tmp_path / experiments.guided_name("data", 40, 0),
             at_one.with_properties(qed=np.full(40, 0.42)))  # fmt: skip
    with pytest.raises(ValueError, match="reward 0.42 of the guided model, 0.4241"):
        experiments.strengthen_qed("quick", tmp_path, **options)


def test_targets_tilt_and_the_control_does_not():
    draw = experiments.payoff_draw("data")
    qed, valued = draw.reward, draw.reward.isfinite()
    weighted = experiments.targets(draw)
    for share, w in weighted.items():
        assert w.ess == pytest.approx(share / 100 * int(valued.sum()), rel=0.02)
        assert float(w.log_weight.exp()[~valued].sum()) == 0
    means = [float(w.expectation(qed)) for w in weighted.values()]
    assert means[0] == pytest.approx(float(qed[valued].mean()), abs=1e-3) and means == sorted(means)
    with pytest.raises(ValueError, match="no reference 'base': choose from data, model"):
        experiments.payoff_draw("base")


def test_training_times_are_half_even_half_where_molecules_are_decided():
    p = training_times()
    sigma = (1 - molecule_diffusion().schedule.alpha_bar).sqrt()
    assert p[0] == 0 and float(p.sum()) == pytest.approx(1)
    assert float(p[1:].min()) > 0.49 / 1000
    bump = p[1:] - 0.5 / 1000
    middle = sigma[1:][int((bump.cumsum(0) < 0.25).sum())]
    assert float(middle) == pytest.approx(0.27, abs=0.01)
