//! The values of flags: sizes, processors, durations, moments, restart policies, volumes and mounts, environment and labels.
//!
//! Every function is pure and refuses what it does not understand; the text of a refusal says what would be understood. What only the
//! node can know (is there such a volume, may a host path be used) is left to the node.

use std::time::Duration;

use byre_api::proto::{Restart, RestartPolicy, VolumeMount};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

/// More digits behind the point than this say nothing about bytes or processors, and would overflow.
const FRACTION_DIGITS: usize = 9;
/// The longest duration: beyond it is a mistake.
const DURATION_SECONDS: u64 = 366 * 86_400;
/// The longest path that Linux takes.
const PATH_BYTES: usize = 4096;

/// `128M`, `1.5g`, `64KiB`, `4096`: bytes, in powers of 1024 as docker takes them.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("the unit is one of b, k, m, g, t (powers of 1024), as in 128M".into()),
    };
    let (value, scale) = decimal(digits).ok_or("a size is a number and a unit, as in 128M or 1.5g")?;
    let bytes = (value << shift) / scale;
    u64::try_from(bytes).map_err(|_| "a size is less than 16777216t".into())
}

/// `--cpus`: `1.5` is 1500 thousandths.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let (value, scale) = decimal(text).ok_or("processors are a number, as in 1.5")?;
    match u64::try_from(value * 1000 / scale) {
        Ok(0) => Err("at least 0.001 of a processor".into()),
        Ok(millis) if millis <= 10_000_000 => Ok(millis),
        Ok(_) | Err(_) => Err("at most 10000 processors".into()),
    }
}

/// `12.5` as (125, 10). No sign, no exponent, at most 9 digits behind the point and 20 before it.
fn decimal(text: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_DIGITS || whole.len() > 20 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some((whole.parse::<u128>().ok()? * scale + fraction.parse::<u128>().ok()?, scale))
}

/// `10`, `10s`, `1m30s`, `500ms`, `2h`, `1d`: a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "a duration is like 10s, 1m30s, 500ms, 2h or 1d";
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let count: u64 = rest[..digits].parse().map_err(|_| HELP)?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let unit_ms = match &rest[..letters] {
            "" if rest.is_empty() && text.len() == digits => 1000,
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(HELP.into()),
        };
        rest = &rest[letters..];
        total = count.checked_mul(unit_ms).and_then(|part| total.checked_add(part)).ok_or("at most a year")?;
    }
    if text.is_empty() {
        return Err(HELP.into());
    }
    if total > DURATION_SECONDS * 1000 { Err("at most a year".into()) } else { Ok(Duration::from_millis(total)) }
}

/// A moment in the past: `10m` (that long before `now`), `2026-11-22T03:37:00Z`, `2026-11-22T03:37:00`, `2026-11-22` (UTC), or Unix
/// seconds.
pub(crate) fn since(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let local = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    if let Ok(at) = PrimitiveDateTime::parse(text, local) {
        return Ok(at.assume_utc());
    }
    if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(day.midnight().assume_utc());
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        return seconds.ok_or_else(|| "no such moment in Unix seconds".into());
    }
    let back =
        duration(text).map_err(|_| "a moment is like 10m (ago), 2026-11-22T03:37:00Z, 2026-11-22 or Unix seconds")?;
    now.checked_sub(back.try_into().map_err(|_| "at most a year ago")?).ok_or_else(|| "too long ago".into())
}

/// `no`, `always`, `on-failure[:N]`, `unless-stopped`.
pub(crate) fn restart(text: &str) -> Result<Restart, String> {
    let (name, retries) = match text.split_once(':') {
        Some((name, retries)) => (name, Some(retries)),
        None => (text, None),
    };
    let policy = match (name, retries) {
        ("no" | "never", None) => RestartPolicy::Never,
        ("always", None) => RestartPolicy::Always,
        ("unless-stopped", None) => RestartPolicy::UnlessStopped,
        ("on-failure", _) => RestartPolicy::OnFailure,
        _ => return Err("one of no, always, on-failure[:N], unless-stopped".into()),
    };
    let maximum_retries = match retries {
        Some(text) => text.parse().map_err(|_| "the number behind on-failure: is how often, as in on-failure:5")?,
        None => 0,
    };
    Ok(Restart { policy: policy.into(), maximum_retries })
}

