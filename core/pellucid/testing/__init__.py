"""The conformance kit: whether a technique keeps the contract, in sentences that can be run."""

from pellucid.testing.fronts import check_plugin, check_technique, page, parametrize_with_checks
from pellucid.testing.report import Report, Result

__all__ = ["Report", "Result", "check_plugin", "check_technique", "page", "parametrize_with_checks"]
