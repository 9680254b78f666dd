"""Long experiments by name; each is a function elsewhere, imported only when it is run."""

import importlib
import inspect
from collections.abc import Callable

from rgdm_lib.molecules import qm9pack

EXPERIMENTS = {
    "molecules-base": "rgdm_lib.molecules.experiments:train_base",
    "molecules-base-samples": "rgdm_lib.molecules.experiments:sample_base",
    "molecules-correction": "rgdm_lib.molecules.correction:correct_base",
    "molecules-corrected-qed": "rgdm_lib.molecules.correction:guide_corrected",
    "molecules-qed": "rgdm_lib.molecules.experiments:guide_qed",
    "molecules-longer": "rgdm_lib.molecules.longer:guide_longer",
    "molecules-strength": "rgdm_lib.molecules.experiments:strengthen_qed",
    "molecules-redraw": "rgdm_lib.molecules.experiments:redraw_qed",
    "molecules-stability": "rgdm_lib.molecules.stability:guide_stability",
    "molecules-stability-strength": "rgdm_lib.molecules.stability:strengthen_stability",
    "molecules-relaxation": "rgdm_lib.molecules.relaxation:guide_relaxation",
    "molecules-relaxation-strength": "rgdm_lib.molecules.relaxation:strengthen_relaxation",
    "molecules-rivals": "rgdm_lib.molecules.rivals:compare",
    "molecules-property": "rgdm_lib.molecules.properties:target_properties",
    "molecules-property-classifier": "rgdm_lib.molecules.property_guidance:steer_properties",
    "molecules-property-physics": "rgdm_lib.molecules.properties:judge_properties",
    "molecules-property-strength": "rgdm_lib.molecules.properties:strengthen_properties",
    "shapes-base": "rgdm_lib.shapes.experiments:train_base",
    "shapes-pointwise": "rgdm_lib.shapes.pointwise:compare",
    "shapes-classifiers": "rgdm_lib.shapes.experiments:train_classifiers",
    "shapes-rgdm": "rgdm_lib.shapes.experiments:guide",
    "shapes-rivals": "rgdm_lib.shapes.rivals:compare",
    "shapes-strength": "rgdm_lib.shapes.experiments:strengthen_guided",
    "worlds-rgdm": "rgdm_lib.accuracy:measure",
    "worlds-rivals": "rgdm_lib.comparison:compare_rivals",
}


def load(name: str) -> Callable:
    """Import an experiment: ``function(preset=str, out=Path, **options)``, resumable."""
    module, _, function = EXPERIMENTS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def require(name: str, preset: str) -> None:
    """Raise ValueError if data that an experiment's preset needs is missing."""
    if name.startswith("molecules") and preset == "full":
        qm9pack.require_full()


def options_of(function: Callable) -> dict[str, object]:
    """Names and defaults of an experiment's own options."""
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("preset", "out")}
