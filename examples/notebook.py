"""A technique that lives in a notebook or script: no package, no entry point."""

from collections.abc import Iterator
from dataclasses import dataclass

from pellucid import Attribution, Explainer, Look, Passes, Sample, Technique, hookimpl, register


@dataclass(frozen=True, eq=False)
class SignedSquare(Explainer):
    """Squares the gradient and keeps its sign, so that what is strong stands out."""

    def explain(self, sample: Sample) -> Passes[Attribution]:
        """Looks once, at the gradient by the input."""
        seen = yield Look(at=sample, gradients=["input"])
        slopes = seen.gradients["input"]
        return Attribution(slopes * slopes.abs(), over="input")


class Mine:
    """A plugin can be any object with hooks."""

    @hookimpl
    def pellucid_techniques(self) -> Iterator[Technique]:
        """The techniques of this notebook."""
        yield Technique(
            "signed_square",
            kind="explainer",
            summary="The gradient squared, with its sign.",
            target=f"{__name__}:SignedSquare",
            uses={"outputs", "gradients"},
        )


register(Mine(), name="mine")  # run the cell again, and it is replaced
