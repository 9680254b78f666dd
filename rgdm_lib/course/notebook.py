"""What a notebook calls: seeds and settings at its start, metrics, figures, results at its end.

Works with the IPython of Colab (7.34); imports neither papermill nor jupytext.
"""

import base64
import html
import importlib.metadata
import io
import math
import os
import platform
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from rgdm_lib._files import write_whole
from rgdm_lib.course.results import (
    PRESETS,
    SEEDS,
    Metric,
    dumps,
    results_text,
    run_folder,
)

# Okabe and Ito's palette: told apart with any colour vision.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.figsize": (6.0, 3.8),
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": matplotlib.cycler(color=_COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "image.cmap": "viridis",
}
_VERSIONS_OF = ("rgdm_lib", "torch", "numpy", "scipy", "rdkit", "matplotlib", "pot")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def start(name: str, preset: str, seed: int, out_dir: str) -> "Run":
    """Begin a notebook's run: check the parameters, seed everything, make the run's folder.

    ``name`` is the notebook's file name without suffix. Seeds ``random``, ``numpy`` and ``torch``,
    sets matplotlib's style, makes denormal numbers zero (they slow training tenfold).
    The folder is ``<out_dir>/<preset>/<name>``, for a seed other than 0 with ``-seed-K`` after it.
    Raises ValueError for an unknown preset or a seed outside 0 to 2^63 - 1, TypeError for a seed
    that is not an integer.
    """
    if preset not in PRESETS:
        raise ValueError(f"PRESET is {preset!r}; use one of {', '.join(PRESETS)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"SEED must be an integer, got {seed!r}")
    if seed not in SEEDS:
        raise ValueError(f"SEED must be from 0 to 2^63 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    plt.rcParams.update(_STYLE)
    folder = run_folder(Path(out_dir), preset, name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(name, preset, seed, folder)


def image_html(png: bytes, alt: str) -> str:
    """Return a picture as HTML with its alt text.

    The alt text in an output's metadata is shown neither by JupyterLab nor by nbconvert's default
    page.
    """
    content = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{content}">'


class Run:
    """One run of one notebook; made by `start`."""

    def __init__(self, name: str, preset: str, seed: int, folder: Path):
        self.name = name
        self.preset = preset
        self.seed = seed
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._metrics: dict[str, Metric] = {}
        self._started = time.time()

    def settings(self, *, quick: dict, laptop: dict, full: dict) -> SimpleNamespace:
        """Return the chosen preset's settings as attributes; the three share their keys."""
        if not quick.keys() == laptop.keys() == full.keys():
            odd = (quick.keys() | laptop.keys() | full.keys()) - (
                quick.keys() & laptop.keys() & full.keys()
            )
            raise ValueError(f"settings {sorted(odd)} are not given for every preset")
        return SimpleNamespace(**{"quick": quick, "laptop": laptop, "full": full}[self.preset])

    def metric(
        self,
        name: str,
        value: float,
        unit: str,
        n: int,
        definition: str,
        *,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> None:
        """Print and record one number; see `rgdm_lib.course.results.Metric`.

        ``floor`` and ``ceiling`` (an exact or real sample of the same size; the data) are printed
        beside it and recorded as metrics ``<name>_floor`` and ``<name>_ceiling``. Recording a name
        again replaces it, so that a cell can be run twice, but not under another definition.
        Raises ValueError for a bad name, a value that is not finite, or a changed definition.
        """
        beside = ""
        for suffix, bound in (("floor", floor), ("ceiling", ceiling)):
            if bound is not None:
                meaning = f"{suffix} of {name}: {definition}"
                self._record(f"{name}_{suffix}", bound, unit, n, meaning)
                beside += f", {suffix} {float(bound):.4g}"
        self._record(name, value, unit, n, definition)
        shown_unit = "" if unit == "1" else f" {unit}"
        print(f"{name} = {float(value):.4g}{shown_unit}{beside} (n = {n:,})")

    def _record(self, name: str, value: float, unit: str, n: int, definition: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r}: use snake_case")
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}: results hold finite numbers only")
        old = self._metrics.get(name)
        if old is not None and (old.unit, old.definition) != (unit, definition):
            raise ValueError(f"metric {name} is already recorded under another definition")
        self._metrics[name] = Metric(value, unit, int(n), definition)

    def figure(self, fig: "plt.Figure", name: str, *, alt: str, see: str) -> None:
        """Show a figure with its alt text, print what to see in it, save it, close it.

        Saved as ``figures/<name>.png`` in the run's folder. ``alt`` says what a reader who cannot
        see it needs; ``see`` is one sentence under it.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"figure name {name!r}: use snake_case")
        buffer = io.BytesIO()
        # tight: the picture grows around a title or label that would be cut off at the edge
        fig.savefig(
            buffer, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.1
        )
        plt.close(fig)
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        display({"text/html": image_html(buffer.getvalue(), alt), "text/plain": f"[Figure: {alt}]"},
                raw=True)  # fmt: skip
        display(Markdown(f"**See:** {see}"))

    def finish(self) -> None:
        """Write ``results.json`` and ``run.json`` into the run's folder; print the metrics."""
        text = results_text(self.name, self.preset, self.seed, self._metrics)
        write_whole(self.folder / "results.json", text)
        write_whole(self.folder / "run.json", dumps(self._circumstances()))
        width = max((len(name) for name in self._metrics), default=0)
        for name in sorted(self._metrics):
            metric = self._metrics[name]
            unit = "" if metric.unit == "1" else f" {metric.unit}"
            print(f"{name:<{width}}  {metric.value:.4g}{unit} (n = {metric.n:,})")
        print(f"{len(self._metrics)} metrics written to results.json")

    def _circumstances(self) -> dict:
        versions = {"python": platform.python_version()}
        for package in _VERSIONS_OF:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "not installed as a package"
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {
            "notebook": self.name,
            "preset": self.preset,
            "seed": self.seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "seconds": round(time.time() - self._started, 1),
            "versions": versions,
            "device": device,
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "platform": platform.platform(),
        }
