//! Nothing but a place for the benchmark of the MACs.
