"""Each guard is green on a good notebook and red on one broken in the way it guards against."""

import copy
import io

import example_notebook
import matplotlib.pyplot as plt
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_output

from rgdm_lib.course import bootstrap, guards
from rgdm_lib.course.build import BuildError, build, clean
from rgdm_lib.course.notebook import image_html


def find(nb, text):
    return next(cell for cell in nb.cells if text in cell.source)


def edit(text, replacement):
    def breaking(nb):
        cell = find(nb, text)
        cell.source = cell.source.replace(text, replacement)

    return breaking


def put(text, output):
    def breaking(nb):
        find(nb, text).outputs.append(output)

    return breaking


def stream(name, text):
    return new_output("stream", name=name, text=text)


def picture(cut):
    """A figure, as run.figure shows one, whose title may hang over the edge."""
    fig, ax = plt.subplots(figsize=(1, 1), layout="constrained")
    ax.text(0.2, 0.95 if cut else 0.5, "text", transform=fig.transFigure)
    ax.set_axis_off()
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    plt.close(fig)
    return html_output(image_html(buffer.getvalue(), "text"))


def html_output(text):
    return new_output("display_data", data={"text/html": text})


PICTURE = new_output("display_data", data={"image/png": "AAAA"})
WIDGET = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
ERROR = new_output("error", ename="ValueError", evalue="no", traceback=[])

BREAKING = [
    (guards.counts, lambda nb: nb.cells.append(new_code_cell("1", execution_count=99))),
    (guards.counts, lambda nb: find(nb, "settings.n").update(execution_count=None)),
    (guards.bootstrap, edit("-q\", COURSE", "-qq\", COURSE")),
    (guards.bootstrap, lambda nb: nb.cells.remove(find(nb, "COURSE"))),
    (guards.bootstrap, lambda nb: nb.cells.insert(0, new_code_cell("1"))),
    (guards.parameters, edit("SEED = 0", "SEED = int('0')")),
    (guards.parameters, edit("SEED = 0", "SEED = 1")),
    (guards.parameters, edit("SEED = 0", "import os")),
    (guards.parameters, edit("SEED = 0", "SEED = (0")),
    (guards.parameters, edit("SEED = 0\n", "")),
    (guards.parameters, lambda nb: find(nb, "SEED = 0").metadata.update(tags=[])),
    (guards.no_errors, put("settings.n", ERROR)),
    (guards.no_machine_paths, put("settings.n", stream("stdout", "saved /home/ann/x.png"))),
    (guards.no_machine_paths, put("settings.n", stream("stdout", "C:\\Users\\ann"))),
    (guards.no_machine_paths, put("settings.n", stream("stdout", "<object at 0x7f12ab34cd>"))),
    (guards.no_machine_paths, edit("print(settings.n)", 'open("/tmp/points.npy")')),
    (guards.clean_outputs, put("settings.n", stream("stderr", "warning"))),
    (guards.clean_outputs, put("settings.n", WIDGET)),
    (guards.clean_outputs, put("settings.n", PICTURE)),
    (guards.clean_outputs, put("settings.n", html_output('<img src="x">'))),
    (guards.clean_outputs, put("settings.n", html_output('<img alt="" src="x">'))),
    (guards.whole_pictures, put("settings.n", picture(cut=True))),
    (guards.stderr, put("settings.n", stream("stderr", "UserWarning: no"))),
    (guards.clean_outputs, lambda nb: nb.metadata.update(widgets={})),
    (guards.clean_outputs, lambda nb: find(nb, "settings.n").metadata.update(execution={})),
    (guards.equations, edit("<!-- eq: unit-gaussian | derived here -->\n", "")),
    (guards.equations, edit("<!-- eq: unit-gaussian | derived here -->", "<!-- eq: unit -->")),
    (guards.equations, edit("<!-- definition -->\n", "")),
    (guards.equations, edit("<!-- definition -->", "<!-- eq: unit-gaussian | again -->")),
    (guards.equations, edit("$$ y = 2 x $$", "so $$ y = 2 x $$")),
    (guards.equations, edit("$$ y = 2 x $$", "$$ y = 2 x")),
    (guards.unsolved, edit("# Your code here.", "### BEGIN SOLUTION")),
    (guards.size, put("settings.n", stream("stdout", "x" * guards.MAX_BYTES))),
    (lambda nb: guards.start_name(nb, example_notebook.NAME), edit("98_example", "99_other")),
    (lambda nb: guards.start_name(nb, example_notebook.NAME), edit("run.finish()", "pass")),
]


def test_the_example_passes_every_guard(example):
    assert guards.check_built(example, example_notebook.NAME, example_notebook.SOURCE) == []


@pytest.mark.parametrize(("guard", "breaking"), BREAKING)
def test_a_guard_goes_red(example, guard, breaking):
    assert guard(example) == []
    breaking(example)
    assert guard(example) != []


@pytest.mark.parametrize(
    "breaking",
    [
        edit("A promise.", "Another promise."),
        edit("return None", "return x"),
        edit("return 2 * x", "return 3 * x"),
        lambda nb: find(nb, "settings.n").metadata.update(tags=[]),
        lambda nb: nb.cells.pop(),
        lambda nb: nb.cells.append(copy.deepcopy(nb.cells[-1])),
        lambda nb: nb.cells.insert(3, nb.cells.pop(4)),
    ],
)
def test_source_and_notebook_agree_cell_by_cell(example, breaking):
    breaking(example)
    assert guards.agree(example, example_notebook.SOURCE) != []


def test_a_whole_picture_is_left_alone(example):
    put("settings.n", picture(cut=False))(example)
    assert guards.whole_pictures(example) == [] == guards.clean_outputs(example)


def test_build_fails_on_a_warning_and_quotes_it(tmp_path):
    warn = 'import warnings\n\nwarnings.warn("of no use")\nprint(settings.n)'
    source = tmp_path / f"{example_notebook.NAME}.py"
    source.write_text(example_notebook.SOURCE.replace("print(settings.n)", warn), "utf-8")
    with pytest.raises(BuildError, match="writes to stderr: .*UserWarning: of no use"):
        build(example_notebook.NAME, source, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_the_exported_page_shows_the_alt_text(example):
    page, _ = HTMLExporter().from_notebook_node(example)
    assert '<img alt="A line that wiggles about zero." src="data:image/png' in page
    assert "No description has been provided" not in page


def test_equation_ids_are_listed(example):
    assert guards.equation_ids(example) == {"unit-gaussian": "derived here"}


def test_a_base64_picture_is_not_searched_for_paths(example):
    put("settings.n", new_output("display_data", data={"image/png": "a+/home/ann/b"}))(example)
    assert guards.no_machine_paths(example) == []


def test_clean_repairs_outputs(example):
    cell = find(example, "settings.n")
    viewer = "<div id='3dmolviewer_17612345'></div>"
    cell.outputs += [
        stream("stderr", "12 s"),
        WIDGET,
        new_output("display_data", data={"text/html": viewer}),
        stream("stdout", "a"),
        stream("stdout", "b"),
    ]
    cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    example.metadata["widgets"] = {}
    clean(example)
    assert guards.clean_outputs(example) == []
    assert cell.outputs[1].data["text/html"] == "<div id='3dmolviewer_1'></div>"
    assert cell.outputs[-1].text == "ab"


def test_the_authoring_guide_shows_the_placeholder(root):
    guide = (root / "notebooks" / "src" / "AUTHORING.md").read_text(encoding="utf-8")
    assert f'# %% tags=["bootstrap"]\n{bootstrap.PLACEHOLDER}\n' in guide
