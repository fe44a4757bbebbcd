//! The files of trials on the state partition: the record of [`byre_boots::trial`], and the copy of the accepted configuration that goes
//! back in place when a trial failed.
//!
//! Everything is made whole beside its place, flushed and renamed, so that a cut leaves the old state or the new one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use byre_boots::trial::{FILE_BYTES, Trials};

use super::{TaskError, configuration_copy, on};

/// Where the state partition is mounted.
const STATE: &str = "/state";
/// Entries of the directory that are looked at: there are three.
const ENTRIES: usize = 128;

/// The files, below the state partition.
pub(crate) struct TrialFiles {
    state: PathBuf,
}

impl TrialFiles {
    /// Those of this node.
    pub(crate) fn of_node() -> Self {
        Self { state: STATE.into() }
    }

    fn directory(&self) -> PathBuf {
        self.state.join("boots")
    }

    fn record(&self) -> PathBuf {
        self.directory().join("trials.json")
    }

    /// Where `byred config` keeps what was accepted.
    fn accepted(&self) -> PathBuf {
        self.state.join("config")
    }

    /// Where the copy that belongs to a trial lies.
    fn copy_of(&self, generation: u64) -> PathBuf {
        self.directory().join(format!("configuration-{generation}"))
    }

    /// The record; an empty one if there is none yet.
    pub(crate) fn read(&self) -> Result<Trials, TaskError> {
        let path = self.record();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Trials::default()),
            Err(error) => return Err(on("open", path)(error)),
        };
        let mut bytes = Vec::new();
        let most = u64::try_from(FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        file.take(most).read_to_end(&mut bytes).map_err(on("read", &path))?;
        Trials::decode(&bytes).map_err(|error| TaskError::Invalid(format!("{}: {error}", path.display())))
    }

    /// Replaces the record; on disk when this returns.
    pub(crate) fn write(&self, trials: &Trials) -> Result<(), TaskError> {
        self.make_directory()?;
        let new = self.record().with_extension("new");
        let mut file = File::create(&new).map_err(on("make", &new))?;
        file.write_all(&trials.encode()).and_then(|()| file.sync_all()).map_err(on("write", &new))?;
        std::fs::rename(&new, self.record()).map_err(on("rename", &new))?;
        sync_directory(&self.directory())
    }

    fn make_directory(&self) -> Result<(), TaskError> {
        let path = self.directory();
        match std::fs::create_dir(&path) {
            Ok(()) => {
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).map_err(on("chmod", &path))?;
                sync_directory(&self.state)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(on("make directory", path)(error)),
        }
    }

    /// Copies the accepted configuration for the trial of this generation.
    pub(crate) fn keep_configuration(&self, generation: u64) -> Result<(), TaskError> {
        self.make_directory()?;
        let (to, new) = (self.copy_of(generation), self.directory().join("configuration.new"));
        remove_tree(&new)?;
        configuration_copy::copy_tree(&self.accepted(), &new)?;
        remove_tree(&to)?;
        std::fs::rename(&new, &to).map_err(on("rename", &new))?;
        sync_directory(&self.directory())
    }

    /// Takes copies away that belong to no trial which could still fail.
    pub(crate) fn drop_configurations(&self, except: Option<u64>) -> Result<(), TaskError> {
        let kept: Option<OsString> =
            except.and_then(|generation| self.copy_of(generation).file_name().map(OsString::from));
        let Ok(entries) = std::fs::read_dir(self.directory()) else { return Ok(()) };
        for entry in entries.flatten().take(ENTRIES) {
            let name = entry.file_name();
            let is_copy = name.to_str().is_some_and(|name| name.starts_with("configuration-"));
            if is_copy && Some(&name) != kept.as_ref() {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts the configuration of before the trial back, once. Returns whether anything was changed.
    pub(crate) fn restore_configuration(&self, generation: u64) -> Result<bool, TaskError> {
        let (copy, accepted) = (self.copy_of(generation), self.accepted());
        if !copy.is_dir() {
            return Ok(false);
        }
        // Two renames, and a cut between them leaves nothing in place: then the second one is what is left to do. Nobody reads a
        // configuration before this is over.
        let aside = self.directory().join("configuration.trial");
        if accepted.is_dir() {
            remove_tree(&aside)?;
            std::fs::rename(&accepted, &aside).map_err(on("rename", &accepted))?;
        }
        std::fs::rename(&copy, &accepted).map_err(on("rename", &copy))?;
        sync_directory(&self.state)?;
        sync_directory(&self.directory())?;
        remove_tree(&aside)?;
        Ok(true)
    }
}

/// Makes renames and new names of a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), TaskError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(on("flush", path))
}

fn remove_tree(path: &Path) -> Result<(), TaskError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(on("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, TrialFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = TrialFiles { state: folder.path().to_owned() };
        std::fs::create_dir_all(files.accepted().join("generations")).unwrap();
        write(&files, "of before");
        std::fs::write(files.accepted().join("generations/1.toml"), "one").unwrap();
        (folder, files)
    }

    fn write(files: &TrialFiles, text: &str) {
        std::fs::write(files.accepted().join("current.toml"), text).unwrap();
    }

    fn current(files: &TrialFiles) -> String {
        std::fs::read_to_string(files.accepted().join("current.toml")).unwrap()
    }

    #[test]
    fn the_configuration_of_before_comes_back_once() {
        let (_folder, files) = node();
        files.keep_configuration(4).unwrap();
        write(&files, "of the trial");
        assert!(files.restore_configuration(4).unwrap());
        assert_eq!(current(&files), "of before");
        assert!(files.accepted().join("generations/1.toml").exists());
        // What is accepted after the return stays, however often the machine boots.
        write(&files, "of after");
        assert!(!files.restore_configuration(4).unwrap());
        assert_eq!(current(&files), "of after");
    }

    #[test]
    fn a_cut_in_the_middle_of_the_return_is_made_good() {
        let (_folder, files) = node();
        files.keep_configuration(4).unwrap();
        write(&files, "of the trial");
        // The first rename only, as a cut behind it leaves it.
        std::fs::rename(files.accepted(), files.directory().join("configuration.trial")).unwrap();
        assert!(files.restore_configuration(4).unwrap());
        assert_eq!(current(&files), "of before");
        // And both renames, but not the removal.
        std::fs::create_dir(files.directory().join("configuration.trial")).unwrap();
        assert!(!files.restore_configuration(4).unwrap());
        assert_eq!(current(&files), "of before");
    }

    #[test]
    fn copies_of_other_trials_are_dropped_and_a_half_made_one_is_made_again() {
        let (_folder, files) = node();
        files.keep_configuration(1).unwrap();
        std::fs::create_dir(files.directory().join("configuration.new")).unwrap();
        files.keep_configuration(2).unwrap();
        files.drop_configurations(Some(2)).unwrap();
        assert!(!files.copy_of(1).exists() && files.copy_of(2).is_dir());
        files.drop_configurations(None).unwrap();
        assert!(!files.restore_configuration(2).unwrap());
    }

    #[test]
    fn a_record_is_replaced_whole_and_a_damaged_one_is_refused() {
        let (_folder, files) = node();
        assert_eq!(files.read().unwrap(), Trials::default());
        files.write(&Trials::default()).unwrap();
        assert!(files.read().unwrap().trials.is_empty());
        std::fs::write(files.record(), "{").unwrap();
        assert!(files.read().is_err());
    }
}
