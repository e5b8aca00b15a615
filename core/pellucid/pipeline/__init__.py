"""Pipelines: named steps whose results feed later steps, in Python and YAML."""

from pellucid.pipeline.pipeline import Pipeline
from pellucid.pipeline.result import PipelineResult

__all__ = ["Pipeline", "PipelineResult"]
