"""Every connection of the library: one file per paper family; these import lines are the list."""

from levada.connections.augmented import LearnedAugmentedResidual as LearnedAugmentedResidual
from levada.connections.dense import Dense as Dense
from levada.connections.depth_attention import AttentionResidual as AttentionResidual
from levada.connections.depth_average import DepthWeightedAverage as DepthWeightedAverage
from levada.connections.gated import GatedResidual as GatedResidual
from levada.connections.highway import Highway as Highway
from levada.connections.hyper import FractionalConnection as FractionalConnection
from levada.connections.hyper import HyperConnection as HyperConnection
from levada.connections.identity import IdentityHyperConnection as IdentityHyperConnection
from levada.connections.input_residual import InputResidual as InputResidual
from levada.connections.manifold import ManifoldHyperConnection as ManifoldHyperConnection
from levada.connections.momentum import Momentum as Momentum
from levada.connections.multiway import MultiwayDynamicDense as MultiwayDynamicDense
from levada.connections.residual import Plain as Plain
from levada.connections.residual import PostNorm as PostNorm
from levada.connections.residual import Residual as Residual
from levada.connections.reversible import Reversible as Reversible
from levada.connections.scaled import LayerScale as LayerScale
from levada.connections.scaled import ReZero as ReZero
from levada.connections.scaled import SkipInit as SkipInit
from levada.connections.single_pass import SinglePassManifoldHyperConnection as SinglePassManifoldHyperConnection
from levada.connections.sparse import SparseHyperConnection as SparseHyperConnection
from levada.connections.stochastic import StochasticDepth as StochasticDepth
from levada.connections.value_residual import ValueResidual as ValueResidual
