"""Callbacks: stand-ins with the trainers' hooks, and the trainers themselves where they are installed."""

import sys
import types

import pytest
import torch
from torch import nn

import pellucid
from pellucid.recorder import load


class Hooks:
    """What a callback inherits from a trainer's library."""


@pytest.fixture
def lightning(monkeypatch):
    """A stand-in for Lightning: its module, and a loop that calls its hooks as Lightning's does."""
    module = types.ModuleType("lightning.pytorch")
    module.Callback = Hooks
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)

    def fit(callback, batches, begun=0, accumulated=1):
        trainer = types.SimpleNamespace(global_step=begun)
        callback.on_train_start(trainer, None)
        for batch in range(batches):
            trainer.global_step += (batch + 1) % accumulated == 0
            callback.on_train_batch_end(trainer, None, outputs=None, batch=None, batch_idx=batch)
        callback.on_train_end(trainer, None)

    return fit


def test_lightnings_steps_are_counted_whatever_is_accumulated(lightning, net, data, tmp_path):
    recorder = pellucid.Recorder(net, data[0], every=2, path=tmp_path)
    lightning(recorder.callback("lightning"), batches=15, accumulated=3)
    assert recorder.captured == [0, 2, 4, 5]


def test_a_trainer_that_goes_on_from_a_checkpoint_takes_its_own_count(lightning, net, data, tmp_path):
    first = pellucid.Recorder(net, data[0], every=2, path=tmp_path)
    lightning(first.callback("lightning"), batches=9)
    assert first.captured == [0, 2, 4, 6, 8, 9]
    second = pellucid.Recorder(net, data[0], every=2, path=tmp_path, resume=True)
    lightning(second.callback("lightning"), batches=3, begun=5)
    assert second.captured == [0, 2, 4, 5, 6, 8]
    late = pellucid.Recorder(net, data[0], every=2, path=tmp_path, run="late")
    lightning(late.callback("lightning"), batches=3, begun=5)
    assert late.captured == [5, 6, 8]


def test_a_second_training_cannot_wipe_the_first_ones_captures(lightning, net, data, tmp_path):
    recorder = pellucid.Recorder(net, data[0], every=2, path=tmp_path)
    lightning(recorder.callback("lightning"), batches=5)
    with pytest.raises(pellucid.ProtocolError, match="make a new one"):
        lightning(recorder.callback("lightning"), batches=5)
    assert load(tmp_path)["run"].steps == (0, 2, 4, 5)


def test_other_trainers_and_missing_ones_are_named(net, data, tmp_path, monkeypatch):
    recorder = pellucid.Recorder(net, data[0], path=tmp_path)
    with pytest.raises(pellucid.ParameterError, match="Did you mean 'lightning'"):
        recorder.callback("lightening")
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(pellucid.Unavailable, match="pip install lightning"):
        recorder.callback("lightning")


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_trainer(net, data, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    recorder = pellucid.Recorder(net, data[0], layers=["fc"], every=2, path=tmp_path / "recording")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=3, accumulate_grad_batches=2, callbacks=[recorder.callback("lightning")], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    assert recorder.captured == [0, 2, 4, 6, 8, 9]
    states = load(tmp_path / "recording").states("fc").values
    assert not torch.equal(states[0], states[-1])


@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_own_trainer(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, pixels, labels=None):
            logits = self.head(self.fc(pixels.flatten(1)).relu())
            return {"logits": logits} if labels is None else {
                "loss": nn.functional.cross_entropy(logits, labels), "logits": logits
            }  # fmt: skip

    images, labels = data
    model = Model()
    recorder = pellucid.Recorder(model, images, layers=["fc"], every=2, path=tmp_path / "recording", labels=labels)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=5, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        save_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    rows = [{"pixels": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def trainer(recorder):
        return transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[recorder.callback("transformers")])

    trainer(recorder).train()
    assert recorder.captured == [0, 2, 4, 5]
    states = load(tmp_path / "recording").states("fc")
    assert not torch.equal(states.values[0], states.values[-1])
    again = pellucid.Recorder(
        model, images, layers=["fc"], every=2, path=tmp_path / "recording", labels=labels, resume=True
    )
    trainer(again).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert again.captured == [0, 2, 3, 4, 5]
    torch.testing.assert_close(load(tmp_path / "recording").states("fc").values[-1], states.values[-1])
