//! The reconciliation, as a table for people and as JSON for programs.

use serde::Serialize;

use super::display::thousands;
use super::ledger::Figures;

/// The figures of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Records accepted by PutRecords.
    pub published: u64,
    /// Records processed.
    pub delivered: u64,
    /// Times that a record was processed again.
    pub duplicates: u64,
    /// Records neither processed nor dead-lettered.
    pub lost: u64,
    /// Records first processed after a later record of their key.
    pub out_of_order: u64,
    /// Records found in the dead-letter queue.
    pub dead_lettered: u64,
    /// How long it all took.
    pub seconds: f64,
}

impl Report {
    /// The figures, with the time they took.
    #[must_use]
    pub fn new(figures: &Figures, seconds: f64) -> Self {
        let Figures { published, delivered, duplicates, lost, out_of_order, dead_lettered, unanswered: _ } = *figures;
        Self { published, delivered, duplicates, lost, out_of_order, dead_lettered, seconds: (seconds * 1000.0).round() / 1000.0 }
    }

    /// Whether nothing is lost or out of order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.out_of_order == 0
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let rows = [
            ("published", self.published, "accepted by PutRecords"),
            ("delivered", self.delivered, "processed at least once"),
            ("duplicates", self.duplicates, "processed again, after the kill"),
            ("lost", self.lost, "neither processed nor dead-lettered"),
            ("out of order", self.out_of_order, "processed after a later record of their key"),
            ("dead-lettered", self.dead_lettered, "poison, found in the queue"),
        ];
        let rows = rows.map(|(name, count, meaning)| format!("  {name:<15}{:>12}   {meaning}\n", thousands(count)));
        format!("{}  {:<15}{:>12.1}\n", rows.concat(), "seconds", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_promised_names() {
        let figures = Figures { published: 1, delivered: 2, duplicates: 3, lost: 4, out_of_order: 5, dead_lettered: 6, unanswered: 7 };
        let json = serde_json::to_string(&Report::new(&figures, 1.23456)).unwrap();
        assert_eq!(json, r#"{"published":1,"delivered":2,"duplicates":3,"lost":4,"out_of_order":5,"dead_lettered":6,"seconds":1.235}"#);
    }

    #[test]
    fn only_loss_and_disorder_are_faults() {
        let report =
            |lost, out_of_order| Report::new(&Figures { lost, out_of_order, duplicates: 9, dead_lettered: 9, ..Figures::default() }, 1.0);
        assert!(report(0, 0).is_clean());
        assert!(!report(1, 0).is_clean() && !report(0, 1).is_clean());
        assert!(report(1234, 0).table().contains("  lost                  1,234   "), "{}", report(1234, 0).table());
    }
}
