//! Makes the OS image: fetches and checks Debian packages, and turns them with our own binaries into a disk.
//!
//! Runs on a developer's or builder's machine without privilege; it must not depend on anything of that machine but the
//! programs that carry bytes in (curl, gpgv, dpkg-deb). Every program that *writes* image bytes comes from the locked
//! packages, so that two machines make the same image.

mod archive;
mod boot;
mod cpio;
mod deb;
mod disk;
mod ext4;
mod image;
mod lock;
mod manifest;
mod modules;
mod root;
mod sbom;
mod services;
mod tools;
mod uki;
mod version;

pub use archive::Mirrors;
pub use cpio::Cpio;
pub use disk::LAYOUT_NAMES;
pub use image::{Binaries, ImageSpec, Release, build};
pub use lock::{Lock, Package, Use, update_lock};
pub use manifest::{Manifest, PartitionRecord};

/// Something that is told what the build is doing, one line at a time.
pub type Progress<'a> = &'a mut dyn FnMut(&str);
