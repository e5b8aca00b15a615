"""ACE: segments, patches and rules one by one; planted parts found again; mutants; bad input."""

import numpy as np
import pytest
import torch
from tests.plugins.concepts.worlds import COLOURS, OTHER_COLOURS, SIDE, PartNet, accuracy, parts, trained

import pellucid_concepts.ace as ace
from pellucid import ClassLogit, InputError, LayerError, ParameterError, Sample, adapt, create, explain
from pellucid_concepts.segments import GREY, Cutter

LAYER = "conv2"


def cutter(photos, how, resized=True, mean=None, std=None, resolutions=(15,)):
    sample = Sample(photos, ClassLogit(0), mean=mean, std=std)
    return Cutter.of(photos, sample, how, resolutions, resized)


def quarters(photo):
    """Four labels, 0 to 3; the last is the lower right quarter."""
    rows = torch.arange(photo.shape[1]) >= photo.shape[1] // 2
    columns = torch.arange(photo.shape[2]) >= photo.shape[2] // 2
    return 2 * rows[:, None].long() + columns.long()


def test_every_label_is_a_segment_the_last_as_well():
    photos = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    found = cutter(photos, quarters).segments(1)
    assert [(one.image, one.top, one.left, tuple(one.mask.shape)) for one in found] == [
        (1, 0, 0, (4, 6)),
        (1, 0, 6, (4, 6)),
        (1, 4, 0, (4, 6)),
        (1, 4, 6, (4, 6)),
    ]
    assert all(one.mask.all() for one in found)


def test_the_segments_of_slic_cover_the_photo():
    generator = torch.Generator().manual_seed(0)
    photos = parts(2, COLOURS, generator)
    covered = torch.zeros(SIDE, SIDE)
    found = cutter(photos, "slic", resolutions=(50,)).segments(0)
    for one in found:
        height, width = one.mask.shape
        covered[one.top : one.top + height, one.left : one.left + width] += one.mask
    assert 20 < len(found) < 80
    assert bool((covered == 1).all())


def test_segments_of_several_resolutions_are_kept_once():
    photos = torch.rand(1, 3, 8, 8)
    halves = lambda photo: (torch.arange(8) >= 4).long().expand(8, 8)  # noqa: E731
    twice = cutter(photos, lambda photo: [quarters(photo), quarters(photo)]).segments(0)
    assert len(twice) == 4
    both = cutter(photos, lambda photo: [halves(photo), quarters(photo)]).segments(0)
    assert len(both) == 6  # a quarter is half of a half, which is not more than half


def test_labels_of_any_whole_type_are_segments():
    photos = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    expected = cutter(photos, quarters).segments(0)
    for kind in (np.uint8, np.int16, np.uint16, np.uint64):
        found = cutter(photos, lambda photo, kind=kind: quarters(photo).numpy().astype(kind)).segments(0)
        assert [(one.top, one.left) for one in found] == [(one.top, one.left) for one in expected]


def test_negative_labels_are_no_segments():
    photos = torch.rand(1, 3, 8, 8)
    some = cutter(photos, lambda photo: quarters(photo) - 2).segments(0)
    assert [(one.top, one.left) for one in some] == [(4, 0), (4, 4)]
    with pytest.raises(InputError, match="segments of image 0 cover nothing"):
        cutter(photos, lambda photo: quarters(photo) - 4).segments(0)


def test_patches_show_the_part_alone_surrounded_by_grey():
    photos = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    labels = torch.full((8, 8), -1)
    labels[2:4, 3:6] = 0
    labels[3, 5] = -1
    for resized in (False, True):
        made = cutter(photos, lambda photo: labels, resized, mean, std)
        (segment,) = made.segments(0)
        patch = made.patches([segment])[0]
        grey = (GREY - torch.tensor(mean).double()) / torch.tensor(std).double()
        if not resized:
            expected = grey[:, None, None].expand(3, 8, 8).clone()
            expected[:, labels == 0] = photos[0][:, labels == 0]
            assert torch.allclose(patch, expected, atol=1e-6)
        else:
            assert patch.shape == (3, 8, 8)
            assert torch.allclose(patch[:, 0, 0], photos[0, :, 2, 3])
            assert torch.allclose(patch[:, -1, -1], grey, atol=1e-6)


