"""What GPUs that need not be there give each Triton kernel: registers, spills, stack and shared memory.

The functions that launch kernels are called with tensors that hold nothing; each launch is compiled for each GPU in
place of being run, with the types, constants and alignments that it would be compiled for. The assembler says the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["CAPABILITIES", "CASES", "RESULTS", "Kernel", "kernels_of", "read", "table"]

CAPABILITIES: Final = (80, 90, 100)
RESULTS: Final = Path(__file__).parent / "results" / "registers.jsonl"
_POINTERS: Final = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"
}  # fmt: skip
_SHOWN: Final = ("warps", "registers", "spilled", "shared")
_TOKENS, _STREAMS, _WIDTH, _SOURCES, _NARROW = 4096, 4, 2560, 13, torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What one GPU gives one kernel.

    Attributes:
        operation: and the way, of `CASES`.
        kernel: its name.
        capability: of the GPU, as 90 for sm_90.
        warps: of a program.
        registers: of a thread.
        spilled: bytes a thread stores to and loads from memory for want of registers.
        stack: bytes of a thread.
        shared: bytes of a program.
        triton: version.
    """

    operation: str
    kernel: str
    capability: int
    warps: int
    registers: int
    spilled: int
    stack: int
    shared: int
    triton: str


def _narrow(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=_NARROW, device="meta")


def _wide(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _streams() -> None:
    from levada.ops.streams import triton as kernels

    state, out = _narrow(_TOKENS, _STREAMS, _WIDTH), _narrow(_TOKENS, _WIDTH)
    given = state, out, _wide(_TOKENS, _STREAMS), _wide(_TOKENS, _STREAMS, _STREAMS)
    kernels.write(*given)
    kernels.write_backward(state, *given)


def _manifold() -> None:
    from levada.ops.manifold import Form
    from levada.ops.manifold import triton as kernels
    from levada.ops.manifold.ahead.triton import write_and_project

    state, out, count = _narrow(_TOKENS, _STREAMS, _WIDTH), _narrow(_TOKENS, _WIDTH), 2 * _STREAMS + _STREAMS**2
    parameters = _wide(count, _STREAMS * _WIDTH), _wide(3), _wide(count)
    x, reads, writes, mix, *kept = kernels.read(state, *parameters, *Form())
    kernels.read_backward(x, reads, writes, mix, state, state, *parameters, *kept, *Form())
    write_and_project(state, out, writes, mix, parameters[0])


def _hyper() -> None:
    from levada.ops.hyper import triton as kernels
    from levada.ops.hyper.static import triton as static_kernels

    state, rows = _narrow(_TOKENS, _STREAMS, _WIDTH), _STREAMS + 2
    static = _wide(_STREAMS), _wide(_STREAMS, _STREAMS), _wide(_STREAMS)
    own = *static, _wide(rows, _WIDTH), _wide(1), _wide(1), _wide(_WIDTH), _wide(_WIDTH)
    x, reads, mix, writes, *kept = kernels.read(state, *own, 1e-5)
    kernels.read_backward(x, reads, mix, writes, state, state, *own, *kept, 1e-5)
    static_kernels.read_backward(x, state, state, static[0])


def _gated() -> None:
    from levada.ops.gated import triton as kernels

    state, all_of, rank = _narrow(_TOKENS, _STREAMS, _WIDTH), _STREAMS * _WIDTH, _WIDTH // 8
    parameters = _wide(_STREAMS, _WIDTH), _wide(rank, all_of), _wide(all_of, rank), _wide(_STREAMS, all_of)
    x, writes, *kept = kernels.read(state, *parameters, 1e-6)
    kernels.read_backward(x, writes, state, state, *parameters, *kept, 1e-6)


def _sinkhorn() -> None:
    from levada.ops.sinkhorn import triton as kernels

    logits = _wide(_TOKENS, _STREAMS, _STREAMS)
    kernels.sinkhorn(logits, 20, 0.0)
    kernels.sinkhorn_backward(logits, logits, 20, 0.0)


def _depth(queries: int = 1) -> None:
    from levada.ops.depth import triton as kernels

    query, sources = _wide(queries, _WIDTH), [_narrow(_TOKENS, _WIDTH) for _ in range(_SOURCES)]
    means, products, inverse = kernels.attend(query, sources, 1e-6, 1.0, False)
    kernels.attend_backward(means, query, sources, products, inverse, 1.0, False)
    weights = _wide(queries, _SOURCES)
    sums = kernels.mix(weights, sources)
    kernels.mix_backward(sums, weights, sources)


def _residual_norm() -> None:
    from levada.ops.residual_norm import triton as kernels

    state, weight = _narrow(_TOKENS, _WIDTH), _wide(_WIDTH)
    kernels.residual_norm(state, state, weight, None, False, 1e-5)
    kernels.residual_norm_backward(state, state, state, weight, False, 1e-5, False)


def _scan() -> None:
    from levada.ops.scan import triton as kernels

    gate, initial = _wide(_TOKENS, 8, _WIDTH), _wide(8, _WIDTH)
    states = kernels.scan(gate, gate, initial, False)
    kernels.scan_backward(gate, gate, states, initial, False)


def _statistics() -> None:
    from levada.ops.statistics import triton as kernels

    kernels.statistics([torch.empty(2**22, dtype=torch.bfloat16)])


CASES: Final[Mapping[str, Callable[[], None]]] = {
    "write streams": _streams,
    "read streams": _manifold,
    "read hyper-connections": _hyper,
    "read gated streams": _gated,
    "sinkhorn": _sinkhorn,
    "attend depth": _depth,
    "attend depth, 8 queries": lambda: _depth(8),
    "residual norm": _residual_norm,
    "scan": _scan,
    "statistics": _statistics,
}
"""Calls of what launches kernels, at 4,096 tokens of 2,560 channels in bfloat16, 4 streams, 13 sources."""


def kernels_of(operation: str, capability: int) -> Iterator[Kernel]:
    """Yield what each kernel of an operation is given: the first launch of each.

    Args:
        operation: of `CASES`.
        capability: of the GPU.
    """
    for jit, args, options in _launches(CASES[operation]):
        yield _compiled(operation, jit, args, options, capability)


def _launches(call: Callable[[], None]) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    from triton.runtime.jit import JITFunction

    found: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in [*named] if name not in self.arg_names}
        given = dict(zip(self.arg_names, args, strict=False)) | named
        found.setdefault(self.__name__, (self, given, options))

    usual, JITFunction.run = JITFunction.run, run
    try:
        call()
    finally:
        JITFunction.run = usual
    yield from found.values()


