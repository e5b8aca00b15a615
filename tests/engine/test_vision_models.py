"""Torchvision's segmentation and detection models with random weights: targets against plain loops and peers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import detection, segmentation
from torchvision.ops import box_iou

import pellucid
from pellucid import Detected, ModelError, Region, TargetError

RANDOM = {"weights": None, "weights_backbone": None, "num_classes": 5}
SMALL = {**RANDOM, "min_size": 96, "max_size": 96}


def near(one, two, tolerance=1e-8):
    two = two.detach()
    assert two.abs().max() > 0
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()))


def photos(count=2):
    """Smooth colours with a bright square at another place in each image.

    They are of double precision: in single precision, the random ResNet-50's gradients differ by a few hundredths where
    another order of summation takes a ReLU to the other side.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 5, 5, generator=generator).double()
    images = nn.functional.interpolate(images, (64, 64), mode="bilinear")
    for row, image in enumerate(images):
        image[:, 8 + 16 * row : 32 + 16 * row, 12:40] += torch.rand(3, 1, 1, generator=generator)
    return images.clamp(0, 1)


def calibrated(model):
    """A random model whose normalisations fit its activations, so that its outputs depend on its inputs."""
    model.double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        model(photos())
    return model.eval()


# --- segmentation ----------------------------------------------------------------------------------------------------

SEGMENTATION = {
    "deeplabv3": lambda: segmentation.deeplabv3_mobilenet_v3_large(aux_loss=True, **RANDOM),
    "fcn": lambda: segmentation.fcn_resnet50(aux_loss=True, **RANDOM),
    "lraspp": lambda: segmentation.lraspp_mobilenet_v3_large(**RANDOM),
}


@pytest.fixture(scope="module", params=SEGMENTATION)
def segmenter(request):
    torch.manual_seed(0)
    model = SEGMENTATION[request.param]()
    return calibrated(model)


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(0)
    model = SEGMENTATION["deeplabv3"]()
    return calibrated(model)


def common_class(maps):
    """A class that is predicted at some positions of every image, and not at all of them."""
    predicted = maps.argmax(dim=1)
    shares = torch.stack([(predicted == index).flatten(1).double().mean(dim=1) for index in range(maps.shape[1])])
    found = ((shares > 0) & (shares < 1)).all(dim=1).nonzero().flatten().tolist()
    assert found, shares
    return found[0]


def test_a_class_where_it_is_predicted(segmenter):
    images = photos()
    leaf = images.clone().requires_grad_()
    maps = segmenter(leaf)["out"]
    index = common_class(maps.detach())
    where = maps.argmax(dim=1) == index
    score = torch.stack([maps[row, index][where[row]].mean() for row in range(len(images))])
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    target = Region(index, predicted=True)
    occlusion = pellucid.create("occlusion", window=32, stride=32)
    found = pellucid.explain(segmenter, images, {"s": "saliency", "cam": "grad_cam", "o": occlusion}, target)
    near(found["s"].values, slope.abs())
    assert found["cam"].values.shape[1] > 1
    assert found["cam"].meta.layer
    drops = torch.zeros(2, 64, 64).double()
    for top in (0, 32):
        for left in (0, 32):
            hidden = images.clone()
            hidden[:, :, top : top + 32, left : left + 32] = 0
            with torch.no_grad():
                after = segmenter(hidden)["out"]
            for row in range(2):
                drops[row, top : top + 32, left : left + 32] = score[row] - after[row, index][where[row]].mean()
    near(found["o"].values, drops.detach()[:, None].expand(2, 3, 64, 64))
    one_by_one = pellucid.explain(segmenter, images, "saliency", target, batch_size=1)
    near(one_by_one.values, found["s"].values)


def test_a_sum_over_predicted_positions_as_captum_wraps_it(deeplab):
    attr = pytest.importorskip("captum.attr")
    images = photos()
    with torch.no_grad():
        maps = deeplab(images)["out"]
    index = common_class(maps)
    where = (maps.argmax(dim=1) == index).float()

    def wrapped(inputs):
        return (deeplab(inputs)["out"][:, index] * where).sum(dim=(1, 2))

    layer = deeplab.backbone["16"]
    target = Region(index, predicted=True, reduce="sum")
    techniques = {"s": "saliency", "cam": pellucid.create("grad_cam", layer="backbone.16")}
    found = pellucid.explain(deeplab, images, techniques, target)
    near(found["s"].values, attr.Saliency(wrapped).attribute(images.clone().requires_grad_()))
    peer = attr.LayerGradCam(wrapped, layer).attribute(images.clone().requires_grad_(), relu_attributions=True)
    near(found["cam"].values, peer[:, 0])


def test_the_auxiliary_map(deeplab):
    images = photos()
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(deeplab(leaf)["aux"][:, 1].mean(dim=(1, 2)).sum(), leaf)
    near(pellucid.explain(pellucid.adapt(deeplab, output="aux"), images, "saliency", Region(1)).values, slope.abs())
    with pytest.raises(ModelError, match=r"no part 'auxx'; it has \['aux', 'out'\].*Did you mean 'aux'"):
        pellucid.explain(pellucid.adapt(deeplab, output="auxx"), images, "saliency", Region(1))


