"""kronfluence's EK-FAC on a classifier, for `influence_quality`: an optional peer, `pip install kronfluence`."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

Data = tuple[Tensor, Tensor]


def ek_fac(
    model: nn.Module,
    train: Data,
    queries: dict[str, Data],
    dampings: Iterable[float | None],
    batch: int = 256,
    temperature: float = 1.0,
) -> tuple[dict[tuple[str, float | None], Tensor], dict[str, float]]:
    """Influences (Q, N) on the queries' losses by name of the queries and damping, and the seconds of the parts.

    Args:
        model: the classifier.
        train: inputs and labels.
        queries: inputs and labels, by name.
        dampings: of kronfluence's `damping_factor`: absolute, or None for its heuristic, a tenth of the mean eigenvalue
            of each layer.
        batch: examples at once.
        temperature: by which outputs are divided in the training loss; the queries' is as it is.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, labels = batch
            logits = model(inputs) / temperature
            if sample:
                labels = torch.multinomial(logits.detach().softmax(dim=1), 1).flatten()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            inputs, labels = batch
            return F.cross_entropy(model(inputs), labels, reduction="sum")

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    task = Classification()
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "digits", prepare_model(copy.deepcopy(model), task), task, cpu=True, disable_tqdm=True, output_dir=folder
        )
        started = time.perf_counter()
        analyzer.fit_all_factors(
            "ekfac", TensorDataset(*train), per_device_batch_size=batch, factor_args=FactorArguments("ekfac")
        )
        seconds["factors"] = time.perf_counter() - started
        for damping in dampings:
            for name, pair in queries.items():
                started = time.perf_counter()
                analyzer.compute_pairwise_scores(
                    f"{name} {damping}", "ekfac", TensorDataset(*pair), TensorDataset(*train), batch, batch,
                    score_args=ScoreArguments(damping_factor=damping), overwrite_output_dir=True,
                )  # fmt: skip
                seconds["scores"] = time.perf_counter() - started
                scores = analyzer.load_pairwise_scores(f"{name} {damping}")["all_modules"]
                # Theirs are the products of gradients: above zero where the example lowers the query's loss.
                found[name, damping] = -scores
    return found, seconds
