//! The file of named nodes that `byrectl` reads: which nodes there are, how to reach each, and which one is meant when none is named.
//!
//! It lives here so that everything that makes a node known (`byrectl context`, the development tools) writes the same file. It must
//! never guess: a field it does not know, or a file that others can read, is refused, because a key may stand in it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The largest file that is read: thousands of nodes with inline certificates, and far below what would hurt.
const FILE_BYTES: u64 = 4 << 20;
/// The largest PEM file that is read; a chain of certificates is a few kilobytes.
const PEM_BYTES: u64 = 1 << 20;
/// The longest name of a context: it has to fit a column and a shell prompt.
const NAME_BYTES: usize = 63;

/// Why the file, or what it names, could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Neither `HOME` nor `XDG_CONFIG_HOME` nor `BYRE_CONFIG` says where the file is.
    #[error("no home directory: set BYRE_CONFIG to the path of the configuration file")]
    NoHome,
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others can read the file.
    #[error("{path} can be read or changed by others (mode {mode:03o}): chmod 600 {path}")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is too large to be what it should be.
    #[error("{path} is larger than {limit} bytes: is it the right file?")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// It is not the expected TOML.
    #[error("{path} is not a valid configuration: {detail}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// There is no such context.
    #[error("no context named {0}: see `byrectl context ls`")]
    Unknown(String),
    /// A name that cannot be one.
    #[error(
        "{0:?} cannot name a context: use up to 63 letters, digits, `-`, `_` and `.`, not starting with `-` or `.`"
    )]
    BadName(String),
}

/// A piece of PEM: the text itself (`-----BEGIN ...`), or the path of a file, relative to the configuration file's directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Pem {
    /// The text itself.
    Inline(String),
    /// A file that has it.
    File(PathBuf),
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        if text.trim_start().starts_with("-----BEGIN ") { Self::Inline(text) } else { Self::File(text.into()) }
    }
}

impl From<Pem> for String {
    fn from(pem: Pem) -> Self {
        match pem {
            Pem::Inline(text) => text,
            Pem::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// Shows where the text is, never the text: it may be a key.
impl std::fmt::Display for Pem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(text) => write!(formatter, "inline ({} bytes)", text.len()),
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pem({self})")
    }
}

impl Pem {
    /// The PEM text. A relative path is looked up in `base`, the configuration file's directory.
    ///
    /// # Errors
    /// `Read` or `TooLarge`, naming the file.
    pub fn load(&self, base: &Path) -> Result<String, ContextError> {
        match self {
            Self::Inline(text) => Ok(text.clone()),
            Self::File(path) => {
                let path = base.join(path);
                let file = File::open(&path).map_err(|source| ContextError::Read { path: path.clone(), source })?;
                read_bounded(file, &path, PEM_BYTES)
            }
        }
    }
}

/// One node: where it is and with what to prove to each other who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `unix:///path` or `host:port`.
    pub server: String,
    /// The name in the node's certificate, if it is not the host in `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The certificate authority that signs nodes. Needed for `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Pem>,
    /// The client's certificate chain. Needed for `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Pem>,
    /// The client's private key. Needed for `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Pem>,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The context that is meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where the file is: `BYRE_CONFIG`, else `$XDG_CONFIG_HOME/byre/config.toml`, else `~/.config/byre/config.toml`.
    ///
    /// # Errors
    /// `NoHome` if the environment says none of them.
    pub fn default_path() -> Result<PathBuf, ContextError> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = var("BYRE_CONFIG") {
            return Ok(path);
        }
        let directory = var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
        Ok(directory.ok_or(ContextError::NoHome)?.join("byre/config.toml"))
    }

    /// Reads the file; one that does not exist has no contexts.
    ///
    /// # Errors
    /// `Exposed` if others can read or write it, `Invalid` for a field that is not known, `TooLarge`, `Read`.
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ContextError::Read { path: path.into(), source }),
        };
        let metadata = file.metadata().map_err(|source| ContextError::Read { path: path.into(), source })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ContextError::Exposed { path: path.into(), mode });
        }
        let text = read_bounded(file, path, FILE_BYTES)?;
        let invalid = |detail: String| ContextError::Invalid { path: path.into(), detail };
        let contexts: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        for name in contexts.contexts.keys() {
            check_name(name)?;
        }
        match &contexts.current {
            Some(name) if !contexts.contexts.contains_key(name) => {
                Err(invalid(format!("current = {name:?}, but there is no such context")))
            }
            Some(_) | None => Ok(contexts),
        }
    }

    /// Writes the file with mode 0600, making its directory (0700) if need be. A reader sees the old file or the new one, never a
    /// part.
    ///
    /// # Errors
    /// `Write`, naming the file; `BadName`.
    pub fn save(&self, path: &Path) -> Result<(), ContextError> {
        for name in self.contexts.keys() {
            check_name(name)?;
        }
        let failed = |source| ContextError::Write { path: path.into(), source };
        let text = toml::to_string_pretty(self)
            .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        if !directory.is_dir() {
            std::fs::create_dir_all(directory).map_err(failed)?;
            std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let staging = directory.join(name);
        let written = write_new(&staging, &text).and_then(|()| std::fs::rename(&staging, path));
        if written.is_err() {
            // The error that counts is already known; what is left is removed as well as it goes.
            let _ = std::fs::remove_file(&staging);
        }
        written.and_then(|()| File::open(directory)?.sync_all()).map_err(failed)
    }

    /// The context `name`, or the current one.
    ///
    /// # Errors
    /// `Unknown` if there is none of that name.
    pub fn select(&self, name: Option<&str>) -> Result<Option<(&str, &Context)>, ContextError> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok(Some((name, context))),
            None => Err(ContextError::Unknown(name.into())),
        }
    }

    /// Adds or replaces a context.
    ///
    /// # Errors
    /// `BadName`.
    pub fn insert(&mut self, name: &str, context: Context) -> Result<(), ContextError> {
        check_name(name)?;
        self.contexts.insert(name.into(), context);
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), ContextError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good =
        !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(allowed) && !name.starts_with(['-', '.']);
    if good { Ok(()) } else { Err(ContextError::BadName(name.into())) }
}

