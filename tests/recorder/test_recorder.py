"""The recorder: what it captures, when, and that training does not notice."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid.recorder import load
from pellucid.recorder.schedule import due


def test_a_context_records_the_start_the_scheduled_steps_and_the_end(net, data, train, tmp_path):
    images, labels = data
    with pellucid.Recorder(net, images, layers=["fc"], path=tmp_path, labels=labels) as recorder:
        train(net, 13)
    assert recorder.captured == [0, 1, 4, 13]
    assert load(tmp_path)["run"].steps == (0, 1, 4, 13)
    assert recorder.seconds > 0
    assert recorder.overhead > 0


def test_what_is_recorded_is_what_the_network_gives_in_eval_mode(net, data, train, tmp_path):
    images, labels = data
    expected = {}
    recorder = pellucid.Recorder(
        net, images, layers=["fc", "norm"], path=tmp_path, every=2, pooled=False, parameters=True, labels=labels
    )

    def after():
        recorder.step()
        if recorder.steps in recorder.captured:
            twin = copy.deepcopy(net).eval()
            with torch.no_grad():
                maps = twin.norm(twin.conv(images))
                expected[recorder.steps] = maps, twin.fc(torch.relu(maps).flatten(1)), twin(images), twin

    recorder.start()
    train(net, 5, after=after)
    recorder.finish()
    run = load(tmp_path)["run"]
    assert run.steps == (0, 2, 4, 5)
    norm, fc, outputs, weights = (run.states(layer) for layer in ("norm", "fc", "output", "parameters"))
    assert norm.values.shape == (4, 48, 4 * 64)
    for place, step in ((1, 2), (2, 4)):
        maps, features, logits, twin = expected[step]
        torch.testing.assert_close(norm.values[place], maps.flatten(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(fc.values[place], features, rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs.values[place], logits, rtol=0, atol=1e-5)
        assert torch.equal(weights.values[place, 0], nn.utils.parameters_to_vector(twin.parameters()))
    torch.testing.assert_close(fc.losses[1].mean().float(), nn.functional.cross_entropy(expected[2][2], labels))
    assert torch.equal(fc.correct[1], expected[2][2].argmax(1) == labels)


def test_maps_are_averaged_over_positions_unless_asked_otherwise(net, data, tmp_path):
    pellucid.Recorder(net, data[0], layers=["norm", "auto"], path=tmp_path).capture()
    recording = load(tmp_path)
    with torch.no_grad():
        maps = copy.deepcopy(net).eval().norm(copy.deepcopy(net).conv(data[0]))
    torch.testing.assert_close(recording.states("norm").values[0], maps.mean(dim=(2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(recording.states("auto").values[0], maps.relu().mean(dim=(2, 3)), rtol=0, atol=1e-6)


def test_training_does_not_notice(net, data, train, tmp_path):
    twin = copy.deepcopy(net)
    outcomes = []
    for model, recorded in ((net, True), (twin, False)):
        model.train()
        model.norm.eval()  # a frozen part of a model in train mode
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        if recorded:
            with pellucid.Recorder(model, data[0], layers=["fc"], path=tmp_path, every=1):
                optimiser = train(model, 6)
        else:
            optimiser = train(model, 6)
        assert [part.training for part in model.children()] == [True, False, True, True, True]
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(part._forward_hooks for part in model.modules())
        state = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        state += [value for group in optimiser.state.values() for value in group.values() if value is not None]
        outcomes.append((state, torch.rand(3), random.random(), np.random.rand()))
    (ours, *ours_drawn), (theirs, *theirs_drawn) = outcomes
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(ours_drawn[0], theirs_drawn[0])
    assert ours_drawn[1:] == theirs_drawn[1:]


def test_captures_do_not_depend_on_the_batch_size(net, data, tmp_path):
    for rows in (1, 7, "auto"):
        pellucid.Recorder(net, data[0], layers=["fc"], path=tmp_path, run=f"rows={rows}", batch_size=rows).capture()
    recording = load(tmp_path)
    one, seven, auto = (recording[name].states("fc").values for name in ("rows=1", "rows=7", "rows=auto"))
    torch.testing.assert_close(one, seven, rtol=0, atol=1e-6)
    torch.testing.assert_close(one, auto, rtol=0, atol=1e-6)


def test_passes_hold_no_more_than_the_caches_but_eight_rows(net, data, tmp_path, monkeypatch):
    taken = []
    net.register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0])))
    for run, held, most in (("wide", 2**30, 48), ("narrow", 40_000, 20), ("least", 1, 8)):
        monkeypatch.setattr("pellucid.recorder.recorder.CACHED", held)
        recorder = pellucid.Recorder(net, data[0], path=tmp_path, run=run)
        recorder.capture()
        taken.clear()
        recorder.capture()
        assert sum(taken) == 48
        assert max(taken) <= most
        assert run != "wide" or taken == [48]
        assert run != "least" or taken == [8] * 6


def test_only_the_steps_of_the_models_own_optimiser_count(net, data, train, tmp_path):
    other = nn.Linear(2, 2)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    second = torch.optim.SGD([net.head.bias], lr=0.0)

    def after():
        foreign.step()
        second.step()

    with pellucid.Recorder(net, data[0], path=tmp_path, every=1) as recorder:
        train(net, 3, after=after)
    foreign.step()
    assert recorder.steps == 3
    assert recorder.captured == [0, 1, 2, 3]


def test_steps_may_be_told_within_a_context(net, data, train, tmp_path):
    with pellucid.Recorder(net, data[0], path=tmp_path, every=1) as recorder:
        train(net, 3, after=recorder.step)
    assert recorder.captured == [0, 1, 2, 3]


def test_the_start_must_not_be_missed(net, data, tmp_path):
    with pytest.raises(pellucid.ProtocolError, match="start"):
        pellucid.Recorder(net, data[0], path=tmp_path).step()


def test_a_training_that_fails_keeps_what_was_captured(net, data, train, tmp_path):
    def fail():
        if recorder.steps == 3:
            raise RuntimeError("out of luck")

    with (
        pytest.raises(RuntimeError, match="out of luck"),
        pellucid.Recorder(net, data[0], path=tmp_path, every=2) as recorder,
    ):
        train(net, 10, after=fail)
    assert load(tmp_path)["run"].steps == (0, 2)
    train(net, 2)
    assert recorder.steps == 3


def test_a_run_goes_on_after_its_last_capture_or_after_a_checkpoint(net, data, train, tmp_path):
    with pellucid.Recorder(net, data[0], path=tmp_path, every=2):
        train(net, 6)
    with pellucid.Recorder(net, data[0], path=tmp_path, every=2, resume=True) as recorder:
        assert recorder.steps == 6
        train(net, 2)
    assert load(tmp_path)["run"].steps == (0, 2, 4, 6, 8)
    recorder = pellucid.Recorder(net, data[0], path=tmp_path, every=2, resume=4)
    assert recorder.captured == [0, 2, 4]
    assert load(tmp_path)["run"].steps == (0, 2, 4)


def test_resuming_what_is_not_there_begins_anew(net, data, tmp_path):
    recorder = pellucid.Recorder(net, data[0], path=tmp_path, resume=True)
    assert recorder.steps == 0
    recorder.start()
    assert recorder.captured == [0]


def test_the_probe_is_a_copy(net, data, tmp_path):
    images = data[0].clone()
    recorder = pellucid.Recorder(net, images, path=tmp_path)
    recorder.capture()
    images.zero_()
    recorder.steps = 1
    recorder.capture()
    first, second = load(tmp_path).states().values
    assert torch.equal(first, second)


def test_half_precision_takes_half_the_room(net, data, tmp_path):
    pellucid.Recorder(net, data[0], path=tmp_path, dtype=torch.float16).capture()
    assert load(tmp_path).states().values.dtype == torch.float16


def test_a_model_of_several_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(6, 2)

        def forward(self, tokens, numbers):
            return self.head(torch.cat([self.embed(tokens).mean(dim=1), numbers], dim=1))

    model = Two()
    probe = {"tokens": torch.randint(5, (7, 3)), "numbers": torch.rand(7, 2)}
    pellucid.Recorder(model, probe, layers=["head"], path=tmp_path, batch_size=2).capture()
    torch.testing.assert_close(load(tmp_path).states("head").values[0], model(**probe).detach())


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("log", [0, 1, 4, 16]),
        (10, [0, 10, 20]),
        ([5, 7], [0, 5, 7]),
        (lambda step: step > 22, [0, 23, 24]),
    ],
)
def test_schedules(every, expected):
    assert [step for step in range(25) if due(every)(step)] == expected


def test_a_million_steps_are_looked_at_27_times_and_an_epoch_of_mnist_seven_times():
    steps = {0, 1, 4, 16, 64, 256, 512, 1024} | {round(2 ** (half / 2)) for half in range(21, 40)}
    chosen = due("log")
    assert {step for step in range(1_000_001) if chosen(step)} == steps
    assert len(steps) == 27
    assert sum(map(chosen, range(939))) == 7


@pytest.mark.parametrize("every", ["often", 0, -1, True, 1.5, [1, "two"], [-1]])
def test_other_schedules_are_refused(every):
    with pytest.raises(pellucid.ParameterError, match="expected 'log'"):
        due(every)


def test_what_does_not_fit_is_refused_before_training(net, data, tmp_path):
    images, _ = data
    for given, error, message in (
        ({"layers": ["fz"]}, pellucid.LayerError, "Did you mean"),
        ({"layers": "fc"}, pellucid.ParameterError, r"\['fc'\]"),
        ({"labels": [0, 1]}, pellucid.InputError, r"expected \(48,\)"),
        ({"labels": torch.rand(48)}, pellucid.InputError, "classes"),
        ({"names": ["a"]}, pellucid.InputError, "48 examples"),
        ({"run": "../else"}, pellucid.ParameterError, "letters"),
        ({"resume": -2}, pellucid.ParameterError, "step"),
        ({"batch_size": 0}, pellucid.ParameterError, "batch_size"),
    ):
        with pytest.raises(error, match=message):
            pellucid.Recorder(net, images, path=tmp_path, **given)
    with pytest.raises(pellucid.InputError, match="finite"):
        pellucid.Recorder(net, images * torch.nan, path=tmp_path)
    assert not any(tmp_path.iterdir())


def test_another_probe_or_other_layers_cannot_go_on_with_a_run(net, data, tmp_path):
    images, _ = data
    pellucid.Recorder(net, images, layers=["fc"], path=tmp_path).capture()
    with pytest.raises(pellucid.SavedFileError, match="resume=True"):
        pellucid.Recorder(net, images, layers=["fc"], path=tmp_path)
    for probe in (images[:10], images.flip(0)):
        with pytest.raises(pellucid.InputError, match="another probe"):
            pellucid.Recorder(net, probe, layers=["fc"], path=tmp_path, resume=True)
    with pytest.raises(pellucid.InputError, match="same layers"):
        pellucid.Recorder(net, images, layers=["head"], path=tmp_path, resume=True)


def test_a_recorder_is_entered_once(net, data, tmp_path):
    with (
        pytest.warns(UserWarning, match="no optimiser of the recorded model stepped"),
        pellucid.Recorder(net, data[0], path=tmp_path) as recorder,
        pytest.raises(pellucid.ProtocolError),
        recorder,
    ):
        pass


def test_a_model_that_changes_its_precision_is_followed(net, data, tmp_path):
    recorder = pellucid.Recorder(net.bfloat16(), data[0].bfloat16(), layers=["fc"], path=tmp_path, every=1)
    recorder.start()
    for change in (net.float, net.double):
        change()
        recorder.step()
    states = load(tmp_path).states("fc").values
    assert states.dtype == torch.float64
    with torch.no_grad():
        expected = net.eval().fc(torch.relu(net.norm(net.conv(data[0].bfloat16().double()))).flatten(1))
    torch.testing.assert_close(states[2], expected, rtol=0, atol=1e-9)


def test_training_that_goes_on_with_a_new_optimiser_is_counted(net, data, train, tmp_path):
    with pellucid.Recorder(net, data[0], path=tmp_path, every=10, parameters=True) as recorder:
        train(net, 5)
        train(net, 30)
        assert recorder.steps == 35
        train(net, 3)
    assert recorder.captured == [0, 30, 35]
    last = load(tmp_path).states("parameters").values[-1, 0]
    assert torch.equal(last, nn.utils.parameters_to_vector(net.parameters()))


def test_a_data_set_is_a_probe(net, data, tmp_path):
    for run, probe in (("set", torch.utils.data.TensorDataset(*data)), ("tensor", data[0])):
        pellucid.Recorder(net, probe, layers=["fc"], path=tmp_path, run=run).capture()
    one, other = (load(tmp_path)[run].states("fc") for run in ("set", "tensor"))
    torch.testing.assert_close(one.values, other.values)
    assert torch.equal(one.pictures, other.pictures)


def test_numbers_of_numpy_make_schedules():
    for every in (np.array([5, 7]), [np.int64(5), np.int32(7)], torch.tensor([5, 7])):
        assert [step for step in range(9) if due(every)(step)] == [0, 5, 7]
    assert due(np.int64(4))(8)


def test_labels_that_are_words_are_refused(net, data, tmp_path):
    with pytest.raises(pellucid.InputError, match="labels are no numbers"):
        pellucid.Recorder(net, data[0], path=tmp_path, labels=["a"] * 48)


def test_resuming_takes_a_damaged_capture_again_and_removes_drafts(net, data, tmp_path):
    recorder = pellucid.Recorder(net, data[0], path=tmp_path, every=1)
    recorder.start()
    recorder.step()
    last = tmp_path / "run" / "step-000000001.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    (tmp_path / "run" / ".tmpAbCdEf").write_bytes(b"what safetensors was writing")
    resumed = pellucid.Recorder(net, data[0], path=tmp_path, every=1, resume=True)
    assert resumed.captured == [0]
    assert resumed.steps == 1
    resumed.start()
    assert load(tmp_path)["run"].steps == (0, 1)
    assert not load(tmp_path).notes
    assert not list((tmp_path / "run").glob(".*"))
