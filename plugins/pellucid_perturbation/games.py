"""The game that Shapley values share out and LIME fits: coalitions of segments, and the score that each leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pellucid import Attribution, Check, Derived, Look, ParameterError, Passes, Sample, each, together
from pellucid_perturbation.leafwise import by_name, formed_like
from pellucid_perturbation.segments import Players


@dataclass(frozen=True, eq=False)
class Game:
    """Some examples that have the same number of segments: those in a coalition are shown, all others are hidden.

    Attributes:
        sample: the examples.
        baseline: what is shown in place of hidden segments, of the inputs' form.
        players: the segments.
        rows: (b,) which of the players' examples these are.
        size: d, how many segments each of them has.
    """

    sample: Sample
    baseline: Any
    players: Players
    rows: Tensor
    size: int

    def at(self, coalitions: Tensor) -> Derived:
        """The examples with only the segments of each coalition, (n, d) bool, shown."""

        def masks(draws: Tensor, examples: Tensor) -> Any:
            return formed_like(self.sample.inputs, self.players.shown(coalitions[draws], self.rows[examples]))

        return self.sample.masked(len(coalitions), masks, self.baseline)

    def of(self, examples: Tensor) -> Game:
        """The same game of some of the examples."""
        baseline = each(lambda leaf: leaf[examples.to(leaf.device)], self.baseline)
        return replace(self, sample=self.sample[examples], baseline=baseline, rows=self.rows[examples])


@dataclass(frozen=True, eq=False)
class Solution:
    """What the segments of some examples get.

    Attributes:
        values: (b, d).
        error: (b, d) their Monte-Carlo standard error.
        certificate: (b,) what the technique certifies of each example, such as the completeness error.
    """

    values: Tensor
    error: Tensor
    certificate: Tensor

    @property
    def share(self) -> Tensor:
        """(b,) The largest error as a share of the largest value."""
        error, most = self.error.amax(dim=1), self.values.abs().amax(dim=1)
        return torch.where(error == 0, error, error / most)

    def put(self, examples: Tensor, part: Solution) -> None:
        """Takes the solution of some of the examples, which may have fewer segments than others."""
        self.values[examples, : part.values.shape[1]] = part.values
        self.error[examples, : part.error.shape[1]] = part.error
        self.certificate[examples] = part.certificate

    @classmethod
    def blank(cls, examples: int, size: int) -> Solution:
        """Zeros, to be filled."""
        return cls(
            *(torch.zeros(shape, dtype=torch.float64) for shape in ((examples, size), (examples, size), examples))
        )


Solve: TypeAlias = Callable[[Tensor, Tensor, Tensor], Solution]
"""Coalitions (n, d), their scores (n, b) and the scores (b,) of the input itself, in double precision -> the values."""


def explained(
    sample: Sample,
    segments: Any,
    cells: int,
    baseline: Any,
    play: Callable[[Game], Passes[Solution]],
    checks: Callable[[Solution], tuple[Check, ...]],
) -> Passes[Attribution]:
    """Plays the games of all examples, and shows what each segment gets at all of its features.

    Examples with different numbers of segments play games of their own, side by side, so that none depends on others.
    """
    players = Players.of(sample, segments, cells)
    everyone = torch.arange(len(sample))
    whole = Game(sample, sample.baseline(baseline), players, everyone, int(players.counts[0]))
    games = []
    for size in sorted(set(players.counts.tolist())):
        chosen = everyone[players.counts == size]
        games.append(replace(whole if len(chosen) == len(sample) else whole.of(chosen), size=size))
    solutions = yield from together(*map(play, games))
    found = Solution.blank(len(sample), int(players.counts.max()))
    for game, solution in zip(games, solutions, strict=True):
        found.put(game.rows, solution)
    like = next(iter(by_name(sample.inputs).values()))
    return Attribution(
        players.painted(found.values.to(like), sample.inputs),
        over="input",
        error=players.painted(found.error.to(like), sample.inputs),
        segments=players.map(sample.inputs),
        reduce="once" if players.together else "sum",
        checks=checks(found),
    )


def seen_at(game: Game, coalitions: Tensor) -> Passes[tuple[Tensor, Tensor]]:
    """The scores (b,) of the input and (n, b) of coalitions, in double precision, from one round of passes."""
    here, hidden = yield from together(Look(at=game.sample), Look(at=game.at(coalitions)))
    return here.scores.cpu().double(), hidden.scores.cpu().double()


def sampled(
    game: Game, draw: Callable[[int], Tensor], solve: Solve, tolerance: float | None, rounds: int
) -> Passes[Solution]:
    """Looks at coalitions, in rounds, until the error of every value is small enough.

    Each example's rounds depend on its own error alone, so that its result does not depend on its batch.

    Args:
        game: what is played.
        draw: makes the coalitions (n, d) of a round.
        solve: finds the values.
        tolerance: the share of the largest value that the largest error may be; None is content with one round.
        rounds: how many rounds there are at most.
    """
    coalitions = draw(0)
    whole, scores = yield from seen_at(game, coalitions)
    solution = solve(coalitions, scores, whole)
    going = torch.arange(len(whole))
    for number in range(1, rounds if tolerance is not None else 1):
        short = solution.share[going] > (tolerance or 0)
        if not bool(short.any()):
            break
        game, going, scores = game.of(short.nonzero()[:, 0]), going[short], scores[:, short]
        more = draw(number)
        seen = yield Look(at=game.at(more))
        coalitions, scores = torch.cat([coalitions, more]), torch.cat([scores, seen.scores.cpu().double()])
        solution.put(going, solve(coalitions, scores, whole[going]))
    return solution


def completeness_error(values: Tensor, whole: Tensor, empty: Tensor) -> Tensor:
    """|sum of values - (f(x) - f(baseline))| as a share of |f(x) - f(baseline)|, (b,).

    A difference under a millionth of the scores themselves is rounding, and counts as that.
    """
    rise = whole - empty
    rounding = 1e-6 * torch.maximum(whole.abs(), empty.abs()).clamp_min(1e-300)
    return (values.sum(dim=1) - rise).abs() / torch.maximum(rise.abs(), rounding)


def completeness(found: Solution) -> Check:
    """That all segments together get the score's rise over the baseline."""
    return Check.bound("completeness", found.certificate, 1e-6, "relative error of the sum f(x) - f(baseline)")


