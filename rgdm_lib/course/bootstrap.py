"""The cell at the head of every notebook: in Colab it installs the course, elsewhere it explains.

Sources hold `PLACEHOLDER`; the cell is put in its place when they are read. The address and the
tag are set here and nowhere else in the course (pyproject.toml and CITATION.cff: a test compares).
"""

from rgdm_lib import __version__

REPOSITORY = "https://github.com/rgdm-course/rgdm"
TAG = f"v{__version__}"
PLACEHOLDER = "# rgdm_lib.course.bootstrap.CELL"

CELL = f"""\
# In Colab this installs the course; elsewhere it only looks whether this kernel has it.
import importlib.util
import subprocess
import sys

COURSE = "rgdm_lib[course] @ git+{REPOSITORY}@{TAG}"
if importlib.util.find_spec("rgdm_lib") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError(
            f"this kernel ({{sys.executable}}) has no rgdm_lib. Choose the kernel of the course's "
            "environment (`make lab` opens it), or run this in a terminal, in the clone:\\n"
            f'{{sys.executable}} -m pip install -e ".[course]"'
        )
    pip = [sys.executable, "-m", "pip", "install", "-q", COURSE]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"{{COURSE}} could not be installed:\\n{{done.stderr.strip()[-1500:]}}\\n"
            "Mend that, restart the session (menu Runtime) and run this cell again."
        )"""
