"""`lowbit-k2 report`: experiment folders to one HTML page that needs nothing else, and its figures as PNG.

Reading order: experiments (what folders hold), figures (what is drawn), text (tables and alignments), page.
"""

from lowbit_k2.report.experiments import Experiment, read_experiment
from lowbit_k2.report.page import write_report

__all__ = ["Experiment", "read_experiment", "write_report"]
