"""A run's report: its page, and the trivial references that its figures are to be read against."""

from laser.report.page import write_report

__all__ = ["write_report"]
