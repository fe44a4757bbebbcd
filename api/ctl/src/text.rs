//! Text for people: sizes, ages, times, tables, and what came from a node made safe to print.
//!
//! Nothing here writes anything or asks the clock: the caller passes `now`, so that every text can be tested.

use comfy_table::{ContentArrangement, Table, presets};
use prost_types::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A command longer than this is cut in a table (docker's width).
const COMMAND_CHARS: usize = 20;
/// The digits of an identity that are shown (docker's width).
const ID_CHARS: usize = 12;

/// The text with control characters, and characters that reorder or hide text, made visible.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || hides(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Bidirectional controls and zero-width characters: they make one name look like another.
fn hides(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// An identity as people read it.
pub(crate) fn short_id(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    printable(&id.chars().take(ID_CHARS).collect::<String>())
}

/// A command in quotes, cut to docker's width unless `whole`.
pub(crate) fn command(text: &str, whole: bool) -> String {
    let text = printable(text);
    if whole || text.chars().count() <= COMMAND_CHARS {
        return format!("\"{text}\"");
    }
    format!("\"{}…\"", text.chars().take(COMMAND_CHARS - 1).collect::<String>())
}

/// A size in binary units, three digits at most before the point.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.1}{}", UNITS[unit]) }
}

/// How long something took or is ago, in the one unit that tells most.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (count, unit) = match seconds {
        0 => return "less than a second".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        86_400..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// How long ago `at` was; empty if the node did not say.
pub(crate) fn ago(at: Option<&Timestamp>, now: OffsetDateTime) -> String {
    at.and_then(moment).map(|at| format!("{} ago", span((now - at).whole_seconds()))).unwrap_or_default()
}

/// The moment a node named, if it can be one.
pub(crate) fn moment(at: &Timestamp) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// RFC 3339 in UTC; empty if the node did not say.
pub(crate) fn rfc3339(at: Option<&Timestamp>) -> String {
    at.and_then(moment).and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Columns as wide as they need to be, three spaces apart, nothing drawn and nothing wrapped, as docker and kubectl print them. Cells are
/// made printable here, so no caller can forget it.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_columns_without_trailing_blanks() {
        let rows = vec![
            vec!["3f2a".into(), "web".into(), "Up 2 minutes".into()],
            vec!["0b".into(), "a-longer-name".into(), String::new()],
        ];
        let expected = "ID     NAME            STATUS\n3f2a   web             Up 2 minutes\n0b     a-longer-name\n";
        assert_eq!(table(&["ID", "NAME", "STATUS"], &rows), expected);
        assert_eq!(table(&["ID", "NAME"], &[]), "ID   NAME\n");
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal_or_make_a_row() {
        let text = table(&["NAME"], &[vec!["a\u{1b}]0;x\u{7}\nroot\u{202e}".into()]]);
        assert_eq!(text, "NAME\na\\u{1b}]0;x\\u{7}\\nroot\\u{202e}\n");
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(1023), "1023B");
        assert_eq!(size(134_217_728), "128.0MiB");
        assert_eq!(size(u64::MAX), "16.0EiB");
        assert_eq!(span(-5), "less than a second");
        assert_eq!(span(1), "1 second");
        assert_eq!(span(119), "1 minute");
        assert_eq!(span(7200), "2 hours");
        assert_eq!(span(86_400 * 13), "13 days");
        assert_eq!(span(86_400 * 15), "2 weeks");
        assert_eq!(span(86_400 * 90), "3 months");
        assert_eq!(span(i64::MAX).split(' ').nth(1), Some("years"));
    }

    #[test]
    fn times_that_cannot_be_are_empty() {
        let hostile = Timestamp { seconds: i64::MAX, nanos: i32::MAX };
        assert_eq!(rfc3339(Some(&hostile)), "");
        assert_eq!(ago(Some(&hostile), OffsetDateTime::UNIX_EPOCH), "");
        assert_eq!(rfc3339(Some(&Timestamp { seconds: 0, nanos: 0 })), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn identities_and_commands_are_cut_at_characters() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(command("nginx -g 'daemon off;'", false), "\"nginx -g 'daemon of…\"");
        assert_eq!(command("ääääääääääääääääääääääää", false).chars().count(), 22);
        assert_eq!(command("nginx -g 'daemon off;'", true), "\"nginx -g 'daemon off;'\"");
    }
}