def _compiled(operation: str, jit: Any, args: dict[str, Any], options: dict[str, Any], capability: int) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, aligned = {}, {}, {}
    for i, parameter in enumerate(jit.params):
        value = args[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
            constants[parameter.name] = value
            signature[parameter.name] = "constexpr"
            continue
        signature[parameter.name] = _type(value)
        # Tensors of PyTorch's begin at a multiple of 16 bytes; whole numbers are looked at, as at a launch.
        if isinstance(value, Tensor) or (special and isinstance(value, int) and value % 16 == 0):
            aligned[(i,)] = [["tt.divisibility", 16]]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        source = ASTSource(jit, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    numbers = {
        name: int(re.findall(pattern, said.getvalue())[-1])
        for name, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("stack", r"(\d+) bytes stack frame"),
            ("stored", r"(\d+) bytes spill stores"),
            ("loaded", r"(\d+) bytes spill loads"),
        )
    }
    return Kernel(
        operation=operation,
        kernel=jit.__name__.removeprefix("_"),
        capability=capability,
        warps=compiled.metadata.num_warps,
        registers=numbers["registers"],
        spilled=numbers["stored"] + numbers["loaded"],
        stack=numbers["stack"],
        shared=compiled.metadata.shared,
        triton=triton.__version__,
    )


def _type(value: Any) -> Any:
    """Return Triton's word for an argument's type."""
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, tuple):
        return ("i64",) * len(value)
    return "fp32" if isinstance(value, float) else "i32"


def read(path: Path = RESULTS) -> list[Kernel]:
    """Return the rows that are kept.

    Args:
        path: where.
    """
    return [Kernel(**json.loads(line)) for line in path.read_text().splitlines()]


def table(rows: list[Kernel]) -> str:
    """Return the table of the documentation, in Markdown: what differs between GPUs, in their order.

    Args:
        rows: kernels, of all GPUs.
    """
    found: dict[tuple[str, str], list[Kernel]] = {}
    for row in rows:
        found.setdefault((row.operation, row.kernel), []).append(row)
    lines = ["| operation | kernel | warps | registers | spilled | shared memory |", "|---|---|---|---|---|---|"]
    for (operation, kernel), each in found.items():
        columns = [[f"{getattr(one, name):,}" for one in each] for name in _SHOWN]
        cells = [values[0] if len({*values}) == 1 else "; ".join(values) for values in columns]
        lines.append(f"| {operation} | `{kernel}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Compile the kernels of the operations named, or of all, keep a row for each, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registers", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument(
        "--capability", type=int, action="append", help="of a GPU, as 90 for sm_90 (default: 80, 90, 100)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"no operation {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    before = read(options.output) if options.output.exists() else []
    kept = [row for row in before if row.operation not in (options.names or CASES)]
    for name in options.names or CASES:
        for capability in options.capability or CAPABILITIES:
            for row in kernels_of(name, capability):
                print(f"{row.operation}: {row.kernel}, sm_{row.capability}: {row.registers} registers", file=sys.stderr)
                kept.append(row)
    order = [*CASES]
    kept.sort(key=lambda row: order.index(row.operation))
    options.output.write_text("".join(json.dumps(asdict(row)) + "\n" for row in kept))
    print(table(kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
