"""Say where a model's learning signal dies or explodes, why, and what would repair it."""

from levada.diagnose.check import check as check
from levada.diagnose.diagnostics import DIAGNOSTICS as DIAGNOSTICS
from levada.diagnose.diagnostics import diagnose as diagnose
from levada.diagnose.finding import Diagnostic as Diagnostic
from levada.diagnose.finding import Finding as Finding
from levada.diagnose.finding import Proposal as Proposal
from levada.diagnose.prediction import Prediction as Prediction
from levada.diagnose.prediction import predict as predict
from levada.diagnose.report import Report as Report

__all__ = ["DIAGNOSTICS", "Diagnostic", "Finding", "Prediction", "Proposal", "Report", "check", "diagnose", "predict"]
