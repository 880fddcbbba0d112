//! Whether some records panic at each attempt. Drawn last and from a source of its own: what else a seed draws stays what it was.

use crate::simulation::plan::{Dice, Plan};

/// Keeps the draws apart from the others; one with which the seeds of the corpus have no such records.
const APART: u64 = 0x0009_a41c;

/// A few records that panic, in some seeds.
pub(super) fn draw(plan: &mut Plan) {
    let dice = Dice::new(plan.seed ^ APART);
    if dice.chance(0.06) && plan.handling.way.survives_panics() {
        plan.traffic.panicking = dice.one_of(&[2, 20]);
    }
}
