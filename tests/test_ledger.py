"""Every displayed equation is checked by a number, and every check can fail."""

import re
from pathlib import Path

import pytest
import torch
from ledger import equation, load

from rgdm_lib.course.source import sources

ENTRIES = load()
_EQUATION = re.compile(r"# <!-- eq: (\S+) \| (\S.*?) -->\n# \$\$(.*?)\$\$", re.DOTALL)
MUTATIONS = [(i, name) for i, entry in ENTRIES.items() for name in entry.mutations]


def displayed() -> list[tuple[str, str, str, str]]:
    """(notebook, id, source, LaTeX) of every displayed equation."""
    folder = Path(__file__).parents[1] / "notebooks" / "src"
    return [
        (name, i, source, "".join(latex.replace("#", "").split()))
        for name, path in sources(folder).items()
        for i, source, latex in _EQUATION.findall(path.read_text())
    ]


def conflicts(shown: list[tuple[str, str, str, str]]) -> list[str]:
    """Ids shown twice with neither the same LaTeX nor the same source."""
    first: dict[str, tuple[str, str, str]] = {}
    found = []
    for name, i, source, latex in shown:
        where, *rest = first.setdefault(i, (name, source, latex))
        if source != rest[0] and latex != rest[1]:
            found.append(f"{i}: {where} and {name} show different formulas from different sources")
    return found


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("identifier", ENTRIES)
def test_holds(identifier):
    ENTRIES[identifier].test()


@pytest.mark.parametrize(("identifier", "mutation"), MUTATIONS)
def test_mutation_is_caught(identifier, mutation):
    entry = ENTRIES[identifier]
    with pytest.raises(AssertionError):
        entry.test(**entry.mutations[mutation])


def test_every_id_has_an_entry():
    missing = sorted({f"{name}: {i}" for name, i, _, _ in displayed() if i not in ENTRIES})
    assert not missing, "no entry in tests/ledger for " + ", ".join(missing)


def test_no_orphans():
    orphans = sorted(set(ENTRIES) - {i for _, i, _, _ in displayed()})
    assert not orphans, "in no notebook: " + ", ".join(orphans)


def test_one_id_one_formula():
    assert not conflicts(displayed())


def test_conflicts_are_found():
    assert conflicts([("01", "a", "x", "1"), ("02", "a", "y", "2")])
    assert not conflicts([("01", "a", "x", "1"), ("02", "a", "y", "1")])


def test_an_entry_needs_a_mutation():
    with pytest.raises(ValueError, match="give a mutation"):
        equation("none", mutations={})(lambda: None)
