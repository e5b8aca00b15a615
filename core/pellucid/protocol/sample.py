"""What is explained: inputs, target, and the samples derived from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import InputError, ParameterError, ProtocolError
from pellucid.protocol.leaves import Inputs, Leaves, each, tensors_of
from pellucid.protocol.target import Target

if TYPE_CHECKING:
    from pellucid.protocol.derived import Derived, Make


@dataclass(frozen=True, eq=False)
class Frame:
    """What the inputs are to the model and to the user.

    Attributes:
        build: makes the model's positional and keyword arguments from inputs and extras.
        extras: further tensors with one row for each example (token ids, masks), by name; nothing is attributed to
            them.
        baselines: words for `Sample.baseline` that these inputs know besides the usual ones, or mean otherwise; each
            with a function that makes the baseline from inputs and extras.
        present: turns an `Attribution` of the inputs into one of what the user gave, such as the tokens of a text.
        mask: makes of the extras which features an example has, bool that broadcasts to the inputs; the others, such
            as the padding of a shorter text, only fill up. None where every example has all.
    """

    build: Callable[[Any, dict[str, Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
    extras: dict[str, Tensor] = field(default_factory=dict)
    baselines: Mapping[str, Callable[[Tensor, dict[str, Tensor]], Tensor]] = field(default_factory=dict)
    present: Callable[[Any], Any] | None = None
    mask: Callable[[dict[str, Tensor]], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """What an adapter makes of inputs that are no tensors to attribute to, such as texts or token ids.

    Attributes:
        inputs: (B, ...) floating-point numbers that are attributed to.
        frame: how the model is called with them, and what they are to the user.
        notes: what was changed about the user's inputs.
    """

    inputs: Tensor
    frame: Frame
    notes: tuple[str, ...] = ()


def _alone(inputs: Any, extras: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (inputs,), {}


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs with their target: what an explainer explains.

    Attributes:
        inputs: a tensor (B, ...), or `Leaves` of such tensors where the model has several inputs.
        target: the score that is explained, see `Target`.
        seed: every random draw of an explanation depends on it and on nothing else.
        mean: the channel means that the inputs were normalised with, or None where unknown.
        std: the channel standard deviations that the inputs were normalised with, or None.
        frame: how the model is called with the inputs.
    """

    inputs: Any
    target: Target
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    frame: Frame = field(default_factory=lambda: Frame(_alone), repr=False)
    _baselines: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return int(tensors_of(self.inputs)[0].shape[0])

    def __getitem__(self, examples: int | slice | Sequence[int] | Tensor) -> Sample:
        """Some of the examples, as a sample of their own with the same target."""
        return self._picked(torch.arange(len(self))[examples].reshape(-1), self.target.fixed_by(self))

    def part(self, start: int, stop: int) -> Sample:
        """The examples from one place to before another; of all, the sample itself, whose passes others share.

        Predicted classes are those at the part. For those of `sample[start:stop]` the whole sample is looked at, which
        is one pass more where a technique goes through it part by part.
        """
        whole = start <= 0 and stop >= len(self)
        return self if whole else self._picked(torch.arange(len(self))[start:stop], self.target)

    def _picked(self, places: Tensor, target: Target) -> Sample:
        extras = {name: extra[places.to(extra.device)] for name, extra in self.frame.extras.items()}
        return Sample(
            each(lambda leaf: leaf[places.to(leaf.device)], self.inputs),
            target.picked(places),
            self.seed,
            self.mean,
            self.std,
            replace(self.frame, extras=extras),
        )

    @property
    def held(self) -> Any:
        """The inputs where they are in memory; None where examples are read as they are looked at, see `Streamed`."""
        return self.inputs

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return tensors_of(self.inputs)[0].device

    def at(self, inputs: Inputs) -> Sample:
        """A plain sample with other inputs of the same number, and the same target.

        Raises:
            ProtocolError: when there are not as many.
        """
        for leaf in tensors_of(inputs):
            if leaf.dim() == 0 or leaf.shape[0] != len(self):
                raise ProtocolError(
                    f"`at` was given inputs of shape {tuple(leaf.shape)}; expected ({len(self)}, ...), one for each "
                    "example of the sample"
                )
        return Sample(inputs, self.target.fixed_by(self), self.seed, self.mean, self.std, self.frame)

    def others(self, inputs: Tensor, target: Target | None = None, what: str = "the other examples") -> Sample:
        """Other examples for the same model, such as training data, brought to this sample's type and device.

        Args:
            inputs: (n, ...), each of this sample's shape.
            target: theirs; None where no score is asked of them.
            what: what messages call them.

        Raises:
            InputError: when they have another shape, are not finite, or the model has several inputs.
        """
        if not isinstance(self.inputs, Tensor) or self.frame.extras:
            raise InputError(f"{what} are for models of one input; these inputs have several")
        if inputs.shape[1:] != self.inputs.shape[1:]:
            raise InputError(
                f"{what} have shape {tuple(inputs.shape)}, the inputs {tuple(self.inputs.shape)}; expected the same "
                "shape of each example: resize or crop them"
            )
        if not inputs.is_floating_point() or not bool(torch.isfinite(inputs).all()):
            raise InputError(f"{what} are of type {inputs.dtype} or not finite; expected finite floating-point numbers")
        # Any target of one example's form will do where no score is asked.
        target = target or self.target.picked(torch.zeros(len(inputs), dtype=torch.long))
        return Sample(inputs.to(self.inputs), target, self.seed, self.mean, self.std, self.frame)

    def generator(self, *labels: object) -> torch.Generator:
        """A random generator that depends on the seed and the labels alone.

        Draw on the CPU with it and move what was drawn, so that every device sees the same numbers.
        """
        digest = hashlib.blake2b(repr((self.seed, *labels)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def baseline(self, spec: Any = "zero") -> Any:
        """Makes a baseline of the inputs' shape, the same object for the same spec.

        Args:
            spec: `"zero"`; `"black"` (the darkest value a photo can have under the model's normalisation);
                `"mean"` (each example's channel means); `"blur"` (Gaussian, sigma an eighth of the shorter side);
                a number; or a tensor (or `Leaves`) that broadcasts to the inputs. The inputs' adapter may know further
                words, such as `"pad"` and `"mask"` for texts.

        Raises:
            ParameterError: for an unknown word, or a shape that does not broadcast.
        """
        key = spec if isinstance(spec, (str, int, float)) else id(spec)
        if key not in self._baselines:
            # The spec is kept with its baseline, so that its identity stays its own.
            self._baselines[key] = (spec, self._make_baseline(spec))
        return self._baselines[key][1]

    def _make_baseline(self, spec: Any) -> Any:
        if isinstance(spec, str):
            if spec in self.frame.baselines:
                return self.frame.baselines[spec](self.inputs, self.frame.extras)
            if spec not in _BASELINES:
                words = sorted({*_BASELINES, *self.frame.baselines})
                raise ParameterError(f"baseline '{spec}' is unknown; expected one of {words}, a number or a tensor")
            return each(lambda leaf: _BASELINES[spec](leaf, self), self.inputs)
        if isinstance(spec, (int, float)):
            if not math.isfinite(spec):
                raise ParameterError(f"the baseline is {spec}; expected a finite number")
            return each(lambda leaf: torch.full_like(leaf, spec), self.inputs)

        if isinstance(spec, Mapping):
            if not isinstance(self.inputs, Leaves) or set(spec) != set(self.inputs):
                names = sorted(self.inputs) if isinstance(self.inputs, Leaves) else "one input, without a name"
                raise ParameterError(f"the baseline has the names {sorted(spec)}; the sample has {names}")
            spec = Leaves(spec)

        def fit(leaf: Tensor, given: Any) -> Tensor:
            try:
                if not isinstance(given, Tensor) and hasattr(given, "__array__"):
                    given = np.array(given)  # a copy: the columns of frames are not writable, which torch warns of
                given = torch.as_tensor(given, dtype=leaf.dtype, device=leaf.device)
            except (TypeError, ValueError, RuntimeError):
                raise ParameterError(
                    f"the baseline is a {type(given).__name__}; expected one of {sorted(_BASELINES)}, a number or a "
                    "tensor"
                ) from None
            if not bool(torch.isfinite(given).all()):
                raise ParameterError("the baseline has values that are not finite (NaN or infinity)")
            try:
                return torch.broadcast_to(given, leaf.shape)
            except RuntimeError:
                raise ParameterError(
                    f"the baseline has shape {tuple(given.shape)}, which does not broadcast to the inputs' "
                    f"{tuple(leaf.shape)}"
                ) from None

        return each(fit, self.inputs, spec)

    def references(self, data: Any) -> tuple[Any, int]:
        """Reference data in the form of the inputs, such as a distribution of baselines, and how many rows they have.

        Args:
            data: a tensor (or `Leaves`) (R, ...) with rows that broadcast to an input's.

        Raises:
            ParameterError: for no rows, rows that do not fit, or values that are not finite.
        """

        def fit(leaf: Tensor, given: Any) -> Tensor:
            if not isinstance(given, Tensor) or given.dim() == 0 or len(given) == 0:
                raise ParameterError("the baselines are no reference data (R, ...) of at least one row for every input")
            if not bool(torch.isfinite(given).all()):
                raise ParameterError("the baselines have values that are not finite (NaN or infinity)")
            try:
                return given.to(leaf).expand(len(given), *leaf.shape[1:])
            except RuntimeError:
                raise ParameterError(
                    f"the baselines have shape {tuple(given.shape)}; expected (R, ...) with rows that broadcast to "
                    f"{tuple(leaf.shape[1:])}"
                ) from None

        found = each(fit, self.inputs, data)
        sizes = {len(leaf) for leaf in (found.values() if isinstance(found, Leaves) else [found])}
        if len(sizes) > 1:
            raise ParameterError(f"the baselines have {sorted(sizes)} rows; expected the same number for every input")
        return found, sizes.pop()

    def derived(self, n: int, make: Make, *, key: Any = None) -> Derived:
        """`n` draws of every example, made lazily by a function of the rows.

        Args:
            n: how many draws of every example.
            make: takes the inputs' rows, the draws (rows,) and the examples (rows,), and returns the rows to show to
                the model; see `Make`.
            key: hashable parameters that, for the same sample, always make the same rows: looks at derived samples
                with equal keys share their passes.
        """
        from pellucid.protocol.derived import Derived

        return Derived(self, n, make, key)

    def along(self, baseline: Any, alphas: Tensor | Sequence[float]) -> Derived:
        """Points on the straight path from a baseline (alpha 0) to the inputs (alpha 1).

        Args:
            baseline: as for `baseline`.
            alphas: (n,) places on the path.
        """
        from pellucid.protocol.derived import along

        return along(self, baseline, alphas)

    def jittered(self, n: int, scale: float, *, relative: bool = True, label: str = "jitter") -> Derived:
        """The inputs with Gaussian noise, the same noise for every example.

        Args:
            n: how many draws.
            scale: the standard deviation, as a share of each example's range (max - min) or absolute.
            relative: whether `scale` is a share of the range.
            label: draws under different labels are independent.
        """
        from pellucid.protocol.derived import jittered

        return jittered(self, n, scale, relative=relative, label=label)

    def masked(
        self, n: int, masks: Tensor | Leaves | Callable[[Tensor, Tensor], Any], baseline: Any = "zero"
    ) -> Derived:
        """The inputs where a mask is one, a baseline where it is zero, blended between.

        Args:
            n: how many masks.
            masks: a tensor (n, ...) for all examples, or a function of the draws (rows,) and examples (rows,) that
                returns (rows, ...); with the inputs' axes, each of their size or 1. For several inputs, `Leaves` of
                such tensors.
            baseline: as for `baseline`.
        """
        from pellucid.protocol.derived import masked

        return masked(self, n, masks, baseline)


def _black(leaf: Tensor, sample: Sample) -> Tensor:
    if sample.mean is None or sample.std is None:
        return leaf.amin(dim=tuple(range(1, leaf.dim())), keepdim=True).expand_as(leaf)
    mean, std = torch.tensor(sample.mean), torch.tensor(sample.std)
    black = (-mean / std).to(leaf).reshape(1, -1, *(1,) * (leaf.dim() - 2))
    return black.expand_as(leaf)


def _mean(leaf: Tensor, sample: Sample) -> Tensor:
    if leaf.dim() < 3:
        # The mean over the batch would make an example's explanation depend on the others.
        raise ParameterError(
            f"baseline 'mean' is for inputs with channels (B, C, ...); the inputs are {tuple(leaf.shape)}. Give the "
            "mean of reference data as a tensor"
        )
    return leaf.mean(dim=tuple(range(2, leaf.dim())), keepdim=True).expand_as(leaf)


def _blur(leaf: Tensor, sample: Sample) -> Tensor:
    if leaf.dim() != 4:
        raise ParameterError(f"baseline 'blur' is for images (B, C, H, W); the inputs are {tuple(leaf.shape)}")
    sigma = min(leaf.shape[2:]) / 8
    blurred = leaf
    for axis in (2, 3):
        reach = min(int(3 * sigma), leaf.shape[axis] - 1)
        if reach == 0:
            continue
        places = torch.arange(-reach, reach + 1, dtype=leaf.dtype, device=leaf.device)
        kernel = torch.exp(-(places**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        blurred = F.conv2d(F.pad(blurred, pad, mode="reflect").flatten(0, 1)[:, None], kernel).reshape(leaf.shape)
    return blurred


_BASELINES: dict[str, Callable[[Tensor, Sample], Tensor]] = {
    "zero": lambda leaf, _: torch.zeros_like(leaf),
    "black": _black,
    "mean": _mean,
    "blur": _blur,
}
