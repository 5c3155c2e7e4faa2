"""The studies, by name: an import line and an entry make one known to the library, the command line and the report."""

from levada.study import Study
from levada.studies.gradient_decay import STUDY as GRADIENT_DECAY

STUDIES: dict[str, Study] = {study.name: study for study in (GRADIENT_DECAY,)}
