//! Jobs that begin by themselves.
//!
//! ```text
//!   enabled, or a task ended ─▶ Down(Scheduled) ── its time comes ─▶ Down(Created) ─▶ as any start
//!                                    ▲      │ clock was set: planned anew
//!                                    └──────┘
//! ```
//!
//! Intervals are counted on CLOCK_BOOTTIME, which nobody sets. A time of the calendar is compared with CLOCK_REALTIME at every step, so a
//! clock that is set, in either direction, only changes when the next step comes; the supervisor is woken when that happens. A time that
//! was begun is not begun again by a clock that is set back, by less than a day; what goes back further was wrong before, and the
//! schedule begins anew.

use byre_plan::WorkloadId;
use byre_protocol::schedule::When;
use byre_protocol::status::{Due, Moment, Why};

use crate::calendar::next_after;
use crate::core::Core;
use crate::workload::{Actual, Wanted, Workload};

/// How late a time of the calendar is still begun without `catch_up`: a boot with a file system check, a clock corrected by a summer-time
/// hour.
const LATE_MS: u64 = 3_600_000;
/// How far back a clock may be set without what was begun being begun again.
const SET_BACK_MS: u64 = 86_400_000;
/// The two clocks apart by more than before: somebody has set one.
const STEP_MS: u64 = 500;

/// Whether CLOCK_REALTIME was set between two moments.
pub(crate) fn clock_was_set(before: Moment, after: Moment) -> bool {
    let passed = after.boot_ms.saturating_sub(before.boot_ms);
    before.wall_ms.saturating_add(passed).abs_diff(after.wall_ms) > STEP_MS
}

impl Workload {
    /// When it began last, by the clock on the wall.
    fn begun_wall_ms(&self) -> Option<u64> {
        self.task.map(|task| task.begun.wall_ms).or_else(|| self.history.back().map(|run| run.started.wall_ms))
    }

    /// When it begins next, if it does by itself.
    pub(crate) fn next_due(&self, now: Moment) -> Option<Due> {
        let schedule = self.definition.schedule.as_ref()?;
        Some(match &schedule.when {
            When::EveryMs(every_ms) => Due::Boot(next_interval(self.task.map(|task| task.begun), *every_ms, now)),
            When::Calendar(calendar) => {
                let begun = self.begun_wall_ms().unwrap_or(self.created.wall_ms);
                let from = if begun > now.wall_ms {
                    if begun.saturating_sub(now.wall_ms) < SET_BACK_MS { begun } else { now.wall_ms }
                } else if schedule.catch_up {
                    begun
                } else {
                    now.wall_ms
                };
                Due::Wall(next_after(calendar, from))
            }
        })
    }

    /// Puts it where it waits for its time, if it has one. False: it has none.
    pub(crate) fn wait_for_its_time(&mut self, now: Moment) -> bool {
        let Some(due) = self.next_due(now) else { return false };
        self.actual = Actual::Down { why: Why::Scheduled(due) };
        true
    }

    /// When it has to be looked at, on CLOCK_BOOTTIME as far as that can be told from the clocks as they are now.
    pub(crate) fn scheduled_boot_ms(&self, now: Moment) -> Option<u64> {
        match (self.wanted, &self.actual) {
            (Wanted::Up, Actual::Down { why: Why::Scheduled(Due::Boot(at)) }) => Some(*at),
            (Wanted::Up, Actual::Down { why: Why::Scheduled(Due::Wall(at)) }) => {
                Some(now.boot_ms.saturating_add(at.saturating_sub(now.wall_ms)))
            }
            (_, _) => None,
        }
    }
}

/// The first multiple of the interval after the last begin that is not past: what was missed is not made up for.
fn next_interval(begun: Option<Moment>, every_ms: u64, now: Moment) -> u64 {
    let begun_ms = begun.map_or(now.boot_ms, |begun| begun.boot_ms);
    let passed = now.boot_ms.saturating_sub(begun_ms);
    let multiples = passed.checked_div(every_ms).unwrap_or(0).saturating_add(1);
    begun_ms.saturating_add(multiples.saturating_mul(every_ms))
}

/// What becomes of a job whose time may have come.
enum Next {
    Begin,
    Plan,
    Wait,
}

impl Core {
    /// Begins what is due, and plans anew what a clock that was set has moved.
    pub(crate) fn schedules_due(&mut self, clock_set: bool) {
        if self.ending.is_some() {
            return;
        }
        let now = self.now;
        let judged = |workload: &Workload| match (workload.wanted, &workload.actual) {
            (Wanted::Up, Actual::Down { why: Why::Scheduled(Due::Boot(at)) }) if *at <= now.boot_ms => Next::Begin,
            (Wanted::Up, Actual::Down { why: Why::Scheduled(Due::Wall(at)) }) if *at <= now.wall_ms => {
                let catches_up = workload.definition.schedule.as_ref().is_some_and(|schedule| schedule.catch_up);
                let is_late = now.wall_ms.saturating_sub(*at) > LATE_MS;
                if is_late && !catches_up { Next::Plan } else { Next::Begin }
            }
            (Wanted::Up, Actual::Down { why: Why::Scheduled(Due::Wall(_)) }) if clock_set => Next::Plan,
            (_, _) => Next::Wait,
        };
        let due: Vec<(WorkloadId, Next)> =
            self.workloads.values().map(|workload| (workload.id, judged(workload))).collect();
        for (id, next) in due {
            match next {
                Next::Begin => {
                    if let Some(workload) = self.workloads.get_mut(&id) {
                        workload.begin_anew();
                        workload.actual = Actual::Down { why: Why::Created };
                    }
                    self.reconsider();
                }
                Next::Plan => {
                    if let Some(workload) = self.workloads.get_mut(&id) {
                        workload.wait_for_its_time(now);
                    }
                }
                Next::Wait => {}
            }
        }
    }

    /// Whether a clock that is set matters to anything.
    #[must_use]
    pub fn follows_the_calendar(&self) -> bool {
        let is_planned = |workload: &Workload| {
            let schedule = workload.definition.schedule.as_ref();
            schedule.is_some_and(|schedule| matches!(schedule.when, When::Calendar(_)))
        };
        self.workloads.values().any(is_planned)
    }
}