def test_regions_that_a_model_does_not_have(deeplab):
    images = photos()
    for target, told in (
        (Region(5), "target 5 is out of range; the model has 5 classes"),
        (Region(0, box=(0, 0, 65, 64)), "does not lie in the output map, 64 high and 64 wide"),
        (Region(0, torch.ones(32, 32)), r"mask is \(32, 32\); the output map is \(64, 64\)"),
    ):
        with pytest.raises(TargetError, match=told):
            pellucid.explain(deeplab, images, "saliency", target)


def test_a_segment_s_explanations_can_be_scored(deeplab):
    images = photos()
    with torch.no_grad():
        target = Region(common_class(deeplab(images)["out"]), predicted=True)
    found = pellucid.explain(deeplab, images, "saliency", target)
    scores = pellucid.evaluate(
        deeplab, images, found, pellucid.create("pixel_flipping", n_steps=3), target, controls=["random"]
    )
    assert torch.isfinite(torch.as_tensor(scores.values)).all()


# --- detection -------------------------------------------------------------------------------------------------------

DETECTION = {
    "fasterrcnn": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        box_score_thresh=0.0, box_detections_per_img=30, **SMALL
    ),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(score_thresh=0.0, **SMALL),
    "fcos": lambda: detection.fcos_resnet50_fpn(score_thresh=0.0, **SMALL),
    "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(score_thresh=0.0, **RANDOM),
}


def made(name):
    torch.manual_seed(0)
    model = DETECTION[name]()
    return calibrated(model)


@pytest.fixture(scope="module", params=DETECTION)
def detector(request):
    return made(request.param)


@pytest.fixture(scope="module")
def rcnn():
    return made("fasterrcnn")


def detected(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("name", ["fasterrcnn", "ssdlite"])
def test_optimised_detectors_are_compared_by_what_their_detections_are_made_of(name):
    model = made(name)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    objects = Detected.of(detected(model, images))
    plain = pellucid.explain(model, images, "saliency", objects)
    fast = pellucid.explain(pellucid.adapt(model, optimize=True), images, "saliency", objects)
    check = fast.checks.named("optimised outputs")
    assert float(check.value) < 1e-9
    torch.testing.assert_close(fast.values, plain.values, rtol=0, atol=1e-6 * float(plain.values.abs().max()))


def test_a_detector_of_which_no_layer_is_known_says_why_it_is_not_optimised():
    class Alien(torch.nn.Conv2d):
        def forward(self, x):
            scores = super().forward(x).mean(dim=(2, 3)).sigmoid()
            boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 16.0, 16.0]])
            return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": row} for row in scores]

    model, images = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), Alien(2, 2, 3)), torch.rand(1, 3, 16, 16)
    objects = Detected.of(detected(model, images))
    with pytest.raises(ModelError, match=r"optimize=True compares.*name a layer to compare by"):
        pellucid.explain(pellucid.adapt(model, optimize=True), images, "saliency", objects)
    named = pellucid.explain(pellucid.adapt(model, optimize=True, layer="0"), images, "saliency", objects)
    assert named.checks.named("optimised outputs").passed


def plainly(model, images, classes, boxes):
    """The match of each image's object, the image shown alone."""
    scores = []
    for image, index, box in zip(images, classes.tolist(), boxes, strict=True):
        (found,) = model([image])
        own = found["labels"] == index
        match = box_iou(box[None], found["boxes"][own].detach())[0] * found["scores"][own]
        scores.append(match.max() if len(match) else found["scores"].sum() * 0)
    return torch.stack(scores)


