"""The reader of workload files, under the name by which the command imports it."""

from einsight.sim.workload import load_workloads

__all__ = ["load_workloads"]
