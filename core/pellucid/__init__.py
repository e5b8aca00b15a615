"""Pellucid: a registry of explainers for neural networks.

Any technique, on any model, through one registry. The public names are those that `__init__.pyi` lists; each is
imported when it is first used, so that `import pellucid` and `pellucid list` need neither torch nor numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
