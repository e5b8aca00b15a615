"""Results: one class per shape of answer, with provenance, certificates, slicing, saving and pictures."""

from pellucid.results.attribution import Attribution, Top
from pellucid.results.base import Explanation, load, per_example, record, reference
from pellucid.results.checks import Check, Checks
from pellucid.results.meta import Meta, TargetRecord

__all__ = [
    "Attribution",
    "Check",
    "Checks",
    "Explanation",
    "Meta",
    "TargetRecord",
    "Top",
    "load",
    "per_example",
    "record",
    "reference",
]
