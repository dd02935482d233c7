//! What a machine's counters mean: samples, trends, bottlenecks, health.
