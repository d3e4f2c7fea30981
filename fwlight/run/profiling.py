"""Where the time of a run goes."""

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from fwlight.run.folder import RunFolder

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def profiler(name: str | None, folder: RunFolder) -> Profiler | None:
    """Return Lightning's profiler of a name, whose reports go into the run's folder."""
    if name is None:
        return None
    return _PROFILERS[name](dirpath=folder.place("profiler"), filename=name)
