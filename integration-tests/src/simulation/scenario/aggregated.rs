//! Whether a scenario's traffic is aggregated in part. Drawn last and from a source of its own: what else a seed draws stays what it was.

use crate::simulation::plan::{Aggregates, Dice, Plan};

/// Keeps the draws apart from the others; of the values that do, one with which the oldest seeds of the corpus have plain records only.
const APART: u64 = 0x0a66_01ee;

/// Aggregates, in half of the seeds. Batches are small in some of these, so that an aggregate is in several: of `fewest` records, or a few more.
pub(super) fn draw(plan: &mut Plan, fewest: usize) {
    let dice = Dice::new(plan.seed ^ APART);
    if dice.chance(0.5) {
        return;
    }
    plan.traffic.aggregates = Some(Aggregates {
        share: dice.one_of(&[50, 300, 800]),
        most: dice.one_of(&[3, 10, 40]),
        one_key: dice.one_of(&[0, 300, 1000]),
        elsewhere: dice.one_of(&[0, 0, 300]),
        broken: if plan.handling.queue { dice.one_of(&[0, 0, 20]) } else { 0 },
    });
    plan.handling.batch = dice.one_of(&[None, Some(fewest), Some(fewest * 3)]);
}
