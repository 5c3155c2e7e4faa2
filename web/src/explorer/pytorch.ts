/**
 * The chosen networks as a Python file: run, it prints the numbers that the figures show, from the same weights
 * (`levada.web.draws`); `levada check` judges what is in it. `levada.web.computing` builds the same networks for a server:
 * `tests/web/test_explorer_code.py` holds both files to each other, weight by weight.
 */

import type { ConnectionName } from "../engine/connections/index";
import { connectionOptions, type Settings } from "./settings";

export const FILE = "explorer.py";
export const CLASSES = 10;

const CLASS_NAMES: Record<ConnectionName, string> = {
  plain: "Plain",
  residual: "Residual",
  post_norm: "PostNorm",
  highway: "Highway",
  dense: "Dense",
  hyper: "HyperConnection",
  manifold: "ManifoldHyperConnection",
  identity: "IdentityHyperConnection",
  attention: "AttentionResidual",
};

/** `erf` is no module of PyTorch: the file defines one. */
const ACTIVATIONS: Record<string, string> = {
  linear: "nn.Identity",
  relu: "nn.ReLU",
  leaky_relu: "nn.LeakyReLU",
  sigmoid: "nn.Sigmoid",
  tanh: "nn.Tanh",
  erf: "Erf",
  gelu: "nn.GELU",
  silu: "nn.SiLU",
  mish: "nn.Mish",
  softplus: "nn.Softplus",
  elu: "nn.ELU",
  selu: "nn.SELU",
  hardtanh: "nn.Hardtanh",
};

const NORMS = { none: "None", layer: "nn.LayerNorm", rms: "nn.RMSNorm", batch: "nn.BatchNorm1d" } as const;

const OPTIMIZERS = {
  sgd: "torch.optim.SGD(parameters, lr=LR)",
  momentum: "torch.optim.SGD(parameters, lr=LR, momentum=0.9)",
  adamw: "torch.optim.AdamW(parameters, lr=LR)",
} as const;

const python = (value: unknown): string => (typeof value === "boolean" ? (value ? "True" : "False") : String(value));

/** `(levada.Highway, {"bias": -2})`. */
function connection(settings: Settings, name: ConnectionName): string {
  const options = Object.entries(connectionOptions(settings, name)).filter(([key]) => key !== "name");
  const snake = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const given = options.map(([key, value]) => `"${snake(key)}": ${python(value)}`);
  return `"${name}": (levada.${CLASS_NAMES[name]}, {${given.join(", ")}}),`;
}

/** `, "he", gain=2`: what is not the default of `levada.web.draws.start`. */
function started({ init, gain, weightVariance, biasVariance }: Settings): string {
  const given = [
    ...(init === "pytorch_default" ? [] : [`"${init}"`]),
    ...(gain === 1 ? [] : [`gain=${gain}`]),
    ...(init === "gaussian" ? [`weight_variance=${weightVariance}`, `bias_variance=${biasVariance}`] : []),
  ];
  return given.map((one) => `, ${one}`).join("");
}

