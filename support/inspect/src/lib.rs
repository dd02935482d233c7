//! One state tree, two outputs: a JSON view and a Prometheus view from one derive.
