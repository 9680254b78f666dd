"""Away from the base's own mistakes: the experiment in preset quick."""

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import correction
from rgdm_lib.molecules.data import load_qm9, load_set
from rgdm_lib.molecules.experiments import base_file, sample_and_score
from rgdm_lib.molecules.model import load_model


def test_trained_on_all_samples_of_the_base_in_equal_weights(tmp_path, monkeypatch):
    seen = {}

    def no_training(preset, out, path, network, target, seed, n, *rest):
        seen.update(target=target, network=network)
        path.with_name(correction.correction_name("corrected")).touch()

    monkeypatch.setattr(correction, "guide_set", no_training)
    correction.correct_base("quick", tmp_path)
    target, base = seen["target"], load_model(base_file("heavy7"))[0]
    without_value = np.isnan(target.x0.property("qed"))
    assert len(target.x0) == 10_000 and 0.2 < without_value.mean() < 0.4
    assert float(target.ess) == pytest.approx(10_000)
    own = seen["network"].state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in base.state_dict().items())


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
