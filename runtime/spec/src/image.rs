//! An image's configuration (OCI image-spec 1.1, config.md), read leniently: keys may be missing or null as docker writes them, keys that
//! are not known are let pass, and what a start does not need is not looked at.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`, may be empty.
    pub user: String,
    /// Working directory, absolute; `/` if the image has none.
    pub working_dir: String,
    /// Where volumes are expected.
    pub volumes: Vec<String>,
    /// Signal that stops it, as a name or number.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A configuration that is not JSON of the expected shape.
#[derive(Debug, thiserror::Error)]
#[error("the image's configuration is malformed ({0}): build or pull the image anew")]
pub struct MalformedConfig(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Outer {
    #[serde(default)]
    config: Option<Inner>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inner {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Reads a configuration.
///
/// # Errors
/// It is not JSON, or a key that is known has another type.
pub fn read_image_config(json: &str) -> Result<ImageConfig, MalformedConfig> {
    let outer: Outer = serde_json::from_str(json)?;
    let inner = outer.config.unwrap_or_default();
    let working_dir = inner.working_dir.unwrap_or_default();
    Ok(ImageConfig {
        entrypoint: inner.entrypoint.unwrap_or_default(),
        cmd: inner.cmd.unwrap_or_default(),
        // An entry without '=' would be refused later; docker passes over it.
        env: inner
            .env
            .unwrap_or_default()
            .into_iter()
            .filter(|entry| entry.find('=').is_some_and(|at| at > 0))
            .collect(),
        user: inner.user.unwrap_or_default().trim().to_owned(),
        // Some images have it without the slash, taken from the root.
        working_dir: if working_dir.starts_with('/') { working_dir } else { format!("/{working_dir}") },
        volumes: inner.volumes.unwrap_or_default().into_keys().collect(),
        stop_signal: inner.stop_signal.filter(|signal| !signal.is_empty()),
        labels: inner
            .labels
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_and_others_write_is_read() {
        let json = r#"{"architecture":"amd64","config":{"Env":["PATH=/bin","broken","=x"],"Entrypoint":null,"Cmd":["nginx"],"User":"web:33",
            "WorkingDir":"srv","Volumes":{"/data":{}},"StopSignal":"SIGQUIT","Labels":{"a":null,"b":"c"},"OnBuild":null,"Future":[1]},
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = read_image_config(json).unwrap();
        assert_eq!(config.cmd, ["nginx"]);
        assert_eq!(config.env, ["PATH=/bin"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("web:33", "/srv"));
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.labels.get("a").map(String::as_str), Some(""));
        assert_eq!(read_image_config("{}").unwrap().working_dir, "/");
        assert!(read_image_config(r#"{"config":{"Cmd":"sh"}}"#).is_err());
        assert!(read_image_config("nonsense").is_err());
    }
}
