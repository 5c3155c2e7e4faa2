"""Turn a running model into a trace: block boundaries, signals by site and step. Works on any `nn.Module`."""

from levada.probe.cotangent import cotangent_rms as cotangent_rms
from levada.probe.effective_depth import SampledPathLengths as SampledPathLengths
from levada.probe.effective_depth import estimated_path_lengths as estimated_path_lengths
from levada.probe.effective_depth import sampled_path_lengths as sampled_path_lengths
from levada.probe.execution import Execution as Execution
from levada.probe.execution import Operation as Operation
from levada.probe.execution import record as record
from levada.probe.jacobian import Jacobian as Jacobian
from levada.probe.lesion import Lesions as Lesions
from levada.probe.lesion import Reordering as Reordering
from levada.probe.lesion import lesion as lesion
from levada.probe.lesion import reorder as reorder
from levada.probe.linearisation import Linearisation as Linearisation
from levada.probe.linearisation import linearise as linearise
from levada.probe.lookup import Lookup as Lookup
from levada.probe.lookup import attention_weights as attention_weights
from levada.probe.lookup import lookup as lookup
from levada.probe.lyapunov import LyapunovExponents as LyapunovExponents
from levada.probe.lyapunov import lyapunov_exponents as lyapunov_exponents
from levada.probe.memory import GateStatistics as GateStatistics
from levada.probe.memory import Interval as Interval
from levada.probe.memory import MemoryCurve as MemoryCurve
from levada.probe.memory import gate_statistics as gate_statistics
from levada.probe.memory import memory_curve as memory_curve
from levada.probe.memory import memory_curves as memory_curves
from levada.probe.mixing import MIXING_SIGNALS as MIXING_SIGNALS
from levada.probe.partial import PartialJacobianNorms as PartialJacobianNorms
from levada.probe.partial import partial_jacobian_norms as partial_jacobian_norms
from levada.probe.probe import Probe as Probe
from levada.probe.receptive_field import ReceptiveField as ReceptiveField
from levada.probe.receptive_field import receptive_field as receptive_field
from levada.probe.recurrence import Recurrence as Recurrence
from levada.probe.recurrences import input_gradients as input_gradients
from levada.probe.recurrences import recurrences as recurrences
from levada.probe.singular import BlockExtremes as BlockExtremes
from levada.probe.singular import LargestSingularValue as LargestSingularValue
from levada.probe.singular import SingularValues as SingularValues
from levada.probe.singular import block_extremes as block_extremes
from levada.probe.singular import largest_singular_value as largest_singular_value
from levada.probe.singular import singular_values as singular_values
from levada.probe.singular import squared_moments as squared_moments
from levada.probe.trace import SIGNALS as SIGNALS
from levada.probe.trace import Signal as Signal
from levada.probe.trace import Site as Site
from levada.probe.trace import Trace as Trace

__all__ = [
    "MIXING_SIGNALS",
    "SIGNALS",
    "BlockExtremes",
    "Execution",
    "GateStatistics",
    "Interval",
    "Jacobian",
    "LargestSingularValue",
    "Lesions",
    "Linearisation",
    "Lookup",
    "LyapunovExponents",
    "MemoryCurve",
    "Operation",
    "PartialJacobianNorms",
    "Probe",
    "ReceptiveField",
    "Recurrence",
    "Reordering",
    "SampledPathLengths",
    "Signal",
    "SingularValues",
    "Site",
    "Trace",
    "attention_weights",
    "block_extremes",
    "cotangent_rms",
    "estimated_path_lengths",
    "gate_statistics",
    "input_gradients",
    "largest_singular_value",
    "lesion",
    "linearise",
    "lookup",
    "lyapunov_exponents",
    "memory_curve",
    "memory_curves",
    "partial_jacobian_norms",
    "receptive_field",
    "record",
    "recurrences",
    "reorder",
    "sampled_path_lengths",
    "singular_values",
    "squared_moments",
]
