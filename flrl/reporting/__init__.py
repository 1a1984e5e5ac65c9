"""Reports: one page of HTML for a run, and one for a sweep, each whole in a file and without a network."""

from flrl.reporting.callback import Report, write_report
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import write_page
from flrl.reporting.index import REPORT, runs_in, sweep_page
from flrl.reporting.page import run_page
from flrl.reporting.predicted import Predicted, predict

__all__ = [
    "REPORT",
    "Predicted",
    "Report",
    "RunFiles",
    "predict",
    "run_page",
    "runs_in",
    "sweep_page",
    "write_page",
    "write_report",
]
