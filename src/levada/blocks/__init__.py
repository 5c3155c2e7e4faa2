"""The branches that studies and examples put behind a connection: fully connected, convolutional and attention.

Every block takes one tensor and, unless `dim_out` or `stride` says otherwise, returns one of the same shape.
"""

from levada.blocks.attention import Attention as Attention
from levada.blocks.causal import CausalBranch as CausalBranch
from levada.blocks.causal import CausalConvolution as CausalConvolution
from levada.blocks.convolution import Convolution as Convolution
from levada.blocks.convolution import ConvolutionBranch as ConvolutionBranch
from levada.blocks.convolution import IdentityShortcut as IdentityShortcut
from levada.blocks.convolution import ProjectionShortcut as ProjectionShortcut
from levada.blocks.fixup import Fixup as Fixup
from levada.blocks.fully_connected import ConcatenatedReLU as ConcatenatedReLU
from levada.blocks.fully_connected import FeedForward as FeedForward
from levada.blocks.fully_connected import FullyConnected as FullyConnected

__all__ = [
    "Attention",
    "CausalBranch",
    "CausalConvolution",
    "ConcatenatedReLU",
    "Convolution",
    "ConvolutionBranch",
    "FeedForward",
    "Fixup",
    "FullyConnected",
    "IdentityShortcut",
    "ProjectionShortcut",
]
