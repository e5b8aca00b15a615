"""Every exception that a user of Pellucid can meet.

Messages follow one form: what was wrong, what was expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PellucidError(Exception):
    """The base of all errors that Pellucid raises for a user's or a plugin's mistake."""


class UnknownTechnique(PellucidError, LookupError):
    """No technique has the given name."""


class Unavailable(PellucidError, ImportError):
    """A technique, adapter or reference needs a package that is not installed."""


class Unsuitable(PellucidError, TypeError):
    """A technique asks what this model or input cannot give."""


class ParameterError(PellucidError, ValueError):
    """A technique's parameter is unknown, of the wrong type or out of range."""


class InputError(PellucidError, ValueError):
    """The inputs are of the wrong shape, empty, not finite, or of the wrong type."""


class TargetError(PellucidError, ValueError):
    """The target does not fit the model's outputs."""


class LayerError(PellucidError, LookupError):
    """A layer does not exist, is ambiguous, or does not give what is asked of it."""


class ModelError(PellucidError, RuntimeError):
    """The model cannot be adapted, or failed while it ran."""


class ProtocolError(PellucidError, RuntimeError):
    """A technique breaks the protocol, for example by asking what it did not declare."""


class PluginError(PellucidError, RuntimeError):
    """A plugin could not be loaded or registered."""


class BadReference(PellucidError, ValueError):
    """A reference to a model or to data cannot be understood or resolved."""


class PipelineError(PellucidError, ValueError):
    """A pipeline's description is wrong; the message names the step and the field."""


class SavedFileError(PellucidError, ValueError):
    """A result cannot be written to a file, or a saved one cannot be read."""


class TechniqueFailed(PellucidError, RuntimeError):
    """Some of several techniques failed; the others' results are kept.

    Attributes:
        results: the finished explanations by name.
        errors: the exception of each technique that failed, by name.
    """

    def __init__(self, results: dict[str, object], errors: dict[str, Exception]) -> None:
        self.results = results
        self.errors = errors
        told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in errors.items())
        super().__init__(
            f"{len(errors)} of {len(errors) + len(results)} techniques failed ({told}). "
            "What finished is in this exception's `results`."
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came while several techniques ran; what had finished is in `results`."""

    def __init__(self, results: dict[str, object]) -> None:
        self.results = results
        super().__init__(f"interrupted; {len(results)} finished results are kept in `results`")


def nearest(name: str, names: Iterable[str], *, limit: int = 3) -> str:
    """Says which known names are nearest to a mistyped one.

    Returns:
        `" Did you mean 'a' or 'b'?"` with a leading space, or `""` where nothing is near.
    """
    known = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), known, n=limit, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f"'{known[other]}'" for other in close) + "?"
