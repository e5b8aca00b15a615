"""Speed, memory and coverage, measured against peers and against the physical limit in the same run.

`python -m benchmarks.speed`, `python -m benchmarks.memory`, `python -m benchmarks.layers` measure and write
`benchmarks/results/*.json`; `python -m benchmarks.tables` writes the tables of the README from them.
"""
