"""Headline sentences, each tied to a metric, a bound, a preset and the command that measures it."""

import json
import operator
from dataclasses import dataclass, replace
from pathlib import Path

from rgdm_lib.course.provenance import code_hash

_OPERATORS = {"<=": operator.le, ">=": operator.ge}
README_BEGIN = "<!-- claims:begin -->"
README_END = "<!-- claims:end -->"


@dataclass(frozen=True)
class Claim:
    """``bounds`` are (operator, value) pairs that every seed's value has to meet."""

    id: str
    sentence: str
    notebook: str
    metric: str
    preset: str
    bounds: tuple[tuple[str, float], ...]

    @property
    def command(self) -> str:
        """Command that measures it."""
        number = self.notebook[:2]
        return f"python -m rgdm_lib.course reference {number} --preset {self.preset}"

    @property
    def bound_text(self) -> str:
        """Bounds in words: ``<= 3``, ``0.8 to 1.2``."""
        if [symbol for symbol, _ in self.bounds] == [">=", "<="]:
            return f"{self.bounds[0][1]:g} to {self.bounds[1][1]:g}"
        return ", ".join(f"{symbol} {value:g}" for symbol, value in self.bounds)

    def holds(self, value: float) -> bool:
        """Whether one value meets all bounds."""
        return all(_OPERATORS[symbol](value, bound) for symbol, bound in self.bounds)


_DDPM = "the DDPM built from scratch samples a 2-D distribution almost as well as fresh data would"
_RING = "RGDM with at most 20,000 reward evaluations reaches the exact payoff of a ring"
_GAP = "{} moves QED as far as the payoff distribution does, at an ESS of {} %"
_TRAINED = "guided training alone"
_STRONGER = "guided training, at a strength set on other samples,"


def _ddpm(preset: str, bound: float) -> Claim:
    return Claim(f"ddpm-{preset}", _DDPM, "02_ddpm_from_scratch", "sw_over_floor", preset,
                 (("<=", bound),))  # fmt: skip


def _branch(identity: str, sentence: str, metric: str, *bounds: tuple[str, float]) -> Claim:
    """What a branch of notebook 07's "which method when" rests on."""
    return Claim(identity, sentence, "07_rgdm", metric, "laptop", bounds)


def _ring(preset: str, bound: float) -> Claim:
    return Claim(f"ring-{preset}", _RING, "07_rgdm", "sw_over_floor_ring", preset,
                 (("<=", bound),))  # fmt: skip


def _clouds(identity: str, metric: str, sentence: str, *bounds: tuple[str, float]) -> Claim:
    return Claim(identity, sentence, "08_point_clouds", metric, "laptop", bounds)


def _molecules(identity: str, metric: str, sentence: str, *bounds: tuple[str, float]) -> Claim:
    return Claim(identity, sentence, "09_molecules", metric, "laptop", bounds)