def test_grey_of_photos_of_unknown_normalisation_lies_in_their_range():
    photos = torch.linspace(-2, 3, 192).reshape(1, 3, 8, 8)
    made = cutter(photos, lambda photo: (torch.arange(8) > 3).long().expand(8, 8), resized=False)
    patch = made.patches(made.segments(0)[:1])[0]
    assert float(patch[0, 0, -1]) == pytest.approx(-2 + 5 * GREY)


@pytest.mark.parametrize(
    ("images", "n", "expected"),
    [
        ([0, 1, 2], 5, True),  # three of five images
        ([0, 1], 4, False),  # half is not more than half
        ([0, 1, 1, 1, 1], 4, True),  # half of the images, and more segments than images
        ([0, 1, 1, 1], 4, False),
        ([0] * 8, 4, False),
        ([0] * 9, 4, True),  # of one image, but more than twice as many as images
    ],
)
def test_common_clusters_are_those_of_the_papers_rules(images, n, expected):
    assert ace.common(torch.tensor(images), n) is expected


@pytest.fixture(scope="module")
def world():
    """A network that tells three coloured parts from three others, and images of both."""
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([parts(120, COLOURS, generator), parts(120, OTHER_COLOURS, generator)])
    labels = torch.arange(240) // 120
    torch.manual_seed(0)
    net = trained(PartNet(), lambda: images, labels, 25, 1e-2)
    assert accuracy(net, images, labels) == 1
    for colour in range(3):  # each part by itself counts for the class, which is what there is to find
        with torch.no_grad():
            alone, none = net(parts(20, COLOURS[[colour]], generator)), net(parts(20, COLOURS[:0], generator))
        assert float((alone[:, 0] - alone[:, 1]).mean()) > float((none[:, 0] - none[:, 1]).mean())
    random = torch.cat([parts(120, OTHER_COLOURS, generator), parts(60, COLOURS[:0], generator)])
    return net, images[:20], random[torch.randperm(180, generator=generator)]


def found_parts(result):
    """How many planted parts have a significant concept of their own: four in five of its patches show the part."""
    found = set()
    for place, patches in enumerate(result.patches):
        near = (patches[:, None] - COLOURS[None, :, :, None, None]).square().sum(dim=2) < 0.05
        shows = near.float().mean(dim=(2, 3)) > 0.3
        for part in range(len(COLOURS)):
            sure = bool(result.significant[0, place]) and float(result.values[0, place]) > 0.9
            if sure and float(shows[:, part].float().mean()) >= 0.8:
                found.add(part)
    return len(found)


@pytest.fixture(scope="module")
def discovered(world):
    net, images, random = world
    return explain(net, images, create("ace", random=random, n_random=10, layer=LAYER), target=0, progress=False)


def test_planted_parts_are_found(discovered):
    assert found_parts(discovered) >= 2, discovered.to_dataframe()
    scores = discovered.values[0].tolist()
    assert scores == sorted(scores, reverse=True)
    assert discovered.names[0] == "concept 1"
    assert discovered.over == LAYER
    assert all(one.shape[1:] == (3, SIDE, SIDE) and 6 <= len(one) <= 10 for one in discovered.patches)
    assert discovered.checks.named("common clusters").value == len(discovered.names)


def test_another_seed_finds_them_too(world):
    net, images, random = world
    technique = create("ace", random=random, n_random=10, layer=LAYER, n_clusters=15, resolutions=(30, 60))
    assert found_parts(explain(net, images, technique, target=0, seed=3, progress=False)) >= 2


def test_the_planted_truth_catches_the_other_class(world):
    net, images, random = world
    technique = create("ace", random=random, n_random=10, layer=LAYER, n_clusters=15, resolutions=(30, 60))
    assert found_parts(explain(net, images, technique, target=1, progress=False)) == 0


def test_a_segment_off_by_one_is_caught(monkeypatch):
    """The reference code's loop ends before the last label, which the test of every label must notice."""
    right = Cutter._masks
    monkeypatch.setattr(Cutter, "_masks", lambda self, image, place: right(self, image, place)[:-1])
    with pytest.raises(AssertionError):
        test_every_label_is_a_segment_the_last_as_well()
    with pytest.raises(AssertionError):
        test_the_segments_of_slic_cover_the_photo()


