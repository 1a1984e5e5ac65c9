"""The page of a run: its sections, from its files and from what the final model predicts."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flrl.config import CONF_DIR
from flrl.evaluation import LOWER_IS_BETTER
from flrl.reporting import charts
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import Html, chart, folded, joined, page, table, tag, tiles, tree
from flrl.reporting.predicted import Predicted
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


def run_page(run: RunFiles, predicted: Predicted | None = None, references: Sequence[tuple[str, RunFiles]] = ()) -> str:
    """The report of a run.

    Args:
        run: its files.
        predicted: what its final model predicts; None leaves those sections out.
        references: runs to compare the result with, by what they are called.
    """
    metrics, rounds = run.metrics(), run.rounds
    places = charts.kept(rounds)
    draw = Drawing(places)
    notes = [*run.warnings(), *(predicted.notes if predicted else [])]
    if len(places) < len(rounds):
        notes.append(f"Charts show {len(places)} of {len(rounds)} rounds; the best values are those of all rounds.")
    if predicted is None:
        notes.append("What needs the model and the samples is left out: flrl-report run=... adds it.")
    sections = [
        ("result", "Result", joined([_result(run, metrics, predicted), _reference(run, references)])),
        ("warnings", "Warnings", tag("ul", *(tag("li", note) for note in notes), _class="warnings") if notes else Html()),
        ("curves", "Curves", draw(charts.curves(metrics, "curves"))),
        ("partition", "Partition", _partition(run, predicted, draw)),
        ("clients", "Clients over rounds", _clients(run, metrics, draw)),
        ("confusion", "Confusion matrix", _confusion(predicted)),
        ("worst", "Worst clients", _worst(predicted)),
        ("bytes", "Bytes", draw(charts.traffic(metrics))),
        ("time", "Time", _time(metrics, rounds, draw)),
        ("adversaries", "Adversaries", _adversaries(run, metrics, draw)),
        ("privacy", "Privacy and attacks", _privacy(run)),
        ("configuration", "Configuration", tag("div", *(tree(v, k) for k, v in run.config.items()), _class="tree")),
        ("environment", "Environment", _environment(run)),
        ("digests", "Digests", _digests(run)),
    ]
    drawn = {name: [values[at] for at in places] for name, values in metrics.items()}
    data = {"x": [rounds[at] for at in places], "metrics": drawn, "charts": draw.charts}
    return page(f"{run.config.get('name', run.folder.name)}: report", _head(run), sections, data)


def best(run: RunFiles, metric: str) -> tuple[Any, int] | None:
    """The best value of a metric and its first round: the lowest of losses and errors, else the highest."""
    found = [(row[metric], -row["round"]) for row in run.rows if isinstance(row.get(metric), int | float)]
    if not found:
        return None
    lower = any(word in metric.lower() for word in LOWER_IS_BETTER)
    value, round = min(found, key=lambda one: (one[0], -one[1])) if lower else max(found)
    return value, -round


def headlines(run: RunFiles) -> list[str]:
    """The metrics that are a run's result: what `optimized_metric` names, and what is measured on the test set."""
    names = [run.config.get("optimized_metric"), *(name for name in run.metrics() if name.startswith("test/"))]
    there = run.metrics()
    return [name for name in dict.fromkeys(names) if name in there]


def last(run: RunFiles, metric: str) -> Any:
    """The newest value of a metric."""
    values = [row[metric] for row in run.rows if row.get(metric) is not None]
    return values[-1] if values else None