CLAIMS = (
    _ddpm("quick", 3),
    _ddpm("laptop", 1.5),
    *(
        Claim(name, f"{way} at scale 1 samples the exact conditional law", "03_conditional_control",
              metric, "laptop", (("<=", 2),))
        for name, way, metric in (
            ("conditional", "a network conditioned on the class", "conditional_over_floor"),
            ("classifier", "guidance by a classifier of noisy states", "classifier_over_floor"),
        )
    ),
    Claim("reinforce-laptop", "REINFORCE agrees with the exact policy gradient of a finite chain, "
          "within three standard errors in four directions fixed beforehand",
          "04_denoising_as_an_mdp", "reinforce_gradient_error_over_standard_error", "laptop",
          ((">=", 0), ("<=", 3))),
    *(
        Claim(f"{kl}-kl", f"{what} finds the best single Gaussian of its kind for a payoff with "
              "two modes", "05_max_entropy_link", f"{kl}_kl_fit_relative_error", "laptop",
              (("<=", 0.01),))
        for kl, what in (("forward", "imitation"), ("reverse", "play"))
    ),
    Claim("tempering-balanced", "four rounds of tempering with balance weights end at the "
          "temperature that was asked for", "06_payoff_sampling",
          "tau_over_reached_balanced_4_rounds", "laptop", ((">=", 0.98), ("<=", 1.02))),
    Claim("gradient-variance", "at the reference, at an ESS of 40 %, the payoff gradient has a "
          "tenth of REINFORCE's relative variance", "06_payoff_sampling",
          "gradient_variance_ratio_ess40", "laptop", ((">=", 10),)),
    _ring("quick", 4),
    _ring("laptop", 1.5),
    Claim("ring-worst", "so do all three trainings of the long experiment: the worst of them",
          "07_rgdm", "sw_over_floor_ring_worst", "laptop", (("<=", 1.5),)),
    Claim("rare", "RGDM with at most 50,000 reward evaluations reaches the exact payoff of a mode "
          "that had a thousandth of the reference, from a base that was pretrained on more of it",
          "07_rgdm", "sw_over_floor_rare", "laptop", (("<=", 5),)),
    Claim("indicator", "the mass in the region of an indicator reward is the exact payoff's",
          "07_rgdm", "indicator_mass_error", "laptop", (("<=", 0.02),)),
    Claim("frontier", "RGDM at three temperatures lies on the exact reward-KL frontier of the ring",
          "07_rgdm", "frontier_gap", "laptop", (("<=", 0.05),)),
    Claim("ring-moves", "RGDM moves the modes of the ring as far as the exact payoff does",
          "07_rgdm", "mode_displacement_error_over_standard_error", "laptop", (("<=", 3),)),
    Claim("8d", "RGDM with 20,000 reward evaluations reaches the exact payoff of a mixture in 8 "
          "dimensions, the worst of five seeds", "07_rgdm", "sw_over_floor_mixture8d", "laptop",
          (("<=", 2.5),)),
    Claim("8d-modes", "its modes have the exact payoff's shares: L1 distance beyond an exact "
          "sample's, the worst of five seeds", "07_rgdm", "mode_l1_rgdm", "laptop",
          (("<=", 0.03),)),
    Claim("8d-ddpo", "the best tuned DDPO needs ten times as many reward evaluations as RGDM",
          "07_rgdm", "ddpo_over_rgdm_reward_evaluations", "laptop", ((">=", 10),)),
    _branch("particles", "for a crowd of samples, particles, which train nothing, end nearer to "
            "the payoff than RGDM", "particles_over_rgdm_distance", ("<=", 1)),
    _branch("best-of-n", "the best of n, for any n tried, does not",
            "best_of_n_over_particles_distance", (">=", 1.5)),
    _branch("soft-value", "steering by the reward's gradient at the denoised guess ends further "
            "away than steering by a learned soft value's",
            "reward_gradient_over_value_guidance_distance", (">=", 1.2)),
    _branch("few-rewards", "with 1,250 rewards a learned soft value is nearer than RGDM",
            "value_guidance_over_rgdm_distance_at_1250", ("<=", 0.8)),
    _branch("reads-reward", "a network that reads the reward ends as near as RGDM, to 0.2 floors",
            "conditional_minus_rgdm_distance", (">=", -0.2), ("<=", 0.2)),
    _branch("iterated", "iterated weights go away from the payoff in their second round",
            "second_over_first_round_distance", (">=", 2)),
    _clouds("clouds-base", "base_1nna_cd_excess",
            "1-NNA between the base model's point clouds and held-out shapes is near one half",
            ("<=", 0.15)),
    _clouds("clouds-class", "class_accuracy",
            "rewarded for a classifier's logit at an ESS of 10 %, the model makes what another "
            "classifier calls the wanted class", (">=", 0.98)),
    _clouds("clouds-class-quality", "class_1nna_cd_change",
            "within the class its clouds are as near to held-out ones as those of the best model "
            "that is told the label: 1-NNA, RGDM minus that model", ("<=", 0.05)),
    _clouds("clouds-shares", "class_share_l1",
            "the shares of the classes are the exact payoff's, L1, the largest over the "
            "temperatures that ship", ("<=", 0.08)),
    _clouds("clouds-stand", "falling_ratio",
            "rewarded for standing with 5 cm to spare, a fifth as many chairs fall as from the "
            "base", (">=", 5)),
    _clouds("clouds-stand-quality", "standing_mmd_cd_ratio",
            "and they are no farther from held-out chairs that stand: MMD-CD over the base's",
            ("<=", 1.1)),
    _clouds("clouds-parameters", "parameter_ks_over_floor",
            "the parameters of these chairs follow the exact payoff's law: largest KS distance "
            "over its floor", ("<=", 3)),
    _molecules("molecules-stable", "base_mol_stable",
               "the base model's molecules are stable by EDM's rule, under a neutral sampler",
               (">=", 0.70)),
    _molecules("atoms-stable", "base_atom_stable",
               "the base model's atoms are stable by EDM's rule", (">=", 0.96)),
    _molecules("valid", "base_valid", "RDKit accepts the base model's molecules", (">=", 0.85)),
    _molecules("elements", "base_element_error",
               "the base model uses each element as often as real molecules of its sizes",
               ("<=", 0.01)),
    _molecules("base-qed", "base_qed_error",
               "the base model's stable molecules have the QED of real ones of their sizes",
               (">=", -0.004), ("<=", 0.004)),
    _molecules("corrected-elements", "corrected_element_error",
               "guided away from what it learns from samples of its own it does: the share of no "
               "element is off by more than a hundredth", ("<=", 0.01)),
    _molecules("corrected-qed", "corrected_qed_error",
               "so guided, its stable molecules have the QED of real ones of their sizes",
               (">=", -0.004), ("<=", 0.004)),
    _molecules("corrected-stable", "corrected_mol_stable",
               "so guided, more of its molecules are stable, without any reward", (">=", 0.75)),
    _molecules("memorisation", "base_memorisation_ratio",
               "the base model's samples lie about as far from the training set as held-out "
               "molecules do", (">=", 0.5)),
    *(
        _molecules(f"qed{end}-ess{share}", f"qed_gap_closed{at}_ess{share}",
                   _GAP.format(what, share), (">=", low), ("<=", high))
        for end, at, what in (("-trained", "_at_1", _TRAINED), ("", "", _STRONGER))
        for share, low, high in ((80, 0.9, 1.1), (40, 0.9, 1.1), (10, 0.8, 1.2))
    ),
    _molecules("qed-law", "qed_ks_excess_ess40",
               "at that strength and an ESS of 40 % the whole distribution of QED comes along, not "
               "its mean alone", ("<=", 0.05)),
    _molecules("validity", "validity_change_ess40",
               "and it costs little validity", (">=", -0.03)),
    _molecules("stability", "stability_change_ess40",
               "and it costs little stability", (">=", -0.03)),
    _molecules("qed-corrected", "qed_gap_closed_corrected_ess40_worst",
               "from the corrected base, too, QED moves as far as the payoff distribution does, at "
               "an ESS of 40 % and a strength set on other samples: the worst of all training "
               "seeds", (">=", 0.9), ("<=", 1.1)),
    _molecules("qed-corrected-ess10", "qed_gap_closed_corrected_ess10_worst",
               "and at an ESS of 10 %", (">=", 0.8), ("<=", 1.2)),
    _molecules("qed-corrected-ess80", "qed_gap_closed_corrected_ess80",
               "and at an ESS of 80 %, where the gap is so small that one set of samples tells it "
               "to a tenth: the mean of the training seeds", (">=", 0.9), ("<=", 1.1)),
    _molecules("qed-corrected-law", "qed_ks_excess_corrected_ess40",
               "at 40 % the whole distribution of QED comes along, in each training",
               ("<=", 0.05)),
    _molecules("qed-corrected-stable", "stability_change_corrected_ess40",
               "and it costs the corrected base little stability, in each training",
               (">=", -0.03)),
    _molecules("stability-reward", "stability_mol_stable",
               "rewarded for EDM's molecule stability, a model at the strength set on other "
               "samples has the payoff's own share of stable molecules, 95 %, to 3 points",
               (">=", 0.92), ("<=", 0.98)),
    _molecules("stability-reward-different", "stability_valid_unique_change",
               "and at least as many valid and different ones as the base", (">=", 0)),
    _molecules("property-alpha", "property_mae_ratio_alpha",
               "guided to a wanted polarizability, a conditional model misses it by less than one "
               "that was trained as long on real molecules", ("<=", 0.8)),
    _molecules("property-mu", "property_mae_ratio_mu", "the same for a dipole moment", ("<=", 0.8)),
    _molecules("property-gap", "property_mae_ratio_gap", "the same for a gap of orbitals",
               ("<=", 0.8)),
    _molecules("property-mu-physics", "property_mae_ratio_mu_by_gfn2",
               "and a physical model says so of the dipole moment, too", ("<=", 0.9)),
    _molecules("property-stable", "property_stable_change",
               "no fewer of the guided model's molecules are stable", (">=", 0)),
    _molecules("property-different", "property_unique_change",
               "and no fewer are different, to 2 points", (">=", -0.02)),
    _molecules("relaxed-trained", "relaxation_energy_ratio_at_1",
               "rewarded for a low relaxation energy by one physical model, a trained model's is "
               "lower than the base's by another one's word", ("<=", 0.8)),
    _molecules("relaxed", "relaxation_energy_ratio",
               "so is that of the same model at the strength that meets the payoff's energy",
               ("<=", 0.8)),
)  # fmt: skip


