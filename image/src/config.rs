//! The image configuration: what a container gets when its creator says nothing else.
//!
//! Read as the image specification (1.1, config.md) and docker write it: any part may be absent or null. Unknown fields are
//! builders' notes and ignored. Names of users stay text: only the container's own files can say what they mean.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;

/// The configuration of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Processor architecture in Go's words, such as `amd64`.
    pub architecture: String,
    /// Operating system in Go's words.
    pub os: String,
    /// When it was built, RFC 3339 as written; not checked.
    pub created: Option<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// Signal for a polite stop, such as `SIGQUIT`; empty for SIGTERM.
    pub stop_signal: String,
    /// `port/protocol` each.
    pub exposed_ports: Vec<String>,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// Digests of the plain layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawImage {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Parses the configuration blob; the caller has bounded its size.
    ///
    /// # Errors
    /// Of the JSON, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        // All of it must be text, also what is not read here: the configuration is handed on as text.
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let raw: RawImage = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let rootfs = raw.rootfs.ok_or("it has no rootfs")?;
        if rootfs.kind.is_some_and(|kind| kind != "layers") {
            return Err("its rootfs is not made of layers".to_owned());
        }
        let config = raw.config.unwrap_or_default();
        Ok(Self {
            architecture: raw.architecture.unwrap_or_default(),
            os: raw.os.unwrap_or_default(),
            created: raw.created,
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: config.stop_signal.unwrap_or_default(),
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: config.labels.unwrap_or_default(),
            diff_ids: rootfs.diff_ids.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_parts_are_empty() {
        let id = Digest::of(b"x");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":null,"Cmd":["sh"],"Volumes":{{"/data":{{}}}},"WorkingDir":"/w"}},
            "rootfs":{{"type":"layers","diff_ids":["{id}"]}},"history":[]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.diff_ids, [id]);
        assert!(config.env.is_empty() && config.user.is_empty());
        assert!(ImageConfig::parse(b"{}").is_err());
        assert!(ImageConfig::parse(b"[]").is_err());
        assert!(
            ImageConfig::parse(b"{\"rootfs\":{},\"x\":\"\xff\"}").is_err(),
            "a byte that is no text, where nobody looks"
        );
    }
}
