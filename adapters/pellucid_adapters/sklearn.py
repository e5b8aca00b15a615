"""Estimators of scikit-learn, and of libraries that inherit from it, as black boxes over tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import Adapter, InputError, ModelError, ParameterError
from pellucid_adapters import texts
from pellucid_adapters.settings import settled


class Estimator(nn.Module):
    """Gives an estimator's scores (B, classes) for rows (B, n_features); further axes are flattened.

    Attributes:
        estimator: the fitted estimator.
        method: where the scores come from: "predict_proba", "decision_function" or "predict".
        classes: the class labels, None for a regressor.
        feature_names: the columns that it was fitted on, where it knows them.
    """

    def __init__(self, estimator: Any, method: str) -> None:
        super().__init__()
        self.estimator, self.method = estimator, method
        self.eval()
        self.classes: Any = getattr(estimator, "classes_", None)
        names = getattr(estimator, "feature_names_in_", None)
        self.feature_names: list[str] | None = None if names is None else [str(name) for name in names]

    def forward(self, rows: Tensor) -> Tensor:
        """Gives the scores, on the device and in the dtype of the rows."""
        table = rows.detach().flatten(1).cpu().numpy() if rows.ndim > 1 else None
        expected = getattr(self.estimator, "n_features_in_", None)
        if table is None or (expected is not None and table.shape[1] != expected):
            raise InputError(
                f"{type(self.estimator).__name__} was fitted on {expected} features, so it takes inputs (B, "
                f"{expected}); these are {tuple(rows.shape)}."
            )
        scores = np.asarray(getattr(self.estimator, self.method)(self._framed(table)))
        return torch.as_tensor(self._columns(scores), device=rows.device).to(rows.dtype)

    def of_texts(self, listed: list[str]) -> Tensor:
        """Gives the scores of texts, where that is what the estimator was fitted on."""
        return torch.as_tensor(self._columns(np.asarray(getattr(self.estimator, self.method)(listed)))).double()

    def _framed(self, table: Any) -> Any:
        if self.feature_names is None:
            return table
        import pandas as pd  # an estimator that was fitted on a frame wants its columns named

        return pd.DataFrame(table, columns=self.estimator.feature_names_in_)

    def _columns(self, scores: Any) -> Any:
        if self.classes is None:
            return scores.reshape(len(scores), -1)
        if self.method == "predict":
            return (scores[:, None] == np.asarray(self.classes)[None, :]).astype(np.float64)
        if scores.ndim == 1:  # the decision function between two classes
            return np.stack([-scores, scores], axis=1)
        if scores.shape[1] != len(self.classes):
            raise ModelError(
                f"`{self.method}` of this {type(self.estimator).__name__} gives {scores.shape[1]} scores for "
                f"{len(self.classes)} classes: expected one for each. Give a function of the inputs that scores them."
            )
        return scores


def adapt(model: object, options: dict[str, Any]) -> Adapter | None:
    """Adapts an estimator that predicts; None for one that does not.

    Scores are probabilities where it has `predict_proba`, else those of `decision_function`, else the prediction: a
    regressor's value (B, 1), or 1 for the predicted class and 0 for the others. The features have the names of the
    columns that it was fitted on. With the option `takes="text"` it reads texts, as a pipeline with a vectoriser does
    (see `texts.adapted`).

    Raises:
        ModelError: the estimator is not fitted, predicts several outputs of classes, or predicts neither classes nor
            values (a clusterer).
    """
    methods = [name for name in ("predict_proba", "decision_function", "predict") if hasattr(model, name)]
    if isinstance(model, nn.Module | type) or not methods:
        return None
    from sklearn.base import is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    who = type(model).__name__
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ModelError(f"this {who} is not fitted, so it predicts nothing. Call its `fit` first.") from error
    estimator = Estimator(model, methods[0])
    classes = estimator.classes
    if classes is None and methods[0] == "predict" and not is_regressor(model):
        raise ModelError(f"{who} predicts neither classes nor values. Give a function of the inputs that scores them.")
    if classes is not None and np.ndim(classes[0]) > 0:
        raise ModelError(f"{who} predicts several outputs at once. Give a function that scores one of them.")
    if classes is not None and len(classes) > 2 and methods[0] == "decision_function" and _scores_pairs(model):
        raise ModelError(
            f"this {who} scores pairs of classes, not classes: expected decision_function_shape='ovr', which "
            "`set_params` can still set."
        )
    options = dict(options)
    takes = options.pop("takes", None)
    if takes not in (None, "text"):
        raise ParameterError(f"takes={takes!r}: expected 'text', or nothing for a table.")
    known: dict[str, Any] = {
        "name": who,
        "categories": None if classes is None else [str(label) for label in classes],
        "notes": (f"a black box: scores are those of `{methods[0]}`",),
    }
    if takes == "text":
        return texts.adapted(estimator.of_texts, options, **known)
    settings = settled(options, feature_names=estimator.feature_names, **known)
    return Adapter(estimator, offers=frozenset({"outputs"}), **settings)


def _scores_pairs(model: Any) -> bool:
    """Whether an estimator, or the last step of a pipeline or search, has a score for each pair of classes."""
    while True:
        if hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        elif getattr(model, "steps", None):
            model = model.steps[-1][1]
        else:
            return getattr(model, "decision_function_shape", None) == "ovo"
