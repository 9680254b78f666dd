"""Fixtures shared by the tests: the clone's root, an example notebook built once."""

from pathlib import Path

import example_notebook
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory):
    """A folder of notebooks that holds the example, its source and its built notebook."""
    from rgdm_lib.course.build import build

    folder = tmp_path_factory.mktemp("notebooks")
    source = folder / "src" / f"{example_notebook.NAME}.py"
    source.parent.mkdir()
    source.write_text(example_notebook.SOURCE, encoding="utf-8")
    build(example_notebook.NAME, source, folder / f"{example_notebook.NAME}.ipynb")
    return folder


@pytest.fixture
def example(example_folder):
    """The built example, fresh for every test, which may break it."""
    return nbformat.read(example_folder / f"{example_notebook.NAME}.ipynb", as_version=4)
