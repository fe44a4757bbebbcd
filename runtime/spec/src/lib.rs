//! From what people write (image configurations, container options, users, signals, capabilities by name) to a launch request.
//!
//! Used by `byred api` and by command lines, never by PID 1: here JSON from images is parsed. What comes out is unchecked data like any
//! request; PID 1 checks it. Parsing is lenient where images are sloppy and says what it did not understand.
#![forbid(unsafe_code)]

mod capability;
mod container;
mod image;
pub mod oci;
mod signal;
mod user;

pub use capability::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES, UnknownCapability, capability, capability_name};
pub use container::{
    Arguments, ContainerDefaults, DEFAULT_PATH, MASKED_PATHS, NoProgram, READ_ONLY_PATHS, arguments, default_container,
    merge_environment,
};
pub use image::{ImageConfig, MalformedConfig, read_image_config};
pub use signal::{UnknownSignal, signal_name, signal_number};
pub use user::{MalformedUser, parse_user};
