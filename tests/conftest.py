"""One thread for torch in the tests, and in the processes that they start, unless the environment says otherwise.

Their tensors are small: on a machine that does other things too, threads that wait for each other took twenty times as
long as one alone.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch
