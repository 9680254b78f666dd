"""The bootstrap cell: silent where the course is, installs in Colab only, says what to do else."""

import importlib.util
import subprocess
import sys
import tomllib
import types

import pytest

from rgdm_lib.course import bootstrap


@pytest.fixture
def kernel(monkeypatch):
    """Run the cell in a kernel without rgdm_lib; return what pip was asked."""
    asked = []

    def run(*, colab, code=0, reason=""):
        def pip(command, **options):
            asked.append(command)
            if options.get("check") and code:
                raise subprocess.CalledProcessError(code, command)
            return subprocess.CompletedProcess(command, code, "", reason)

        monkeypatch.setattr(subprocess, "run", pip)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.delitem(sys.modules, "google.colab", raising=False)
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        exec(compile(bootstrap.CELL, "cell", "exec"), {})

    run.asked = asked
    return run


def test_where_the_course_is_it_does_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    exec(compile(bootstrap.CELL, "cell", "exec"), {})


def test_a_kernel_without_the_course_is_told_what_to_do_and_nothing_is_installed(kernel):
    with pytest.raises(ModuleNotFoundError) as error:
        kernel(colab=False)
    assert kernel.asked == []
    for hint in (sys.executable, "kernel", "make lab", 'pip install -e ".[course]"'):
        assert hint in str(error.value)


def test_colab_installs_the_extra_at_a_tag(kernel):
    kernel(colab=True)
    (command,) = kernel.asked
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"rgdm_lib[course] @ git+{bootstrap.REPOSITORY}@{bootstrap.TAG}"


def test_an_installation_that_fails_gives_the_reason_and_what_to_do(kernel):
    with pytest.raises(RuntimeError) as error:
        kernel(colab=True, code=1, reason="ERROR: no space left on device\n")
    assert "no space left on device" in str(error.value)
    assert "run this cell again" in str(error.value)


def test_address_and_tag_are_set_once(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == bootstrap.REPOSITORY
    assert f"v{project['version']}" == bootstrap.TAG
    assert f"repository-code: {bootstrap.REPOSITORY}\n" in (root / "CITATION.cff").read_text()
    written = [
        path
        for folder in ("rgdm_lib", "notebooks/src")
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".md") and bootstrap.REPOSITORY in path.read_text("utf-8")
    ]
    assert written == [root / "rgdm_lib" / "course" / "bootstrap.py"]