/** The whole file. */
export function code(settings: Settings): string {
  const { depth, width, rows, seed, activation, norm, preActivation, bias, precision, lr, optimizer } = settings;
  const names = settings.connections;
  const branch = [
    "dim",
    ACTIVATIONS[activation],
    "dim_out=width",
    ...(norm === "none" ? [] : [`norm=${NORMS[norm]}`]),
    ...(preActivation ? ["pre_activation=True"] : []),
    ...(bias ? [] : ["bias=False"]),
  ];
  return `"""Signal, gradient and first update by layer, as levada's explorer draws them.

Needs: levada, installed from its repository (pip install .)
Run:   python ${FILE}
Check: ${checkCommand(settings, names[0])}

Weights, inputs and gradients are the page's own, drawn from the same seed: what it prints is what the page shows, up to
rounding. Where numbers overflow, the order of a sum decides whether it leaves the range on its way, and PyTorch's order is
another on other processors and beyond a width of 128: gradients behind can then be some percent apart.
In float32, numbers below 1.2e-38 are rounded to steps of 1.4e-45, and near those no digit needs to agree; nor do first
updates in deep stacks whose sigmoids saturate.
"""

from collections import OrderedDict

import torch
from torch import nn

import levada
from levada.blocks import FullyConnected
from levada.web import draws

DEPTH, WIDTH, ROWS, CLASSES, SEED, LR = ${depth}, ${width}, ${rows}, ${CLASSES}, ${seed}, ${lr}
DTYPE = torch.${precision}
CONNECTIONS = {
${names.map((name) => `    ${connection(settings, name)}`).join("\n")}
}

${activation === "erf" ? ERF : ""}
def network(name):
    """A linear layer, the stack, a linear layer."""
    connection, options = CONNECTIONS[name]
    width = options.get("growth", WIDTH)

    def branch(dim):
        return FullyConnected(${branch.join(", ")})

    with draws.precision(DTYPE):
        stack = levada.Stack(branch, connection, dim=WIDTH, depth=DEPTH, **options)
        first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(stack.dim_out, CLASSES)
    whole = nn.Sequential(OrderedDict(first=first, stack=stack, last=last))
    return draws.start(whole, SEED${started(settings)})


def rms(x):
    """The root mean square, by the largest number: squares of small ones would underflow."""
    x = x.detach().double()
    largest = x.abs().max()
    return largest * (x / largest).square().mean().sqrt() if 0 < largest < torch.inf else largest


def by_layer(name):
    """What each layer reads and the gradient by what it returns; last the stack's output, first its input.

    And the first step of each layer's weights, over the weights.
    """
    stack = network(name).stack
    signal, gradient = [0.0] * (DEPTH + 1), [0.0] * (DEPTH + 1)

    def record(place):
        def hook(_, given, out):
            signal[place] = rms(given[0])
            out.register_hook(lambda by: gradient.__setitem__(place + 1, rms(by)))

        return hook

    for place, layer in enumerate(stack.layers):
        layer.branch.register_forward_hook(record(place))
    drawn = draws.normal(SEED, "batches", ROWS * (WIDTH + stack.dim_out)).to(DTYPE)
    x = drawn[: ROWS * WIDTH].view(ROWS, WIDTH).requires_grad_()
    y = stack(x)
    y.backward(drawn[ROWS * WIDTH :].view_as(y))
    signal[DEPTH], gradient[0] = rms(y), rms(x.grad)
    weights = [layer.branch.linear.weight for layer in stack.layers]
    before = [weight.detach().clone().double() for weight in weights]
    optimizer(weights).step()
    update = [rms(weight.double() - old) / rms(old) for weight, old in zip(weights, before)]
    return signal, gradient, update


def batches():
    """For levada check: Gaussian inputs, and as class the largest of so many random maps of them."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(4 * ROWS, WIDTH, generator=generator, dtype=DTYPE)
    maps = torch.randn(WIDTH, CLASSES, generator=generator, dtype=DTYPE)
    return list(zip(inputs.split(ROWS), (inputs @ maps).argmax(1).split(ROWS)))


def optimizer(parameters):
    return ${OPTIMIZERS[optimizer]}


${names.map((name) => `def ${name}():\n    return network("${name}")\n`).join("\n\n")}

if __name__ == "__main__":
    for name in CONNECTIONS:
        print(f"{name}\\nlayer     signal   gradient  first update")
        signal, gradient, update = by_layer(name)
        for layer in range(DEPTH + 1):
            step = f"{update[layer - 1]:12.3e}" if layer else ""
            print(f"{layer:5d}  {signal[layer]:9.3e}  {gradient[layer]:9.3e}  {step}".rstrip())
`;
}

const ERF = `
class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)

`;

/** What gives the verdict of \`levada check\` on one of the file's networks. */
export function checkCommand({ seed }: Settings, name: ConnectionName): string {
  const seeded = seed === 0 ? "" : ` --seed ${seed}`;
  return `levada check ${FILE}:${name} --batch ${FILE}:batches --optimizer ${FILE}:optimizer${seeded}`;
}
