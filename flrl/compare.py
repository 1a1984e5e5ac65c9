"""Compare runs: `python -m flrl.compare outputs/multirun/NAME/DATE group_by=strategy`, or `flrl-compare ...`."""

import sys

from flrl.cli.explaining import explained

_HELP = """usage: flrl-compare FOLDER... [group_by=KEYS] [metric=NAME] [target=VALUE] [goal=max|min] [out=FOLDER]

FOLDER    runs or sweeps, searched for runs
group_by  what divides the runs: groups and keys with commas, as in strategy,model.optimizer.lr;
          by default what their overrides differ by, except for seeds
metric    a column of metrics.jsonl, by default test/accuracy; its last value counts
target    a value of it: how many rounds, bytes and seconds runs take to reach it
goal      whether it is to be large or small; by default small for names with loss or error
out       where tables (CSV, Markdown, LaTeX) and figures (PDF, PNG) go; by default FOLDER/comparison"""


def main() -> None:
    """The console script `flrl-compare`."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(_HELP)
        return
    with explained(full_error=False):
        from flrl.results.comparing import compare

        compare(sys.argv[1:])


if __name__ == "__main__":
    main()
