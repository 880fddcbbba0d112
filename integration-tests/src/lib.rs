//! Nothing but tests, see `tests/it`, and the program that those with real processes run.