def noise(found: Solution, tolerance: float | None) -> Check:
    """How well the values are known."""
    name, note = "Monte-Carlo standard error", "the largest standard error, as a share of the largest value"
    if tolerance is None:
        return Check.info(name, found.share, note)
    return Check.bound(name, found.share, tolerance, note)


def estimator(rows: Tensor, penalty: float = 0.0) -> tuple[Tensor, Tensor]:
    """Least squares, with a penalty on the squared values, as the linear map that it is.

    Args:
        rows: (n, k) observations.
        penalty: what the squared values are weighed with, beside the sum of squares.

    Returns:
        The map (k, n) from outcomes to values, and the leverage (n,) of each observation.

    Raises:
        ParameterError: when the observations do not determine the values.
    """
    count, size = rows.shape
    ridge = penalty**0.5 * torch.eye(size, dtype=rows.dtype) if penalty else rows[:0]
    q, r = torch.linalg.qr(torch.cat([rows, ridge]))
    diagonal = r.diagonal().abs()
    if size and (len(diagonal) < size or bool(diagonal.min() < 1e-9 * diagonal.max())):
        raise ParameterError(
            f"the {count} coalitions drawn do not tell the {size} segments apart; raise n_samples (to four for each "
            "segment, say), or make fewer segments"
        )
    return torch.linalg.solve_triangular(r, q[:count].T, upper=True), q[:count].square().sum(dim=1)


def standard_error(linear: Tensor, leverage: Tensor, residuals: Tensor) -> Tensor:
    """The standard error (b, k) of values `linear @ outcomes`, whatever the variance of each observation.

    The sandwich estimate, with each squared residual divided by 1 - leverage (HC2). An observation that alone
    determines a value has no residual; it is taken to have the mean variance.

    Args:
        linear: (k, n), see `estimator`.
        leverage: (n,).
        residuals: (n, b).
    """
    free = (1 - leverage).clamp_min(0)
    mean = residuals.square().sum(dim=0) / free.sum().clamp_min(1e-9)
    each_one = torch.where(free[:, None] > 1e-6, residuals.square() / free[:, None].clamp_min(1e-6), mean)
    return (linear.square() @ each_one).sqrt().T


def check_most(n_samples: int, max_samples: int, tolerance: float | None) -> None:
    """Refuses a limit below the first round.

    Raises:
        ParameterError: when `max_samples` would not even allow `n_samples`.
    """
    if tolerance is not None and max_samples < n_samples:
        raise ParameterError(f"max_samples={max_samples} is less than n_samples={n_samples}; expected at least as many")