def number(value: Any) -> str:
    """A number as the page's text has it."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else f"{value:.4g}"


def size(value: float) -> str:
    """A number of bytes as the page's text has it.

    Example:
        >>> size(999), size(62800), size(1.5e9)
        ('999 B', '62.8 kB', '1.5 GB')
    """
    unit, prefix = next(((u, p) for u, p in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= u), (1, ""))
    return f"{value / unit:.4g} {prefix}B"


# Sections.


def _head(run: RunFiles) -> Html:
    config = run.config
    choices = (run.environments[-1] if run.environments else run.summary).get("choices", {})
    named = [f"{k}: {choices[k]}" for k in ("strategy", "dataset", "partition", "model", "trainer", "backend") if k in choices]
    tags = [tag("span", name, _class="tag") for name in [*named, *config.get("tags", [])]]
    finished = f"{run.rounds[-1]} rounds" if run.summary else f"{run.rounds[-1]} rounds so far"
    line = tag("p", f"{finished}, seed {config['seed']}, folder {run.folder}", _class="muted")
    return joined([tag("h1", config.get("name", run.folder.name)), line, tag("div", *tags)])


def _result(run: RunFiles, metrics: Mapping[str, Sequence[Any]], predicted: Predicted | None) -> Html:
    items: list[tuple[str, Any, str]] = []
    for name in headlines(run)[:4]:
        value, found = last(run, name), best(run, name)
        if found:
            items.append((name, number(value), f"best {number(found[0])} in round {found[1]}"))
    items += [
        (f"sent {way}", size(sum(v or 0 for v in metrics[name])), "by all clients, in all rounds")
        for way, name in (("up", "comm/up_bytes"), ("down", "comm/down_bytes"))
        if name in metrics
    ]
    if "wall_time_s" in run.summary:
        items.append(("wall time", f"{run.summary['wall_time_s']:.4g} s", f"{run.rounds[-1]} rounds"))
    again = joined([tag("h3", "To repeat it"), tag("pre", run.command)])
    check = tag("pre", shlex.join(["python", "-m", "flrl.verify", f"run={run.folder}"]))
    return joined([tiles(items), again, tag("h3", "To recompute it and compare digests"), check])


def _reference(run: RunFiles, references: Sequence[tuple[str, RunFiles]]) -> Html:
    names, parts = headlines(run)[:4], []
    if references and names:
        rows = [["this run", *(number(last(run, name)) for name in names)]]
        rows += [[title, *(_or_none(last(other, name)) for name in names)] for title, other in references]
        parts.append(table(["run", *names], rows, label="This run and its references"))
    expected = _expected(run)
    if expected:
        parts.append(tag("p", "The experiment's file says, of its own settings: ", expected))
    return joined([tag("h3", "References"), *parts]) if parts else Html()


def _or_none(value: Any) -> str:
    return "" if value is None else number(value)


def _expected(run: RunFiles) -> str:
    """What the header of the experiment's yaml expects; empty if there is no experiment, or it is a user's own."""
    choices = (run.environments[0] if run.environments else run.summary).get("choices", {})
    path = CONF_DIR / "experiment" / f"{choices.get('experiment')}.yaml"
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.removeprefix("# ") for line in lines if line.startswith("# Expected")), "")


def _partition(run: RunFiles, predicted: Predicted | None, draw: Drawing) -> Html:
    path: Path = run.folder / PARTITION
    if not path.exists():
        return Html()
    with np.load(path) as saved:
        parts, sizes, hash = np.diff(saved["ends"], prepend=0), saved["sizes"], str(saved["hash"])
    counts = None if predicted is None else predicted.counts
    training = sizes if counts is None else sizes[: len(counts)]  # held-out clients come last
    quantiles = [int(q) for q in np.quantile(training, (0, 0.25, 0.5, 0.75, 1), method="nearest")]
    items = [
        ("clients", len(training), f"{len(sizes) - len(training)} more are held out" if len(training) < len(sizes) else ""),
        ("training samples", int(training.sum()), f"{int((parts - sizes).sum())} held out"),
        ("of a client", quantiles[2], "median; lowest, quartiles, highest: " + ", ".join(map(str, (*quantiles[:2], *quantiles[3:])))),
    ]
    if counts is not None:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        distance = float(0.5 * np.abs(shares - counts.sum(axis=0) / counts.sum()).sum(axis=1).mean())
        items.append(("skew of classes", number(distance), "mean total variation distance to all samples; 0 is none"))
    made = draw([charts.divided(training.tolist(), None if counts is None else counts.tolist())], wide=True)
    return joined([tiles(items), made, tag("p", "SHA-256 of the partition: ", tag("code", hash), _class="muted")])


def _clients(run: RunFiles, metrics: Mapping[str, Sequence[Any]], draw: Drawing) -> Html:
    found = run.client_quantiles()
    varying = {name: of for name, of in found.items() if any(q[0] != q[-1] for q in of.values())}
    made = [charts.spread(name, of, run.rounds) for name, of in varying.items()] + charts.curves(metrics, "clients")
    same = sorted(set(found) - set(varying))
    remarks = [tag("p", f"The same for all clients of a round: {', '.join(same)}.", _class="muted")] if same else []
    if not found:
        remarks.append(tag("p", "With log_clients=true a run keeps a row per client and round, which is drawn here.", _class="muted"))
    return joined([draw(made), *remarks])


def _confusion(predicted: Predicted | None) -> Html:
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
    rows = []
    for k, row in enumerate(matrix):
        whole = max(1, int(row.sum()))
        cells = [_cell(int(value), value / whole, k == j) for j, value in enumerate(row)]
        rows.append(tag("tr", tag("th", k, scope="row"), *cells, tag("td", f"{100 * row[k] / whole:.1f} %")))
    body = tag("table", tag("thead", head), tag("tbody", *rows), _class="confusion")
    region = tag("div", body, _class="scroll", tabindex="0", role="region", aria_label="Confusion matrix")
    return joined([tag("p", said, "A row is a class, a column what it was taken for; the framed diagonal is right."), region])


def _cell(value: int, share: float, right: bool) -> Html:
    shade = f"background: color-mix(in srgb, var(--accent) {round(45 * share)}%, transparent)"
    return tag("td", value or "·", style=shade if value else None, _class="right" if right else None)


def _worst(predicted: Predicted | None) -> Html:
    if predicted is None or not predicted.worst:
        return Html()
    cards = []
    for row in predicted.worst:
        samples = []
        for sample in row["wrong"]:
            said = f"{sample['true']} taken for {sample['predicted']}"
            picture = [Html(f'<img src="{sample["picture"]}" alt="">')] if "picture" in sample else []
            samples.append(tag("li", *picture, said))
        title = f"client {row['client']}: {100 * row['accuracy']:.1f} % of {row['samples']} samples"
        cards.append(tag("article", tag("h3", title), tag("ul", *samples, _class="samples") if samples else tag("p", "Nothing wrong.")))
    kind = "held-out" if predicted.held_out else "training"
    said = f"Accuracy of the final global model on up to 50 {kind} samples of {predicted.asked} clients; the lowest, with samples that it takes for something else."
    return joined([tag("p", said), tag("div", *cards, _class="worst")])


def _time(metrics: Mapping[str, Sequence[Any]], rounds: Sequence[int], draw: Drawing) -> Html:
    parts = charts.seconds(metrics)
    whole = sum(map(sum, parts.values()))
    if not whole:
        return Html()
    items = [(name, f"{sum(values):.4g} s", f"{100 * sum(values) / whole:.1f} % of the rounds") for name, values in parts.items()]
    series = [{"name": name, "y": values} for name, values in parts.items()]
    spent = {"kind": "stack", "title": "seconds by round", "xlabel": "round", "unit": "s", "series": series}
    said = "train: from sending the model until the new one is aggregated, communication included; evaluate: evaluation and the rest."
    return joined([tiles(items), draw([spent], wide=True), tag("p", said, _class="muted")])


def _adversaries(run: RunFiles, metrics: Mapping[str, Sequence[Any]], draw: Drawing) -> Html:
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
    listed = table(head, rows[:MAX_ROWS], label="Clients that misbehaved or were left out", sortable=True) if rows else Html()
    aggregator = (run.config.get("strategy") or {}).get("aggregator")
    settings = [tree(node, "adversary"), *([tree(aggregator, "strategy.aggregator")] if aggregator else [])]
    return joined([tag("div", *settings, _class="tree"), drawn, listed])


def _privacy(run: RunFiles) -> Html:
    transforms = (run.config.get("strategy") or {}).get("transforms") or {}
    parts = []
    if transforms:
        parts += [tag("h3", "Transforms of updates"), tag("div", *(tree(v, k) for k, v in transforms.items()), _class="tree")]
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


def _environment(run: RunFiles) -> Html:
    newest = run.environments[-1] if run.environments else run.summary
    keys = [key for key in ("command", "git", "versions", "processor", "libraries", "sources") if key in newest]
    earlier = [tree(dict(row), f"after round {row['after_round']}") for row in run.environments[:-1]]
    return tag("div", *(tree(newest[key], key) for key in keys), *earlier, _class="tree")


def _digests(run: RunFiles) -> Html:
    of = {row["round"]: row for row in run.digests}
    chosen = run.rows[-MAX_ROWS:]
    rows = [
        [row["round"], tag("code", row["digest"]), len(of.get(row["round"], {}).get("clients", {})) or ""] for row in chosen
    ]
    head = ["round", "SHA-256 of the global model", "updates with a checksum"]
    listed = folded(f"{len(rows)} rounds", table(head, rows, label="Digests by round", words=(1,)))
    parameters = of.get(run.rounds[-1], {}).get("parameters", {})
    rows_of = [[name, tag("code", value)] for name, value in parameters.items()]
    whole = folded(f"parameters after round {run.rounds[-1]}", table(["parameter", "checksum"], rows_of[:MAX_ROWS], label="Checksums of parameters", words=(0, 1)))
    final = tag("p", "After the last round: ", tag("code", run.rows[-1]["digest"]))
    return joined([final, listed, whole if parameters else ""])
