//! When a job begins by itself: at times of the calendar, or again and again.
//!
//! A calendar is written as five fields of crontab(5), in UTC, and read where a definition is compiled or a client's call is checked.
//! Between processes it is five sets of numbers, so that PID 1 reads no text; what is no calendar, or one whose day never comes, does
//! not decode.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Characters of a calendar in words: a list in each of its five fields.
const TEXT_BYTES: usize = 512;
/// The shortest interval: whoever needs less runs all the time, and is a service.
pub const SHORTEST_MS: u64 = 1_000;
/// The longest interval: a year.
pub const LONGEST_MS: u64 = 366 * 24 * 3_600_000;

/// When a job begins by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The times.
    pub when: When,
    /// A time that passed while it could not begin (the node was off, the run before took longer, the clock was set forward by more than
    /// an hour) is made up for, once, however many there were.
    #[serde(default)]
    pub catch_up: bool,
}

/// The times of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// These minutes of the calendar, in UTC.
    Calendar(Calendar),
    /// So many milliseconds from one begin to the next, by a clock that nobody sets (CLOCK_BOOTTIME). The first time is as long after the
    /// boot, or after it was enabled.
    EveryMs(u64),
}

impl Schedule {
    /// What is wrong with it, if something is.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self.when {
            When::Calendar(_) => None,
            When::EveryMs(ms) if (SHORTEST_MS..=LONGEST_MS).contains(&ms) => None,
            When::EveryMs(_) => Some(format!("every_ms of a schedule is {SHORTEST_MS} to {LONGEST_MS}")),
        }
    }
}

/// One field of a calendar: its name and its numbers.
struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    words: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", least: 0, most: 59, words: &[] };
const HOUR: Field = Field { name: "hour", least: 0, most: 23, words: &[] };
const DAY: Field = Field { name: "day of the month", least: 1, most: 31, words: &[] };
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// 0 and 7 are both Sunday.
const WEEKDAY: Field =
    Field { name: "day of the week", least: 0, most: 7, words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

const ALL_WEEKDAYS: u64 = 0b111_1111;
/// The longest day number of each month, January first; a leap year's.
const DAYS: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Why a text is no calendar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Not five fields.
    #[error(
        "{0:?} is no calendar: give five fields (minute hour day month weekday, as in \"30 2 * * mon-fri\"), or @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Form(String),
    /// One field is not what it should be.
    #[error(
        "{part:?} is no {field}: give numbers from {least} to {most}, ranges as 1-5, steps as */10, lists with commas"
    )]
    Part {
        /// The part.
        part: String,
        /// Which field it is in.
        field: &'static str,
        /// The least number there.
        least: u8,
        /// The greatest.
        most: u8,
    },
    /// No year has such a day.
    #[error("no month of this calendar has one of its days: it would never begin")]
    Never,
}

impl Field {
    fn all(&self) -> u64 {
        (self.least..=self.most).fold(0, |set, number| set | bit(number))
    }

    fn number(&self, text: &str) -> Option<u8> {
        let word = self.words.iter().position(|word| word.eq_ignore_ascii_case(text));
        let word = word.and_then(|at| u8::try_from(at).ok()).map(|at| at.saturating_add(self.least));
        word.or_else(|| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())))
            .filter(|number| (self.least..=self.most).contains(number))
    }

    fn part(&self, part: &str) -> Option<u64> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u8>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*", _) => (self.least, self.most),
            (_, Some((first, last))) => (self.number(first)?, self.number(last)?),
            // With a step, a number alone is where it begins.
            (_, None) => (self.number(range)?, if step.is_some() { self.most } else { self.number(range)? }),
        };
        if first > last {
            return None;
        }
        let step = usize::from(step.unwrap_or(1));
        Some((first..=last).step_by(step).fold(0, |set, number| set | bit(number)))
    }

    fn set(&self, text: &str) -> Result<u64, CalendarError> {
        text.split(',').try_fold(0, |set, part| {
            let refused =
                || CalendarError::Part { part: part.to_owned(), field: self.name, least: self.least, most: self.most };
            self.part(part).map(|more| set | more).ok_or_else(refused)
        })
    }
}

fn bit(number: u8) -> u64 {
    1_u64.checked_shl(u32::from(number)).unwrap_or(0)
}

fn has(set: u64, number: u8) -> bool {
    set & bit(number) != 0
}

/// Minutes of the calendar, in UTC. There is always a next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    sets: Sets,
}

/// A calendar as it is between processes; bit N is the number N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Sets {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
}

impl Calendar {
    fn of(sets: Sets) -> Result<Self, CalendarError> {
        let fields = [
            (sets.minutes, MINUTE.all()),
            (sets.hours, HOUR.all()),
            (sets.days, DAY.all()),
            (sets.months, MONTH.all()),
            (sets.weekdays, ALL_WEEKDAYS),
        ];
        if fields.iter().any(|(set, all)| *set == 0 || set & !all != 0) {
            return Err(CalendarError::Form(String::new()));
        }
        let calendar = Self { sets };
        let months = (1_u8..).zip(DAYS).filter(|(month, _)| has(sets.months, *month));
        let comes = months.into_iter().any(|(_, longest)| (1..=longest).any(|day| has(sets.days, day)));
        // A day of the week comes in every month.
        if comes || sets.weekdays != ALL_WEEKDAYS { Ok(calendar) } else { Err(CalendarError::Never) }
    }

