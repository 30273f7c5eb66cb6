"""A report in a few lines for the terminal."""

from __future__ import annotations

from typing import Any

from kcdp.training.reports.intervals import FIGURES


def summary(report: dict[str, Any]) -> str:
    """The first dataset's figures with intervals beside the constant answer's; a line for each other dataset."""
    metrics = report["metrics"]
    constant = metrics["constant_baseline"]
    lines = [
        f"{metrics['n']} pictures of {report['data']}",
        f"{'':22}{'model':>8}  {'95 % interval':16}{'always ' + constant['answer']:>16}",
    ]
    for key, name in zip(FIGURES, ("balanced accuracy", "macro F1", "accuracy"), strict=True):
        low, high = report["intervals"][key]
        lines.append(f"{name:22}{metrics[key]:8.3f}  {f'{low:.3f} to {high:.3f}':16}{constant[key]:16.3f}")
    recalls = (
        f"{name} {'-' if value is None else f'{value:.2f}'} ({metrics['support'][name]})"
        for name, value in metrics["recall"].items()
    )
    lines.append("recall (pictures): " + ", ".join(recalls))
    use = " ".join(f"{share:.2f}" for share in report["experts"]["chosen"])
    lines.append(f"experts answered for {use} of the pictures")
    for name, group in report.get("groups", {}).items():
        lines.append(f"  {name:20}{group['balanced_accuracy']:8.3f}  balanced accuracy, {group['n']} pictures")
    for row in report["datasets"][1:]:
        lines.append(_line(row["metrics"], row["data"]))
    if report["validation"]:
        lines.append(_line(report["validation"]["metrics"], f"{report['validation']['data']} (source validation)"))
    abstention = report["abstention"]
    if abstention and abstention["threshold"] is not None:
        lines.append(
            f"below a confidence of {abstention['threshold']:.2f} no answer: {abstention['neutral_rejected']:.0%} of "
            f"neutral pictures rejected, {abstention['emotional_kept']:.0%} of emotional ones kept"
        )
    return "\n".join(lines)


def _line(metrics: dict[str, Any], name: str) -> str:
    return f"{'balanced accuracy':22}{metrics['balanced_accuracy']:8.3f}  {metrics['n']} pictures of {name}"
