"""Influence functions: what leaving an example out of the training would change, to first order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from pellucid import Blocks, Check, Explainer, Influence, ParameterError, Passes, Sample, Training, digest
from pellucid_influence.certificates import certificates, shown
from pellucid_influence.curvature import Block, observed
from pellucid_influence.data import source, training
from pellucid_influence.ek_fac import ek_fac
from pellucid_influence.low_rank import low_rank
from pellucid_influence.ntk_influence import noise
from pellucid_influence.softened import Softened
from pellucid_influence.solvers import LARGEST, conjugate_gradients, explicit, lissa
from pellucid_influence.training import inverse, kernel, precision


@dataclass(frozen=True, eq=False)
class InfluenceFunctions(Explainer):
    """Estimates how each query's score changes when a training example is left out and the model trained anew.

    At the optimum of the mean loss, leaving out example i moves the parameters by (1/N) (H + damping)^-1 dL_i. The
    values are the score with the example less the score without it: -(1/N) df^T (H + damping)^-1 dL_i, above zero where
    the example raises the target's score. The self-influence is by how much the example lowers its own loss.

    Koh and Liang, 2017, "Understanding black-box predictions via influence functions". H is not the Hessian of the
    paper, which is indefinite away from an optimum, but a positive matrix in its place: the empirical Fisher matrix,
    or the generalised Gauss-Newton matrix, which is the Hessian for softmax and least-squares regression.

    Attributes:
        train: `(inputs, labels)`, tensors or arrays, or a Dataset of such pairs, or a DataLoader of one; labels are
            class indices (cross-entropy) or, of a floating type, values (squared error). It is read in blocks, so that
            memory-mapped arrays and data sets that do not fit in memory will do.
        curvature: `"fisher"`, or `"gauss_newton"`, which needs a backward pass for each output.
        solver: `"explicit"` inverts the curvature: the Fisher matrix exactly through the tangent kernel of the training
            examples, with examples squared in memory, however many parameters; the Gauss-Newton matrix written out,
            with parameters squared. `"cg"` are conjugate gradients and `"lissa"` is the sampled series of Agarwal et
            al., 2017, both with queries times parameters in memory, their residual certified, and without
            self-influence. `"ek_fac"` takes each layer's curvature as diagonal in a Kronecker product of bases: an
            estimate, for large models and training sets.
        damping: what is added to the curvature of the mean loss: a weight decay that the model was trained with
            belongs here. `"auto"` takes the curvature's mean eigenvalue.
        rank: of how many directions in the examples' outputs the Gauss-Newton matrix is made, those in which the loss
            curves most over all examples; they are solved through their kernel, with rank times examples in memory,
            however many parameters. With half as many as examples it is often as good as the whole, and for as many
            as outputs times examples it is the whole. None writes the matrix out. For the solver "explicit" and
            classifiers of up to some hundred classes.
        temperature: by which the outputs are divided in the training examples' loss, which is then certified so, and in
            its curvature. A model that is sure of nearly all its training examples, as it would not be without them,
            leaves them hardly a gradient; above one they have it back, and two or so often foretells retraining better.
            The queries' target stays as it is.
        n_steps: of conjugate gradients at most, or of LiSSA.
        batch_size: how many examples a step of LiSSA draws.
        parameters: by which parameters, as names with wildcards.
        folder: where finished blocks are kept, so that a run that was interrupted goes on where it stood; None keeps
            none. A block is taken from there only where the model's structure and weights, the queries, their target,
            the block's examples, the parameters and the settings above are the same to the last bit. Of squares of
            examples, what a half-finished part is held against is made anew. Of rows of the curvature that do not fit
            in memory (half a GB) what is made of them is kept, such as the matrix, EK-FAC's moments or the state of
            conjugate gradients, at most every ten seconds.
    """

    train: Any
    curvature: Literal["fisher", "gauss_newton"] = "fisher"
    solver: Literal["explicit", "cg", "lissa", "ek_fac"] = "explicit"
    damping: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    rank: Annotated[int, Ge(1)] | None = None
    temperature: Annotated[float, Gt(0)] = 1.0
    n_steps: Annotated[int, Ge(1)] = 200
    batch_size: Annotated[int, Ge(1)] = 32
    parameters: Annotated[tuple[str, ...], MinLen(1)] = ("*",)
    folder: str | Path | None = None

    known_failures: ClassVar[dict[str, str]] = {
        "looks at no place twice": "which rows a low rank keeps is known once all training examples were looked at",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        source(self.train)
        if self.rank is not None and (self.curvature, self.solver) != ("gauss_newton", "explicit"):
            raise ParameterError(
                f"rank={self.rank} with curvature='{self.curvature}' and solver='{self.solver}'; it is of the "
                "Gauss-Newton matrix, solved explicitly"
            )
        if self.rank is not None and self.damping == 0:
            raise ParameterError("a matrix of low rank has no inverse without damping; expected damping > 0 or 'auto'")

    @classmethod
    def test_instances(cls) -> list[Explainer]:
        """Both curvatures, and every solver."""
        train = noise()
        return [
            cls(train=train),
            cls(train=train, curvature="gauss_newton", damping=0.1),
            cls(train=train, curvature="gauss_newton", rank=24),
            cls(train=train, solver="cg", temperature=2.0),
            cls(train=train, solver="lissa", n_steps=20, batch_size=11),
            cls(train=train, solver="ek_fac"),
        ]

    def explain(self, sample: Sample) -> Passes[Influence]:
        """A forward and a backward pass for each query and example; see `curvature` and `solver` for more."""
        train = training(self.train, sample)
        if self.temperature != 1:
            train = replace(train, target=partial(Softened, temperature=self.temperature))
        if self.rank is not None:
            way = self._by_directions
        else:
            way = self._by_kernel if (self.curvature, self.solver) == ("fisher", "explicit") else self._by_rows
        values, own, checks = yield from way(sample, train)
        kind = precision(sample)
        selves = None if own is None else own.to(kind)
        return Influence(values.to(kind), self_influence=selves, checks=checks, **shown(train))

    def _by_kernel(self, sample: Sample, train: Training) -> Passes[tuple[Tensor, Tensor | None, list[Check]]]:
        """The Fisher matrix: (1/N) G^T (damping + G G^T / N)^-1 of N rows is G^T (N damping + G G^T)^-1."""
        found = yield from kernel(sample, train, self.parameters, own=True, blocks=Blocks(self.folder))
        count = len(train)
        mean = float(found.squares.double().sum()) / count**2
        damping = self._damping(mean)
        inner = inverse(found.own, count * damping)
        values = -found.values.double() @ inner
        # The diagonal of K (K + c)^-1 is that of 1 - c (K + c)^-1.
        selves = 1 - count * damping * inner.diagonal()
        checks = certificates(found, train) + _damped(damping, mean, float(selves.sum()), count)
        return values, selves, checks

    def _by_directions(self, sample: Sample, train: Training) -> Passes[tuple[Tensor, Tensor | None, list[Check]]]:
        assert self.rank is not None
        found = yield from low_rank(sample, train, self.parameters, self.rank, self.temperature, Blocks(self.folder))
        damping = self._damping(found.mean)
        values, selves, effective = found.solved(damping)
        checks = certificates(found.found, train)
        checks.append(
            Check.info("curvature kept", found.kept, "the directions' share of the loss's curvature by the outputs")
        )
        checks += _damped(damping, found.mean, effective, found.found.size)
        return -values / len(train), selves / len(train), checks

    def _by_rows(self, sample: Sample, train: Training) -> Passes[tuple[Tensor, Tensor | None, list[Check]]]:
        largest = LARGEST if self.solver == "explicit" else None
        blocks = Blocks(self.folder)
        queries, curvature = yield from observed(sample, train, self.parameters, self.curvature, largest, blocks)
        mean = curvature.trace / curvature.directions
        damping = self._damping(mean)
        if self.solver == "cg":
            solved = yield from conjugate_gradients(curvature, queries, damping, self.n_steps)
        elif self.solver == "lissa":
            generator = sample.generator("lissa")
            solved = yield from lissa(curvature, queries, damping, self.n_steps, self.batch_size, generator)
        else:
            solved = yield from (ek_fac if self.solver == "ek_fac" else explicit)(curvature, queries, damping)
        values, selves = queries.new_zeros(len(queries), len(train)), queries.new_zeros(len(train))
        progress = curvature.progress(
            ("values", self.solver, damping, digest(solved.values)), {"values": values, "selves": selves}
        )

        def held(block: Block) -> None:
            places = slice(progress.done, progress.done + len(block.gradients))
            values[:, places] = -solved.values @ block.gradients.T / len(train)
            if solved.apply is not None:
                selves[places] = (block.gradients * solved.apply(block.gradients)).sum(dim=1) / len(train)

        yield from curvature.each(held, progress)
        assert curvature.found is not None
        checks = [*certificates(curvature.found, train), *solved.checks]
        checks += _damped(damping, mean, solved.effective, curvature.size)
        return values, selves if solved.apply is not None else None, checks

    def _damping(self, mean: float) -> float:
        return mean if self.damping == "auto" else float(self.damping)


def _damped(damping: float, mean: float, effective: float | None, size: int) -> list[Check]:
    """The damping beside the curvature's mean eigenvalue, and, where it is known, what it leaves of the directions."""
    checks = [Check.info("damping", damping, f"the curvature's mean eigenvalue is {mean:.3g}")]
    if effective is not None:
        checks.append(Check.info("effective parameters", effective, f"of {size} directions"))
    return checks
