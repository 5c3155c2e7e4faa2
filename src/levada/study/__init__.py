"""Studies: reproduce what a paper claims, with a criterion for each sentence that was fixed in advance."""

from levada.study.claim import Claim as Claim
from levada.study.claim import Outcome as Outcome
from levada.study.claim import Statistic as Statistic
from levada.study.claim import Undecided as Undecided
from levada.study.execute import Executed as Executed
from levada.study.execute import claims as claims
from levada.study.execute import execute as execute
from levada.study.execute import execute_all as execute_all
from levada.study.execute import failures as failures
from levada.study.execute import figures as figures
from levada.study.execute import results as results
from levada.study.figure import Axis as Axis
from levada.study.figure import Figure as Figure
from levada.study.figure import Series as Series
from levada.study.figure import measured_series as measured_series
from levada.study.picture import Image as Image
from levada.study.picture import Picture as Picture
from levada.study.results import Cell as Cell
from levada.study.results import Results as Results
from levada.study.standing import Standing as Standing
from levada.study.study import Cost as Cost
from levada.study.study import Settings as Settings
from levada.study.study import Study as Study
from levada.study.sweep import sweep as sweep

__all__ = [
    "Axis",
    "Cell",
    "Claim",
    "Cost",
    "Executed",
    "Figure",
    "Image",
    "Outcome",
    "Picture",
    "Results",
    "Series",
    "Settings",
    "Standing",
    "Statistic",
    "Study",
    "Undecided",
    "claims",
    "execute",
    "execute_all",
    "failures",
    "figures",
    "measured_series",
    "results",
    "sweep",
]