@dataclass(frozen=True)
class Status:
    """Where a claim stands: ``outcome`` is "pass", "fail" or "not run"; ``values`` one a seed."""

    claim: Claim
    outcome: str
    values: tuple[float, ...] = ()
    stale: bool = False  # measured by other code than the present one

    @property
    def measured(self) -> str:
        """Mean, spread and number of seeds, in words."""
        if not self.values:
            return "-"
        mean = sum(self.values) / len(self.values)
        if len(self.values) == 1:
            return f"{mean:.3g} (1 seed)"
        spread = max(self.values) - min(self.values)
        return f"{mean:.3g} (range {spread:.2g}, {len(self.values)} seeds)"


def judge(claim: Claim, values: list[float] | None) -> Status:
    """Compare a claim with the values of its metric, one a seed; None or []: nobody ran it."""
    if not values:
        return Status(claim, "not run")
    outcome = "pass" if all(claim.holds(value) for value in values) else "fail"
    return Status(claim, outcome, tuple(values))


def from_reference(folder: Path, notebooks: Path | None = None) -> list[Status]:
    """Status of every claim by the reference results in ``folder``.

    With the folder of the notebooks, results that other code than the present one gave are marked
    stale. Raises ValueError, naming the file, for reference results that cannot be read.
    """
    current: dict[str, str] = {}
    statuses = []
    for claim in CLAIMS:
        path = folder / f"{claim.notebook}.{claim.preset}.json"
        record = read_reference(path) if path.is_file() else {"metrics": {}}
        status = judge(claim, record["metrics"].get(claim.metric, {}).get("values"))
        if notebooks is not None and status.values:
            notebook = notebooks / f"{claim.notebook}.ipynb"
            if claim.notebook not in current:
                current[claim.notebook] = code_hash(notebook) if notebook.is_file() else ""
            status = replace(status, stale=record.get("code") != current[claim.notebook])
        statuses.append(status)
    return statuses


