import numpy as np
import pytest
import torch
from torch import nn

from pellucid import InputError, ModelError, ParameterError, adapt

sklearn = pytest.importorskip("sklearn")
from sklearn import (  # noqa: E402
    cluster,
    datasets,
    ensemble,
    linear_model,
    model_selection,
    multioutput,
    pipeline,
    preprocessing,
    svm,
)


@pytest.fixture(scope="module")
def iris():
    return datasets.load_iris(return_X_y=True)


def test_probabilities_come_first(iris):
    rows, labels = iris
    estimator = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    estimator.fit(rows, labels)
    adapter = adapt(estimator)
    assert adapter.offers == {"outputs"}
    assert adapter.categories == ["0", "1", "2"]
    assert adapter.name == "Pipeline"
    assert "predict_proba" in adapter.notes[0]
    scores = adapter.logits(adapter.module(torch.from_numpy(rows)))
    np.testing.assert_array_equal(scores.numpy(), estimator.predict_proba(rows))
    assert adapter.module(torch.from_numpy(rows).float()).dtype == torch.float32


def test_decision_functions(iris):
    rows, labels = iris
    three = svm.LinearSVC().fit(rows, labels)
    np.testing.assert_array_equal(adapt(three).module(torch.from_numpy(rows)), three.decision_function(rows))
    two = svm.LinearSVC().fit(rows[:100], labels[:100])
    scores = adapt(two).module(torch.from_numpy(rows))
    decided = two.decision_function(rows)
    np.testing.assert_array_equal(scores, np.stack([-decided, decided], axis=1))
    np.testing.assert_array_equal(scores.argmax(dim=1), two.predict(rows))


@pytest.mark.parametrize(
    "wrap",
    [lambda one: one, pipeline.make_pipeline, lambda one: model_selection.GridSearchCV(one, {"C": [1.0]})],
    ids=["alone", "pipeline", "search"],
)
def test_scores_of_pairs_of_classes_are_refused(iris, wrap):
    # Three classes have three pairs, so that the number of scores does not tell them apart.
    rows, labels = iris
    estimator = wrap(svm.SVC(decision_function_shape="ovo")).fit(rows, labels)
    with pytest.raises(ModelError, match="scores pairs of classes, not classes"):
        adapt(estimator)
    two = wrap(svm.SVC(decision_function_shape="ovo")).fit(rows[labels < 2], labels[labels < 2])
    assert adapt(two).module(torch.tensor(rows[:3])).shape == (3, 2)


def test_scores_that_are_not_one_for_each_class_are_refused(iris):
    rows, labels = iris

    class Wide(linear_model.RidgeClassifier):
        def decision_function(self, X):
            return np.repeat(super().decision_function(X), 2, axis=1)

    adapter = adapt(Wide().fit(rows, labels))
    with pytest.raises(ModelError, match="gives 6 scores for 3 classes"):
        adapter.module(torch.tensor(rows[:3]))


def test_predictions_alone(iris):
    rows, labels = iris
    hard = ensemble.VotingClassifier([("a", linear_model.RidgeClassifier())], voting="hard").fit(rows, labels)
    scores = adapt(hard).module(torch.from_numpy(rows))
    assert scores.shape == (150, 3)
    assert (scores.sum(dim=1) == 1).all()
    np.testing.assert_array_equal(scores.argmax(dim=1), hard.predict(rows))
    regressor = linear_model.LinearRegression().fit(rows, labels)
    adapter = adapt(regressor)
    assert adapter.categories is None
    np.testing.assert_array_equal(adapter.module(torch.from_numpy(rows))[:, 0], regressor.predict(rows))


