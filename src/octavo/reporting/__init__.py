"""The report: all that is known of a quantized model, on one page."""

from octavo.reporting.report import Report, report

__all__ = ["Report", "report"]
