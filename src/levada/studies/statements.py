"""What two documents about depth say: each statement in short, a verdict, what is true instead, and what shows it.

The library grew out of these documents, "a tutorial on residual networks" (T1, T2, ...) and "an essay on depth" (E1,
E2, ...). A verdict is one of `VERDICTS`. Numbers in corrections are of the papers that they name, or were computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

__all__ = ["STATEMENTS", "VERDICTS", "Statement"]

VERDICTS: Final = ("true", "loose", "wrong", "hypothesis", "opinion")
"""Holds as it is said; holds in part, or says too much; does not hold; may hold; cannot be tested."""


@final
@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of one of the documents.

    Attributes:
        name: "T1", "E1", ...: the document and the number.
        text: what is said, in short.
        verdict: one of `VERDICTS`.
        correction: what is true instead, or what must be added.
        shown_by: (study, claim) that show it; the claim is empty where the study as a whole does.
    """

    name: str
    text: str
    verdict: str
    correction: str = ""
    shown_by: tuple[tuple[str, str], ...] = ()


def _of(name: str, verdict: str, text: str, correction: str = "", *shown_by: str) -> Statement:
    """Make a statement; what shows it is written "R1" or "R1: the claim"."""
    shown = tuple((study, claim.strip()) for study, _, claim in (one.partition(":") for one in shown_by))
    return Statement(name, text, verdict, correction, shown)


