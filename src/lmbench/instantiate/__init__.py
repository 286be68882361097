"""From configs, as plain values, to objects: the only place that knows both.

Every class takes plain arguments; a node's ``_target_`` names the class (or function) and its other
keys are the arguments. What a class refuses with ``ValueError`` becomes a sentence about the
config's keys here.
"""
