"""Run the peers' jobs, each peer in an environment of its own, and put what they took into one table.

    python -m benchmarks.peers.run pfl fedlab --jobs A C --workers 1 2 --repetitions 3

Without names all peers run. Environments are made under `.peers/` with `venv` and pip from `requirements/<name>.txt`,
once, and again when the requirements change. In a repetition every peer does a job before the next job begins, in
turn; every other repetition goes through them backwards. A run's number is the median of its rounds, so that a slower
first round does not count; of the repetitions the median, the smallest and the largest are reported.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.overhead import ROOT, processor
from benchmarks.peers.common import JOBS

HERE = Path(__file__).resolve().parent
PEERS = {"pfl": 2, "flsim": 2, "fluke": 1, "fedlab": 1, "aijack": 1, "flower": 2}
"""Names, and the most workers that each is run with here."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a peer, a job, a number of workers, an algorithm."""

    peer: str
    job: str
    workers: int
    strategy: str = "fedavg"


def main() -> None:
    arguments = parse_arguments()
    if not arguments.no_install:
        for peer in arguments.peers:
            install(peer, arguments.environments / peer)
    results: list[dict[str, Any]] = []
    for repetition, run in planned(arguments):
        result = measured(run, arguments) | {"repetition": repetition}
        results.append(result)
        outcome = result.get("error") or ", ".join(f"{seconds:.2f}" for seconds in result["seconds"]) + " s"
        print(f"{run.peer}, job {run.job}, workers {run.workers}: {outcome}", flush=True)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "runs": results,
        "summary": summarised(results),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{table(report)}\n\nwritten to {arguments.output}")
    if any("error" in result for result in results):
        sys.exit("not all runs ended well")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the same jobs with other federated-learning frameworks.")
    parser.add_argument("peers", nargs="*", metavar="name", help=f"of {', '.join(PEERS)}; all by default")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1], help="processes that train clients")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="as each job has it by default")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with MNIST's idx files")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/peers.json")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers")
    parser.add_argument("--no-install", action="store_true", help="take the environments as they are")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a run is given up")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers or list(PEERS)
    arguments.environments = arguments.environments.resolve()
    for peer in arguments.peers:
        if peer not in PEERS:
            parser.error(f"{peer}: must be one of {', '.join(PEERS)}")
    for name, value in (("repetitions", arguments.repetitions), ("workers", min(arguments.workers))):
        if value < 1:
            parser.error(f"--{name}={value}: must be at least 1")
    return arguments


def install(peer: str, environment: Path) -> None:
    """Make the peer's environment, unless it is there with the same requirements."""
    requirements = HERE / "requirements" / f"{peer}.txt"
    installed = environment / "installed.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return
    print(f"{peer}: installing into {environment}", flush=True)
    venv.create(environment, clear=True, with_pip=True)
    subprocess.run([python(environment), "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    installed.write_text(requirements.read_text())


def python(environment: Path) -> Path:
    """The environment's interpreter."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def planned(arguments: argparse.Namespace) -> Iterator[tuple[int, Run]]:
    """All runs in their order, with their repetition; peers are left out of more workers than they take."""
    for repetition in range(arguments.repetitions):
        for job in arguments.jobs:
            for workers in arguments.workers:
                for peer in arguments.peers[:: 1 if repetition % 2 == 0 else -1]:
                    if workers <= PEERS[peer]:
                        yield repetition, Run(peer, job, workers)


def measured(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the peer's script wrote, or the end of its output if it failed; and the machine's load before."""
    result: dict[str, Any] = {"peer": run.peer, "job": run.job, "workers": run.workers, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        command = [python(arguments.environments / run.peer), HERE / f"with_{run.peer}.py"]
        command += [
            "--job",
            run.job,
            "--workers",
            str(run.workers),
            "--strategy",
            run.strategy,
            "--data",
            arguments.data.resolve(),
            "--output",
            output,
        ]
        if arguments.rounds is not None:
            command += ["--rounds", str(arguments.rounds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        log = Path(folder) / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                status = process.wait(arguments.timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
                process.wait()
                return result | {"error": f"not done after {arguments.timeout} s"}
        if status != 0 or not output.exists():
            return result | {"error": f"exit status {status}: {log.read_text(errors='replace')[-2000:]}"}
        return result | json.loads(output.read_text())


def summarised(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per job, number of workers and peer: seconds per round over the repetitions."""
    runs = dict.fromkeys(Run(result["peer"], result["job"], result["workers"]) for result in results)
    rows = []
    for run in sorted(runs, key=lambda run: (run.job, run.workers, list(PEERS).index(run.peer))):
        of_run = [r for r in results if Run(r["peer"], r["job"], r["workers"]) == run]
        good = [result for result in of_run if "error" not in result]
        row: dict[str, Any] = {"peer": run.peer, "job": run.job, "workers": run.workers}
        row |= {"repetitions": len(good), "failed": len(of_run) - len(good)}
        if good:
            medians = [statistics.median(result["seconds"]) for result in good]
            row |= {key: good[0][key] for key in ("framework", "version", "torch")}
            row |= {"median": statistics.median(medians), "min": min(medians), "max": max(medians)}
            row |= {"rounds": len(good[0]["seconds"]), "accuracy": [result["accuracy"] for result in good]}
        rows.append(row)
    return rows


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        f"Seconds per round, {report['processor']}, {report['cpus']} CPUs, one thread per process, {report['date']}",
        "",
        "| job | workers | framework | median | min to max | accuracy after the last round |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in report["summary"]:
        start = f"| {row['job']} | {row['workers']} "
        if "median" not in row:
            lines.append(f"{start}| {row['peer']} | failed | | |")
            continue
        lowest, highest = (100 * bound(row["accuracy"]) for bound in (min, max))
        accuracy = f"{lowest:.2f} %" if lowest == highest else f"{lowest:.2f} to {highest:.2f} %"
        lines.append(
            f"{start}| {row['framework']} {row['version']} | {row['median']:.3f} "
            f"| {row['min']:.3f} to {row['max']:.3f} | {accuracy} (rounds: {row['rounds']}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
