"""The page of a run: its result, its sections, and what it was made with."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from flrl.callbacks.lines import counted, in_bytes
from flrl.config import CONF_DIR
from flrl.reporting import charts, sections
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import Html, folded, joined, page, table, tag, tiles, tree
from flrl.reporting.numbers import best, headlines, last, number
from flrl.reporting.predicted import Predicted
from flrl.reporting.sections import MAX_ROWS, Drawing

_CHOICES = ("strategy", "dataset", "partition", "model", "trainer", "backend")


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
    parts = [
        ("result", "Result", joined([_result(run, metrics), _reference(run, references)])),
        ("warnings", "Warnings", _warnings(notes)),
        ("curves", "Curves", draw(charts.curves(metrics, "curves"))),
        ("partition", "Partition", sections.partition(run, predicted, draw)),
        ("clients", "Clients over rounds", sections.clients(run, metrics, draw)),
        ("confusion", "Confusion matrix", sections.confusion(predicted)),
        ("worst", "Worst clients", sections.worst(predicted)),
        ("bytes", "Bytes", draw(charts.traffic(metrics))),
        ("time", "Time", sections.time(metrics, draw)),
        ("adversaries", "Adversaries", sections.adversaries(run, metrics, draw)),
        ("privacy", "Privacy and attacks", sections.privacy(run)),
        ("configuration", "Configuration", tag("div", *(tree(v, k) for k, v in run.config.items()), _class="tree")),
        ("environment", "Environment", _environment(run)),
        ("digests", "Digests", _digests(run)),
    ]
    drawn = {name: [values[at] for at in places] for name, values in metrics.items()}
    data = {"x": [rounds[at] for at in places], "metrics": drawn, "charts": draw.charts}
    return page(f"{run.config.get('name', run.folder.name)}: report", _head(run), parts, data)


def _head(run: RunFiles) -> Html:
    config = run.config
    choices = (run.environments[-1] if run.environments else run.summary).get("choices", {})
    named = [f"{group}: {choices[group]}" for group in _CHOICES if group in choices]
    tags = [tag("span", name, _class="tag") for name in [*named, *config.get("tags", [])]]
    finished = counted(run.rounds[-1], "round") + ("" if run.summary else " so far")
    line = tag("p", f"{finished}, seed {config['seed']}, folder {run.folder}", _class="muted")
    return joined([tag("h1", config.get("name", run.folder.name)), line, tag("div", *tags)])


def _result(run: RunFiles, metrics: Mapping[str, Sequence[Any]]) -> Html:
    items: list[tuple[str, Any, str]] = []
    for name in headlines(run)[:4]:
        value, found = last(run, name), best(run, name)
        if found:
            items.append((name, number(value), f"best {number(found[0])} in round {found[1]}"))
    items += [
        (f"sent {way}", in_bytes(sum(v or 0 for v in metrics[name])), "by all clients, in all rounds")
        for way, name in (("up", "comm/up_bytes"), ("down", "comm/down_bytes"))
        if name in metrics
    ]
    if "wall_time_s" in run.summary:
        items.append(("wall time", f"{run.summary['wall_time_s']:.4g} s", counted(run.rounds[-1], "round")))
    again = joined([tag("h3", "To repeat it"), tag("pre", run.command)])
    check = tag("pre", shlex.join(["python", "-m", "flrl.verify", f"run={run.folder}"]))
    return joined([tiles(items), again, tag("h3", "To recompute it and compare digests"), check])


def _warnings(notes: Sequence[str]) -> Html:
    return tag("ul", *(tag("li", note) for note in notes), _class="warnings") if notes else Html()


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


def _environment(run: RunFiles) -> Html:
    newest = run.environments[-1] if run.environments else run.summary
    keys = [key for key in ("command", "git", "versions", "processor", "libraries", "sources") if key in newest]
    earlier = [tree(dict(row), f"after round {row['after_round']}") for row in run.environments[:-1]]
    return tag("div", *(tree(newest[key], key) for key in keys), *earlier, _class="tree")


def _digests(run: RunFiles) -> Html:
    of = {row["round"]: row for row in run.digests}
    chosen = run.rows[-MAX_ROWS:]
    rows = [
        [row["round"], tag("code", row["digest"]), len(of.get(row["round"], {}).get("clients", {})) or ""]
        for row in chosen
    ]
    head = ["round", "SHA-256 of the global model", "updates with a checksum"]
    listed = folded(counted(len(rows), "round"), table(head, rows, label="Digests by round", words=(1,)))
    parameters = of.get(run.rounds[-1], {}).get("parameters", {})
    rows_of = [[name, tag("code", value)] for name, value in parameters.items()]
    whole = folded(
        f"parameters after round {run.rounds[-1]}",
        table(["parameter", "checksum"], rows_of[:MAX_ROWS], label="Checksums of parameters", words=(0, 1)),
    )
    final = tag("p", "After the last round: ", tag("code", run.rows[-1]["digest"]))
    return joined([final, listed, whole if parameters else ""])
