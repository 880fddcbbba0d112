//! Commits: processors whose only effect is an item for each record and attempt, written together with the checkpoint. Whatever happens, each record has one item in
//! the end: an effect that is there twice shows as two, one that is lost as none.

mod crash_points;
mod faults;
mod out_of_turn;
mod rules;
mod scene;
