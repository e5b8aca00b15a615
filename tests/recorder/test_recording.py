"""Recordings read again: states, what is made of them, and recordings that are not whole."""

import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid import States
from pellucid.recorder import load, save_page


@pytest.fixture
def recording(net, data, train, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = copy.deepcopy(net)
        with pellucid.Recorder(
            model, data[0], layers=["fc"], path=tmp_path, run=f"seed={seed}", labels=data[1], every=2
        ):
            train(model, 4 + 2 * seed)
    return load(tmp_path)


def test_runs_lie_side_by_side(recording):
    assert set(recording.runs) == {"seed=0", "seed=1"}
    assert recording["seed=0"].steps == (0, 2, 4)
    assert recording["seed=1"].layers == ("fc", "output")
    with pytest.raises(pellucid.InputError, match="say which"):
        recording.states("fc")
    assert recording.states({"seed=0": "fc", "seed=1": "dense"}, "seed=0").values.shape == (3, 48, 16)
    with pytest.raises(pellucid.InputError, match="Did you mean"):
        recording["seed=2"]


def test_a_layer_that_was_renamed_is_named_with_those_there_are(recording):
    with pytest.raises(pellucid.LayerError, match=r"no layer 'fc1'.*Did you mean 'fc'"):
        recording.states("fc1", "seed=0")


def test_networks_are_points_at_their_common_steps(recording):
    networks = recording.networks()
    assert networks.values.shape == (3, 2, 48 * 3)
    assert networks.names == ("seed=0", "seed=1")
    assert networks.steps.tolist() == [0, 2, 4]
    torch.testing.assert_close(networks.values.view(3, 2, 48, 3).sum(dim=-1), torch.ones(3, 2, 48, dtype=torch.float64))
    assert torch.equal(networks.values[0, 0], networks.values[0, 1])
    places = networks.project("in_pca", n_classes=3).values
    assert torch.equal(places[0, 0], places[0, 1])


def test_networks_are_points_by_their_weights_or_a_layer_too(net, data, train, tmp_path):
    for rate in (0.05, 0.2):
        model = copy.deepcopy(net)
        optimiser = torch.optim.SGD(model.parameters(), lr=rate)
        with pellucid.Recorder(
            model, data[0], layers=["fc"], path=tmp_path, run=f"rate={rate}", every=2, parameters=True
        ):
            train(model, 4, optimiser)
    recording = load(tmp_path)
    weights, features = recording.networks("parameters"), recording.networks("fc")
    count = sum(parameter.numel() for parameter in net.parameters())
    assert weights.values.shape == (3, 2, count)
    assert features.values.shape == (3, 2, 48 * 16)
    assert torch.equal(weights.values[0, 0], nn.utils.parameters_to_vector(net.parameters()))
    slow, fast = weights.moved
    assert fast > slow > 0
    ours, control = (one.project("pca").explained[0] for one in (weights, weights.random_walk()))
    assert 0 < control < ours <= 1
    with pytest.raises(pellucid.LayerError, match="no layer 'fc2'"):
        recording.networks("fc2")


def test_networks_of_several_architectures_share_the_function_space_only(net, data, tmp_path):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    pellucid.Recorder(net, data[0], path=tmp_path, run="cnn", parameters=True).capture()
    pellucid.Recorder(other, data[0], path=tmp_path, run="linear", parameters=True).capture()
    recording = load(tmp_path)
    assert recording.networks().values.shape == (1, 2, 144)
    with pytest.raises(pellucid.InputError, match="expected one shape"):
        recording.networks("parameters")


def test_networks_of_other_probes_or_without_common_steps_are_not_compared(net, data, tmp_path):
    pellucid.Recorder(net, data[0], path=tmp_path, run="a").capture()
    pellucid.Recorder(net, data[0].flip(0), path=tmp_path, run="b").capture()
    with pytest.raises(pellucid.InputError, match="different probes"):
        load(tmp_path).networks()
    recorder = pellucid.Recorder(net, data[0], path=tmp_path, run="c")
    recorder.steps = 9
    recorder.capture()
    with pytest.raises(pellucid.InputError, match="no captured step in common"):
        load(tmp_path).networks()


def test_what_was_half_written_is_left_out_and_told(recording, tmp_path):
    folder = tmp_path / "seed=0"
    whole = (folder / "step-000000002.safetensors").read_bytes()
    (folder / "step-000000002.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / ".step-000000006.safetensors.1234.part").write_bytes(whole[:10])
    found = load(tmp_path)
    assert found["seed=0"].steps == (0, 4)
    assert found["seed=0"].damaged == (2,)
    assert "seed=0" in found.notes[0]
    assert found.states("fc", "seed=0").values.shape[0] == 2


def test_a_recording_without_captures_says_so(net, data, tmp_path):
    pellucid.Recorder(net, data[0], path=tmp_path)
    with pytest.raises(pellucid.SavedFileError, match="no whole capture"):
        load(tmp_path).states()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(pellucid.SavedFileError, match="holds no recording"):
        load(tmp_path)
    with pytest.raises(pellucid.SavedFileError, match="no folder"):
        load(tmp_path / "nowhere")


def test_a_step_that_was_not_captured_is_refused(recording):
    with pytest.raises(pellucid.InputError, match=r"\[3\]"):
        recording["seed=0"].states("fc", [0, 3])


def test_a_layer_that_changed_its_width_is_told_by_step(net, data, tmp_path):
    recorder = pellucid.Recorder(net, data[0], layers=["fc"], path=tmp_path)
    recorder.capture()
    net.fc, net.head = nn.Linear(256, 8), nn.Linear(8, 3)
    recorder.steps = 1
    recorder.capture()
    run = load(tmp_path)["run"]
    with pytest.raises(pellucid.InputError, match="different shapes"):
        run.states("fc")
    assert run.states("fc", [1]).values.shape == (1, 48, 8)


def states(values=None, outputs=None, labels=None):
    values = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) if values is None else values
    return States(values, torch.arange(len(values)) * 10, outputs=outputs, labels=labels)


def test_a_training_that_diverges_is_recorded_to_its_end(net, data, train, tmp_path):
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    with pellucid.Recorder(net, data[0], layers=["fc"], every=1, path=tmp_path, labels=data[1]) as recorder:

        def spoil():
            if recorder.steps == 3:
                nn.init.constant_(net.head.weight, torch.nan)
                nn.init.constant_(net.fc.weight, torch.inf)

        train(net, 5, optimiser, after=spoil)
    found = load(tmp_path).states("fc")
    assert found.finite.tolist() == [True, True, True, True, False, False]
    assert (found.predictions[4:] == -1).all()
    assert (found.predictions[:4] >= 0).all()
    assert found.moved.isfinite().all()
    made = found.project("pca")
    assert made.values[4:].isnan().all()
    assert save_page(made, found, tmp_path / "map.html").exists()


def test_a_layer_that_was_renamed_between_runs_is_read_by_both_names(net, data, train, tmp_path):
    renamed = nn.Sequential(OrderedDict(body=nn.Flatten(), dense=nn.Linear(64, 16), head=nn.Linear(16, 3)))
    pellucid.Recorder(net, data[0], layers=["fc"], path=tmp_path, run="old").capture()
    pellucid.Recorder(renamed, data[0], layers=["dense"], path=tmp_path, run="new").capture()
    recording = load(tmp_path)
    names = {"old": "fc", "new": "dense"}
    assert recording.states(names, "old").over == "fc"
    assert recording.states(names, "new").values.shape == (1, 48, 16)
    with pytest.raises(pellucid.LayerError, match=r"run 'new' has no layer 'fc'.*'dense'"):
        recording.states("fc", "new")
    with pytest.raises(pellucid.InputError, match="was recorded with the layers"):
        pellucid.Recorder(renamed, data[0], layers=["dense"], path=tmp_path, run="old", resume=True)


def test_few_points_and_one_capture_have_a_map():
    values = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0))
    for given in (values, values[:1], values[:, :2], values[:, :1]):
        made = states(given).project()
        assert made.values.shape == (*given.shape[:2], 2)
        assert made.values.isfinite().all()
    with pytest.raises(pellucid.InputError, match="at least two"):
        states(values[:1, :1]).project()


