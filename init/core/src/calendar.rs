//! The next minute of a calendar. Pure arithmetic on milliseconds since 1970 in UTC: no clock, no time zone, no leap seconds.

use byre_protocol::schedule::Calendar;

const DAY_MS: u64 = 86_400_000;
const MINUTES_PER_DAY: u64 = 24 * 60;
const MINUTE_MS: u64 = 60_000;
/// Days looked at: every calendar has a day within eight years, and 29 February is missing in the year 2100.
const DAYS_AHEAD: u32 = 8 * 366 + 1;

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u8,
    day: u8,
    /// Sunday is 0.
    weekday: u8,
}

impl Date {
    /// The day that is so many days after 1970-01-01. Years of 400 have the same days each; within one, a year is found by its length.
    fn of_day(number: u64) -> Self {
        const PER_400_YEARS: u64 = 146_097;
        // 1970-01-01 was a Thursday.
        let weekday = u8::try_from(number.saturating_add(4) % 7).unwrap_or(0);
        let mut year = number.checked_div(PER_400_YEARS).unwrap_or(0).saturating_mul(400).saturating_add(1970);
        let mut rest = number % PER_400_YEARS;
        while rest >= days_of_year(year) {
            rest = rest.saturating_sub(days_of_year(year));
            year = year.saturating_add(1);
        }
        let mut month = 1_u8;
        while rest >= u64::from(days_of_month(year, month)) {
            rest = rest.saturating_sub(u64::from(days_of_month(year, month)));
            month = month.saturating_add(1);
        }
        Self { year, month, day: u8::try_from(rest).unwrap_or(0).saturating_add(1), weekday }
    }

    fn next(self) -> Self {
        let Self { year, month, day, weekday } = self;
        let weekday = if weekday == 6 { 0 } else { weekday.saturating_add(1) };
        if day < days_of_month(year, month) {
            Self { day: day.saturating_add(1), weekday, ..self }
        } else if month < 12 {
            Self { year, month: month.saturating_add(1), day: 1, weekday }
        } else {
            Self { year: year.saturating_add(1), month: 1, day: 1, weekday }
        }
    }
}

fn is_leap_year(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    if is_leap_year(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap_year(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// The first minute of the calendar that begins after this moment, both in milliseconds since 1970. `u64::MAX` at the end of all time.
pub(crate) fn next_after(calendar: &Calendar, after_wall_ms: u64) -> u64 {
    let first = after_wall_ms.checked_div(MINUTE_MS).unwrap_or(0).saturating_add(1);
    let (mut day, mut minute) = (first / MINUTES_PER_DAY, first % MINUTES_PER_DAY);
    let mut date = Date::of_day(day);
    for _ in 0..DAYS_AHEAD {
        if calendar.has_month(date.month) && calendar.has_day(date.day, date.weekday) {
            let found = (minute..MINUTES_PER_DAY).find(|minute| {
                let (hour, minute) = (u8::try_from(minute / 60), u8::try_from(minute % 60));
                hour.is_ok_and(|hour| calendar.has_hour(hour)) && minute.is_ok_and(|minute| calendar.has_minute(minute))
            });
            if let Some(minute) = found {
                return day.saturating_mul(DAY_MS).saturating_add(minute.saturating_mul(MINUTE_MS));
            }
        }
        (day, minute, date) = (day.saturating_add(1), 0, date.next());
    }
    u64::MAX
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::arithmetic_side_effects))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::{Date as TheirDate, Month, OffsetDateTime, Time};

    fn moment(text: &str) -> u64 {
        let numbers: Vec<u16> = text.split(['-', ' ', ':']).map(|part| part.parse().unwrap()).collect();
        let [year, month, day, hour, minute] = numbers[..] else { panic!("{text}") };
        let small = |number: u16| u8::try_from(number).unwrap();
        let date = TheirDate::from_calendar_date(i32::from(year), Month::try_from(small(month)).unwrap(), small(day));
        let time = Time::from_hms(small(hour), small(minute), 0).unwrap();
        u64::try_from(OffsetDateTime::new_utc(date.unwrap(), time).unix_timestamp()).unwrap() * 1000
    }

    #[test]
    fn the_next_minute_of_known_calendars() {
        for (text, after, next) in [
            ("* * * * *", "2026-11-25 22:30", "2026-11-25 22:31"),
            ("30 2 * * *", "2026-12-31 02:30", "2027-01-01 02:30"),
            ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
            ("0 0 29 2 *", "2096-02-29 00:00", "2104-02-29 00:00"),
            ("0 0 31 * *", "2026-01-31 00:00", "2026-03-31 00:00"),
            ("15 10 13 * fri", "2026-11-25 00:00", "2026-11-27 10:15"),
            ("0 12 * * sun", "2026-11-25 00:00", "2026-11-29 12:00"),
        ] {
            assert_eq!(next_after(&text.parse().unwrap(), moment(after)), moment(next), "{text} after {after}");
        }
        assert_eq!(
            next_after(&"* * * * *".parse().unwrap(), moment("2026-01-01 00:00") + 59_999),
            moment("2026-01-01 00:01")
        );
    }

    fn field(least: u8, most: u8) -> impl Strategy<Value = String> {
        prop_oneof![
            3 => Just("*".to_owned()),
            2 => (least..=most).prop_map(|number| number.to_string()),
            1 => (least..=most, 1_u8..20).prop_map(|(first, step)| format!("{first}/{step}")),
            1 => proptest::collection::vec(least..=most, 1..4)
                .prop_map(|list| list.iter().map(u8::to_string).collect::<Vec<_>>().join(",")),
        ]
    }

    proptest! {
        /// Against another implementation of the calendar: the answer is a minute of it, and none lies between.
        #[test]
        fn it_is_the_first_minute_that_fits(
            text in (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6))
                .prop_map(|(a, b, c, d, e)| format!("{a} {b} {c} {d} {e}")),
            after in 0_u64..5_000_000_000_000,
        ) {
            let Ok(calendar) = text.parse::<Calendar>() else { return Ok(()) };
            let next = next_after(&calendar, after);
            prop_assert!(next > after && next.is_multiple_of(MINUTE_MS));
            let fits = |at_ms: u64| {
                let at = OffsetDateTime::from_unix_timestamp(i64::try_from(at_ms / 1000).unwrap()).unwrap();
                calendar.has_minute(at.minute()) && calendar.has_hour(at.hour()) && calendar.has_month(at.month().into())
                    && calendar.has_day(at.day(), at.weekday().number_days_from_sunday())
            };
            prop_assert!(fits(next), "{text}: {next}");
            // Two weeks of minutes; a schedule that is rarer is held by the known calendars above.
            let mut at = (after / MINUTE_MS + 1) * MINUTE_MS;
            let mut looked = 0;
            while at < next && looked < 20_000 {
                prop_assert!(!fits(at), "{text}: {at} lies before {next}");
                at += MINUTE_MS;
                looked += 1;
            }
        }
    }
}
