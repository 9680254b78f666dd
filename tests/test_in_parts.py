"""A denoiser that takes a batch in parts."""

import torch

from rgdm_lib.in_parts import InParts


def test_a_population_in_parts_is_the_network_itself():
    torch.manual_seed(0)
    linear, sizes = torch.nn.Linear(3, 3).double(), []

    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            sizes.append(len(x))
            return linear(x).tanh() * t[:, None, None]

    x, t = torch.randn(130, 5, 3).double(), torch.arange(130)
    whole, parts = Net()(x, t, None), InParts(Net())(x, t)
    assert sizes == [130, 64, 64, 2]
    torch.testing.assert_close(parts, whole)
    ours, theirs = (torch.autograd.grad(y.square().sum(), linear.weight)[0] for y in (parts, whole))
    torch.testing.assert_close(ours, theirs)
    assert sizes[4:] == [2, 64, 64]  # computed again, the last first
