"""Kernel matrices that are never held: their entries are computed where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid import InputError, ParameterError

TILE = 1024
"""Rows and columns of one block. A tile of single precision stays in the cache between product and exponential."""
NUMBERS = 2**22
"""How many numbers of the points are taken at once at most, where each point has very many."""
FAR = 9.0
"""How many times the points' variance the square of their mean may be before they are centred."""

Kernel = Callable[[Tensor, Tensor], Tensor]
Places = slice | Tensor


@dataclass(frozen=True, eq=False)
class KernelMatrix:
    """The kernel of n points with each other, zero between groups.

    Attributes:
        points: (n, d).
        kernel: the gamma of the RBF kernel exp(-gamma |x - y|^2), or a function of (a, d) and (b, d) that gives the
            (a, b) entries of a symmetric positive definite kernel.
        groups: the members of each group, (members,) places in the points; without groups all belong together.
        group_of: (n,) the group of each point.
        squares: (n,) the squared lengths of the points, for the RBF kernel.
        middle: (d,) what is taken from the points before they are compared, or None.
    """

    points: Tensor
    kernel: float | Kernel
    groups: tuple[Tensor, ...] = ()
    group_of: Tensor = field(default_factory=lambda: torch.empty(0))
    squares: Tensor = field(default_factory=lambda: torch.empty(0))
    middle: Tensor | None = None

    @classmethod
    def of(cls, points: Tensor, kernel: float | Kernel, labels: Tensor | None = None) -> KernelMatrix:
        """The matrix of points, zero between those of different labels (n,) where labels are given."""
        middle, squares = None, torch.empty(0)
        if not callable(kernel):
            middle = far_middle(points)
            parts = (part if middle is None else part - middle for part in split(points))
            squares = torch.cat([_squares(part) for part in parts])
        if labels is None:
            return cls(points, kernel, squares=squares, middle=middle)
        _, group_of = torch.unique(labels, return_inverse=True)
        groups = tuple(torch.nonzero(group_of == group).flatten() for group in range(int(group_of.max()) + 1))
        return cls(points, kernel, groups, group_of, squares, middle)

    def __len__(self) -> int:
        return len(self.points)

    def block(self, rows: Places, columns: Places) -> Tensor:
        """Entries (rows, columns), between points of the same group.

        Raises:
            ParameterError: when the kernel is a function that gives another shape, or values that are not finite.
        """
        left, right = self.points[rows], self.points[columns]
        if self.middle is not None:
            left, right = left - self.middle, right - self.middle
        if not callable(self.kernel):
            gamma = self.kernel
            products = torch.addmm(self.squares[columns][None], left, right.T, beta=-gamma, alpha=2 * gamma)
            return products.sub_((gamma * self.squares[rows])[:, None]).clamp_max_(0).exp_()
        made = self.kernel(left, right)
        if not isinstance(made, Tensor) or made.shape != (len(left), len(right)):
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ParameterError(f"the kernel gave {shape} for {len(left)} and {len(right)} points; expected a tensor "
                                 f"({len(left)}, {len(right)})")  # fmt: skip
        if not bool(torch.isfinite(made).all()):
            raise ParameterError("the kernel gave values that are not finite (NaN or infinity)")
        return made

    def row(self, place: int) -> Tensor:
        """The kernel (n,) of one point with all, in double precision."""
        one = torch.tensor([place], device=self.points.device)
        entries = torch.zeros(len(self), dtype=torch.float64, device=self.points.device)
        group = int(self.group_of[place]) if self.groups else None
        for part in self._parts(group, 16 * TILE):
            entries[part] = self.block(one, part)[0].double()
        return entries

    def sums(self) -> tuple[Tensor, Tensor]:
        """The sum of each point's kernel with all, and with itself, (n,) each in double precision.

        The matrix is symmetric, so that half of its blocks suffice.

        Raises:
            ParameterError: when the kernel is a function and not symmetric.
        """
        sums = torch.zeros(len(self), dtype=torch.float64, device=self.points.device)
        diagonal = torch.zeros_like(sums)
        everyone: list[int | None] = [None]
        for group in range(len(self.groups)) if self.groups else everyone:
            parts = list(self._parts(group, TILE))
            for place, rows in enumerate(parts):
                for columns in parts[place:]:
                    block = self.block(rows, columns)
                    sums[rows] += block.sum(dim=1).double()
                    if rows is columns:
                        _check_symmetric(block)
                        diagonal[rows] = block.diagonal().double()
                    else:
                        sums[columns] += block.sum(dim=0).double()
        return sums, diagonal

    def _parts(self, group: int | None, size: int) -> Iterator[Places]:
        size = rows_of(self.points, size)
        if group is not None:
            yield from torch.split(self.groups[group], size)
        else:  # slices view the points, where indices would copy them
            for start in range(0, len(self), size):
                yield slice(start, min(start + size, len(self)))


def rows_of(points: Tensor, most: int = TILE) -> int:
    """How many points are taken at once."""
    return max(1, min(most, NUMBERS // max(1, points.shape[1])))


def split(points: Tensor) -> tuple[Tensor, ...]:
    """The points, some at a time."""
    return torch.split(points, rows_of(points))


def _check_symmetric(block: Tensor) -> None:
    gap, size = float((block - block.T).abs().max()), float(block.abs().max())
    if gap > 1e-4 * size:
        raise ParameterError(f"the kernel is not symmetric: k(x, y) and k(y, x) differ by {gap:.2g}")


def _squares(points: Tensor) -> Tensor:
    """The squared lengths (n,) of points, without a copy of them."""
    return torch.einsum("nd,nd->n", points, points)


def far_middle(points: Tensor) -> Tensor | None:
    """The points' mean (d,) where they lie far from the origin, which would cost distances their digits."""
    # Without copies in double precision: where the middle lies exactly does not matter.
    total, mean = 0.0, torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for part in split(points):
        mean += (part.new_ones(len(part)) @ part).double() / len(points)
        total += float(_squares(part).double().sum()) / len(points)
    square = float(mean.square().sum())
    return mean.to(points) if square > FAR * max(total - square, 0.0) else None


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """(a,) which of the others (b, d) is nearest to each of the points (a, d); the first where several are."""
    found = []
    for part in split(points):
        # A gamma of a half makes the exponent -|x - y|^2 / 2; the point's own square moves all alike.
        found.append((part.double() @ others.double().T - others.double().square().sum(dim=1) / 2).argmax(dim=1))
    return torch.cat(found)


def median_gamma(points: Tensor, most: int = 1000) -> float:
    """One over the median squared distance of points that differ, of at most some evenly spaced ones."""
    chosen = torch.linspace(0, len(points) - 1, min(most, len(points)), device=points.device).round().long()
    squares = torch.zeros((), dtype=torch.float64, device=points.device)
    for columns in torch.split(points, max(1, NUMBERS // len(chosen)), dim=1):
        squares = squares + torch.pdist(columns[chosen].double()).square()
    squares = squares[squares > 0]
    return 1 / float(squares.median()) if len(squares) else 1.0


def label_tensor(labels: object, examples: int, what: str = "labels") -> Tensor:
    """Labels as integers (n,).

    Raises:
        InputError: when they are not integers, one for each example.
    """
    try:
        made = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} are a {type(labels).__name__}; expected integers ({examples},)") from None
    if made.shape != (examples,) or made.is_floating_point() or made.is_complex():
        raise InputError(
            f"{what} are {made.dtype} of shape {tuple(made.shape)}; expected integers ({examples},), one for each "
            "example"
        )
    return made.long()
