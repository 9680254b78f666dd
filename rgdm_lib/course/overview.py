"""What a page of all results needs: how tight a claim is, and any number that was measured."""

from pathlib import Path

from rgdm_lib.course.claims import Claim, read_reference


def strain(claim: Claim, value: float) -> float:
    """How much of what its bounds allow a value uses: at most 1 exactly where the claim holds.

    ``<= b``: value / b. ``>= b``: b / value, or value / b where b is below 0 (a loss over the loss
    allowed). Two bounds: the distance from their middle over half their distance; a lower bound of
    0 beside an upper one only says that the number is not negative, so value / b. At or below 0
    where nothing of the allowance is used, infinite for a value at or below 0 that has to be above.
    ``>= 0`` alone allows nothing that could be used: 0 where it holds, else infinite.

    Raises:
        ValueError: bounds of another kind.
    """
    match claim.bounds:
        case ((">=", low), ("<=", high)) if low < high and low != 0:
            return abs(value - (low + high) / 2) / ((high - low) / 2)
        case ((">=", 0), ("<=", bound)) | (("<=", bound),) if bound > 0:
            return value / bound
        case ((">=", bound),) if bound > 0:
            return bound / value if value > 0 else float("inf")
        case ((">=", bound),) if bound < 0:
            return value / bound
        case ((">=", 0),):
            return 0.0 if value >= 0 else float("inf")
    raise ValueError(f"claim {claim.id}: no scale for the bounds {claim.bound_text}")


def measured(folder: Path, notebook: str, preset: str, metric: str) -> tuple[float, ...]:
    """Reference values of a metric, one a seed; empty where nobody measured it.

    Raises ValueError, naming the file, for reference results that cannot be read.
    """
    path = folder / f"{notebook}.{preset}.json"
    record = read_reference(path) if path.is_file() else {"metrics": {}}
    return tuple(record["metrics"].get(metric, {}).get("values", ()))


def in_words(values: tuple[float, ...], form: str = ".3g") -> str:
    """The mean of values, one a seed, formatted; "not measured" where there are none."""
    return format(sum(values) / len(values), form) if values else "not measured"
