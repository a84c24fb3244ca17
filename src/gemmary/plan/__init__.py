"""What a model needs and how fast it would be, from its config alone: nothing is downloaded and no weight is read.

`subject` is what a name means (a row of the zoo need not be on this machine), `make_plan` counts, `choices` compares
formats and `nearest_that_fits` advises.
"""

from __future__ import annotations

from gemmary.plan.ceilings import MachineSpeed, measure_speed, remembered_speed
from gemmary.plan.choices import best_choice, check_fits, choices, nearest_that_fits
from gemmary.plan.devices import CPU, Device, find_devices, parse_devices, this_cpu
from gemmary.plan.make import FORMATS, TASKS, make_plan
from gemmary.plan.plan import Plan
from gemmary.plan.subject import Subject, of_checkpoint, released, subject

__all__ = [
    "CPU",
    "FORMATS",
    "TASKS",
    "Device",
    "MachineSpeed",
    "Plan",
    "Subject",
    "best_choice",
    "check_fits",
    "choices",
    "find_devices",
    "make_plan",
    "measure_speed",
    "nearest_that_fits",
    "of_checkpoint",
    "parse_devices",
    "released",
    "remembered_speed",
    "subject",
    "this_cpu",
]
