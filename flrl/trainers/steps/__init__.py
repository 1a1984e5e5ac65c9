"""Recording a training step and replaying it; used by the engines `traced` and `vectorized` alone."""
