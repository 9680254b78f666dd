"""Sets of molecules: the container, its tensors, its files, and QM9 itself."""

import dataclasses
import hashlib
import importlib.metadata
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hand_made_molecules import full  # noqa: F401  a fixture

from rgdm_lib import _data
from rgdm_lib.molecules import qm9pack, sets
from rgdm_lib.molecules.data import (
    CHANNELS,
    MoleculeError,
    MoleculeSet,
    decode,
    encode,
    load_qm9,
    load_set,
    save_set,
    zero_com_noise_like,
)

WATER = ([8, 1, 1], [[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
HF = ([9, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.92]])


def make_set(*molecules, **columns):
    numbers, positions = zip(*molecules, strict=True)
    return MoleculeSet(
        np.array([len(z) for z in numbers]),
        np.concatenate(numbers),
        np.concatenate(positions),
        **columns,
    )


@pytest.fixture(scope="module")
def heavy7():
    return load_qm9("heavy7")


# ---------------------------------------------------------------- container


def test_subset_keeps_every_column_together():
    molecules = make_set(
        WATER,
        HF,
        WATER,
        properties={"mu": np.array([1.0, 2.0, 3.0])},
        smiles=["O", "F", "O"],
        index=[10, 20, 30],
        split=[0, 1, 2],
    )
    chosen = molecules.subset([2, 1, 1])
    assert chosen.n_atoms.tolist() == [3, 2, 2]
    assert chosen.numbers.tolist() == [8, 1, 1, 9, 1, 9, 1]
    np.testing.assert_array_equal(chosen.positions[3:5], np.float32(HF[1]))
    assert chosen.properties["mu"].tolist() == [3.0, 2.0, 2.0]
    assert chosen.index.tolist() == [30, 20, 20]
    assert chosen.smiles.tolist() == ["O", "F", "F"]
    np.testing.assert_array_equal(
        molecules.subset(np.array([True, False, True])).index, molecules.subset([0, 2]).index
    )
    assert molecules.part("valid").index.tolist() == [20]


def test_an_index_counts_as_in_a_list():
    molecules = make_set(WATER, HF, index=[10, 20])
    assert molecules.atoms(-1)[1].tolist() == [9, 1]
    assert molecules.atoms(-2)[1].tolist() == [8, 1, 1]
    assert molecules.label(-1) == molecules.label(1) == "molecule 1 (index 20)"
    chosen = molecules.subset([-1, 0, np.int8(-2)])
    assert chosen.index.tolist() == [20, 10, 10]
    assert [chosen.atoms(i)[1].tolist() for i in range(3)] == [[9, 1], [8, 1, 1], [8, 1, 1]]
    assert len(molecules.subset([])) == 0


@pytest.mark.parametrize("i", [2, -3, 10**9, 0.5])
def test_an_index_outside_is_refused(i):
    molecules = make_set(WATER, HF, index=[10, 20], smiles=["O", "F"])
    for read in (molecules.atoms, molecules.label, lambda i: molecules.subset([0, i])):
        with pytest.raises(IndexError, match="molecule"):
            read(i)
    for read in (molecules.subset([]).atoms, molecules.subset([]).label):
        with pytest.raises(IndexError, match="among 0|integers"):
            read(i)


def test_by_size_and_of_size(heavy7):
    sizes = heavy7.by_size()
    assert sorted(np.concatenate(list(sizes.values()))) == list(range(len(heavy7)))
    positions, numbers = heavy7.of_size(14)
    assert positions.shape == (548, 14, 3) and numbers.shape == (548, 14)
    last = sizes[14][-1]
    np.testing.assert_array_equal(positions[-1], heavy7.atoms(last)[0])
    np.testing.assert_array_equal(numbers[-1], heavy7.atoms(last)[1])
    assert heavy7.of_size(22)[0].shape == (0, 22, 3)


def test_concatenate_undoes_splitting(heavy7):
    pieces = [heavy7.subset(np.arange(0, 7)), heavy7.subset(np.arange(7, 20))]
    whole = MoleculeSet.concatenate(pieces)
    expected = heavy7.subset(np.arange(20))
    for column in ("n_atoms", "numbers", "positions", "smiles", "index", "split"):
        np.testing.assert_array_equal(getattr(whole, column), getattr(expected, column))
    without = dataclasses.replace(pieces[1], split=None, properties={"mu": np.zeros(13)})
    mixed = MoleculeSet.concatenate([pieces[0], without])
    assert mixed.split is None and set(mixed.properties) == {"mu"}


def test_columns_of_the_wrong_length_are_refused():
    with pytest.raises(MoleculeError, match=r"mu has shape \(2,\); there are 1 molecules"):
        make_set(WATER, properties={"mu": np.zeros(2)})
    with pytest.raises(MoleculeError, match="adds up to 4 atoms"):
        MoleculeSet(np.array([4]), np.array(WATER[0]), np.array(WATER[1]))
    with pytest.raises(MoleculeError, match="no property 'gap'; they have: mu"):
        make_set(WATER, properties={"mu": np.zeros(1)}).property("gap")


# ------------------------------------------------------------------ tensors


def test_encoding_is_edms_scaling():
    x = encode(make_set(WATER), 3)
    assert x.shape == (1, 3, CHANNELS) and x.dtype == torch.float32
    # O is the fourth of H, C, N, O, F; one-hot / 4, atomic number / 10
    torch.testing.assert_close(x[0, 0, 3:], torch.tensor([0, 0, 0, 0.25, 0, 0.8]))
    torch.testing.assert_close(x[0, 1, 3:], torch.tensor([0.25, 0, 0, 0, 0, 0.1]))
    torch.testing.assert_close(x[..., :3].mean(1), torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_decode_undoes_encode(heavy7):
    for n in heavy7.by_size():
        positions, numbers = heavy7.of_size(n)
        back, back_numbers = decode(encode(heavy7, n)).of_size(n)
        np.testing.assert_array_equal(back_numbers, numbers)
        centred = positions - positions.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(back, centred, atol=1e-5)


def test_decode_takes_the_largest_one_hot_and_keeps_nan_visible():
    x = encode(make_set(WATER, WATER), 3)
    x[0, :, 3:8] += 0.1 * torch.arange(5)  # O: 0.55 against F's 0.4; H: 0.25 against 0.4
    x[1, 2, 4] = torch.nan
    molecules = decode(x)
    assert molecules.atoms(0)[1].tolist() == [8, 9, 9]
    assert np.isfinite(molecules.atoms(1)[0]).tolist() == [[True] * 3, [True] * 3, [False] * 3]
    with pytest.raises(ValueError, match=r"must be \(B, N, 9\)"):
        decode(x[..., :8])


def test_noise_has_zero_centre_of_mass_and_unit_variance_in_the_subspace():
    torch.manual_seed(0)
    n = 5
    noise = zero_com_noise_like(torch.zeros(20_000, n, CHANNELS, dtype=torch.float64))
    assert noise[..., :3].mean(1).abs().max() < 1e-12
    assert noise[..., 3:].mean(1).abs().max() > 0.1
    # isotropic on the subspace: |positions|^2 has mean 3 (n - 1)
    assert abs(noise[..., :3].square().sum((1, 2)).mean() - 3 * (n - 1)) < 0.15
    assert abs(noise[..., 3:].std() - 1) < 0.01


# -------------------------------------------------------------------- files


def test_save_and_load(tmp_path, heavy7):
    part = heavy7.subset(np.arange(0, len(heavy7), 40)).with_properties(qed=np.full(99, np.nan))
    path = save_set(tmp_path / "some" / "set.npz", part)
    back = load_set(path)
    assert np.abs(back.positions - part.positions).max() <= 0.00025 + 1e-6
    for column in ("n_atoms", "numbers", "smiles", "index", "split"):
        np.testing.assert_array_equal(getattr(back, column), getattr(part, column))
    assert set(back.properties) == set(part.properties)
    for name, values in part.properties.items():
        np.testing.assert_array_equal(back.properties[name], values)
    assert [p.name for p in path.parent.iterdir()] == ["set.npz"]
    # the same set gives the same bytes, and a loaded one is a fixed point
    assert save_set(tmp_path / "again.npz", back).read_bytes() == path.read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = save_set(tmp_path / "set.npz", make_set(WATER))
    before = path.read_bytes()

    def full_disk(file, columns):
        file.write(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(sets, "_write_npz", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_set(path, make_set(HF))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_positions_are_stored_in_steps_of_half_a_milliangstrom(tmp_path):
    path = save_set(tmp_path / "hf.npz", make_set(HF))
    with np.load(path) as file:
        assert file["positions"].dtype == np.int16
        assert file["positions"].tolist() == [[0, 0, 0], [0, 0, 1840]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": [8, 1, 1, 17, 1]}, r"molecule 1 .*F.*: numbers of atom 0 is 17"),
        ({"positions": [[0, 0, 0]] * 4 + [[0, np.nan, 0]]}, r"molecule 1 .*of atom 1 is.*nan"),
        ({"n_atoms": [5, 0]}, r"molecule 1 .*n_atoms is 0"),
        ({"n_atoms": [], "numbers": [], "positions": np.zeros((0, 3)), "smiles": None}, "no molec"),
        ({"positions": [[0, 0, 0]] * 4 + [[0, 20.0, 0]]}, r"molecule 1 .*atom 1.*too far"),
    ],
)
def test_a_set_that_cannot_be_saved_names_molecule_and_field(tmp_path, change, message):
    good = make_set(WATER, HF, smiles=["O", "F"])
    bad = dataclasses.replace(good, **change)
    with pytest.raises(MoleculeError, match=message):
        save_set(tmp_path / "bad.npz", bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "require", "message"),
    [
        ({"numbers": np.array([8, 1, 1, 9, 0])}, (), "molecule 1 .*numbers of atom 1 is 0, an unk"),
        ({"numbers": np.array([8, 1, 1, 9, -1])}, (), "numbers holds -1, no whole number"),
        ({"numbers": np.array([8, 1, 1, 9, 262])}, (), "numbers holds 262"),
        ({"numbers": np.array([8, 1, 1, 9, 1.5])}, (), "numbers holds 1.5"),
        ({"numbers": np.array(["O", "H", "H", "F", "H"])}, (), "numbers holds <U1 values"),
        ({"n_atoms": np.array([3, 2.5])}, (), "n_atoms holds 2.5"),
        ({"index": np.array(["a", "b"])}, (), "invalid literal"),
        ({"property:mu": np.array(["a", "b"])}, ("mu",), "isfinite"),
        ({"positions": np.full((5, 3), np.inf)}, (), "molecule 0 .*positions of atom 0"),
        ({"positions": None}, (), "no field 'positions'"),
        ({"positions": np.zeros((5, 3), np.int16)}, (), "need the field 'position_unit'"),
        ({"n_atoms": np.array([5, 0])}, (), "molecule 1 .*no atoms"),
        ({"n_atoms": np.array([3, 3])}, (), "adds up to 6 atoms"),
        ({}, ("gap",), "no property 'gap'; they have: mu"),
        ({"property:mu": np.array([1.0, np.nan])}, ("mu",), "molecule 1 .*'mu' has no value"),
        ({"property:mu": np.array([1.0])}, (), r"mu has shape \(1,\)"),
    ],
)
def test_a_broken_file_names_file_molecule_and_field(tmp_path, change, require, message):
    columns = {
        "n_atoms": np.array([3, 2]),
        "numbers": np.array(WATER[0] + HF[0]),
        "positions": np.array(WATER[1] + HF[1]),
        "property:mu": np.array([1.9, 1.8]),
        "smiles": np.array(["O", "F"]),
    }
    np.savez(tmp_path / "good.npz", **columns)
    assert len(load_set(tmp_path / "good.npz", require=("mu",))) == 2
    columns = {k: v for k, v in (columns | change).items() if v is not None}
    np.savez(tmp_path / "own.npz", **columns)
    with pytest.raises(MoleculeError, match=message) as error:
        load_set(tmp_path / "own.npz", require=require)
    assert "own.npz" in str(error.value)


def test_files_that_are_no_npz_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    whole = save_set(tmp_path / "whole.npz", make_set(WATER)).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "pickle.npz", n_atoms=np.array([{}], dtype=object))
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez_compressed(tmp_path / "hurt.npz", numbers=np.arange(5000) % 251)
    hurt = bytearray((tmp_path / "hurt.npz").read_bytes())
    hurt[100:140] = bytes(40)
    (tmp_path / "hurt.npz").write_bytes(hurt)
    for name in ("text.npz", "half.npz", "pickle.npz", "one.npz", "hurt.npz"):
        with pytest.raises(MoleculeError, match=f"{name}: not a readable"):
            load_set(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_set(tmp_path / "none.npz")


# ---------------------------------------------------------------------- QM9


def test_heavy7_is_what_its_card_says(heavy7):
    assert len(heavy7) == 3921 and len(heavy7.numbers) == 55_498
    heavy = np.add.reduceat((heavy7.numbers > 1).astype(int), heavy7.starts[:-1])
    assert np.bincount(heavy).tolist() == [0, 3, 5, 9, 31, 127, 608, 3138]
    assert [len(heavy7.part(p)) for p in ("train", "valid", "test")] == [3136, 392, 393]
    np.testing.assert_array_equal(heavy7.split, qm9pack.random_split(3921, 3136, 392))
    assert (np.diff(heavy7.index) > 0).all()
    assert set(heavy7.properties) == set(qm9pack.COLUMNS)
    # water, QM9's third molecule, as published
    water = int(np.flatnonzero(heavy7.index == 3)[0])
    assert heavy7.smiles[water] == "O"
    assert heavy7.properties["mu"][water] == 1.8511
    assert heavy7.properties["U0"][water] == -76.404702
    positions, numbers = heavy7.atoms(water)
    assert numbers.tolist() == [8, 1, 1]
    assert abs(np.linalg.norm(positions[1] - positions[0]) - 0.9620) < 1e-3
    means = [heavy7.atoms(i)[0].mean(0) for i in range(len(heavy7))]
    assert np.abs(means).max() < 0.0005


def test_a_damaged_shipped_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(_data.data_root() / "molecules", tmp_path / "data" / "molecules")
    shutil.copy(_data.data_root() / _data.MANIFEST, tmp_path / "data")
    monkeypatch.setattr(_data, "_PACKAGE", tmp_path / "rgdm_lib")
    _data.data_path.cache_clear()
    try:
        assert len(load_qm9("heavy7")) == 3921
        _data.data_path.cache_clear()
        file = tmp_path / "data" / "molecules" / "qm9_heavy7.npz"
        content = bytearray(file.read_bytes())
        content[1000] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="qm9_heavy7.npz.*sha256"):
            load_qm9("heavy7")
    finally:
        _data.data_path.cache_clear()


def test_unknown_names_say_what_there_is(heavy7):
    with pytest.raises(ValueError, match="'heavy7' or 'full'"):
        load_qm9("heavy9")
    with pytest.raises(ValueError, match="train, valid, test"):
        heavy7.part("training")
    with pytest.raises(ValueError, match="no split"):
        make_set(WATER).part("train")


# ------------------------------------------------------------------ qm9pack


HEADER = ["Index", "SMILES", "Elements", "XYZ_Ang", *qm9pack.COLUMNS.values()]


def fake_csv(*rows):
    lines = [",".join(HEADER)]
    lines += [",".join(f'"{cell}"' for cell in row) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def fake_row(index, elements="['F','H']", xyz="[[0,0,1.5],[0.,0.,5.8*^-1]]", value="1.0"):
    return [str(index), "F", elements, xyz, *(["0.5"] * 14), value]


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    def make(*rows):
        path = tmp_path / "fake.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for i, name in enumerate(qm9pack.CSV_SHA256):
                archive.writestr(qm9pack.FOLDER + name, fake_csv(*rows) if i == 0 else fake_csv())
        monkeypatch.setattr(qm9pack, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    return make


def test_reads_a_wheel_in_order_of_index_with_starred_exponents(fake_wheel):
    water = fake_row(2, "['O','H','C','C']", "[[0,0,0],[0,0,1],[0,1,0],[1,0,0]]", "2.5*^-3")
    molecules = qm9pack.read(fake_wheel(water, fake_row(1)))
    assert molecules.index.tolist() == [1, 2]
    assert molecules.properties["Cv"].tolist() == [1.0, 0.0025]
    np.testing.assert_allclose(molecules.atoms(0)[0], [[0, 0, 0.46], [0, 0, -0.46]], atol=1e-6)
    assert qm9pack.read(fake_wheel(water, fake_row(1)), max_heavy=2).index.tolist() == [1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (fake_row(7, elements="['Cl','H']"), "QM9 molecule 7 .*Elements.*'Cl'"),
        (fake_row(7, xyz="[[0,0,0],[0,0]]"), "QM9 molecule 7 .*XYZ_Ang is not 2 x 3"),
        (fake_row(7, value="n/a"), "QM9 molecule 7 .*Heatcapacity.* is 'n/a'"),
        (fake_row(7, value="nan"), "index 7.*property 'Cv' has no value"),
    ],
)
def test_a_broken_row_names_molecule_and_field(fake_wheel, row, message):
    with pytest.raises(MoleculeError, match=message):
        qm9pack.read(fake_wheel(row))


def test_a_wheel_with_another_checksum_is_refused(tmp_path, capsys):
    wheel = tmp_path / "qm9pack-1.0.3-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    with pytest.raises(SystemExit) as stop:
        qm9pack.main(["--wheel", str(wheel), "--out", str(tmp_path / "out.npz")])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert "sha256 is" in message and qm9pack.WHEEL_SHA256 in message
    assert not (tmp_path / "out.npz").exists()


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("RGDM_CACHE", str(tmp_path))
    monkeypatch.delenv("RGDM_QM9_WHEEL", raising=False)
    with pytest.raises(MoleculeError, match=r"pip install .*RGDM_QM9_WHEEL"):
        load_qm9("full")
    with pytest.raises(MoleculeError, match="no such file"):
        qm9pack.read(tmp_path / "none.whl")


def test_another_order_of_molecules_is_not_edms_split(monkeypatch):
    monkeypatch.setattr(qm9pack, "MOLECULES", 100_010)
    many = make_set(HF).subset(np.zeros(100_010, dtype=int))
    with pytest.raises(MoleculeError, match="EDM's are"):
        qm9pack.with_edm_split(many)
    with pytest.raises(MoleculeError, match="all of QM9 has"):
        qm9pack.with_edm_split(make_set(WATER))


def test_full_qm9_is_edms_set_and_split(full, heavy7):  # noqa: F811
    assert [len(full.part(p)) for p in ("train", "valid", "test")] == [100_000, 17_748, 13_083]
    train = full.part("train")
    assert np.bincount(train.numbers, minlength=10)[[1, 6, 7, 8, 9]].tolist() == [
        923_537, 635_559, 101_476, 140_202, 2_323,
    ]  # fmt: skip
    # EDM's published histogram of sizes (its configs/datasets_config.py)
    sizes = np.bincount(train.n_atoms, minlength=30)
    assert sizes[[3, 9, 14, 18, 19, 22, 27, 29]].tolist() == [
        1, 124, 5136, 13364, 13832, 3393, 266, 25,
    ]  # fmt: skip
    # the small set is its part of at most 7 heavy atoms
    small = full.subset(np.isin(full.index, heavy7.index))
    np.testing.assert_array_equal(small.index, heavy7.index)
    np.testing.assert_array_equal(small.positions, heavy7.positions)