def test_frames_of_different_points_are_refused():
    with pytest.raises(pellucid.InputError, match=r"\(5, 3\), \(4, 3\).*same points"):
        pellucid.project([torch.rand(5, 3), torch.rand(4, 3)], "pca")
    with pytest.raises(pellucid.InputError, match="a map of these states"):
        save_page(states(torch.rand(4, 5, 3)).project("pca"), states(torch.rand(4, 4, 3)), "map.html")


def test_a_run_that_diverged_is_shown_up_to_there():
    values = states().values.clone()
    values[2, 3, 1] = torch.nan
    values[3] = torch.inf
    made = states(values).project("pca")
    assert made.values[:2].isfinite().all()
    assert made.values[2:].isnan().all()
    assert made.times.tolist() == [0, 10, 20, 30]
    (check,) = [check for check in made.checks if check.name == "diverged"]
    assert check.value == 2
    assert "step 20" in check.note
    made.plot()
    scores = pellucid.evaluate(None, states(values), {"pca": made}, ["explained_stress"])
    assert scores.values.isfinite().all()
    with pytest.raises(pellucid.InputError, match="no capture"):
        states(values * torch.nan).project("pca")


def test_predictions_learning_and_forgetting():
    right, wrong = [5.0, 0.0], [0.0, 5.0]
    outputs = torch.tensor([[wrong, right, right, wrong], [right, right, wrong, wrong], [right, right, right, wrong]])
    found = states(torch.rand(3, 4, 2), outputs, torch.zeros(4, dtype=torch.long))
    assert found.correct.tolist() == [[False, True, True, False], [True, True, False, False], [True, True, True, False]]
    assert found.learned.tolist() == [10, 0, 20, -1]
    assert found.forgotten.tolist() == [0, 0, 1, 0]
    expected = -torch.tensor(right).double().log_softmax(0)
    torch.testing.assert_close(found.losses[0], expected[[1, 0, 0, 1]])
    broken = outputs.clone()
    broken[1, 0, 0] = torch.nan
    assert states(torch.rand(3, 4, 2), broken).predictions[1, 0] == -1


