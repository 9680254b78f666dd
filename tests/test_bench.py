"""The harness that measures our network against EDM's code: same molecules, alternating runs."""

import numpy as np
import pytest
import torch
from bench import egnn_peer

from rgdm_lib.molecules.data import load_qm9


@pytest.fixture(scope="module")
def molecules():
    return egnn_peer.drawn(load_qm9().part("train"), 12)


def test_sizes_are_those_of_the_data(molecules):
    """Mean and mean square within four standard errors; the rare sizes are there too."""
    n, all_n = molecules.n_atoms.astype(float), load_qm9().part("train").n_atoms.astype(float)
    assert len(n) == 12 * 64
    for power in (1, 2):
        error = (all_n**power).std() / np.sqrt(len(n))
        assert abs((n**power).mean() - (all_n**power).mean()) < 4 * error
    assert n.max() > np.quantile(all_n, 0.98)


def test_both_codes_get_the_same_atoms(molecules):
    """Atom for atom; EDM's code has zeros where there is no atom."""
    ours, theirs = egnn_peer.one_size(molecules), egnn_peer.padded(molecules)
    order = np.concatenate(list(molecules.by_size().values()))
    mine = dict(zip(order.tolist(), (m for batch in ours for m in batch), strict=True))
    assert sorted(mine) == list(range(len(molecules)))
    assert max(len(batch) for batch in ours) <= 64
    assert len(ours) <= len(molecules.by_size()) + len(theirs)
    for k, batch in enumerate(theirs):
        there = batch.node_mask[..., 0] > 0
        x = torch.cat([batch.x, batch.one_hot / 4, batch.charges / 10], -1)
        assert not x[~there].any()
        for i in range(64):
            torch.testing.assert_close(x[i, there[i]], mine[64 * k + i], atol=1e-5, rtol=0)


def test_masks_count_atoms_and_pairs(molecules):
    batches, n = egnn_peer.padded(molecules), molecules.n_atoms
    assert sum(float(b.node_mask.sum()) for b in batches) == n.sum()
    assert sum(float(b.edge_mask.sum()) for b in batches) == (n * (n - 1)).sum()
    for k, b in enumerate(batches):
        assert b.x.shape[1] == n[64 * k : 64 * (k + 1)].max()
        pairs = b.edge_mask.view(64, b.x.shape[1], -1)
        assert not pairs.diagonal(dim1=1, dim2=2).any()


def test_every_batch_is_run_once_by_our_code(molecules, monkeypatch):
    network = {"hidden": 8, "edge": 8, "layers": 1}
    ours = egnn_peer.Ours(molecules, network, shipped=False)
    seen = []
    ours.net.register_forward_hook(lambda net, inputs, out: seen.append(inputs[0].shape))
    ours.forward()
    ours.train()
    shapes = [x.shape for x in ours.batches]
    assert seen == 2 * shapes and ours.trainer.step == len(shapes)


def test_runs_alternate_and_the_first_round_is_not_counted():
    now, order = [0.0], []

    def run(name, seconds):
        def go():
            order.append(name)
            now[0] += seconds if order.count(name) > 1 else 100.0

        return go

    runs = {"a": run("a", 6.0), "b": run("b", 2.0)}
    seconds = egnn_peer.interleaved(runs, 3, lambda: now[0])
    assert order == 4 * ["a", "b"]
    assert seconds == {"a": 3 * [6.0], "b": 3 * [2.0]}
    assert egnn_peer.spread([3.0, 1.0, 2.0]) == "2.00 (1.00 - 3.00)"
