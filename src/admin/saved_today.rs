//! Calls and hours of held connections that the gateway saved since midnight, UTC.

use std::time::{Duration, SystemTime};

use serde::Serialize;

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Sums of the current day. A gateway that started today counts from its start.
#[derive(Debug, Default)]
pub(super) struct SavedToday {
    day: u64,
    /// Saved calls before the day.
    earlier_calls: u64,
    held_seconds: f64,
}

#[derive(Debug, Serialize, PartialEq)]
pub(super) struct SavedTodayJson {
    calls: u64,
    held_seconds: f64,
}

impl SavedToday {
    /// Adds a step in which `connections` waits shared the polls of others. `calls` is the total since the start.
    pub(super) fn add(&mut self, now: SystemTime, calls: u64, connections: usize, step: Duration) {
        let day = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / DAY_SECONDS;
        if day != self.day {
            *self = Self { day, earlier_calls: calls, held_seconds: 0.0 };
        }
        self.held_seconds += connections as f64 * step.as_secs_f64();
    }

    pub(super) fn json(&self, calls: u64) -> SavedTodayJson {
        SavedTodayJson { calls: calls.saturating_sub(self.earlier_calls), held_seconds: self.held_seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_begin_again_at_midnight() {
        let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3600);
        let mut today = SavedToday::default();
        today.add(at(47), 10, 4, Duration::from_secs(5));
        today.add(at(47), 12, 2, Duration::from_secs(5));
        assert_eq!(today.json(15), SavedTodayJson { calls: 5, held_seconds: 30.0 });
        today.add(at(48), 20, 1, Duration::from_secs(5));
        assert_eq!(today.json(21), SavedTodayJson { calls: 1, held_seconds: 5.0 });
    }
}
