"""The report as a page: Markdown that reads well on GitHub, with its pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kcdp.labels import LABELS
from kcdp.training.reports.intervals import FIGURES
from kcdp.training.reports.specs import specs

HEADS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "accuracy": "accuracy"}
_PSEUDO = {
    "pseudo_accuracy": "right, of all", "pseudo_accuracy_counted": "right, of those that counted",
    "pseudo_share": "share that counted",
}  # fmt: skip


def report_text(report: dict[str, Any]) -> str:
    """The whole page.

    Args:
        report: see ``write_report``.
    """
    parts = [
        _head(report),
        _results(report),
        *(_dataset(row, len(report["datasets"]) > 1) for row in report["datasets"]),
        _abstention(report["abstention"]),
        _embedding(report["embedding"]),
        _training(report),
        _reading(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """A Markdown table.

    Args:
        heads: of the columns.
        rows: cells, Markdown; a "|" is escaped.
        numbers: the column from which on cells are aligned to the right; None: none.
    """
    right = len(heads) if numbers is None else numbers
    rule = "".join("---|" if i < right else "---:|" for i in range(len(heads)))
    lines = ["| " + " | ".join(heads) + " |", f"|{rule}"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def code(text: str) -> str:
    """Text as code, whatever it holds."""
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"


def number(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Three digits, and the interval where there is one; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _head(report: dict[str, Any]) -> str:
    checkpoint, config = report["checkpoint"], report["configuration"]
    progress, data = checkpoint["progress"], config["data"]
    source, target = (", ".join(map(code, specs(data[name]))) for name in ("source", "target"))
    seen = [
        f"preset {config['preset']}, profile {config['profile']}, seed {config['training']['seed']}",
        f"source {source or 'not named'}",
        f"target {target}, unlabelled" if target else "no target (source only)",
    ]
    chosen = f"step {progress['step']}" if "step" in progress else "step unknown"
    rows = [
        ["checkpoint", f"{code(checkpoint['file'])}, {chosen}, SHA-256 {code(checkpoint['sha256'][:16])}"],
        ["training", "; ".join(seen)],
        ["measured with", ", ".join(f"{name} {version}" for name, version in report["versions"].items())
         + f"; {report['device']}, float32"],
        ["date", report["date"]],
    ]  # fmt: skip
    warnings = [f"> **Warning:** {code(data)}: {text}." for data, text in report["warnings"]]
    parts = [f"# Evaluation of {report['model']}", "\n>\n".join(warnings), table(["", ""], rows),
             f"```sh\n{report['command']}\n```"]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _results(report: dict[str, Any]) -> str:
    rows = [*report["datasets"], *([report["validation"]] if report["validation"] else [])]
    cells = []
    for row in rows:
        metrics, constant = row["metrics"], row["metrics"]["constant_baseline"]
        cells.append([
            which(row), str(metrics["n"]),
            *(number(metrics[name], row["intervals"][name]) for name in FIGURES),
            f"{constant['answer']}: " + " / ".join(number(constant[name]) for name in FIGURES),
        ])  # fmt: skip
    heads = ["pictures of", "n", *(HEADS[name] for name in FIGURES), "always one answer (the same three)"]
    notes = ["In brackets: 95 % bootstrap intervals."]
    if report["no_validation"]:
        notes.append(f"The source's validation pictures were not measured: {report['no_validation']}.")
    return "\n\n".join(["## Results", table(heads, cells, numbers=1), " ".join(notes)])


def which(row: dict[str, Any]) -> str:
    """Which pictures: the dataset string, and what it does not say of itself."""
    if row["role"] != "measured":
        return f"{code(row['data'])} ({row['role']})"
    said = row["split"] == "all" or f"split={row['split']}" in row["data"]
    return code(row["data"]) + ("" if said else f" ({row['split']} split)")


def _dataset(row: dict[str, Any], several: bool) -> str:
    metrics, files = row["metrics"], row["files"]
    classes = [
        [name, *(number(metrics[key][name]) for key in ("recall", "precision", "f1")), str(metrics["support"][name])]
        for name in LABELS
    ]
    parts = [f"## {which(row)}" if several else "## By class",
             table(["class", "recall", "precision", "F1", "pictures"], classes, numbers=1)]  # fmt: skip
    if row.get("groups"):
        groups = [
            [code(name), str(group["n"]), *(number(group[f], row["group_intervals"][name][f]) for f in FIGURES)]
            for name, group in row["groups"].items()
        ]
        parts.append(table(["group", "n", *(HEADS[name] for name in FIGURES)], groups, numbers=1))
    parts.append(f"![Confusion matrix]({files['confusion']})")
    parts += ["### Confidence", _calibration(row["calibration"]), f"![Reliability diagram]({files['reliability']})"]
    if "mistakes" in files:
        parts += ["### Mistakes", f"The {len(row['mistakes'])} wrong answers that the model was surest of.",
                  f"![Most confident mistakes]({files['mistakes']})"]  # fmt: skip
    else:
        parts.append("There are no mistakes.")
    parts.append("### Experts")
    if "experts" in files:
        shares = ", ".join(f"{share:.2f}" for share in row["experts"]["chosen"])
        parts += [f"Share of pictures that each expert answered for: {shares}.", f"![Expert use]({files['experts']})"]
    else:
        parts.append("The network has one expert or none: there is no choice to show.")
    return "\n\n".join(parts)


def _calibration(found: dict[str, Any]) -> str:
    before, after = found["before"], found["after"]
    text = (
        f"Mean confidence {before['confidence']:.3f} at an accuracy of {before['accuracy']:.3f}; expected calibration "
        f"error {100 * before['ece']:.1f} % (15 bins), negative log-likelihood {before['nll']:.3f}."
    )
    if after is None:
        return text + " No temperature: there are no other labelled pictures it could have been fitted on."
    return text + (
        f" With the temperature {found['temperature']:.2f}, fitted on the source's validation pictures: "
        f"{100 * after['ece']:.1f} % and {after['nll']:.3f}. A temperature changes no answer."
    )


def _abstention(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    head = "## Abstention"
    about = (f"{found['pictures']} pictures without an emotion ({code(found['neutral'])}) beside those of "
             f"{code(found['emotional'])}.")  # fmt: skip
    if found["threshold"] is None:
        return f"{head}\n\n{about} Too few of one sort to choose a threshold on one half and measure it on the other."
    chosen, measured = found["chosen_on"], found["measured_on"]
    rows = [
        ["AUROC, emotional against neutral", number(found["auroc"])],
        ["neutral pictures rejected", number(found["neutral_rejected"])],
        ["emotional pictures kept", number(found["emotional_kept"])],
        ["accuracy of all emotional pictures", number(found["accuracy_all"])],
        ["accuracy of those kept", number(found["accuracy_kept"])],
    ]
    return "\n\n".join([
        head,
        f"{about} Below a confidence of {found['threshold']:.3f} no answer is given. This threshold was chosen on "
        f"{chosen['emotional']} emotional and {chosen['neutral']} neutral pictures, so that the share of emotional "
        f"pictures kept and that of neutral ones rejected are largest together; the figures are of the other "
        f"{measured['emotional']} and {measured['neutral']}. AUROC is 0.5 where confidence tells nothing.",
        table(["of the measuring half", ""], rows, numbers=1),
        f"![Risk and coverage]({found['files']['abstention']})",
    ])  # fmt: skip


def _embedding(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    shown = ", ".join(f"{count} of {code(name)}" for name, count in found["pictures"].items())
    only = "" if len(found["pictures"]) > 1 else " There is one dataset only: the right half says nothing of domains."
    return "\n\n".join([
        "## Visual features",
        f"t-SNE of v: {shown}, seed {found['seed']}.{only} Places are in {code(found['files']['table'])}; distances "
        "between far groups mean little.",
        f"![t-SNE of v by emotion and by dataset]({found['files']['embedding']})",
    ])  # fmt: skip


def _training(report: dict[str, Any]) -> str:
    found = report["training"]
    if found is None:
        return "## Training\n\nThe run's log is not beside the checkpoint: there is no curve to show."
    parts = ["## Training", f"![Training]({found['files']['training']})"]
    if found["pseudo_labels"] is None:
        adapts = bool(specs(report["configuration"]["data"]["target"]))
        parts.append("No pseudo-labels were logged." if adapts else
                     "There was no target, and so no pseudo-labels: a source-only run.")  # fmt: skip
        return "\n\n".join(parts)
    rows = [
        [_PSEUDO[name], *(number(value) for value in (one["thirds"] + [None] * 3)[:3])]
        for name, one in found["pseudo_labels"].items()
    ]
    parts.append(table(["pseudo-labels", "first third", "middle", "last third"], rows, numbers=1))
    parts.append("Means over thirds of the training." + (
        " How many are right was counted with the target's labels, which decided nothing."
        if "pseudo_accuracy" in found["pseudo_labels"] else
        " The target has no labels: how many were right is not known."))  # fmt: skip
    return "\n\n".join(parts)


def _reading(report: dict[str, Any]) -> str:
    bootstrap = report["bootstrap"]
    lines = [
        'Balanced accuracy is the mean recall; it and macro F1 are means over the classes that occur. "Always one '
        'answer" gives every picture the most frequent class.',
        f"Intervals: {bootstrap['resamples']} bootstrap resamples of the pictures, seed {bootstrap['seed']}, drawn "
        "within each true class, so that class counts stay as they are; 2.5th to 97.5th percentile. They tell how "
        "figures vary with the pictures, which count as independent, not with the seed of training.",
        "Expected calibration error: 15 bins of equal width over the largest probability; mean distance between "
        "accuracy and confidence, weighted by answers (Guo et al., ICML 2017).",
        "Every figure is of all labelled pictures of the split, in float32, without augmentation. "
        f"Single answers are in {code('predictions.csv')}.",
    ]
    if not report["warnings"]:
        lines.append("The labels of the measured pictures decided nothing, as far as the run's configuration tells: "
                     "neither the training, nor the checkpoint, nor the temperature.")  # fmt: skip
    return "## How to read this\n\n" + "\n".join(f"- {line}" for line in lines)
