"""Tables and figures of finished sweeps, each from the run folders alone."""
