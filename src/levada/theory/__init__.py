"""Closed-form predictions for signals and gradients in wide random networks. It measures nothing and takes no model.

What training costs is in `levada.theory.cost`, and what it needs on many processes in `levada.theory.scale`.
"""

from levada.theory import cost as cost
from levada.theory import scale as scale
from levada.theory.activation import Activation as Activation
from levada.theory.activation import ActivationLike as ActivationLike
from levada.theory.activation import as_activation as as_activation
from levada.theory.activation import leaky_relu as leaky_relu
from levada.theory.bounds import gaussian_gain as gaussian_gain
from levada.theory.bounds import gaussian_spectral_norm as gaussian_spectral_norm
from levada.theory.bounds import gradient_bound as gradient_bound
from levada.theory.bounds import greatest_slope as greatest_slope
from levada.theory.bounds import weight_free_bound as weight_free_bound
from levada.theory.coherence import coherent_residual_gradient as coherent_residual_gradient
from levada.theory.correlation import CorrelationFixedPoint as CorrelationFixedPoint
from levada.theory.correlation import correlation_fixed_point as correlation_fixed_point
from levada.theory.correlation import correlation_map as correlation_map
from levada.theory.criticality import CriticalPoint as CriticalPoint
from levada.theory.criticality import DepthScales as DepthScales
from levada.theory.criticality import critical_point as critical_point
from levada.theory.criticality import critical_weight_variance as critical_weight_variance
from levada.theory.criticality import depth_scales as depth_scales
from levada.theory.criticality import trainable_depth as trainable_depth
from levada.theory.isometry import JacobianMoments as JacobianMoments
from levada.theory.isometry import jacobian_moments as jacobian_moments
from levada.theory.isometry import largest_squared_singular_value as largest_squared_singular_value
from levada.theory.isometry import probe_deviation as probe_deviation
from levada.theory.memory import carried_gradient as carried_gradient
from levada.theory.memory import chrono_bias as chrono_bias
from levada.theory.memory import gate_time_scale as gate_time_scale
from levada.theory.memory import memory_horizon as memory_horizon
from levada.theory.memory import time_scale as time_scale
from levada.theory.moments import correlated_moment as correlated_moment
from levada.theory.moments import correlated_slope_moment as correlated_slope_moment
from levada.theory.moments import curvature_moment as curvature_moment
from levada.theory.moments import first_moment as first_moment
from levada.theory.moments import second_moment as second_moment
from levada.theory.moments import second_moment_slope as second_moment_slope
from levada.theory.moments import slope_fourth_moment as slope_fourth_moment
from levada.theory.moments import slope_second_moment as slope_second_moment
from levada.theory.normalisation import batch_norm_gradient_gain as batch_norm_gradient_gain
from levada.theory.normalisation import batch_norm_residual_gradient as batch_norm_residual_gradient
from levada.theory.paths import PathLengths as PathLengths
from levada.theory.paths import path_lengths as path_lengths
from levada.theory.product import DriftOfNorm as DriftOfNorm
from levada.theory.product import OrthogonalTanh as OrthogonalTanh
from levada.theory.product import gaussian_drift as gaussian_drift
from levada.theory.product import orthogonal_tanh as orthogonal_tanh
from levada.theory.receptive_field import depth_for_lag as depth_for_lag
from levada.theory.receptive_field import field_deviation as field_deviation
from levada.theory.receptive_field import receptive_field as receptive_field
from levada.theory.receptive_field import visible_lags as visible_lags
from levada.theory.sawtooth import crossing_bound as crossing_bound
from levada.theory.sawtooth import most_pieces as most_pieces
from levada.theory.sawtooth import sawtooth as sawtooth
from levada.theory.sawtooth import sawtooth_layers as sawtooth_layers
from levada.theory.sawtooth import seldom_fitted as seldom_fitted
from levada.theory.shattering import batch_norm_gradient_correlation as batch_norm_gradient_correlation
from levada.theory.shattering import (
    batch_norm_residual_gradient_correlation as batch_norm_residual_gradient_correlation,
)
from levada.theory.shattering import residual_gradient_correlation as residual_gradient_correlation
from levada.theory.trajectory import Trajectory as Trajectory
from levada.theory.trajectory import gradient_correlation as gradient_correlation
from levada.theory.trajectory import propagate as propagate
from levada.theory.trajectory import propagate_correlation as propagate_correlation
from levada.theory.trajectory import propagate_residual as propagate_residual
from levada.theory.variance import InitialVariances as InitialVariances
from levada.theory.variance import VarianceFixedPoint as VarianceFixedPoint
from levada.theory.variance import chi as chi
from levada.theory.variance import default_variances as default_variances
from levada.theory.variance import gradient_gain as gradient_gain
from levada.theory.variance import variance_fixed_point as variance_fixed_point
from levada.theory.variance import variance_map as variance_map
