/** The chosen networks as a Python file: run, it prints what the figure shows; `levada check` judges what is in it. */

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

function initialiseLines({ init, gain, weightVariance, biasVariance }: Settings): string[] {
  const given = init === "gaussian" ? `, weight_variance=${weightVariance}, bias_variance=${biasVariance}` : "";
  const lines = [`initialise.${init}(layer.branch${given})`];
  if (gain !== 1) lines.push(`layer.branch.linear.weight.mul_(${gain})`);
  return lines;
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
  return `"""Signal and gradient by layer, as levada's explorer draws them.

Needs: levada, installed from its repository (pip install .)
Run:   python ${FILE}
Check: ${checkCommand(settings, names[0])}

The weights are another draw than the page's, from the same distribution: numbers agree within the spread over seeds.
"""

import torch
from torch import nn

import levada
from levada import initialise
from levada.blocks import FullyConnected
from levada.networks import Network

DEPTH, WIDTH, ROWS, CLASSES, SEED, LR = ${depth}, ${width}, ${rows}, ${CLASSES}, ${seed}, ${lr}
DTYPE = torch.${precision}
CONNECTIONS = {
${names.map((name) => `    ${connection(settings, name)}`).join("\n")}
}

${activation === "erf" ? ERF : ""}
def network(name):
    """A linear layer, the stack, a linear layer."""
    torch.manual_seed(SEED)
    connection, options = CONNECTIONS[name]
    width = options.get("growth", WIDTH)

    def branch(dim):
        return FullyConnected(${branch.join(", ")})

    stack = levada.Stack(branch, connection, dim=WIDTH, depth=DEPTH, **options)
    with torch.no_grad():
        for layer in stack.layers:
${initialiseLines(settings)
  .map((line) => `            ${line}`)
  .join("\n")}
    return Network(nn.Linear(WIDTH, WIDTH), stack, nn.Linear(stack.dim_out, CLASSES)).to(DTYPE)


def rms(x):
    return float(x.detach().double().square().mean().sqrt())  # in float32 the squares would underflow


def by_layer(name):
    """What each layer reads and the gradient by what it returns; last the stack's output, first its input."""
    stack = network(name).stack
    signal, gradient = [0.0] * (DEPTH + 1), [0.0] * (DEPTH + 1)

    def record(place):
        def hook(_, given, out):
            signal[place] = rms(given[0])
            out.register_hook(lambda by: gradient.__setitem__(place + 1, rms(by)))

        return hook

    for place, layer in enumerate(stack.layers):
        layer.branch.register_forward_hook(record(place))
    x = torch.randn(ROWS, WIDTH, dtype=DTYPE, requires_grad=True)
    y = stack(x)
    y.backward(torch.randn_like(y))
    signal[DEPTH], gradient[0] = rms(y), rms(x.grad)
    return signal, gradient


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
        print(f"{name}\\nlayer     signal   gradient")
        for layer, (signal, gradient) in enumerate(zip(*by_layer(name))):
            print(f"{layer:5d}  {signal:9.3e}  {gradient:9.3e}")
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
