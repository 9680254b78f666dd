"""A reader's own molecules: every fault in every format names file, molecule and field."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from rgdm_lib.molecules.data import MoleculeError
from rgdm_lib.molecules.readers import read_molecules

WATER = [("O", 0.0, 0.0, 0.1), ("H", 0.0, 0.76, -0.48), ("H", 0.0, -0.76, -0.48)]
HF = [("H", 0.0, 0.0, 0.0), ("F", 0.0, 0.0, 0.92)]
NUMBER = {"H": 1, "C": 6, "O": 8, "F": 9, "Cl": 17, "Zz": 255}


def write_npz(path, molecules, fields):
    atoms = [atom for molecule in molecules for atom in molecule]
    columns = {f"property:{k}": np.array(v, dtype=float) for k, v in fields.items()}
    np.savez(
        path,
        n_atoms=np.array([len(m) for m in molecules]),
        numbers=np.array([NUMBER[a[0]] for a in atoms]),
        positions=np.array([a[1:] for a in atoms], dtype=float).reshape(-1, 3),
        **columns,
    )


def write_xyz(path, molecules, fields):
    text = ""
    for i, molecule in enumerate(molecules):
        known = [f"{name}={v[i]}" for name, v in fields.items() if v[i] is not None]
        lines = [f"{s} {x} {y} {z}" for s, x, y, z in molecule]
        text += "\n".join([str(len(molecule)), " ".join(["made by hand", *known]), *lines]) + "\n"
    path.write_text(text)


def write_sdf(path, molecules, fields):
    text = ""
    for i, molecule in enumerate(molecules):
        text += f"\n  by hand\n\n{len(molecule):3d}  0  0  0  0  0            999 V2000\n"
        for s, x, y, z in molecule:
            text += f"{x:10.4f}{y:10.4f}{z:10.4f} {s:<3} 0  0  0  0  0  0  0  0  0  0  0  0\n"
        text += "M  END\n"
        for name, values in fields.items():
            if values[i] is not None:
                text += f">  <{name}>\n{values[i]}\n\n"
        text += "$$$$\n"
    path.write_text(text)


WRITE = {"npz": write_npz, "xyz": write_xyz, "sdf": write_sdf}
formats = pytest.mark.parametrize("kind", WRITE)


@formats
def test_a_good_file(tmp_path, kind):
    path = tmp_path / f"own.{kind}"
    WRITE[kind](path, [WATER, HF], {"mu": [1.85, 1.82]})
    found = read_molecules(path, require=("mu",), largest=3)
    assert found.n_atoms.tolist() == [3, 2]
    assert found.numbers.tolist() == [8, 1, 1, 1, 9]
    np.testing.assert_allclose(found.positions, [a[1:] for a in WATER + HF], atol=1e-6)
    np.testing.assert_allclose(found.property("mu"), [1.85, 1.82])


NAN = [("O", 0.0, float("nan"), 0.1), *WATER[1:]]


@formats
@pytest.mark.parametrize(
    ("second", "mu", "message"),
    [
        ([*HF, ("Cl", 2.0, 0.0, 0.0)], 1.0, "numbers of atom 2 is 17, an unknown element"),
        ([*HF, ("Zz", 2.0, 0.0, 0.0)], 1.0, "numbers of atom 2 is .*, an unknown element"),
        (NAN, 1.0, "positions of atom 0 is .*nan.*; coordinates must be finite"),
        ([], 1.0, "n_atoms is 0; no atoms"),
        (HF, None, "property 'mu' has no value"),
        (WATER + WATER, 1.0, "n_atoms is 6; the model allows at most 5"),
    ],
)
def test_a_fault_names_file_molecule_and_field(tmp_path, kind, second, mu, message):
    path = tmp_path / f"own.{kind}"
    WRITE[kind](path, [WATER, second], {"mu": [1.85, mu]})
    with pytest.raises(MoleculeError, match=rf"own\.{kind}: molecule 1: .*{message}"):
        read_molecules(path, require=("mu",), largest=5)


@formats
def test_a_property_that_no_molecule_has(tmp_path, kind):
    path = tmp_path / f"own.{kind}"
    WRITE[kind](path, [WATER], {"mu": [1.85]})
    with pytest.raises(MoleculeError, match=rf"own\.{kind}: .*no property 'gap'; they have: mu"):
        read_molecules(path, require=("gap",))


@pytest.mark.parametrize("kind", ["xyz", "sdf"])
def test_an_empty_file(tmp_path, kind):
    path = tmp_path / f"own.{kind}"
    path.write_text("")
    with pytest.raises(MoleculeError, match=rf"own\.{kind}: there are no molecules"):
        read_molecules(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two\n\nH 0 0 0\n", "molecule 0: n_atoms is 'two' in line 1"),
        ("2\n\nH 0 0 0\n", "molecule 0: n_atoms is 2, but the file ends after 1"),
        ("1\n\nH 0 0\n", "molecule 0: positions of atom 0 is 'H 0 0'"),
        ("1\n\nH 0 0 x\n", "molecule 0: positions of atom 0 is 'H 0 0 x'"),
    ],
)
def test_a_broken_xyz(tmp_path, text, message):
    path = tmp_path / "own.xyz"
    path.write_text(text)
    with pytest.raises(MoleculeError, match=message):
        read_molecules(path)


def test_an_sdf_keeps_hydrogens_and_bonds_do_not_matter(tmp_path):
    path = tmp_path / "own.sdf"
    methane = Chem.AddHs(Chem.MolFromSmiles("C"))
    AllChem.EmbedMolecule(methane, randomSeed=1)
    block = Chem.MolToMolBlock(methane)
    five = block.replace("  1  2  1  0", "  1  2  2  0")  # a valence that RDKit would refuse
    assert five != block
    path.write_text(f"{block}$$$$\n{five}$$$$\n")
    assert read_molecules(path).numbers.tolist() == [6, 1, 1, 1, 1] * 2


def test_a_broken_sdf(tmp_path):
    path = tmp_path / "own.sdf"
    write_sdf(path, [WATER, HF], {})
    good = path.read_text()
    for old, new, message in (
        ("    0.9200 F", "    0.92oo F", r"molecule 1: positions of atom 1 is .*'0.92oo'"),
        ("  3  0  0  0", "  x  0  0  0", "molecule 0: its block of atoms and bonds"),
    ):
        path.write_text(good.replace(old, new))
        with pytest.raises(MoleculeError, match=message):
            read_molecules(path)


def test_text_fields_are_no_properties(tmp_path):
    path = tmp_path / "own.xyz"
    write_xyz(path, [HF], {"mu": [1.8], "source": ["nist"]})
    assert list(read_molecules(path).properties) == ["mu"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MoleculeError, match=r"own\.pdb: not an \.npz, \.xyz or \.sdf file"):
        read_molecules(tmp_path / "own.pdb")
    with pytest.raises(FileNotFoundError):
        read_molecules(tmp_path / "none.xyz")


def test_properties_of_an_xyz_comment_keep_their_names_and_quoted_values(tmp_path):
    path = tmp_path / "OWN.XYZ"  # however the ending is written
    atoms = "\n".join(f"{s} {x} {y} {z}" for s, x, y, z in WATER)
    path.write_text(f'3\nhomo-lumo=7 E="-3.5" name=water mu="0.1 0.2 0.3" gap=0.25\n{atoms}\n')
    # a vector is no number: its first component would pass for one
    found = read_molecules(path)
    assert {k: v.tolist() for k, v in found.properties.items()} == {
        "homo-lumo": [7.0], "E": [-3.5], "gap": [0.25]
    }  # fmt: skip


def test_an_sdf_without_its_hydrogens_is_refused(tmp_path):
    molecule = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.EmbedMolecule(molecule, randomSeed=0)
    for own, name in ((molecule, "whole.sdf"), (Chem.RemoveHs(molecule), "bare.sdf")):
        with Chem.SDWriter(str(tmp_path / name)) as writer:
            writer.write(own)
    assert read_molecules(tmp_path / "whole.sdf").n_atoms.tolist() == [9]
    with pytest.raises(MoleculeError, match=r"bare.sdf: molecule 0: numbers lacks 6 hydrogens"):
        read_molecules(tmp_path / "bare.sdf")