def read_reference(path: Path) -> dict:
    """Read a file of reference results; ValueError, naming it, when it cannot be used."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["metrics"], dict):
            raise ValueError("its metrics are not a table")
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} holds no reference results: {problem}") from None
    return record


def from_run(results: dict) -> list[Status]:
    """Status of the claims on one run's notebook and preset; ``results`` is its results.json."""
    metrics = results["metrics"]
    return [
        judge(claim, [metrics[claim.metric]["value"]] if claim.metric in metrics else None)
        for claim in CLAIMS
        if (claim.notebook, claim.preset) == (results["notebook"], results["preset"])
    ]


def readme_table(statuses: list[Status]) -> str:
    """Return the README's block of claims, markers included."""
    lines = [
        README_BEGIN,
        "| claim | where | bound | measured | |",
        "|---|---|---|---|---|",
        *(
            f"| {s.claim.sentence} | {s.claim.notebook[:2]} {s.claim.preset}, "
            f"`{s.claim.metric}` | {s.claim.bound_text} | {s.measured} | {s.outcome} |"
            for s in statuses
        ),
        README_END,
    ]
    return "\n".join(lines)


def update_readme(text: str, statuses: list[Status]) -> str:
    """Return the README's text with its block of claims replaced; ValueError without markers."""
    before, begin, rest = text.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not begin or not end:
        raise ValueError(f"the README has no {README_BEGIN} ... {README_END} block")
    return before + readme_table(statuses) + after
