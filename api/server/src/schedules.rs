//! From a client's schedule to PID 1's. Pure.

use byre_api::proto;
use byre_api::proto::schedule::When as Asked;
use byre_protocol::schedule::{Schedule, When};
use tonic::Status;

use crate::convert;

/// The schedule, if one was given.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field and the remedy.
pub(crate) fn schedule(asked: Option<&proto::Schedule>) -> Result<Option<Schedule>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    let when = match &asked.when {
        Some(Asked::Calendar(text)) => {
            let calendar = text.parse().map_err(|error| Status::invalid_argument(format!("schedule: {error}")))?;
            When::Calendar(calendar)
        }
        Some(Asked::Every(every)) => When::EveryMs(convert::duration_ms(every, "schedule.every")?.into()),
        None => return Err(Status::invalid_argument("schedule: give calendar or every")),
    };
    Ok(Some(Schedule { when, catch_up: asked.catch_up }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_taken_or_refused_by_name() {
        let with = |when| schedule(Some(&proto::Schedule { when, catch_up: true }));
        assert_eq!(schedule(None).unwrap(), None);
        let nightly = with(Some(Asked::Calendar("30 2 * * *".into()))).unwrap().unwrap();
        assert!(nightly.catch_up && matches!(nightly.when, When::Calendar(_)));
        assert!(with(None).unwrap_err().message().contains("calendar or every"));
        assert!(with(Some(Asked::Calendar("nightly".into()))).unwrap_err().message().contains("five fields"));
        let minute = prost_types::Duration { seconds: 60, nanos: 0 };
        assert_eq!(with(Some(Asked::Every(minute))).unwrap().unwrap().when, When::EveryMs(60_000));
    }
}
