"""Tables: names of features, from the model or the data."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from pellucid import InputError, adapt, create, evaluate, explain

NAMES = ["age", "height", "weight"]
ROWS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]], dtype=torch.float64)


@pytest.fixture
def model():
    linear = nn.Linear(3, 2).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0], [0.0, 0.0, 0.0]]))
    return linear


def test_columns_name_the_values(model):
    frame = pd.DataFrame(ROWS.numpy(), columns=NAMES)
    result = explain(model, frame, "input_x_gradient", target=0)
    assert result.names == tuple(NAMES)
    assert list(result.to_dataframe().columns) == NAMES
    torch.testing.assert_close(result.values, ROWS * torch.tensor([1.0, 10.0, 100.0]))
    assert explain(model, ROWS, "input_x_gradient", target=0).names is None


def test_the_models_names_order_the_columns(model):
    adapter = adapt(model, feature_names=NAMES)
    frame = pd.DataFrame(ROWS.numpy(), columns=NAMES)[["weight", "age", "height"]]
    for inputs in (frame, ROWS, ROWS.numpy()):
        result = explain(adapter, inputs, "input_x_gradient", target=0)
        assert result.names == tuple(NAMES)
        torch.testing.assert_close(result.values, ROWS * torch.tensor([1.0, 10.0, 100.0]))


def test_an_estimator_knows_its_columns():
    frame = pd.DataFrame(ROWS.numpy(), columns=NAMES)
    fitted = LinearRegression().fit(frame, frame["age"])
    result = explain(fitted, frame[NAMES[::-1]], create("occlusion"), target=0)
    assert result.names == tuple(NAMES)
    expected = ROWS * torch.from_numpy(np.asarray(fitted.coef_))
    torch.testing.assert_close(result.values, expected)
    scored = evaluate(fitted, frame, result, create("pixel_flipping", n_steps=2))
    assert set(scored.explanations) == {"occlusion", "random", "constant", "input_magnitude"}


def test_whole_numbers_and_truths_are_features_too():
    linear = nn.Linear(3, 1)
    frame = pd.DataFrame({"a": [1, 2], "b": [True, False], "c": np.array([0.5, 1.0], dtype=np.float32)})
    result = explain(linear, frame, "input_x_gradient", target=0)
    assert result.values.dtype == torch.float32
    torch.testing.assert_close(result.values, torch.tensor([[1, 1, 0.5], [2, 0, 1.0]]) * linear.weight.detach())


@pytest.mark.parametrize(
    ("columns", "known", "message"),
    [
        (["age", "height", "wieght"], NAMES, r"missing \['weight'\], unknown \['wieght'\]"),
        (["age", "age", "weight"], None, "columns of the same name"),
        (NAMES, NAMES[:2], r"missing none, unknown \['weight'\]"),
    ],
)
def test_columns_that_do_not_fit(model, columns, known, message):
    adapter = adapt(model, feature_names=known)
    with pytest.raises(InputError, match=message):
        explain(adapter, pd.DataFrame(ROWS.numpy(), columns=columns), "saliency", target=0)


def test_names_that_do_not_fit_and_words_in_cells(model):
    with pytest.raises(InputError, match="have 3 features and the model 2 feature names"):
        explain(adapt(model, feature_names=NAMES[:2]), ROWS, "saliency", target=0)
    with pytest.raises(InputError, match=r"column 'sex' is of type .*expected numbers"):
        explain(model, pd.DataFrame({"age": [1.0], "sex": ["f"], "c": [1.0]}), "saliency", target=0)
