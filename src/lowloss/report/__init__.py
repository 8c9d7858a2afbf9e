"""Tables, figures and the page that show a study."""

from lowloss.report.page import build_report

__all__ = ["build_report"]
