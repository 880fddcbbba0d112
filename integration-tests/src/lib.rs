//! Whole fleets of workers: [`simulation`], in simulated time under every fault, which `tests/simulation` and the program `simulate` run; and `tests/it`, over the
//! wire against local AWS. Also the
//! program that tests with real processes run.

pub mod simulation;
