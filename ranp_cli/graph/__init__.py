"""From a network to its graph: the tracer that carries labels, layers, and units."""