def test_what_is_missing_is_said():
    with pytest.raises(pellucid.InputError, match="no outputs"):
        _ = states().predictions
    with pytest.raises(pellucid.InputError, match="no labels"):
        _ = states(outputs=torch.rand(4, 6, 2)).correct
    with pytest.raises(pellucid.InputError, match=r"\(T, n, d\)"):
        states(torch.rand(4, 6))
    with pytest.raises(pellucid.InputError, match="one for each"):
        states(labels=torch.zeros(5))


def test_a_random_walk_has_the_same_steps_and_its_first_axis_explains_as_theory_says():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 1, 2000, generator=generator, dtype=torch.float64).cumsum(dim=0)
    walk = states(values).random_walk()
    assert torch.equal(walk.values[0], values[0])
    torch.testing.assert_close(walk.values.diff(dim=0).norm(dim=-1), values.diff(dim=0).norm(dim=-1))
    explained = walk.project("pca", n_components=3).explained
    expected = 6 / torch.pi**2 / torch.arange(1, 4) ** 2
    torch.testing.assert_close(explained.double(), expected.double(), rtol=0, atol=0.03)
    assert not torch.equal(walk.values, states(values).random_walk(1).values)


def test_a_line_between_two_networks_is_a_straight_line_on_the_map():
    ends = torch.rand(2, 1, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = torch.stack(
        [ends[0] + share * (ends[1] - ends[0]) for share in torch.linspace(0, 1, 9, dtype=torch.float64)]
    )
    places = states(line).project("pca").values[:, 0]
    between = places[0] + torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * (places[-1] - places[0])
    assert (places - between).abs().max() < 1e-6


def test_a_spike_of_the_learning_rate_is_the_largest_step_of_the_map(net, data, train, tmp_path):
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    with pellucid.Recorder(net, data[0], layers=["fc"], every=1, path=tmp_path) as recorder:

        def spike():
            optimiser.param_groups[0]["lr"] = 1.0 if recorder.steps == 5 else 0.01

        train(net, 10, optimiser, after=spike)
    for technique in ("pca", pellucid.create("dynamic_tsne", perplexity=10)):
        moved = load(tmp_path).states("fc").project(technique).values.diff(dim=0).norm(dim=-1).mean(dim=1)
        assert moved.argmax() == 5


def test_a_network_that_diverged_takes_no_place_of_the_others():
    values = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    values[2:, 3] = torch.nan
    networks = replace(states(values), names=tuple("abcde"))
    made = networks.project("pca")
    others = [0, 1, 2, 4]
    assert made.values[:, 3].isnan().all()
    torch.testing.assert_close(made.values[:, others], states(values[:, others]).project("pca").values)
    assert "first of them d" in made.checks.named("diverged").note
    scores = pellucid.evaluate(None, networks, {"pca": made}, ["movement_correlation"])
    assert scores.values.isfinite().all()


def test_the_still_figure_shows_where_a_run_was_last_before_it_diverged():
    values = states().values.clone()
    values[2:] = torch.nan
    made = states(values).project("pca")
    (dots,) = [part for part in made.plot().axes[0].collections if len(part.get_offsets()) == 6]
    np.testing.assert_allclose(dots.get_offsets(), made.values[1].numpy())


def test_a_map_knows_what_it_is_of_and_what_made_it():
    given = replace(states(labels=torch.arange(6) % 2), classes=("ant", "bee"), over="fc")
    made = given.project("pca", seed=3)
    assert (made.meta.technique, made.meta.layer, made.meta.seed) == ("pca", "fc", 3)
    assert made.meta.parameters == {"n_components": 2}
    assert [text.get_text() for text in made.plot().axes[0].get_legend().texts] == ["ant", "bee"]
    runs = replace(given, labels=None, names=tuple(f"seed={seed}" for seed in range(6))).project("pca").plot()
    assert [text.get_text() for text in runs.axes[0].get_legend().texts][:2] == ["seed=0", "seed=1"]
    assert len({tuple(dots.get_facecolors()[0]) for dots in runs.axes[0].collections[-6:]}) == 6


def test_labels_that_are_no_classes_have_no_loss():
    outputs = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, -1, -100, 7])
    found = states(outputs=outputs, labels=labels)
    assert found.losses[:, 3:].isnan().all()
    expected = -outputs.double().log_softmax(-1)[:, [0, 1, 2], [0, 1, 2]]
    torch.testing.assert_close(found.losses[:, :3], expected)
    assert found.learned[3:].tolist() == [-1, -1, -1]
    save = found.project("pca")
    assert save.values.isfinite().all()


