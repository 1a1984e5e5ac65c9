"""Sections of a run's page; one that has nothing to say is empty."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flrl.reporting import charts
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import Html, chart, joined, scrolling, table, tag, tiles, tree
from flrl.reporting.numbers import number
from flrl.reporting.predicted import OF_A_CLIENT, Predicted
from flrl.runs.integrity import PARTITION

MAX_ROWS = 2000
_SHOWN_CLASSES = 20


class Drawing:
    """Collects the charts of a page, and gives each its place."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        self.charts: list[charts.Chart] = []

    def __call__(self, several: Sequence[charts.Chart], *, wide: bool = False) -> Html:
        """The places of several charts side by side; nothing for none."""
        start = len(self.charts)
        self.charts += [charts.thinned(one, self.places) for one in several]
        figures = (chart(start + at, one["title"], wide=wide) for at, one in enumerate(several))
        return tag("div", *figures, _class="charts") if several else Html()


def partition(run: RunFiles, predicted: Predicted | None, draw: Drawing) -> Html:
    """How many samples clients have, and of which classes."""
    path: Path = run.folder / PARTITION
    if not path.exists():
        return Html()
    with np.load(path) as saved:
        parts, sizes, hash = np.diff(saved["ends"], prepend=0), saved["sizes"], str(saved["hash"])
    counts = None if predicted is None else predicted.counts
    training = sizes if counts is None else sizes[: len(counts)]  # held-out clients come last
    quantiles = [int(q) for q in np.quantile(training, (0, 0.25, 0.5, 0.75, 1), method="nearest")]
    others = len(sizes) - len(training)
    lowest, lower, median, upper, highest = quantiles
    items: list[tuple[str, Any, str]] = [
        ("clients", len(training), f"{others} more never train" if others else ""),
        ("training samples", int(training.sum()), f"{int((parts - sizes).sum())} held out"),
        ("of a client", median, f"the median; half have {lower} to {upper}, all {lowest} to {highest}"),
    ]
    if counts is not None:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        distance = float(0.5 * np.abs(shares - counts.sum(axis=0) / counts.sum()).sum(axis=1).mean())
        items.append(("skew of classes", number(distance), "mean total variation distance to all samples; 0 is none"))
    made = draw([charts.divided(training.tolist(), None if counts is None else counts.tolist())], wide=True)
    return joined([tiles(items), made, tag("p", "SHA-256 of the partition: ", tag("code", hash), _class="muted")])


def clients(run: RunFiles, metrics: Mapping[str, Sequence[Any]], draw: Drawing) -> Html:
    """Clients' metrics by round, as bands of quantiles, and statistics of their evaluation."""
    found = run.client_quantiles()
    varying = {name: of for name, of in found.items() if _varies([*of.values()])}
    same = ", ".join(sorted(set(found) - set(varying)))
    made = [charts.spread(name, of, run.rounds) for name, of in varying.items()] + charts.curves(metrics, "clients")
    said = f"The same for all clients, or in all rounds: {same}." if same else ""
    if not found:
        said = "With log_clients=true a run keeps a row per client and round, which is drawn here."
    return joined([draw(made), tag("p", said, _class="muted") if said else ""])


def _varies(quantiles: Sequence[Sequence[float]]) -> bool:
    """Whether a metric differs between clients, and between rounds if there are several."""
    differs = any(of[0] != of[-1] for of in quantiles)
    return differs and (len(quantiles) == 1 or any(of != quantiles[0] for of in quantiles))


def confusion(predicted: Predicted | None) -> Html:
    """The confusion matrix; of many classes what is confused most."""
    if predicted is None or predicted.confusion is None:
        return Html()
    matrix = predicted.confusion
    total, right = int(matrix.sum()), int(np.trace(matrix))
    some = "all" if total == predicted.num_test else "drawn by seed"
    said = f"{total} test samples ({some}), {right} predicted rightly: {100 * right / total:.2f} %. "
    if len(matrix) > _SHOWN_CLASSES:
        off = matrix - np.diag(np.diag(matrix))
        pairs = np.argsort(-off, axis=None, kind="stable")[:_SHOWN_CLASSES]
        rows = [[f"{i // len(matrix)}", i % len(matrix), int(off.flat[i])] for i in pairs if off.flat[i]]
        pairs_table = table(["class", "predicted", "samples"], rows, label="What is confused most", sortable=True)
        return joined([tag("p", said, "Of many classes, the pairs that are confused most:"), pairs_table])
    head = tag("tr", tag("th", "class", scope="col"), *(tag("th", f"as {k}", scope="col") for k in range(len(matrix))),
               tag("th", "recall", scope="col"))  # fmt: skip
    lines = []
    for k, row in enumerate(matrix):
        whole = max(1, int(row.sum()))
        cells = [_cell(int(value), value / whole, k == j) for j, value in enumerate(row)]
        lines.append(tag("tr", tag("th", k, scope="row"), *cells, tag("td", f"{100 * row[k] / whole:.1f} %")))
    body = tag("table", tag("thead", head), tag("tbody", *lines), _class="confusion")
    how = "A row is a class, a column what it was taken for; the framed diagonal is right."
    return joined([tag("p", said, how), scrolling(body, "samples by class and predicted class")])