_TUTORIAL = (
    _of("T1", "loose", "The more layers, the more powerful the network.", "True of what it can express, not of what "
        "training finds: He et al. 2015 report 7.93 % test error with 1,202 layers and 6.43 % with 110.",
        "R10: the more layers the better", "R4: plain networks degrade"),
    _of("T2", "true", "Layers extract features from low to high level.", "As a tendency.", "R17: probes rise"),
    _of("T3", "loose", "Layers 1 and 2 are Gabor-like edge detectors.", "At most the first is, and where its filters "
        "start small: those that start large keep much of their noise, and digits are recognised all the same. Random "
        "sums of image patches fit a Gabor function nearly as often, so that filters are to be compared with them. The "
        "second layer of Zeiler and Fergus 2014 shows corners, circles and stripes.",
        "R17: edges in the pretrained network", "R17: edges here",
        "R17: edges whatever the start"),
    _of("T4", "loose", "Layers 3 and 4 detect textures.", "It depends on the network: with Zeiler and Fergus the third "
        "shows textures, the fourth parts of classes.", "R17: the number says what a layer holds"),
    _of("T5", "loose", "Layers 5 and 6 detect parts of objects.", "In Zeiler and Fergus's network of five "
        "convolutions the fifth shows entire objects.", "R17: the number says what a layer holds"),
    _of("T6", "wrong", "Layers from the seventh on detect whole objects.", "A network of five convolutions has no "
        "seventh, the seventh of 8 is the last and that of 20 is not. A unit of layer 7 of EfficientNet-Lite2 sees 11 "
        "of 260 pixels, or 75 where convolutions of 1 x 1 are not counted. What a layer can hold follows from the "
        "kernels and strides before it.", "R17: the number says what a layer holds",
        "R17: whole objects from layer 7 on", "R17: the share of the depth says more"),
    _of("T7", "hypothesis", "So deeper should be better.", "", "R4: plain networks degrade",
        "R10: the more layers the better", "R22: plain networks degrade on images"),
    _of("T8", "true", "Before 2015 deeper was held to be better."),
    _of("T9", "wrong", "Deep networks represent any function of shallow ones with exponentially fewer parameters.",
        "There are functions for which it is so: Eldan and Shamir 2016 give one, nearly radial, for three layers "
        "against two, and Telgarsky 2016 calls such functions few. Nearly every labelling takes as many weights at any "
        "depth, and training finds little of what depth could represent.", "R12: any function",
        "R12: a shallow one cannot", "R12: training finds it"),
    _of("T10", "true", "By the chain rule the gradient is a product, and a product of small numbers is small.", "",
        "R1: gradient decay is a law"),
    _of("T11", "loose", "Early layers learn almost nothing, and the network becomes a shallow one.", "The first half "
        "holds. It does not become a shallow network: the signal also has to pass the layers that do not learn, and "
        "the whole network stays at chance.", "R11: sigmoids stay at chance",
        "R16: the gradient reaches the first layer", "R16: and so the output learns"),
    _of("T12", "true", "The gradient is a product of as many Jacobians as there are layers.", "",
        "R1: gradient decay is a law"),
    _of("T13", "wrong", "The derivatives of sigmoid and tanh are at most 0.25.", "That of tanh is at most 1 "
        "(Pascanu et al. 2013).", "R1: tanh like sigmoid"),
    _of("T14", "true", "The sigmoid's derivative is largest at zero, 0.25."),
    _of("T15", "true", "Far from zero the sigmoid's derivative vanishes."),
    _of("T16", "wrong", "After n layers the gradient is below 0.25^n.", "The weights are forgotten: the bound is "
        "0.25^n times the product of their norms.", "R1: below 0.25^n"),
    _of("T17", "loose", "0.25^20, about 9e-13, is essentially zero.", "The power is right, 2^-40. Single precision "
        "holds such numbers: what fails is that the step is small against the weight; and a step of the right size is "
        "not enough, since the signal is lost as well.", "R1: below 0.25^n", "R11: epsilon holds the first layer",
        "R11: a step of the right size is enough"),
    _of("T18", "loose", "Updates of early layers are negligible, deeper is worse, training stalls.", "True of plain "
        "networks that saturate. Networks with batch normalisation get worse with depth for another reason: see T43.",
        "R4: gradients do not vanish", "R11: sigmoids stay at chance"),
    _of("T19", "opinion", "In 2015 deep learning was in a crisis."),
    _of("T20", "true", "Better initialisation helped.", "Glorot and Bengio 2010, tanh on Shapeset: 27.15 % error, "
        "15.60 % with theirs.", "R11: Glorot's weights helped", "R11: He's weights helped"),
    _of("T21", "true", "Batch normalisation helped.", "Ioffe and Szegedy 2015: the same accuracy in 13.3 million "
        "steps where it took 31.0, and 2.1 with a higher rate.", "R11: batch norm helped",
        "R11: normalised sigmoids learn"),
    _of("T22", "true", "ReLU helped.", "With weights scaled for it: with standard ones, and no normalisation, a "
        "rectified network loses its signal as well. It helped against sigmoids: tanh with Glorot's weights learns "
        "without it.", "R11: ReLU helped"),
    _of("T23", "loose", "Adam helped.", "Little with depth: sigmoid networks of 20 layers stay at chance, and tanh "
        "with standard weights only begins to learn. Its epsilon of 1e-8, far above their gradients, "
        "keeps the first layer where it is; but with steps of the usual size they learn next to nothing either.",
        "R11: Adam helped", "R11: epsilon holds the first layer",
        "R11: a step of the right size is enough"),
    _of("T24", "wrong", "Nobody could train beyond about 20 layers.", "Srivastava et al. 2015 trained 100 layers seven "
        "months before residual networks; He et al.'s plain network of 34 comes to 28.54 % on ImageNet. What was "
        "missing is a gain beyond 20. How deep plain networks train depends on their initialisation.",
        "R5: nothing beyond 20 layers", "R3: twenty layers", "R4: plain networks degrade"),
    _of("T25", "wrong", "Until residual networks were published.", "See T24: highway networks came first. Here two of "
        "five of 100 layers train, at a rate at which three diverge.",
        "R5: highway networks of 100 layers train", "R5: nothing beyond 20 layers"),
    _of("T26", "true", "With more layers accuracy saturates, and then degrades.", "",
        "R4: plain networks degrade", "R22: plain networks degrade on images"),
    _of("T27", "true", "Deeper networks have more capacity.", "", "R12: a deep network folds",
        "R12: a shallow one cannot"),
    _of("T28", "true", "A deeper network can do what a shallower one does, by layers that are the identity."),
    _of("T29", "true", "Deeper plain networks have a higher training error.", "", "R4: plain networks degrade",
        "R22: plain networks degrade on images", "R5: plain networks degrade"),
    _of("T30", "true", "So the problem is one of optimisation.", "", "R4: plain networks degrade",
        "R4: residual networks do not", "R22: residual networks do not degrade on images"),
    _of("T31", "true", "The skip connection is y = F(x) + x.", "As an idea it is older: He et al. 2015 cite shortcuts "
        "of the 1990s, and LSTM and highway networks add what they keep."),
    _of("T32", "loose", "The figure of residual, hyper- and constrained connections is of the residual network's "
        "paper.", "It is of the paper on manifold-constrained hyper-connections.", "R19"),
    _of("T33", "loose", "With zero weights a block gives y = x.", "Where nothing follows the addition. The original "
        "block gives ReLU(x), which is x between such blocks, where nothing is below zero; a projection on the "
        "shortcut breaks it. And blocks whose weights are all zero do not train them where the activation is zero at "
        "zero: every weight's gradient is exactly zero, and only biases move. The last layer alone, or one scalar, is "
        "to be zero.", "R8: a block of zeros is the identity", "R8: all zero is a saddle",
        "R8: whatever the activation", "R8: zero in one place trains"),
    _of("T34", "loose", "The gradient skips layers, so that it does not vanish.", "It does not vanish, it explodes: "
        "without normalisation or scaling the variance doubles with every block, and more.",
        "R1: residual networks explode", "R8: the Jacobian is the identity"),
    _of("T35", "hypothesis", "The difference from the identity is easier to learn.", "A shortcut that could become "
        "the identity is not the identity: gates and convolutions on it train worse (He et al. 2016).",
        "R6: to be able is not to learn", "R6: the table's order"),
    _of("T36", "wrong", "The skip connection fixes everything.", "See T34 and T37. Without normalisation it slows a "
        "fully connected network of 32 layers (Bachlechner et al. 2021).", "R8: ReZero wins the race",
        "R8: at each one's own rate", "R1: residual networks explode"),
    _of("T37", "loose", "Residual networks reach 152, 1,000, even 10,000 layers.", "152 and 1,202 they did, and He et "
        "al. found 1,202 worse than 110 on test data. Networks of 10,000 layers are others: without any skip, from an "
        "orthogonal initialisation (Xiao et al. 2018), or with ReZero.",
        "R9: ten thousand layers of ReZero", "R9: a thousand layers without skips",
        "R9: orthogonal weights carry a signal without skips", "R10: the deepest overfits"),
    _of("T38", "true", "The block learns F(x) = H(x) - x."),
    _of("T39", "loose", "The derivative of y is that of F plus 1, about 1.", "It is the identity plus F's Jacobian. A "
        "product of these is not about 1: it shrinks along some directions, and grows where F's Jacobian is not "
        "small.", "R1: residual networks explode", "R8: the Jacobian is the identity"),
    _of("T40", "loose", "A residual network is an ensemble of shallow paths.", "It is like one in what deleting blocks "
        "does (Veit et al. 2016), if it is deep: one of 9 blocks needs most of them. Its nonlinear blocks cannot be "
        "taken apart into paths, and the gradients of its paths do not add up as numbers do.",
        "R7: most blocks can go", "R7: at any depth", "R7: norms of paths add"),
    _of("T41", "loose", "It won ImageNet 2015 with 152 layers, eight times as deep as winners before.", "Eight times "
        "VGG's 19; the winner of 2014 had 22. What won was an ensemble of six networks, two of 152 layers."),
    _of("T42", "loose", "Models now have hundreds or thousands of layers.", "Large language models have some dozens "
        "of blocks; networks of a thousand layers are made for research.", "R20: DeepNorm learns", "R20: ReZero learns",
        "R20: pre-norm learns"),
    _of("T43", "wrong", "Deep networks were not better because of vanishing gradients.", "He et al. 2015 say that it "
        "is unlikely to be these, and the document quotes them. With batch normalisation the gradients of plain "
        "networks explode before training, by 1.21 a layer; what vanishes is how alike the gradients of different "
        "inputs are (Balduzzi et al. 2017).", "R4: gradients do not vanish",
        "R18: with batch normalisation each layer halves it", "R18: skips resist"),
    _of("T44", "loose", "Residual connections made more than 100 layers trainable.", "Highway networks had trained 100 "
        "before (here in two of five seeds), and an orthogonal initialisation does without any skip.",
        "R5: highway networks of 100 layers train",
        "R9: a thousand layers without skips"),
    _of("T45", "loose", "Hyper-connections extend residual ones and bring a problem, which the constraint solves.",
        "The gain explodes, and the constraint bounds it. That training needs it is a claim of its own.",
        "R19: HC lets the gain explode", "R19: mHC bounds the gain", "R19: mHC beats HC",
        "R19: nothing crashed"),
)  # fmt: skip

