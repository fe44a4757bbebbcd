//! What the configuration says of updates, as `byred config` leaves it.

use std::io::Read as _;
use std::path::Path;

use byre_config::Update;
use url::Url;

use crate::error::UpdateError;

/// Bytes of the file: one URL, a channel and a few windows.
const FILE_BYTES: u64 = 64 * 1024;

/// Reads it anew, so that a change counts from the next update on. Without a file nothing is configured.
///
/// # Errors
/// [`UpdateError::Settings`].
pub(crate) fn read(path: &Path) -> Result<Update, UpdateError> {
    let failed = |error: &dyn std::fmt::Display| UpdateError::Settings(format!("{}: {error}", path.display()));
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => {
            file.take(FILE_BYTES).read_to_string(&mut text).map_err(|error| failed(&error))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Update::default()),
        Err(error) => return Err(failed(&error)),
    }
    serde_json::from_str(&text).map_err(|error| failed(&error))
}

/// The repository's address as a base that names are joined to.
///
/// # Errors
/// [`UpdateError::NoRepository`], [`UpdateError::Settings`].
pub(crate) fn base(update: &Update) -> Result<Url, UpdateError> {
    let text = update.repository.as_ref().ok_or(UpdateError::NoRepository)?.as_str();
    let whole = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
    Url::parse(&whole).map_err(|error| UpdateError::Settings(format!("repository {whole}: {error}")))
}
