//! A run, from its request to its end.

pub(crate) mod attempt;
pub(crate) mod run;
