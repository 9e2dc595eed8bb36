"""Andriushchenko et al. 2020: what the Square attack must do (arXiv 1912.00049)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.square import BLOCK, Square, Windows, _Descent, _recoloured, _reshaped, halves
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Raising
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid
from tests.attacks.many_classes import ManyClasses, images_of

BALLS = {"linf": Linf(0.02), "l2": L2(0.15), "l1": L1(1.0)}
every = pytest.mark.parametrize("threat", BALLS.values(), ids=BALLS)
KEY = Key(3).rows(torch.arange(60))


def recording(network: nn.Module, points: list[Tensor]):
    """The network as a function that keeps what it is asked."""

    def asked(images: Tensor) -> Tensor:
        points.append(images.clone())
        return network(images)

    return asked


def test_windows_shrink_as_autoattack_has_it_however_many_queries_there_are():
    """Sides at p H W = 819.2 / 2^k of CIFAR-10: the root rounded; for L2 and L1 the next odd number, 3 at least."""
    queries = (0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8001)
    for count in (100, 5000):
        sides = [Square(Linf(0.03), count).side(query, 32, 32) for query in queries]
        assert sides == [29, 29, 20, 20, 14, 14, 10, 7, 5, 4, 3, 2, 1]
        for threat in (L2(0.5), L1(12)):
            sides = [Square(threat, count).side(query, 32, 32) for query in queries]
            assert sides == [29, 29, 21, 21, 15, 15, 11, 7, 5, 5, 3, 3, 3]
    assert Square(Linf(0.03), 1, p=1.0).side(0, 6, 9) == 6  # never wider than the shorter side


def test_the_pattern_is_two_hills_of_opposite_sign_and_equal_length():
    """A 3 x 3 window by hand: hills of 1 + 1/4 and 1/4 (L2), 1 + 1/16 and 1/16 (L1), each half of unit length."""
    euclidean = torch.tensor([[1.0, 5.0, 1.0], [0, 0, 0], [0, 0, 0]]) / 27**0.5
    euclidean -= torch.tensor([[0, 0, 0], [1.0, 1.0, 1.0], [1.0, 5.0, 1.0]]) / 30**0.5
    assert_close(halves(3, 2), (euclidean / 2**0.5).double(), atol=1e-7, rtol=0)
    absolute = torch.tensor([[1.0, 17.0, 1.0], [0, 0, 0], [0, 0, 0]]) / 19
    absolute -= torch.tensor([[0, 0, 0], [1.0, 1.0, 1.0], [1.0, 17.0, 1.0]]) / 22
    assert_close(halves(3, 1), (absolute / 2).double(), atol=1e-7, rtol=0)
    assert halves(1, 2).tolist() == [[-1.0]]


def test_windows_lie_at_every_corner_alike():
    """8 - 3 rows and 5 - 3 columns from all 16-bit numbers, or all; as large as the image, in one place only."""
    words = torch.arange(0, 2**16, 16)
    places = torch.stack([words, words.flip(0)], 1)
    images = torch.zeros(1, 2, 8, 5)
    for edges in (False, True):
        pixels = Windows(images, 3, edges).at(places, 2)
        assert pixels.shape == (4096, 2, 9)
        rows, columns = pixels[:, 1, 0] // 5, pixels[:, 1, 0] % 5
        assert len(rows.bincount()) == 5 + edges
        assert len(columns.bincount()) == 2 + edges
        assert (rows.bincount() - 4096 / (5 + edges)).abs().max() <= 1
        assert (columns.bincount() - 4096 / (2 + edges)).abs().max() <= 1
        last = 2 + edges - 1
        assert pixels[0, 0].tolist() == [last + row * 5 + column for row in range(3) for column in range(3)]
        square = torch.zeros(1, 1, 4, 4)
        assert (Windows(square, 4, edges).at(places, 1) == torch.arange(16)).all()


def test_for_linf_the_search_begins_with_stripes_and_stays_on_the_corners():
    """Images in [0.3, 0.7], so that no ball meets the box; the first query recolours one 5 x 5 window."""
    network, (images, _), points = ManyClasses(), images_of(), []
    standing = Square(Linf(1e-4), 40).search(recording(network, points), images, network(images).argmax(1), KEY)
    assert not standing.fallen.any()
    start = (points[1] - images).sign()
    assert (start == start[:, :, :1]).all()
    assert len(start.flatten(1).unique(dim=0)) > 50  # each image has stripes of its own
    for point in points[1:42]:
        assert_close((point - images).abs(), torch.full_like(images, 1e-4), atol=1e-6, rtol=0)
    for mask in ((points[2] - images).sign() != start).any(1):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert len(rows) == 0 or max(rows.max() - rows.min(), columns.max() - columns.min()) < 5


@pytest.mark.parametrize("edges", [False, True])
def test_for_linf_a_window_takes_one_colour_a_channel(edges):
    torch.manual_seed(0)
    images = torch.rand(4, 2, 5, 6)
    descent = a_descent(images, Linf(0.1))
    moved = _recoloured(Linf(0.1), images, descent, Windows(images, 3, edges), turn=2)
    for image in range(4):
        (row, column), _ = corners(descent, image, 2, rooms=(2 + edges, 3 + edges))
        expected = descent.points[image].clone()
        window = (slice(None), slice(row, row + 3), slice(column, column + 3))
        sign = descent.signs[image, 2, 1:, None, None]
        twice = (expected + 2 * 0.1 * sign)[window]  # the paper's words: + 2 eps r, then ball and box
        expected[window] = twice.clamp(images[image][window] - 0.1, images[image][window] + 0.1).clamp(0, 1)
        assert_close(moved[image], expected)


@pytest.mark.parametrize("threat", [L2(0.7), L1(2.0)], ids=["l2", "l1"])
def test_for_l2_and_l1_mass_moves_between_windows_as_in_algorithm_3(threat):
    """Against the same written with slices, an image and a channel at a time."""
    torch.manual_seed(0)
    images, power = torch.rand(6, 2, 7, 6).double(), 2 if threat.use == "l2" else 1
    descent = a_descent(images, threat)
    for turn in range(4):
        moved = _reshaped(threat, images, descent, Windows(images, 3, edges=True), turn)
        for image in range(6):
            (r1, c1), (r2, c2) = corners(descent, image, turn, rooms=(5, 4))
            z = descent.points[image] - images[image]
            spare = max(0.0, threat.eps**power - float(z.norm(p=power)) ** power)
            new = z.clone()
            for channel in range(2):
                both = torch.zeros(7, 6, dtype=torch.bool)
                both[r1 : r1 + 3, c1 : c1 + 3] = both[r2 : r2 + 3, c2 : c2 + 3] = True
                kept = float(z[channel][both].norm(p=power))
                # L1: times the channels, of which there are two
                mass = (spare / 2 + kept**2) ** 0.5 if power == 2 else 2 * (spare / 2 + kept)
                h = halves(3, power) if descent.signs[image, turn, 0] < 0 else halves(3, power).T
                old = z[channel, r1 : r1 + 3, c1 : c1 + 3]
                mixed = descent.signs[image, turn, 1 + channel] * h + old / old.norm(p=power)
                new[channel, r2 : r2 + 3, c2 : c2 + 3] = 0
                new[channel, r1 : r1 + 3, c1 : c1 + 3] = mixed / mixed.norm(p=power) * mass
            if power == 2:
                expected = (images[image] + new / new.norm() * threat.eps).clamp(0, 1)
            else:
                expected = images[image] + threat.project(images[image][None], new[None])[0]
            assert_close(moved[image], expected, atol=1e-9, rtol=0)


def test_for_l2_the_search_begins_with_the_pattern_on_a_grid():
    """17 x 17: five cells of 3 pixels a side between borders of one; each channel of a cell has a sign of its own."""
    points, images = [], torch.full((8, 2, 17, 17), 0.5).double()
    network = nn.Sequential(nn.Flatten(), nn.Linear(578, 3)).double()
    with torch.no_grad():
        Square(L2(0.5), 0)(recording(network, points), images, network(images).argmax(1), KEY[:8])
    z = points[1] - images
    assert_close(z.flatten(1).norm(dim=1), torch.full((8,), 0.5).double())
    assert not z[:, :, [0, 16]].any()
    assert not z[:, :, :, [0, 16]].any()
    cells = z[:, :, 1:16, 1:16].unfold(2, 3, 3).unfold(3, 3, 3)  # [8, 2, 5, 5, 3, 3]
    h = halves(3, 2) * 0.5 / 50**0.5  # 5 x 5 cells of 2 channels, of length 1 each before they are scaled
    ways = torch.stack([h, -h, h.T, -h.T])
    kind = (cells[..., None, :, :] - ways).abs().amax((-2, -1))  # [8, 2, 5, 5, 4]
    assert kind.amin(-1).max() < 1e-9
    way = kind.argmin(-1)
    assert torch.equal(way[:, 0] // 2, way[:, 1] // 2)  # upright or lying is the cell's
    assert (way.flatten().bincount(minlength=4) > 60).all()  # of 400: all alike


def a_descent(images: Tensor, threat) -> _Descent:
    """Some points inside the ball, with draws."""
    count, channels = images.shape[:2]
    points = threat.apply(images, threat.start(images, Key(1)))
    places = torch.randint(0, 2**16, (count, BLOCK, 2, 2))
    signs = torch.randint(0, 2, (count, BLOCK, 1 + channels)).to(images) * 2 - 1
    return _Descent(points, torch.zeros(count), places, signs)


def corners(descent: _Descent, image: int, turn: int, rooms: tuple[int, int]) -> list[tuple[int, ...]]:
    places = descent.places[image, turn]
    return [tuple(int(word) * room // 2**16 for word, room in zip(place, rooms, strict=True)) for place in places]


def test_on_a_linear_network_of_two_classes_linf_finds_the_worst_corner():
    """Windows of one pixel in the end: the margin falls by eps ||w||_1 exactly, so that radii decide who stands."""
    network, (images, _) = ManyClasses(classes=2), images_of(20)
    with torch.no_grad():
        labels = network(images).argmax(1)
        labels[::10] = 1 - labels[::10]
    radii = network.radius(images, labels, "linf")
    eps = float(radii[radii > 0].quantile(0.5))
    standing = Square(Linf(eps), 3500, edges=True).search(network, images, labels, KEY[:20])
    assert torch.equal(standing.fallen, radii <= eps)
    length = (network.weight[0] - network.weight[1]).detach().abs().sum()
    stands = ~standing.fallen
    assert_close(standing.margin[stands], ((radii[stands] - eps) * length).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("threat", "norm"), [(L2(1.0), "l2"), (L1(1.0), "l1")])
def test_on_a_linear_network_nothing_falls_within_its_radius_and_all_well_beyond_it(threat, norm):
    network, (images, _) = ManyClasses(classes=2), images_of(40)
    labels = network(images).argmax(1)
    radii = network.radius(images, labels, norm)
    for factor, falls in ((0.99, False), (3.0, True)):
        for image in radii.argsort()[9::20].tolist():
            near = replace(threat, eps=factor * float(radii[image]))
            rows = slice(image, image + 1)
            standing = Square(near, 200, edges=True).search(network, images[rows], labels[rows], KEY[rows])
            assert standing.fallen.tolist() == [falls]


@every
def test_every_query_lies_in_ball_and_box_and_the_margin_never_rises(threat):
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(2 * 7 * 9, 5)), (torch.rand(9, 2, 7, 9) * 1.4 - 0.2)
    images, points = images.clamp(0, 1), []
    with torch.no_grad():
        labels = network(images).argmax(1)
        standing = Square(threat, 60).search(recording(network, points), images, labels, KEY[:9])
    assert points[1].shape == images.shape
    for point in points[1:]:
        assert point.min() >= 0
        assert point.max() <= 1
        if len(point) == 9:
            assert threat.distance(images, point).max() <= threat.eps * (1 + 1e-5) + 1e-7
    fewer = Square(threat, 30).search(network, images, labels, KEY[:9])
    assert (standing.margin <= fewer.margin).all()
    assert (standing.margin < fewer.margin).any()


def test_l2_uses_the_whole_radius_where_no_pixel_meets_the_box():
    network, (images, _), points = ManyClasses(), images_of(), []
    Square(L2(0.15), 50).search(recording(network, points), images, network(images).argmax(1), KEY)
    for point in points[1:51]:
        if len(point) == 60:
            assert_close(L2(0.15).distance(images, point), torch.full((60,), 0.15), atol=1e-5, rtol=0)


@every
def test_neither_chunk_nor_packing_nor_the_global_generator_decides_anything(threat):
    network, (images, labels) = ManyClasses().double(), images_of(24)
    images, attack = images.double(), Square(threat, 45)
    whole = attack(network, images, labels, KEY[:24])
    torch.manual_seed(9)
    halved = [attack(network, images[rows], labels[rows], KEY[rows]) for rows in (slice(0, 7), slice(7, 24))]
    assert_close(torch.cat(halved), whole, rtol=0, atol=1e-12)
    for compact in (1, 7, 50):
        packed = replace(attack, compact=compact)(network, images, labels, KEY[:24])
        assert_close(packed, whole, rtol=0, atol=1e-12)
    assert not torch.equal(attack(network, images, labels, Key(4).rows(KEY.row[:24])), whole)


def test_queries_are_counted_and_what_stands_costs_what_the_attack_says():
    network, (images, _) = ManyClasses(), images_of()
    with torch.no_grad():
        labels = network(images).argmax(1)
    network.seen = 0
    attack = Square(Linf(1e-6), 50)
    standing = attack.search(network, images, labels, KEY)
    assert not standing.fallen.any()
    assert standing.steps.tolist() == [51] * 60
    assert network.seen == 60 * attack.cost()

    network.seen = 0
    standing = Square(Linf(1.0), 1000).search(network, images, labels, KEY)
    assert standing.fallen.all()
    assert network.seen <= 60 * (3 + 6 * 20)  # a few packings, not a thousand queries
    assert standing.steps.max() < 200
    assert torch.equal(network(standing.found).argmax(1) == labels, ~standing.fallen)


def test_images_wrong_when_clean_are_left_alone():
    network, (images, labels) = ManyClasses(), images_of()
    standing = Square(Linf(0.01), 5).search(network, images, labels, KEY)
    assert standing.steps[::10].tolist() == [0] * 6
    assert torch.equal(standing.found[::10], images[::10])
    nothing = Square(Linf(0.01), 5).search(network, images[::10], labels[::10], KEY[::10])
    assert nothing.fallen.all()


def test_a_given_loss_is_raised_in_place_of_minus_the_margin():
    """Between two classes the cross-entropy rises as the margin falls; its negative leads away."""
    network, (images, _) = ManyClasses(scale=0.1, classes=2).double(), images_of(20)
    images, attack = images.double(), Square(Linf(1e-4), 60)
    labels = network(images).argmax(1)
    own = attack.search(network, images, labels, KEY[:20])
    same = attack.search(network, images, labels, KEY[:20], Raising(cross_entropy))
    away = attack.search(
        network, images, labels, KEY[:20], Raising(lambda logits, targets: -cross_entropy(logits, targets))
    )
    assert torch.equal(same.found, own.found)
    assert (away.margin > own.margin)[~own.fallen].all()


def test_other_threat_models_and_senseless_numbers_are_refused():
    for changes, words in (
        ({"threat": Pyramid(0.02, (4, 2, 1), (4.0, 2.0, 1.0))}, "windows for linf, l2 and l1"),
        ({"queries": -1}, "queries=-1 must not be negative"),
        ({"p": 1.2}, r"p=1\.2 is not in"),
        ({"compact": 0}, "compact=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Square(**{"threat": Linf(0.1), "queries": 5} | changes)
