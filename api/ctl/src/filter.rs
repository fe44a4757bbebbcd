//! `ps --filter`: which workloads of a list are meant. The state's word is docker's, so that scripts that know docker work.

use byre_api::proto::{Workload, WorkloadPhase};

/// One condition; several must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    Name(String),
    Id(String),
    Image(String),
    Status(String),
    Label(String, Option<String>),
}

/// The words for states.
const STATES: [&str; 6] = ["created", "starting", "running", "stopping", "restarting", "exited"];

impl Filter {
    /// `name=TEXT` and so on.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or("a filter is like name=web, status=exited or label=tier=front")?;
        let value = value.to_owned();
        match key {
            "name" => Ok(Self::Name(value)),
            "id" => Ok(Self::Id(value)),
            "image" | "ancestor" => Ok(Self::Image(value)),
            "status" if STATES.contains(&value.as_str()) => Ok(Self::Status(value)),
            "status" => Err(format!("status is one of {}", STATES.join(", "))),
            "label" => Ok(match value.split_once('=') {
                Some((key, value)) => Self::Label(key.into(), Some(value.into())),
                None => Self::Label(value, None),
            }),
            _ => Err("filter by name, id, image, status or label".into()),
        }
    }

    pub(crate) fn holds(&self, workload: &Workload) -> bool {
        match self {
            Self::Name(text) => workload.name.contains(text.as_str()),
            Self::Id(prefix) => workload.id.starts_with(prefix.as_str()),
            Self::Image(text) => workload.image.contains(text.as_str()),
            Self::Status(word) => state(workload) == word,
            Self::Label(key, value) => {
                workload.labels.get(key).is_some_and(|have| value.as_ref().is_none_or(|value| have == value))
            }
        }
    }
}

/// The state's word.
pub(crate) fn state(workload: &Workload) -> &'static str {
    match workload.phase() {
        WorkloadPhase::Unspecified => "unknown",
        WorkloadPhase::Down if workload.last_run.is_none() => "created",
        WorkloadPhase::Down => "exited",
        WorkloadPhase::Starting => "starting",
        WorkloadPhase::Up => "running",
        WorkloadPhase::Stopping | WorkloadPhase::Draining => "stopping",
        WorkloadPhase::Backoff => "restarting",
    }
}

#[cfg(test)]
mod tests {
    use byre_api::proto::Run;

    use super::*;

    #[test]
    fn filters_say_which_workloads_are_meant() {
        let web = Workload {
            id: "3f2a".into(),
            name: "web".into(),
            image: "nginx:1".into(),
            phase: WorkloadPhase::Down.into(),
            last_run: Some(Run::default()),
            labels: [("tier".to_owned(), "front".to_owned())].into(),
            ..Workload::default()
        };
        for text in ["name=we", "id=3f", "image=nginx", "status=exited", "label=tier", "label=tier=front"] {
            assert!(Filter::parse(text).unwrap().holds(&web), "{text}");
        }
        for text in ["name=x", "id=f2", "image=redis", "status=running", "label=x", "label=tier=back"] {
            assert!(!Filter::parse(text).unwrap().holds(&web), "{text}");
        }
        for text in ["", "name", "status=asleep", "colour=red"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
    }
}