_ESSAY = (
    _of("E1", "loose", "Depth represents hierarchies efficiently.", "For some families of functions (Telgarsky 2016).",
        "R12: a deep network folds", "R12: any function"),
    _of("E2", "loose", "Without depth, exponentially many neurons are needed.", "For some functions: see T9.",
        "R12: a shallow one cannot", "R12: any function", "R12: three layers see shells"),
    _of("E3", "hypothesis", "Natural data are hierarchical.", "Of natural data it cannot be tested; of made ones it "
        "can.", "R12"),
    _of("E4", "loose", "If the norm of the weights is not one, the signal shrinks or grows.", "Of numbers it is exact. "
        "Of matrices the norm is the wrong quantity: Gaussian ones of spectral norm 1 shrink the signal to 1.2e-6 in "
        "20 layers of 256, and of variance 1/n, of norm about 2, they keep it. A norm above one is needed "
        "to grow, and not enough.",
        "R2: norm one keeps the signal", "R2: a norm above one makes it grow", "R2: the gain is known",
        "R1: gradient decay is a law"),
    _of("E5", "true", "Vanishing and exploding gradients are what a product of many factors does."),
    _of("E6", "true", "With activations the norms of the Jacobians count.", "The number that predicts is the weights' "
        "variance times the mean squared slope.", "R1: gradient decay is a law",
        "R3: trained where information travels", "R3: about six depth scales"),
    _of("E7", "loose", "Then updates are useless, and training diverges.", "It diverges where gradients explode; where "
        "they vanish it stalls.", "R8: ReZero wins the race", "R11: sigmoids stay at chance"),
    _of("E8", "true", "A part of the signal must be protected."),
    _of("E9", "true", "A residual connection adds what a lower layer gives to what a higher one gives."),
    _of("E10", "true", "The layer then learns an increment."),
    _of("E11", "hypothesis", "That is argued to be easier.", "See T35.", "R6: to be able is not to learn"),
    _of("E12", "true", "There is a shorter path from any layer to the loss.", "", "R7: the gradient takes short paths"),
    _of("E13", "true", "The depth that counts is far less than the nominal one.", "Veit et al. 2016 put nearly all of "
        "the gradient of 54 blocks on paths of 5 to 17. They multiply the norm of one path by the number of paths, as "
        "if all pointed one way, which bounds what paths of a length give from above; by what each length adds to the "
        "gradient itself, paths are shorter still. A closed form for untrained networks is no more than near.",
        "R7: the gradient takes short paths",
        "R7: norms of paths add", "R7: effective depth has a closed form"),
    _of("E14", "loose", "This is what happens in training.", "What was measured is the gradient by path. That "
        "training with few blocks at a time suffices is Veit et al.'s: 5.96 % error with 23 of 54, 6.10 % with all.",
        "R7: the gradient takes short paths", "R7: some blocks at a time suffice"),
    _of("E15", "wrong", "A dense network connects every layer with the output.", "It connects every layer of a block "
        "with every later one, by concatenation (Huang et al. 2017). Every layer with the output is what losses at "
        "inner layers do, or a residual network, whose output is a sum over layers.", "R22: dense networks train"),
    _of("E16", "hypothesis", "To start from the identity may waste layers.", "Plausible: after training most single "
        "blocks can be deleted at little cost, and Huang et al. 2016 gain by dropping blocks in training. That "
        "another start uses them better follows from neither.", "R7: most blocks can go",
        "R10: stochastic depth costs no accuracy"),
    _of("E17", "true", "A gate learns how much to let pass.", "By its form: its weights are trained with the others. "
        "That a gated network of 100 layers then trains is another matter: two of five seeds do, three diverge.",
        "R5: highway networks of 100 layers train"),
    _of("E18", "loose", "Residual networks are a special case of highway networks.", "Of the form with two free gates, "
        "both at one. In the form that is trained the gates T and 1 - T sum to one and lie strictly between: y = x + "
        "F(x) is reached up to the factor 1 - T, which may be near one; exactly, never.",
        "R6: gates train as well as the identity"),
    _of("E19", "loose", "Gates are a memory for feed-forward networks.", "On the shortcuts of a residual network of "
        "110 layers they do harm: 6.61 % error without, 6.91 % at best, where only the shortcut is gated, 8.70 % at "
        "best where the gates sum to one (He et al. 2016). Where plain networks train, gates are not always ahead: "
        "here they are behind at 20 layers in every seed.",
        "R6: the table's order", "R5: gates are always better"),
    _of("E20", "true", "Convolutions over a sequence need depth to see far.", "The field is 1 plus the sum of (k-1) "
        "times the dilations.", "R14: nothing beyond the field", "R14: all within the field", "R14: depth needed"),
    _of("E21", "loose", "Everyone uses convolutions for sequences nowadays.", "In 2018."),
    _of("E22", "true", "Skips and attention look up a memory.", "", "R15: attention looks up",
        "R15: attention is ahead at equal size"),
    _of("E23", "true", "A recurrent network is one layer over time.", "", "R13: carry and gain"),
    _of("E24", "true", "Its gradients vanish.", "", "R13: carry and gain"),
    _of("E25", "wrong", "As the weights are the same, a skip connection in time makes no sense.", "LSTM's cell is an "
        "additive skip in time, and so are leaky cells (Pascanu et al. 2013); dilated networks copy over lags at which "
        "those without skips fail.",
        "R13: no skip in time"),
    _of("E26", "true", "Gates keep a memory, in LSTM and GRU.", "", "R13: adding needs a gate"),
    _of("E27", "loose", "What the effective depth of a recurrent network is, is unclear.", "In part: how far the "
        "gradient reaches back before training follows from a cell's carry and gain.", "R13: carry and gain",
        "R13: horizon and lag"),
    _of("E28", "loose", "Vanishing gradients were not solved but side-stepped.", "Orthogonal initialisations, ReZero "
        "and DeepNorm go at them directly.", "R9: orthogonal weights carry a signal without skips",
        "R9: a thousand layers of ReZero", "R20: DeepNorm's update is bounded", "R16: skips do as much"),
    _of("E29", "opinion", "It is weird that hierarchies emerge."),
    _of("E30", "loose", "Losses at inner layers are effective.", "They bring the gradient to the first layer. "
        "Whether the output then learns is another matter. Søgaard and Goldberg 2016 find a low task better at the "
        "innermost layer than at the outermost, and so it is here; that it helps against none is not shown.",
        "R16: the gradient reaches the first layer",
        "R16: innermost rather than outermost", "R16: a low task helps at the innermost layer"),
    _of("E31", "hypothesis", "They work because they anchor representations, as skips do.", "ReZero comes to 1.08 bits "
        "per character at 128 layers without them, 1.06 is reached with them (Bachlechner et al. 2021).",
        "R16: skips do as much", "R16: and so the output learns"),
    _of("E32", "opinion", "The difficulty of depth is fundamental, and not insurmountable."),
)  # fmt: skip

STATEMENTS: Final = (*_TUTORIAL, *_ESSAY)
