"""The wheel carries data/, damaged data is noticed, one list of dependencies."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

from rgdm_lib import _data


def test_the_wheel_carries_the_data(root, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for name in _data.read_manifest(root / "data"):
        assert (installed / "rgdm_lib" / "_data_files" / name).is_file()
    names = repr(list(_data.read_manifest(root / "data")))
    script = f"from rgdm_lib._data import data_path\nfor n in {names}: print(data_path(n))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert all(line.startswith(str(installed)) for line in found.stdout.splitlines())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"abc")
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "r.json").write_text("{}")
    _data.write_manifest(tmp_path)
    monkeypatch.setattr(_data, "data_root", lambda: tmp_path)
    _data.data_path.cache_clear()
    yield tmp_path
    _data.data_path.cache_clear()


def test_data_path(folder):
    assert _data.data_path("sub/a.bin") == folder / "sub" / "a.bin"
    assert list(_data.read_manifest(folder)) == ["sub/a.bin"]


def test_damaged_data_is_noticed(folder):
    (folder / "sub" / "a.bin").write_bytes(b"abd")
    with pytest.raises(ValueError, match="damaged"):
        _data.data_path("sub/a.bin")


def test_missing_data_is_named(folder):
    with pytest.raises(FileNotFoundError, match="not among"):
        _data.data_path("sub/b.bin")
    (folder / "sub" / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match="not there"):
        _data.data_path("sub/a.bin")


def test_shipped_data_is_undamaged_and_listed(root):
    manifest = _data.read_manifest(root / "data")
    for name, digest in manifest.items():
        assert _data.sha256(root / "data" / name) == digest, name
    tracked = subprocess.run(
        ["git", "ls-files", "data"], cwd=root, capture_output=True, text=True
    ).stdout.split()
    shipped = {name.removeprefix("data/") for name in tracked}
    unlisted = {
        name
        for name in shipped - set(manifest)
        if not name.startswith("reference/") and not name.endswith(".md")
    }
    assert unlisted <= {_data.MANIFEST}, "run: python -m rgdm_lib.course sums"


def test_versions_agree(root):
    import rgdm_lib

    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert rgdm_lib.__version__ == version
    assert f"version: {version}\n" in (root / "CITATION.cff").read_text()
    assert f"## {version}\n" in (root / "CHANGELOG.md").read_text()


def test_one_list_of_dependencies(root):
    environment = (root / "environment.yml").read_text()
    assert "-e .[course,dev]" in environment
    assert "torch" not in environment
    pins = (root / "constraints.txt").read_text()
    assert "\ntorch==2.13.0\n" in pins
    assert "+" not in pins, "a local version cannot be installed from PyPI"


def imported_parts(path):
    """Top-level parts of rgdm_lib (``rgdm_lib.worlds.toy`` -> worlds) that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("rgdm_lib.")}
    return found


def test_dependencies_point_one_way(root):
    applications = {"worlds", "molecules", "shapes", "baselines"}
    package = root / "rgdm_lib"
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        parts = imported_parts(path) - {part}
        if part != "course":
            assert not parts & {"course", "comparison", "accuracy"}, (
                f"{path.name} imports what is above it"
            )
        if part in applications:
            # an application's experiments compare with the rivals, the rest of it knows none
            if path.name in ("experiments.py", "rivals.py", "property_guidance.py"):
                parts = parts - {"baselines"}
            assert not parts & applications, f"{path.name} imports {parts & applications}"
        elif part not in ("course", "comparison", "accuracy"):  # these use everything
            assert not parts & applications, f"the core ({path.name}) imports an application"


def imported_modules(path, package):
    """Files of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        files = (package.parent / f"{name.replace('.', '/')}.py" for name in names)
        found |= {file for file in files if file.is_file()}
    return found


def circle(graph):
    """A list of nodes whose last one points at the first, or None."""
    done = set()

    def visit(node, trail):
        if node in trail:
            return trail[trail.index(node) :]
        if node in done:
            return None
        found = (visit(next_one, [*trail, node]) for next_one in sorted(graph[node]))
        result = next((found_one for found_one in found if found_one), None)
        done.add(node)
        return result

    return next(filter(None, (visit(node, []) for node in sorted(graph))), None)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"a"}}) == ["a"]


def test_no_module_imports_itself_through_others(root):
    package = root / "rgdm_lib"
    graph = {path: imported_modules(path, package) for path in package.rglob("*.py")}
    assert graph[package / "molecules" / "data.py"] > {package / "molecules" / "qm9pack.py"}
    found = circle(graph)
    assert found is None, " -> ".join(path.stem for path in found)


def test_the_method_can_be_read_in_one_sitting(root):
    files = [root / "rgdm_lib" / f"{name}.py" for name in ("diffusion", "payoff", "rgdm")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 700


def test_what_a_notebook_imports_needs_no_extra():
    """Colab installs the package without extras: papermill and jupytext are not there."""
    script = (
        "import sys\n"
        "from rgdm_lib.course import exercises, notebook\n"
        "assert not {'papermill', 'jupytext', 'nbclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
