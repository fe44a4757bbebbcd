//! Names of images that are here: giving one, taking one away, and looking at whether all of an image is still what it was.

use std::fs::File;
use std::io::{self, Read as _};

use super::record::Image;
use super::{Catalog, Store, StoreError, layer_names};
use crate::check;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::sys;

/// Most names of one image.
const MAX_NAMES: usize = 64;
/// Bytes read at once.
const READ_LEN: usize = 1 << 20;

/// What became of one layer's check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCheck {
    /// Which.
    pub diff_id: Digest,
    /// Bytes of its file.
    pub bytes: u64,
    /// What was found.
    pub state: LayerState,
}

/// The state of a layer's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerState {
    /// Every byte was read, and is what it was when the layer was made.
    Verified,
    /// Every byte was read and its form is good; without fs-verity nobody can say more.
    Unprotected,
    /// It must not be used.
    Damaged(String),
}

impl Store {
    /// Gives the image that `text` means another name, which it takes from whoever had it.
    ///
    /// # Errors
    /// Of [`Store::find`]; `PinnedName`, `TooManyNames`, `Policy`, `Io`.
    pub fn tag(&mut self, text: &str, name: &Reference) -> Result<Image, StoreError> {
        if name.digest().is_some() || name.tag().is_none() {
            return Err(StoreError::PinnedName(name.clone()));
        }
        let mut image = self.find(text)?.clone();
        let verdict = self.policy.judge_image(&image, Some(name));
        if !verdict.accepted {
            return Err(StoreError::Policy { name: name.short(), why: verdict.text });
        }
        if image.names.contains(name) {
            return Ok(image);
        }
        if image.names.len() >= MAX_NAMES {
            return Err(StoreError::TooManyNames(MAX_NAMES));
        }
        image.names.push(name.clone());
        image.names.sort();
        image.sequence = self.take_sequence();
        self.write_record(image.clone())?;
        self.take_names(&image)?;
        Ok(image)
    }

    /// Takes a name away; the image stays, also without any.
    ///
    /// # Errors
    /// `NotFound` if no image has it; `Io`.
    pub fn untag(&mut self, name: &Reference) -> Result<Image, StoreError> {
        let has = |image: &&Image| image.names.contains(name);
        let mut image = self.images.values().find(has).cloned().ok_or_else(|| StoreError::NotFound(name.short()))?;
        image.names.retain(|known| known != name);
        image.sequence = self.take_sequence();
        self.write_record(image.clone())?;
        Ok(image)
    }
}

impl Catalog {
    /// Reads all of an image and compares. `wanted` is asked between pieces and stops the work by returning false.
    ///
    /// # Errors
    /// `Damaged` if its configuration is another one; `Cancelled`.
    pub fn verify(&self, image: &Image, wanted: &mut dyn FnMut(u64) -> bool) -> Result<Vec<LayerCheck>, StoreError> {
        self.config_bytes(image)?;
        let mut done = 0;
        let mut checks: Vec<LayerCheck> = Vec::new();
        for layer in &image.layers {
            if checks.iter().any(|check| check.diff_id == layer.diff_id) {
                continue;
            }
            let state = match self.verify_layer(&layer.diff_id, layer.bytes, &mut done, wanted) {
                Ok(Some(state)) => state,
                Ok(None) => return Err(StoreError::Cancelled),
                Err(error) => LayerState::Damaged(error.to_string()),
            };
            checks.push(LayerCheck { diff_id: layer.diff_id, bytes: layer.bytes, state });
        }
        Ok(checks)
    }

    fn verify_layer(
        &self,
        diff_id: &Digest,
        bytes: u64,
        done: &mut u64,
        wanted: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Option<LayerState>> {
        let (layer_name, digest_name) = layer_names(diff_id);
        let dir = self.root.join("layers");
        let mut file = File::open(dir.join(layer_name))?;
        let length = file.metadata()?.len();
        if length != bytes {
            return Ok(Some(LayerState::Damaged(format!("it has {length} bytes, not {bytes}"))));
        }
        let recorded = match std::fs::read_to_string(dir.join(digest_name)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(recorded) = &recorded {
            // Reads are held to this digest by the kernel; what is left is that it is the right one.
            let measured: String = sys::measure_verity(&file)?.iter().map(|byte| format!("{byte:02x}")).collect();
            if measured != *recorded {
                return Ok(Some(LayerState::Damaged("its fs-verity digest is another one".to_owned())));
            }
        }
        let mut buffer = vec![0; READ_LEN];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            *done += n as u64;
            if !wanted(*done) {
                return Ok(None);
            }
        }
        if let Err(error) = check::check(&file) {
            return Ok(Some(LayerState::Damaged(error.to_string())));
        }
        Ok(Some(if recorded.is_some() { LayerState::Verified } else { LayerState::Unprotected }))
    }
}