def test_patches_of_other_segments_are_caught(world, monkeypatch):
    net, images, random = world
    right = Cutter.patches
    monkeypatch.setattr(Cutter, "patches", lambda self, some: right(self, some).roll(1, dims=0))
    technique = create("ace", random=random, n_random=10, layer=LAYER, n_clusters=15, resolutions=(30, 60))
    assert found_parts(explain(net, images, technique, target=0, seed=3, progress=False)) < 2


def test_the_passes_are_one_for_each_segment_and_random_image(world):
    net, images, random = world
    technique = create("ace", random=random[:30], n_random=5, layer=LAYER, segments=quarters, n_clusters=3)
    found = explain(net, images[:6], technique, target=0)
    assert found.meta.passes["forward"] * 6 == pytest.approx(6 + 6 * 4 + 30)
    assert found.meta.passes["backward"] * 6 == 6


def test_patches_that_were_seen_before_need_no_passes(world, tmp_path):
    net, images, random = world
    given = {"random": random[:30], "n_random": 5, "layer": LAYER, "segments": quarters, "folder": tmp_path}
    first = explain(net, images[:6], create("ace", n_clusters=3, **given), target=0)
    again = explain(net, images[:6], create("ace", n_clusters=3, **given), target=0)
    other = explain(net, images[:6], create("ace", n_clusters=2, **given), target=0)
    assert first.meta.passes["forward"] * 6 == pytest.approx(6 + 24 + 30)
    assert again.meta.passes["forward"] == other.meta.passes["forward"] == 1
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.masks, again.masks)


def test_masks_say_where_each_concept_is(world):
    net, images, random = world
    found = explain(
        net, images[:6], create("ace", random=random[:30], n_random=5, layer=LAYER, segments=quarters, n_clusters=1), 0
    )
    assert found.masks.shape == (6, 1, SIDE, SIDE)
    assert bool(found.masks.all())  # one cluster has all segments, which cover the photos
    half = lambda photo: (torch.arange(SIDE) < SIDE // 2).long().expand(SIDE, SIDE) - 1  # noqa: E731
    found = explain(
        net, images[:6], create("ace", random=random[:30], n_random=5, layer=LAYER, segments=half, n_clusters=1), 0
    )
    assert bool(found.masks[..., : SIDE // 2].all())
    assert not bool(found.masks[..., SIDE // 2 :].any())


def test_it_is_drawn_with_its_patches(discovered):
    axes = discovered.plot(k=5).axes
    assert len(axes) == 1 + 5 * 6
    assert axes[0].get_yticklabels()[0].get_text() == "concept 1"


def test_bad_input_is_refused(world):
    net, images, random = world

    def run(photos=images[:6], model=net, **changed):
        given = {"random": random[:30], "n_random": 5, "layer": LAYER, "segments": quarters, "n_clusters": 3}
        return explain(model, photos, create("ace", **{**given, **changed}), target=0)

    with pytest.raises(InputError, match="random examples make"):
        run(random=random[:8])
    with pytest.raises(ParameterError):
        run(segments="watershed")
    with pytest.raises(ParameterError):
        run(resolutions=())
    with pytest.raises(InputError, match="24 segments are fewer than the 25 clusters"):
        run(n_clusters=25)
    with pytest.raises(InputError, match="cover nothing"):
        run(segments=lambda photo: quarters(photo) - 9)
    with pytest.raises(ParameterError, match=r"map of torch\.float32"):
        run(segments=lambda photo: photo[0])
    with pytest.raises(ParameterError, match="of shape"):
        run(segments=lambda photo: quarters(photo)[1:])
    with pytest.raises(ParameterError, match="no map"):
        run(segments=lambda photo: [])
    with pytest.raises(InputError, match="the examples of random set 0 have shape"):
        run(random=random[:30, :, 1:])
    with pytest.raises(InputError, match="common"):
        run(photos=images[:20], n_clusters=80, segments=quarters)
    with pytest.raises(LayerError):
        run(layer="no such layer")
    table = torch.nn.Linear(4, 2)
    with pytest.raises(InputError, match="photos"):
        explain(adapt(table), torch.rand(6, 4), create("ace", random=torch.rand(30, 4), n_random=5, layer=""), target=0)
