"""What a run leaves behind: ``results.json`` (comparable byte by byte) and ``run.json`` (not)."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

SCHEMA = "rgdm-results/1"
PRESETS = ("quick", "laptop", "full")
SEEDS = range(2**63)  # what numpy, torch and JSON's readers all take


@dataclass(frozen=True)
class Metric:
    """One measured number: ``n`` is how many points are behind it, ``unit`` "1" means none."""

    value: float
    unit: str
    n: int
    definition: str


def results_text(notebook: str, preset: str, seed: int, metrics: dict[str, Metric]) -> str:
    """Text of ``results.json``: sorted keys, no times, no paths."""
    record = {
        "schema": SCHEMA,
        "notebook": notebook,
        "preset": preset,
        "seed": seed,
        "metrics": {name: asdict(metric) for name, metric in metrics.items()},
    }
    return dumps(record)


def dumps(record: dict) -> str:
    """JSON as this course writes it: sorted keys, two spaces, no NaN, a newline at the end."""
    return json.dumps(record, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def run_folder(out: Path, preset: str, notebook: str, seed: int) -> Path:
    """Folder of one run: ``out/preset/NN_name``, with ``-seed-K`` after it unless K is 0."""
    return out / preset / (notebook if seed == 0 else f"{notebook}-seed-{seed}")


def read_results(path: Path) -> dict:
    """Read a ``results.json``; ValueError when it is not JSON or has another schema."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {record.get('schema')!r}, not {SCHEMA!r}")
    return record


def difference(first: bytes, second: bytes) -> list[str]:
    """What differs between two ``results.json``, metric by metric; empty when byte-identical."""
    if first == second:
        return []
    a, b = json.loads(first), json.loads(second)
    lines = [
        f"{key}: {a.get(key)!r} and {b.get(key)!r}"
        for key in sorted((a.keys() | b.keys()) - {"metrics"})
        if a.get(key) != b.get(key)
    ]
    metrics_a, metrics_b = a["metrics"], b["metrics"]
    for name in sorted(metrics_a.keys() | metrics_b.keys()):
        if name not in metrics_a or name not in metrics_b:
            lines.append(f"metric {name}: only in one of the two runs")
        elif metrics_a[name] != metrics_b[name]:
            fields = [k for k, v in metrics_a[name].items() if v != metrics_b[name].get(k)]
            shown = ", ".join(
                f"{k} {metrics_a[name][k]!r} and {metrics_b[name].get(k)!r}" for k in fields
            )
            lines.append(f"metric {name}: {shown}")
    return lines or ["the files differ in their bytes but not in their content"]


def aggregate(records: list[dict]) -> dict[str, dict]:
    """Metrics of several seeds: values, mean, std (n - 1), tolerance 4 std, definition, unit, n.

    Raises ValueError when a metric is missing in a seed or is defined differently.
    """
    names = records[0]["metrics"].keys()
    summary = {}
    for record in records[1:]:
        odd = sorted(names ^ record["metrics"].keys())
        if odd:
            raise ValueError(f"seed {record['seed']}: metrics {odd} are not in every run")
    for name in names:
        entries = [record["metrics"][name] for record in records]
        for key in ("unit", "definition"):
            if len({entry[key] for entry in entries}) > 1:
                raise ValueError(f"metric {name}: its {key} differs between seeds")
        values = [entry["value"] for entry in entries]
        mean = math.fsum(values) / len(values)
        std = None
        if len(values) > 1:
            std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
        summary[name] = {
            "values": values,
            "mean": mean,
            "std": std,
            "seeds": len(values),
            "tolerance": None if std is None else 4 * std,
            "unit": entries[0]["unit"],
            "definition": entries[0]["definition"],
            "n": entries[0]["n"],
        }
    return summary
