//! The table `update` of the configuration: where releases come from, and when they may be installed without anybody asking.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Bytes of a repository's address.
const URL_BYTES: usize = 512;
/// Bytes of a channel's name.
const CHANNEL_BYTES: usize = 32;
/// Maintenance windows of one node: one a day and some.
const WINDOWS: usize = 16;
const DAY_SECONDS: u64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Updates of the OS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// The repository's address, http or https. Without one only offline bundles can be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryUrl>,
    /// The channel whose newest release is taken.
    pub channel: Channel,
    /// What happens without anybody asking.
    pub automatic: Automatic,
    /// When an automatic update may write and reboot, in UTC; always, if the list is empty.
    #[serde(deserialize_with = "windows")]
    #[schemars(length(max = 16))]
    pub windows: Vec<Window>,
}

impl Update {
    /// Whether an automatic update may run at this time, in seconds since 1970.
    pub fn is_open_at(&self, seconds: u64) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.contains(seconds))
    }
}

/// What happens without anybody asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Automatic {
    /// Nothing.
    #[default]
    Off,
    /// The repository is asked every six hours; what is newest stands in the status.
    Check,
    /// In a maintenance window the newest release is installed, and the node reboots into it.
    Apply,
}

/// The address of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryUrl(String);

impl RepositoryUrl {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RepositoryUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains(['@', '?', '#', '\\']);
        if text.len() > URL_BYTES || host.is_empty() || host.starts_with('/') || !plain {
            return Err("`repository` is an address such as `https://updates.example.org/byre/`, without a name, password, query or fragment".into());
        }
        Ok(Self(text))
    }
}

impl From<RepositoryUrl> for String {
    fn from(value: RepositoryUrl) -> Self {
        value.0
    }
}

impl JsonSchema for RepositoryUrl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RepositoryUrl".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 512, "pattern": "^https?://[^/@?#\\s][^@?#\\s]*$"})
    }
}

/// The name of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Channel(String);

impl Channel {
    /// The value as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Channel {
    fn default() -> Self {
        Self("stable".into())
    }
}

impl TryFrom<String> for Channel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if text.is_empty() || text.len() > CHANNEL_BYTES || !plain {
            return Err(format!("the channel `{text}` is none: up to {CHANNEL_BYTES} of a to z, 0 to 9 and `-`"));
        }
        Ok(Self(text))
    }
}

impl From<Channel> for String {
    fn from(value: Channel) -> Self {
        value.0
    }
}

impl JsonSchema for Channel {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Channel".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": 32, "pattern": "^[a-z0-9-]+$"})
    }
}

/// A maintenance window: `Sat,Sun 02:00-04:30`, or without days for every day. In UTC; one that ends before it begins goes over midnight, and belongs
/// to the day on which it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    text: String,
    /// By day, Monday first.
    days: [bool; 7],
    start_minute: u64,
    minutes: u64,
}

impl Window {
    /// Whether it is open at this time, in seconds since 1970.
    pub fn contains(&self, seconds: u64) -> bool {
        // The first day of 1970 was a Thursday.
        let today = seconds / DAY_SECONDS + 3;
        let minute = seconds % DAY_SECONDS / 60;
        [0, 1].into_iter().any(|back| {
            let day = usize::try_from((today + 7 - back) % 7).unwrap_or(0);
            let since_its_midnight = minute + back * (DAY_SECONDS / 60);
            let is_its_day = self.days.get(day).copied().unwrap_or(false);
            is_its_day
                && since_its_midnight >= self.start_minute
                && since_its_midnight < self.start_minute + self.minutes
        })
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let refused = || format!("the window `{text}` is none: write it as `Sat,Sun 02:00-04:30`, in UTC");
        let (names, times) = text.rsplit_once(' ').unwrap_or(("", &text));
        let mut days = [names.is_empty(); 7];
        for name in names.split(',').filter(|_| !names.is_empty()) {
            let at = WEEKDAYS.iter().position(|day| *day == name).ok_or_else(refused)?;
            if let Some(day) = days.get_mut(at) {
                *day = true;
            }
        }
        let minute = |time: &str| -> Option<u64> {
            let (hours, minutes) = time.split_once(':')?;
            let whole = hours.len() == 2 && minutes.len() == 2;
            let (hours, minutes) = (hours.parse::<u64>().ok()?, minutes.parse::<u64>().ok()?);
            (whole && hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let (start, end) = times.split_once('-').ok_or_else(refused)?;
        let (start_minute, end) = (minute(start).ok_or_else(refused)?, minute(end).ok_or_else(refused)?);
        if start_minute == end {
            return Err(refused());
        }
        let minutes = if end > start_minute { end - start_minute } else { end + 1440 - start_minute };
        Ok(Self { days, start_minute, minutes, text })
    }
}

impl From<Window> for String {
    fn from(value: Window) -> Self {
        value.text
    }
}

impl JsonSchema for Window {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Window".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^((Mon|Tue|Wed|Thu|Fri|Sat|Sun)(,(Mon|Tue|Wed|Thu|Fri|Sat|Sun))* )?[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]$"})
    }
}

/// The list of windows, bounded.
fn windows<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Window>, D::Error> {
    let windows = Vec::<Window>::deserialize(deserializer)?;
    if windows.len() > WINDOWS {
        let count = windows.len();
        return Err(serde::de::Error::custom(format!("`windows` has {count} entries, at most {WINDOWS} are taken")));
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str) -> Result<Window, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_window_is_open_on_its_days_and_over_midnight() {
        // 1970-01-01 was a Thursday.
        let at = |day: u64, hour: u64, minute: u64| day * DAY_SECONDS + hour * 3600 + minute * 60;
        let daily = window("02:00-04:30").unwrap();
        assert!(daily.contains(at(0, 2, 0)) && daily.contains(at(5, 4, 29)));
        assert!(!daily.contains(at(0, 1, 59)) && !daily.contains(at(0, 4, 30)));
        let night = window("Sat 23:00-01:00").unwrap();
        assert!(night.contains(at(2, 23, 30)) && night.contains(at(3, 0, 59)));
        assert!(!night.contains(at(3, 23, 30)) && !night.contains(at(2, 0, 30)));
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "2:00-3:00",
            "02:00",
            "24:00-01:00",
            "02:00-02:00",
            "Sa 02:00-03:00",
            "Sat, 02:00-03:00",
            "02:00-03:60",
        ] {
            assert!(window(bad).is_err(), "{bad}");
        }
        for bad in ["", "ftp://a/", "https://", "https://user@a/", "http://a/?b", "https://a b/"] {
            assert!(RepositoryUrl::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for bad in ["", "Stable", "a/b", &"a".repeat(33)] {
            assert!(Channel::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(RepositoryUrl::try_from("http://10.0.2.2:8080/byre".to_owned()).is_ok());
    }
}
