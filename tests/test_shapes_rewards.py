"""Rewards on point clouds against shapes whose answer is known."""

import math

import pytest
import torch

from rgdm_lib.shapes import parametric, rewards
from rgdm_lib.shapes.mesh import areas, centre_of_mass


def feet(*places):
    return torch.tensor([[*place, 0.0] for place in places])


def test_margin_is_the_distance_to_the_edge_of_the_support():
    square = feet((1, 1), (1, -1), (-1, 1), (-1, -1))
    top = torch.tensor([[0.5, 0.0, 2.0]]).expand(4, 3)  # centre of mass at x = 0.25
    cloud = torch.cat([square, top])[None]
    assert float(rewards.standing_margin(cloud)) == pytest.approx(0.75, abs=1e-5)
    leaning = torch.cat([square, top + torch.tensor([3.5, 0, 0])])[None]  # centre at x = 2
    assert float(rewards.standing_margin(leaning)) == pytest.approx(-1, abs=1e-5)
    assert rewards.stands(torch.cat([cloud, leaning])).tolist() == [1, 0]


def test_a_missing_leg_counts():
    """Three legs: the hull is a triangle, not the box around it."""
    three = feet((1, 1), (1, -1), (-1, 1))
    top = torch.tensor([[-0.8, -0.8, 1.0]]).expand(9, 3)
    assert rewards.stands(torch.cat([three, top])[None]).tolist() == [0]
    assert rewards.stands(torch.cat([three, feet((-1, -1)), top])[None]).tolist() == [1]


def test_only_the_lowest_points_support():
    cloud = torch.cat([feet((0, 0)), torch.tensor([[2.0, 0.0, 0.2], [2.0, 0.0, 1.0]])])[None]
    assert rewards.stands(cloud).tolist() == [0]
    assert rewards.standing_margin(cloud, sole=0.3) == pytest.approx(0, abs=1e-6)


def test_sampled_chairs_stand_as_their_meshes_do():
    drawn = parametric.draw_parameters("chair", 400, 5)
    triangles = parametric.mesh("chair", drawn)
    clouds = parametric.clouds("chair", drawn, 512, torch.Generator().manual_seed(0))
    weight = centre_of_mass(triangles)[:, :2]
    real = (areas(triangles) > 0)[..., None].expand(-1, -1, 3).flatten(1)
    corner = triangles.flatten(1, 2)
    stands = []
    for c, there, p in zip(corner, real, weight, strict=True):
        ground = c[there & (c[:, 2] < 1e-9)][:, :2]
        angle = 2 * math.pi / 720 * torch.arange(720, dtype=torch.float64)
        turn = torch.stack([angle.cos(), angle.sin()])
        stands.append(bool(((ground @ turn).amax(0) - p @ turn).amin() >= 0))
    agree = (rewards.stands(clouds) == torch.tensor(stands).float()).double().mean()
    assert agree > 0.92


def test_symmetry():
    half = torch.randn(1, 50, 3)
    mirrored = half * torch.tensor([-1.0, 1.0, 1.0])
    both = torch.cat([half, mirrored], 1)
    assert float(rewards.symmetry(both)) == pytest.approx(0, abs=1e-6)
    one = torch.tensor([[[0.5, 0.0, 0.0]]])  # its mirror image is 1 away
    assert float(rewards.symmetry(one)) == pytest.approx(-1)


def test_class_logit_is_the_log_odds_of_the_class():
    logits = torch.randn(4, 3)
    p = logits.softmax(1)
    for k in range(3):
        reward = rewards.class_logit(lambda clouds: logits, k)(torch.randn(4, 9, 3))
        assert torch.allclose(reward, (p[:, k] / (1 - p[:, k])).log(), atol=1e-5)
        reward = rewards.class_log_probability(lambda clouds: logits, k)(torch.randn(4, 9, 3))
        assert torch.allclose(reward, p[:, k].log(), atol=1e-5)


def test_a_class_that_the_classifier_does_not_have_is_refused():
    for index in (-1, 3):
        reward = rewards.class_logit(lambda clouds: torch.zeros(len(clouds), 3), index)
        with pytest.raises(ValueError, match=f"no class {index}: the classifier knows 0 to 2"):
            reward(torch.randn(4, 9, 3))


@pytest.mark.parametrize("reward", [rewards.stands, rewards.connected, rewards.symmetry])
def test_a_cloud_that_is_not_finite_has_no_value_and_the_others_have(reward):
    clouds = torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(0))
    alone = reward(clouds)
    clouds[1, 4, 2] = torch.nan
    assert reward(clouds)[[0, 2]].tolist() == alone[[0, 2]].tolist()
    assert bool(reward(clouds)[1].isnan())


def test_proportion():
    cloud = torch.tensor([[[0.0, 0, 0], [3.0, 9, 2]]])
    assert float(rewards.proportion(cloud)) == pytest.approx(1.5)


def test_connected_counts_the_largest_piece():
    line = torch.stack([torch.arange(30) * 0.2, torch.zeros(30), torch.zeros(30)], 1)
    shuffled = line[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    broken = shuffled + (shuffled[:, :1] > 3.9).float()  # ten of thirty points go away
    assert rewards.connected(torch.stack([shuffled, broken])).tolist() == pytest.approx([1, 2 / 3])


@pytest.mark.parametrize(
    "reward", [rewards.stands, rewards.symmetry, rewards.proportion, rewards.connected]
)
def test_a_single_cloud_is_refused(reward):
    with pytest.raises(ValueError, match=r"clouds of shape \(20, 3\), a reward takes \(B, N, 3\)"):
        reward(torch.randn(20, 3))


def test_every_reward_is_exported():
    """What the module defines under a public name, and the two it passes on."""
    own = {k for k, v in vars(rewards).items() if getattr(v, "__module__", "") == rewards.__name__}
    public = {name for name in own if not name.startswith("_")}
    assert set(rewards.__all__) == public | {"between", "weighted_sum"}
