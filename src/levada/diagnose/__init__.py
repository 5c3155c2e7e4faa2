"""Say where a model's learning signal dies or explodes, why, and what would repair it."""

from levada.diagnose.check import check as check
from levada.diagnose.diagnostics import DIAGNOSTICS as DIAGNOSTICS
from levada.diagnose.diagnostics import diagnose as diagnose
from levada.diagnose.finding import Diagnostic as Diagnostic
from levada.diagnose.finding import Finding as Finding
from levada.diagnose.finding import Proposal as Proposal
from levada.diagnose.fix import fix as fix
from levada.diagnose.prediction import Prediction as Prediction
from levada.diagnose.prediction import predict as predict
from levada.diagnose.remedies import REMEDIES as REMEDIES
from levada.diagnose.remedies import Patch as Patch
from levada.diagnose.remedies import Remedy as Remedy
from levada.diagnose.remedies import Subject as Subject
from levada.diagnose.repaired import Fix as Fix
from levada.diagnose.report import Report as Report
from levada.diagnose.verify import Trial as Trial

__all__ = [
    "DIAGNOSTICS",
    "REMEDIES",
    "Diagnostic",
    "Finding",
    "Fix",
    "Patch",
    "Prediction",
    "Proposal",
    "Remedy",
    "Report",
    "Subject",
    "Trial",
    "check",
    "diagnose",
    "fix",
    "predict",
]