def test_frames_keep_their_names(iris):
    pd = pytest.importorskip("pandas")
    rows, labels = iris
    frame = pd.DataFrame(rows, columns=["sepal length", "sepal width", "petal length", "petal width"])
    names = np.array(["setosa", "versicolor", "virginica"])
    forest = ensemble.RandomForestClassifier(5, random_state=0).fit(frame, names[labels])
    adapter = adapt(forest)
    assert adapter.categories == ["setosa", "versicolor", "virginica"]
    assert adapter.module.feature_names == list(frame.columns)
    np.testing.assert_array_equal(adapter.module(torch.from_numpy(rows)), forest.predict_proba(frame))


def test_images_are_flattened_and_wrong_widths_refused(iris):
    rows, labels = iris
    adapter = adapt(linear_model.RidgeClassifier().fit(rows, labels))
    squares = torch.from_numpy(rows).reshape(150, 1, 2, 2)
    torch.testing.assert_close(adapter.module(squares), adapter.module(torch.from_numpy(rows)))
    for wrong in (torch.zeros(2, 3), torch.zeros(4)):
        with pytest.raises(InputError, match="fitted on 4 features"):
            adapter.module(wrong)


def test_estimators_that_cannot_score_are_refused(iris):
    rows, labels = iris
    several = multioutput.MultiOutputClassifier(linear_model.RidgeClassifier()).fit(rows, np.stack([labels, labels], 1))
    for estimator, message in [
        (linear_model.LogisticRegression(), "not fitted"),
        (cluster.KMeans(2, n_init=1).fit(rows), "neither classes nor values"),
        (several, "several outputs"),
        (preprocessing.StandardScaler().fit(rows), "nothing can adapt"),
        (linear_model.LogisticRegression, "is a class"),
    ]:
        with pytest.raises(ModelError, match=message):
            adapt(estimator)


def on_arrays(batch: np.ndarray) -> np.ndarray:
    assert isinstance(batch, np.ndarray)
    return batch.sum(axis=1) > 1


def test_functions_of_arrays_and_tensors():
    inputs = torch.tensor([[1.0, 2.0], [0.0, 0.5]], requires_grad=True)
    arrays = adapt(on_arrays)
    assert arrays.offers == {"outputs"}
    assert arrays.name == "on_arrays"
    assert arrays.module(inputs).tolist() == [[1.0], [0.0]]

    tensors = adapt(lambda batch: torch.stack([batch.sum(1), batch.prod(1)], dim=1), categories=["sum", "product"])
    scores = tensors.module(inputs)
    assert scores.tolist() == [[3.0, 2.0], [0.5, 0.0]]
    assert not scores.requires_grad
    assert tensors.categories == ["sum", "product"]

    told = adapt(lambda batch: [row.mean() for row in batch], takes="numpy")
    assert told.module(inputs).tolist() == [[1.5], [0.25]]


def test_functions_that_fail_say_why():
    inputs = torch.zeros(2, 3)
    with pytest.raises(ModelError, match=r"returned scores \(3,\) for 2 examples"):
        adapt(lambda batch: batch.sum(0)).module(inputs)
    with pytest.raises(ModelError, match=r"returned scores \(\) for 2 examples"):
        adapt(lambda batch: 1.0).module(inputs)
    with pytest.raises(ModelError, match="returned a dict, of which no tensor can be made"):
        adapt(lambda batch: {"logits": batch}).module(inputs)
    with pytest.raises(ModelError, match="takes='numpy'"):
        adapt(_wants_arrays).module(inputs)
    with pytest.raises(ParameterError, match="expected 'torch', 'numpy' or 'text'"):
        adapt(lambda batch: batch, takes="jax")
    with pytest.raises(ModelError, match="is a class"):
        adapt(nn.Linear)


def _wants_arrays(batch):
    if not isinstance(batch, np.ndarray):
        raise TypeError("an array, please")
    return batch.sum(1)


def test_no_model_offers_nothing():
    assert adapt(None).offers == frozenset()


@pytest.mark.parametrize("model", [3, {"a": 1}, torch.zeros(3)])
def test_other_objects_are_refused(model):
    with pytest.raises(ModelError, match="nothing can adapt"):
        adapt(model)
