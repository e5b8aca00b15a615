"""Which techniques there are, who provides them, and what is wrong with those that are missing.

Nothing here imports torch or numpy: the records are read when `pellucid list` runs.
"""

from pellucid.registry.discovery import Registry, registry, reset
from pellucid.registry.hooks import hookimpl
from pellucid.registry.problem import Problem
from pellucid.registry.technique import Technique

__all__ = ["Problem", "Registry", "Technique", "hookimpl", "registry", "reset"]
