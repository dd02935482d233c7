//! The machine as its user describes it: the wire form and its validation.