def _cell(value: int, share: float, right: bool) -> Html:
    shade = f"background: color-mix(in srgb, var(--accent) {round(45 * share)}%, transparent)"
    return tag("td", value or "·", style=shade if value else None, _class="right" if right else None)


def worst(predicted: Predicted | None) -> Html:
    """The clients that the global model serves worst, with samples that it takes for something else."""
    if predicted is None or not predicted.worst:
        return Html()
    cards = []
    for row in predicted.worst:
        samples = []
        for sample in row["wrong"]:
            said = f"{sample['true']} taken for {sample['predicted']}"
            picture = [Html(f'<img src="{sample["picture"]}" alt="">')] if "picture" in sample else []
            samples.append(tag("li", *picture, said))
        count = f"{row['samples']} sample{'' if row['samples'] == 1 else 's'}"
        title = tag("h3", f"client {row['client']}: {100 * row['accuracy']:.1f} % of {count}")
        cards.append(tag("article", title, tag("ul", *samples, _class="samples") if samples else "nothing wrong"))
    kind = "held-out" if predicted.held_out else "training"
    said = f"The lowest accuracies of the final global model on up to {OF_A_CLIENT} {kind} samples of a client, of "
    said += f"{predicted.asked} clients, with samples that it takes for something else."
    return joined([tag("p", said), tag("div", *cards, _class="worst")])


def time(metrics: Mapping[str, Sequence[Any]], draw: Drawing) -> Html:
    """What the seconds of each round went into."""
    parts = charts.seconds(metrics)
    whole = sum(map(sum, parts.values()))
    if not whole:
        return Html()
    items = [
        (name, f"{sum(values):.4g} s", f"{100 * sum(values) / whole:.1f} % of the rounds")
        for name, values in parts.items()
    ]
    series = [{"name": name, "y": values} for name, values in parts.items()]
    spent = {"kind": "stack", "title": "seconds by round", "xlabel": "round", "unit": "s", "series": series}
    said = "train: until the new model is aggregated, communication included; evaluate: evaluation and the rest."
    return joined([tiles(items), draw([spent], wide=True), tag("p", said, _class="muted")])


def adversaries(run: RunFiles, metrics: Mapping[str, Sequence[Any]], draw: Drawing) -> Html:
    """Who misbehaved, and whom the rule left out."""
    node = run.config.get("adversary") or {}
    drawn = draw(charts.curves(metrics, "adversaries"))
    if not drawn and str(node.get("_target_", "Nobody")).endswith(".Nobody"):
        return Html()
    seen: dict[int, list[int]] = {}
    for row in run.digests:
        for at, name in enumerate(("malicious", "filtered")):
            for client in row.get(name, []):
                seen.setdefault(client, [0, 0])[at] += 1
    rows = [[client, *both] for client, both in sorted(seen.items())]
    head = ["client", "rounds in which it was malicious", "rounds in which the rule left it out"]
    listed = table(head, rows[:MAX_ROWS], label="clients that misbehaved or were left out", sortable=True)
    aggregator = (run.config.get("strategy") or {}).get("aggregator")
    settings = [tree(node, "adversary"), *([tree(aggregator, "strategy.aggregator")] if aggregator else [])]
    return joined([tag("div", *settings, _class="tree"), drawn, listed if rows else ""])


def privacy(run: RunFiles) -> Html:
    """Transforms of updates, and what attacks have found."""
    transforms = (run.config.get("strategy") or {}).get("transforms") or {}
    parts = []
    if transforms:
        parts += [
            tag("h3", "Transforms of updates"),
            tag("div", *(tree(v, k) for k, v in transforms.items()), _class="tree"),
        ]
    found = [result for result in run.attacks() if "attack" in result]
    if found:
        leading = ("attack", "round", "client", "folder", "seconds", "seed", "settings")
        scores = {name for result in found for name, value in result.items() if isinstance(value, int | float)}
        names = sorted(scores - set(leading))
        rows = [
            [r["attack"], r.get("round"), "sum" if r.get("client") is None else r["client"],
             *(number(r[name]) if isinstance(r.get(name), int | float) else "" for name in names), r["folder"]]
            for r in found
        ]  # fmt: skip
        made = table(["attack", "round", "client", *names, "folder"], rows, label="Attacks", sortable=True)
        parts += [tag("h3", "Attacks"), made]
    return joined(parts)