fn read_bounded(file: File, path: &Path, limit: u64) -> Result<String, ContextError> {
    let mut text = String::new();
    let read = file.take(limit + 1).read_to_string(&mut text);
    let read = read.map_err(|source| ContextError::Read { path: path.into(), source })?;
    if read as u64 > limit { Err(ContextError::TooLarge { path: path.into(), limit }) } else { Ok(text) }
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Contexts {
        let mut contexts = Contexts { current: Some("dev".into()), ..Contexts::default() };
        let tls = Context {
            server: "127.0.0.1:7443".into(),
            server_name: Some("node".into()),
            ca: Some(Pem::File("ca.pem".into())),
            certificate: Some(Pem::File("/etc/byre/client.pem".into())),
            key: Some(Pem::Inline("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n".into())),
        };
        contexts.insert("dev", tls).unwrap();
        let local = Context {
            server: "unix:///run/byre/api.sock".into(),
            server_name: None,
            ca: None,
            certificate: None,
            key: None,
        };
        contexts.insert("local", local).unwrap();
        contexts
    }

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("byre/config.toml");
        example().save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), example());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing but the file is left");
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        for text in ["colour = 1\n", "[contexts.a]\nserver = \"a:1\"\ntoken = \"x\"\n"] {
            let (_directory, path) = written(text, 0o600);
            let error = Contexts::load(&path).unwrap_err().to_string();
            assert!(error.contains("unknown field") && error.contains("config.toml"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_directory, path) = written("", 0o640);
        assert!(matches!(Contexts::load(&path), Err(ContextError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_missing_file_is_empty_and_a_dangling_current_is_refused() {
        assert_eq!(Contexts::load(Path::new("/nonexistent/config.toml")).unwrap(), Contexts::default());
        let (_directory, path) = written("current = \"gone\"\n", 0o600);
        assert!(Contexts::load(&path).unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn selection_prefers_the_name_given() {
        let contexts = example();
        assert_eq!(contexts.select(None).unwrap().unwrap().0, "dev");
        assert_eq!(contexts.select(Some("local")).unwrap().unwrap().0, "local");
        assert!(matches!(contexts.select(Some("no")), Err(ContextError::Unknown(_))));
        assert!(Contexts::default().select(None).unwrap().is_none());
    }

    #[test]
    fn names_that_could_mislead_are_refused() {
        for name in ["", "-x", ".x", "a b", "a\u{1b}[2J", "a/b", &"a".repeat(64)] {
            let mut contexts = example();
            let context = contexts.contexts["dev"].clone();
            assert!(contexts.insert(name, context).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let shown = format!("{:?}", example());
        assert!(!shown.contains("MC4="), "{shown}");
    }

    #[test]
    fn a_relative_path_is_found_beside_the_file() {
        let (directory, _path) = written("", 0o600);
        std::fs::write(directory.path().join("ca.pem"), "text").unwrap();
        assert_eq!(Pem::File("ca.pem".into()).load(directory.path()).unwrap(), "text");
        assert!(Pem::File("none.pem".into()).load(directory.path()).is_err());
    }
}