    /// Whether it has this minute of an hour.
    #[must_use]
    pub fn has_minute(&self, minute: u8) -> bool {
        has(self.sets.minutes, minute)
    }

    /// Whether it has this hour of a day.
    #[must_use]
    pub fn has_hour(&self, hour: u8) -> bool {
        has(self.sets.hours, hour)
    }

    /// Whether it has this month; January is 1.
    #[must_use]
    pub fn has_month(&self, month: u8) -> bool {
        has(self.sets.months, month)
    }

    /// Whether it has a day that is this one of its month (from 1) and this one of its week (Sunday is 0). As in crontab(5): if both are
    /// restricted, either is enough.
    #[must_use]
    pub fn has_day(&self, day: u8, weekday: u8) -> bool {
        let (of_month, of_week) = (has(self.sets.days, day), has(self.sets.weekdays, weekday));
        if self.sets.days == DAY.all() || self.sets.weekdays == ALL_WEEKDAYS {
            of_month && of_week
        } else {
            of_month || of_week
        }
    }
}

impl std::str::FromStr for Calendar {
    type Err = CalendarError;

    fn from_str(text: &str) -> Result<Self, CalendarError> {
        let malformed = || CalendarError::Form(text.chars().take(80).collect());
        if text.len() > TEXT_BYTES {
            return Err(malformed());
        }
        let text = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else { return Err(malformed()) };
        let weekdays = WEEKDAY.set(weekdays)?;
        Self::of(Sets {
            minutes: MINUTE.set(minutes)?,
            hours: HOUR.set(hours)?,
            days: DAY.set(days)?,
            months: MONTH.set(months)?,
            weekdays: (weekdays | u64::from(has(weekdays, 7))) & ALL_WEEKDAYS,
        })
    }
}

impl std::fmt::Display for Calendar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sets { minutes, hours, days, months, weekdays } = self.sets;
        let weekdays_of_seven = if weekdays == ALL_WEEKDAYS { WEEKDAY.all() } else { weekdays };
        let fields = [(minutes, MINUTE), (hours, HOUR), (days, DAY), (months, MONTH), (weekdays_of_seven, WEEKDAY)];
        for (number, (set, field)) in fields.into_iter().enumerate() {
            if number > 0 {
                formatter.write_str(" ")?;
            }
            if set == field.all() {
                formatter.write_str("*")?;
                continue;
            }
            let members = (field.least..=field.most).filter(|member| has(set, *member));
            for (place, member) in members.enumerate() {
                write!(formatter, "{}{member}", if place > 0 { "," } else { "" })?;
            }
        }
        Ok(())
    }
}

impl Serialize for Calendar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.sets.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Calendar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse()
        } else {
            Self::of(Sets::deserialize(deserializer)?)
        };
        read.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(text: &str) -> Calendar {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for text in
            ["*/7 1-5,22 * * *", "0 0 29 2 *", "5 4 * * mon-fri", "@weekly", "59 23 31 12 7", "10/20 * 1,15 jan,JUL 3"]
        {
            let one = calendar(text);
            assert_eq!(calendar(&one.to_string()), one, "{text} became {one}");
            let bytes = postcard::to_allocvec(&one).unwrap();
            assert_eq!(postcard::from_bytes::<Calendar>(&bytes).unwrap(), one);
        }
    }

    #[test]
    fn sunday_has_two_numbers_and_a_name() {
        assert_eq!(calendar("0 0 * * 7"), calendar("0 0 * * 0"));
        assert_eq!(calendar("0 0 * * 5-7"), calendar("0 0 * * fri,sat,sun"));
        assert_eq!(calendar("0 0 * * 0-7"), calendar("0 0 * * *"));
    }

    #[test]
    fn mistakes_are_named() {
        let says = |text: &str| text.parse::<Calendar>().unwrap_err().to_string();
        assert!(says("* * * *").contains("five fields"));
        assert!(says("60 * * * *").contains("\"60\" is no minute"));
        assert!(says("* 5-1 * * *").contains("\"5-1\" is no hour"));
        assert!(says("*/0 * * * *").contains("minute"));
        assert!(says("+5 * * * *").contains("minute"));
        assert!(says("0 0 31 2,4 *").contains("never begin"));
        assert!("0 0 31 2 mon".parse::<Calendar>().is_ok(), "a Monday comes even so");
        assert!(says(&"1,".repeat(600)).contains("five fields"));
    }

    #[test]
    fn sets_that_are_no_calendar_do_not_decode() {
        for sets in
            [[0, 1, 2, 2, 1], [1_u64 << 60, 1, 2, 2, 1], [1, 1, 1, 2, 1], [1, 1, 1 << 31, 4, 0x7f], [1, 1, 2, 2, 0x80]]
        {
            let bytes = postcard::to_allocvec(&sets).unwrap();
            assert!(postcard::from_bytes::<Calendar>(&bytes).is_err(), "{sets:?}");
        }
    }
}