def test_a_model_that_ends_in_a_softmax_has_the_losses_of_its_probabilities(net, data, tmp_path):
    for run, model in (("logits", net), ("probabilities", nn.Sequential(net, nn.Softmax(dim=1)))):
        pellucid.Recorder(model, data[0], path=tmp_path, run=run, labels=data[1]).capture()
    recording = load(tmp_path)
    one, other = (recording[run].states().losses for run in ("logits", "probabilities"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    function = recording.networks().values
    torch.testing.assert_close(function[:, 0], function[:, 1], rtol=0, atol=1e-6)


def test_a_model_of_one_score_is_no_classifier(data, tmp_path):
    pellucid.Recorder(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), data[0], path=tmp_path, labels=data[1]).capture()
    found = load(tmp_path).states()
    assert found.outputs is None
    save_page(states(torch.rand(1, 48, 2)).project("pca"), found, tmp_path / "map.html")
    assert torch.equal(load(tmp_path).networks().values[0, 0], found.values[0, :, 0])


def test_bfloat16_is_mapped_and_scored():
    half = states(states().values.bfloat16())
    scores = pellucid.evaluate(None, half, {"pca": half.project("pca")}, ["trustworthiness"])
    assert scores.values.isfinite().all()
    assert pellucid.project(half, "pca").values.dtype == torch.float32