/// `-v`: `NAME:/target[:ro|rw]`, `/host/path:/target[:ro|rw]`, or `/target` for a volume without a name.
pub(crate) fn volume(text: &str) -> Result<VolumeMount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, None),
        [source, target] => (*source, *target, None),
        [source, target, options] => (*source, *target, Some(*options)),
        _ => return Err("a volume is NAME:/target[:ro], /host/path:/target[:ro] or /target".into()),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err("the part before the first `:` is empty: give a volume's name or a host path".into());
    }
    let read_only = match options {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("{other:?} is no option of a volume: use ro or rw")),
    };
    if !source.is_empty() {
        volume_source(source)?;
    }
    Ok(VolumeMount { source: source.into(), target: target_path(target)?, read_only, ..VolumeMount::default() })
}

/// `--mount`: `type=tmpfs|volume|bind,target=/path[,source=...][,size=64M][,readonly]`.
pub(crate) fn mount(text: &str) -> Result<VolumeMount, String> {
    let mut kind = "volume";
    let (mut source, mut target, mut size_text, mut read_only) = (None, None, None, false);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match (key, value) {
            ("type", value) => kind = value,
            ("source" | "src", value) => source = Some(value),
            ("target" | "dst" | "destination", value) => target = Some(value),
            ("size" | "tmpfs-size", value) => size_text = Some(value),
            ("readonly" | "ro", "" | "true" | "1") => read_only = true,
            ("readonly" | "ro", "false" | "0") => read_only = false,
            _ => return Err(format!("{field:?} is not understood: use type, source, target, size and readonly")),
        }
    }
    let target = target_path(target.ok_or("target=/path is missing")?)?;
    let tmpfs_size_bytes = size_text.map(size).transpose()?.unwrap_or(0);
    if size_text.is_some() && kind != "tmpfs" {
        return Err("size is for type=tmpfs only".into());
    }
    let source = source.unwrap_or_default();
    match kind {
        "tmpfs" if !source.is_empty() => return Err("a tmpfs has no source".into()),
        "bind" if !source.starts_with('/') => return Err("type=bind needs source=/absolute/path (on the node)".into()),
        "volume" if source.starts_with('/') => {
            return Err("a volume's source is its name; type=bind takes a path".into());
        }
        "tmpfs" | "bind" | "volume" => {}
        other => return Err(format!("type={other} is not understood: use tmpfs, volume or bind")),
    }
    if !source.is_empty() {
        volume_source(source)?;
    }
    Ok(VolumeMount { source: source.into(), target, read_only, tmpfs: kind == "tmpfs", tmpfs_size_bytes })
}

/// `--tmpfs`: `/path[:size=64M][,ro]`.
pub(crate) fn tmpfs(text: &str) -> Result<VolumeMount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = VolumeMount { target: target_path(target)?, tmpfs: true, ..VolumeMount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            None if option == "ro" => mount.read_only = true,
            None if option == "rw" => mount.read_only = false,
            Some(("size", value)) => mount.tmpfs_size_bytes = size(value)?,
            _ => return Err(format!("{option:?} is no option of a tmpfs: use size=, ro or rw")),
        }
    }
    Ok(mount)
}

fn volume_source(source: &str) -> Result<(), String> {
    if source.starts_with('/') {
        return path(source).map(drop);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = source.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if first && source.len() <= 63 && source.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!("{source:?} is neither a volume's name (letters, digits, - _ .) nor an absolute path on the node"))
}

fn target_path(target: &str) -> Result<String, String> {
    let target = path(target)?;
    if target == "/" { Err("a mount cannot cover the whole root".into()) } else { Ok(target) }
}

/// An absolute path without `.`, `..`, empty parts or control characters; a `/` at the end is dropped.
fn path(text: &str) -> Result<String, String> {
    let shown = || format!("{text:?}");
    if !text.starts_with('/') {
        return Err(format!("{} is not an absolute path", shown()));
    }
    if text.len() >= PATH_BYTES || text.chars().any(char::is_control) {
        return Err(format!("{} is too long or has control characters", shown()));
    }
    let trimmed = text.trim_end_matches('/');
    if trimmed.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{} has an empty part, `.` or `..`: write the plain path", shown()));
    }
    Ok(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
}

/// `NAME=value`, or `NAME` to pass on our own value.
pub(crate) fn env(text: &str) -> Result<String, String> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) || text.contains('\0') {
        return Err("an environment variable is NAME=value, or NAME to pass on its value here".into());
    }
    Ok(text.into())
}

/// `key=value`, or `key` with an empty value.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() || key.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("a label is key=value".into());
    }
    Ok((key.into(), value.into()))
}

/// A capability without `CAP_`, in capitals.
pub(crate) fn capability(text: &str) -> Result<String, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
        return Err("a capability is a name like NET_ADMIN, or ALL".into());
    }
    Ok(name.into())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
