"""Whole networks of the papers on depth, plain, residual or with any other connection: stem, stack, head."""

from levada.networks.densenet import DenseNetwork as DenseNetwork
from levada.networks.densenet import densenet as densenet
from levada.networks.network import Network as Network
from levada.networks.network import cifar_resnet as cifar_resnet
from levada.networks.network import imagenet_resnet as imagenet_resnet
from levada.networks.network import mlp as mlp
from levada.networks.network import transformer as transformer
from levada.networks.temporal import TemporalConvolutionalNetwork as TemporalConvolutionalNetwork

__all__ = [
    "DenseNetwork",
    "Network",
    "TemporalConvolutionalNetwork",
    "cifar_resnet",
    "densenet",
    "imagenet_resnet",
    "mlp",
    "transformer",
]
