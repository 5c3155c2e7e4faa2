"""How good the verdicts of `levada check` and the repairs of `levada fix` are, measured in five suites.

`planted`: programs with a fault of known cause and place, and their healthy twins. `zoo`: real architectures as their
authors train them. `trainability`: what is predicted before training against what training does. `memory`: the
predicted horizon of recurrent networks against the longest lag learned. `repair`: whether a repair reaches the twin.
"""
