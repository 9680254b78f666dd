"""Distances between clouds and between sets of clouds: conventions and hand-made answers."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from rgdm_lib.shapes import data, metrics

RNG = np.random.default_rng(0)


def test_conventions_on_two_points():
    """A cloud at 0 and a cloud at 3: squared and summed, CD is 18; unsquared, EMD is 3."""
    zero, three = np.zeros((1, 1, 3)), np.array([[[3.0, 0, 0]]])
    assert metrics.chamfer_matrix(zero, three).item() == 18
    assert metrics.emd_matrix(zero, three, progress=False).item() == 3


def test_chamfer_counts_each_cloud_by_its_own_points():
    """{0, 3} to {0}: (0 + 9) / 2 one way, 0 the other; a sum would give 9, a one-way CD 0."""
    pair, one = np.array([[[0.0, 0, 0], [3, 0, 0]]]), np.zeros((1, 1, 3))
    assert metrics.chamfer_matrix(pair, one).item() == 4.5
    assert metrics.chamfer_matrix(one, pair).item() == 4.5


def test_chamfer_and_emd_against_brute_force():
    a, b = RNG.normal(size=(3, 40, 3)), RNG.normal(size=(4, 40, 3))
    chamfer, emd = np.empty((3, 4)), np.empty((3, 4))
    for i in range(3):
        for j in range(4):
            d = np.linalg.norm(a[i][:, None] - b[j][None], axis=2)
            chamfer[i, j] = (d.min(0) ** 2).mean() + (d.min(1) ** 2).mean()
            emd[i, j] = d[linear_sum_assignment(d)].mean()
    assert np.allclose(metrics.chamfer_matrix(a, b), chamfer, rtol=1e-12)
    assert np.allclose(metrics.emd_matrix(a, b, 1, progress=False), emd, rtol=1e-12)


def test_trees_where_tiny_numbers_are_flushed_to_0():
    """As in notebooks, most points in one plane: balanced trees of scipy end the process then."""
    code = (
        "import numpy as np, torch; from rgdm_lib.shapes import metrics, views\n"
        "assert torch.set_flush_denormal(True)\n"
        "a = np.random.default_rng(0).normal(size=(4, 60, 3)); a[:, :40, 2] = 0\n"
        "views.normals(a.reshape(-1, 3))\n"
        "print(metrics.chamfer_matrix(a, a).diagonal().tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[0.0, 0.0, 0.0, 0.0]", run.returncode


def test_emd_on_threads_is_the_same_and_tells_the_time(capsys):
    a, b = RNG.normal(size=(3, 16, 3)), RNG.normal(size=(2, 16, 3))
    both = metrics.emd_matrix(a, b, threads=2)
    assert np.array_equal(both, metrics.emd_matrix(a, b, 1, progress=False))
    assert "6 exact EMDs on 2 threads: about" in capsys.readouterr().out


def test_emd_of_clouds_of_other_sizes_moves_equal_masses():
    """{0, 4} to {0}: half of the mass goes 4."""
    assert metrics.emd(np.array([[0.0, 0, 0], [4, 0, 0]]), np.zeros((1, 3))) == 2


def matrices(samples, references):
    def both(x, y):
        return metrics.chamfer_matrix(x, y)

    return both(samples, samples), both(samples, references), both(references, references)


def test_three_samples_against_five_references_cannot_be_transposed():
    """Samples at 0, 0.1 and 10 (one a copy of the reference 10), references at 0, 1, 2, 3, 10."""
    place = lambda *x: np.array(x)[:, None, None] * np.array([1.0, 0, 0])  # noqa: E731
    d = metrics.chamfer_matrix(place(0, 0.1, 10.0), place(0.0, 1, 2, 3, 10))
    assert d.shape == (3, 5)
    # least squared distances to a sample, doubled: 0, 0.9^2, 1.9^2, 2.9^2, 0
    assert metrics.mmd(d) == pytest.approx(2 * (0.81 + 3.61 + 8.41) / 5)
    assert metrics.cov(d) == 2 / 5  # 0 and 10 are somebody's nearest
    assert metrics.cov(d.T) != 2 / 5 and metrics.mmd(d.T) != metrics.mmd(d)


def test_the_same_set_twice_and_a_collapsed_generator():
    shapes = RNG.normal(size=(20, 30, 3)) + RNG.normal(size=(20, 1, 3)) * 4
    ss, sr, rr = matrices(shapes, shapes)
    assert metrics.mmd(sr) == 0 and metrics.cov(sr) == 1
    assert metrics.one_nna(ss, sr, rr) == 0  # each one's copy is nearest: memorising
    collapsed = np.repeat(shapes[:1] + 0.5, 20, 0) + 1e-3 * RNG.normal(size=(20, 30, 3))
    ss, sr, rr = matrices(collapsed, shapes)
    assert metrics.cov(sr) == 1 / 20
    assert metrics.one_nna(ss, sr, rr) > 0.9


def test_real_against_real_lies_in_its_permutation_interval():
    clouds = data.shapes("test", 80, 64).of("chair").numpy()
    both = metrics.chamfer_matrix(clouds, clouds)
    outside = 0
    for _ in range(100):  # random halves: 5 % are expected outside
        a, b = np.split(RNG.permutation(80), 2)
        parts = both[a][:, a], both[a][:, b], both[b][:, b]
        low, high = metrics.one_nna_interval(*parts, draws=300)
        outside += not low <= metrics.one_nna(*parts) <= high
    assert 1 <= outside <= 12
    ss, sr, rr = matrices(clouds[:40], clouds[40:])
    low, high = metrics.one_nna_interval(ss, sr, rr)
    assert 0.3 < low < 0.45 and 0.55 < high < 0.7
    wide = metrics.one_nna_interval(ss, sr, rr, level=0.999)
    assert wide[0] < low and wide[1] > high
    ss, sr, rr = matrices(clouds[:40], clouds[40:] * 1.2)  # a fifth larger is seen
    assert metrics.one_nna(ss, sr, rr) > metrics.one_nna_interval(ss, sr, rr)[1]


def test_one_nna_needs_equal_numbers():
    with pytest.raises(ValueError, match="equally many samples and references"):
        metrics.one_nna(np.zeros((3, 3)), np.zeros((3, 4)), np.zeros((4, 4)))


def test_jsd():
    left, right = np.full((2, 10, 3), -0.2), np.full((2, 10, 3), 0.2)
    assert metrics.jsd(left, left) == 0
    assert metrics.jsd(left, right) == pytest.approx(1)  # bits
    half = np.concatenate([left, right], 1)  # p = (1, 0), q = (1/2, 1/2)
    expected = (np.log2(4 / 3) + np.log2(2 / 3) / 2 + np.log2(2) / 2) / 2
    assert metrics.jsd(left, half) == pytest.approx(expected)
    step = 1 / 27  # the grid's nodes are 1/27 apart: less than half a step is the same node
    node = np.array([[[step / 2, step / 2, step / 2]]])
    assert metrics.jsd(node, node + 0.4 * step) == 0 and metrics.jsd(node, node + 0.6 * step) == 1
    with pytest.raises(ValueError, match="samples reach beyond the sphere of radius 0.5"):
        metrics.jsd(left * 2, left)
    clouds = np.random.default_rng(0).normal(size=(100, 9, 3)).astype(np.float32)
    for cloud in clouds:  # scaled to the sphere in float32: rounding may not push it out
        scaled = cloud[None] / (2 * np.linalg.norm(cloud, axis=1).max())
        assert metrics.jsd(scaled, scaled) == 0


@pytest.mark.parametrize(
    ("clouds", "told"),
    [
        (np.zeros((5, 3)), r"samples of shape \(5, 3\)"),
        (np.zeros((0, 5, 3)), r"samples of shape \(0, 5, 3\)"),
        (np.full((2, 5, 3), np.nan), "samples: cloud 0 has coordinates that are not finite"),
    ],
)
def test_what_is_no_set_of_clouds_is_refused(clouds, told):
    for measure in (metrics.chamfer_matrix, metrics.emd_matrix, metrics.jsd):
        with pytest.raises(ValueError, match=told):
            measure(clouds, np.zeros((2, 5, 3)))
