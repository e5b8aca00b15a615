"""One self-contained HTML page: photos, explanations, scores, certificates, cost and provenance."""

from pellucid.report.page import write_report

__all__ = ["write_report"]