def test_an_object_of_each_image(detector):
    images = photos()
    target = Detected.of(detected(detector, images))
    leaf = images.clone().requires_grad_()
    score = plainly(detector, leaf, target.index, target.box)
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    found = pellucid.explain(detector, images, ["saliency", "grad_cam"], target)
    near(found["saliency"].values, slope.abs())
    cam = found["grad_cam"]
    assert cam.meta.layer == pellucid.adapt(detector).layer
    maps = []
    hook = detector.get_submodule(cam.meta.layer).register_forward_hook(lambda _, __, output: maps.append(output))
    score = plainly(detector, leaf, target.index, target.box)
    hook.remove()
    slopes = torch.autograd.grad(score.sum(), maps)
    plain = [(m * s.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu() for m, s in zip(maps, slopes, strict=True)]
    near(cam.values, torch.cat(plain))


def test_techniques_without_gradients(rcnn):
    images = photos()
    target = Detected.of(detected(rcnn, images), 1)
    occlusion = pellucid.create("occlusion", window=32, stride=32)
    rise = pellucid.create("rise", n_masks=4, cells=4, centred=False)
    found = pellucid.explain(rcnn, images, {"o": occlusion, "r": rise}, target, batch_size=3)
    with torch.no_grad():
        whole = plainly(rcnn, images, target.index, target.box)
        drops = torch.zeros(2, 64, 64).double()
        for top in (0, 32):
            for left in (0, 32):
                hidden = images.clone()
                hidden[:, :, top : top + 32, left : left + 32] = 0
                after = plainly(rcnn, hidden, target.index, target.box)
                drops[:, top : top + 32, left : left + 32] = (whole - after)[:, None, None]
    near(found["o"].values, drops[:, None].expand(2, 3, 64, 64))
    assert found["r"].values.isfinite().all()
    assert found["r"].values.abs().max() > 0


def test_any_number_of_detections_in_a_batch(rcnn):
    """The images have 3, 0 and all of the detections: a score of zero beside others, and nothing mixed up."""

    class Fewer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.rows = rcnn, []

        def forward(self, images):
            self.rows.append(len(images))
            keep = [{0.25: 3, 0.0: 0, 0.5: 99}[image[0, 0, 0].item()] for image in images]
            return [{k: part[:n] for k, part in one.items()} for one, n in zip(self.model(images), keep, strict=True)]

    images = photos(3)
    images[:, 0, 0, 0] = torch.tensor([0.25, 0.0, 0.5])
    model = Fewer().eval()
    raw = detected(model, images)
    assert [len(one["scores"]) for one in raw] == [3, 0, 30]
    own = Detected.of([raw[0], raw[2]])
    classes = torch.stack([own.index[0], own.index[0], own.index[1]])
    boxes = torch.stack([own.box[0], own.box[0], own.box[1]])
    with pytest.raises(TargetError, match=r"in example 1 no detection .* it has 0 detections"):
        pellucid.explain(model, images, "saliency", Detected(classes, boxes))
    target = Detected(classes, boxes, required=False)
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plainly(model, leaf, classes, boxes).sum(), leaf)
    for batch_size in (2, "auto"):
        model.rows.clear()
        found = pellucid.explain(model, images, "saliency", target, batch_size=batch_size)
        assert max(model.rows) == {2: 2, "auto": 3}[batch_size]
        near(found.values, slope.abs())
        assert found.values[1].abs().max() == 0
        assert found.checks.named("not constant").each == (0, 1, 0)
    alone = pellucid.explain(model, images[1:2], "saliency", Detected(int(classes[1]), boxes[1], required=False))
    assert alone.values.abs().max() == 0


def test_detections_with_masks():
    torch.manual_seed(0)
    options = {"box_score_thresh": 0.0, "box_detections_per_img": 2}
    model = detection.maskrcnn_resnet50_fpn(**options, **SMALL).eval()
    images = photos().float()
    target = Detected.of(detected(model, images))
    whole = pellucid.create("occlusion", window=64, stride=64)
    found = pellucid.explain(model, images, whole, target)
    with torch.no_grad():
        drops = plainly(model, images, target.index, target.box) - plainly(model, images * 0, target.index, target.box)
    near(found.values, drops[:, None, None, None].expand(2, 3, 64, 64), 1e-3)


def test_what_a_detector_does_not_detect(rcnn):
    images = photos()
    (box, *_) = detected(rcnn, images)[0]["boxes"]
    for target, told in (
        (Detected(77, box), r"in example 0 no detection of class 77 .* of classes \["),
        (Detected(1, (500, 500, 600, 600)), r"overlaps the box \[500\.0, 500\.0, 600\.0, 600\.0\]"),
    ):
        with pytest.raises(TargetError, match=told):
            pellucid.explain(rcnn, images, "saliency", target)
    for target in (None, 1):
        with pytest.raises(ModelError, match="list of detections, not scores of classes"):
            pellucid.explain(rcnn, images, "saliency", target)
    with pytest.raises(TargetError, match="the model returns a Tensor"):
        pellucid.explain(nn.Conv2d(3, 2, 1), images, "saliency", Detected(1, box))


def test_nothing_detected_at_all():
    torch.manual_seed(0)
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(box_score_thresh=2.0, **SMALL).eval()
    images = photos().float()
    with pytest.raises(TargetError, match=r"images \[0, 1\] do not have"):
        Detected.of(detected(model, images))
    with pytest.raises(TargetError, match="it has 0 detections"):
        pellucid.explain(model, images, "saliency", Detected(1, (0, 0, 30, 30)))
    unseen = Detected(1, (0, 0, 30, 30), required=False)
    found = pellucid.explain(model, images, ["saliency", pellucid.create("occlusion", window=64, stride=64)], unseen)
    assert all(one.values.abs().max() == 0 for one in found.values())
    assert all(one.checks.named("not constant").each == (1, 1) for one in found.values())


def test_the_layer_auto_is_what_the_adapter_says(rcnn):
    images = photos()
    target = Detected.of(detected(rcnn, images))
    found = pellucid.explain(pellucid.adapt(rcnn, layer="backbone.body.13"), images, "grad_cam", target)
    assert found.meta.layer == "backbone.body.13"
    with pytest.raises(pellucid.LayerError, match=r"means 'backbone\.boddy'.*Did you mean"):
        pellucid.explain(pellucid.adapt(rcnn, layer="backbone.boddy"), images, "grad_cam", target)
