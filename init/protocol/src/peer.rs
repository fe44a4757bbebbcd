//! Messages between services, over unix stream sockets below /run/byre whose listeners PID 1 holds. PID 1 itself never reads these.
//!
//! A connection carries one call and its answers, each as a frame: 32-bit little-endian length, then [`crate::frame::encode`]d
//! bytes. A stream of raw bytes may follow where the message says so. The server names its peer by SO_PEERCRED.

use byre_plan::{Digest, WorkloadId};
use serde::{Deserialize, Serialize};

use crate::control::Stream;
use crate::status::Moment;

/// Socket of `byred log`.
pub const LOG_SOCKET: &str = "/run/byre/log.sock";
/// Socket of `byred image`.
pub const IMAGE_SOCKET: &str = "/run/byre/image.sock";
/// Socket of `byred stats`.
pub const STATS_SOCKET: &str = "/run/byre/stats.sock";

/// What is asked of `byred log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogCall {
    /// Stored output; answered with [`LogChunk`]s and a last empty one.
    Read {
        /// Whose.
        id: WorkloadId,
        /// Go on with new output until the run ends.
        follow: bool,
        /// Only what was written at or after this time, in milliseconds since 1970.
        since_wall_ms: Option<u64>,
        /// Only this many lines before the end.
        tail_lines: Option<u64>,
    },
    /// Live output from now on, as it comes, for attach; answered like `Read` with `follow`.
    Attach {
        /// Whose.
        id: WorkloadId,
    },
}

/// A piece of output, in the order it was written per stream. `bytes` is empty in the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Which output.
    pub stream: Stream,
    /// When it was taken in.
    pub at: Moment,
    /// At most 32 KiB.
    pub bytes: Vec<u8>,
    /// Bytes lost before this piece (rate limit, no space, rotation while reading).
    pub lost: u64,
}

/// What is asked of `byred image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageCall {
    /// An archive follows on the connection until its writing side is shut down. Answered with [`ImageAnswer::Progress`] and then `Image`.
    Load {
        /// Name to give it instead of those in the archive.
        name: Option<String>,
    },
    /// All images.
    List,
    /// One image by name, digest or unambiguous prefix of its identity.
    Resolve {
        /// Which.
        reference: String,
    },
    /// Take a name away, and the image with its last name.
    Remove {
        /// Which.
        reference: String,
        /// Identities of images that containers use; those are refused.
        in_use: Vec<String>,
    },
    /// Remove what nobody uses.
    Prune {
        /// Identities of images that containers use.
        in_use: Vec<String>,
        /// Also named images, not only unnamed ones.
        all: bool,
    },
}

/// Answers of `byred image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageAnswer {
    /// How far a load is.
    Progress {
        /// What is being done, such as `layer 2 of 5`.
        step: String,
        /// Bytes of the archive read.
        bytes: u64,
    },
    /// The image.
    Image(Box<ImageRecord>),
    /// All images.
    Images(Vec<ImageRecord>),
    /// What was removed, and how many bytes that gave back.
    Removed {
        /// Names and identities.
        what: Vec<String>,
        /// Bytes.
        bytes: u64,
    },
    /// It was not done.
    Refused {
        /// For programs.
        code: ImageRefusal,
        /// For people.
        text: String,
    },
}

/// Classes of refusals of `byred image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRefusal {
    /// No such image, or more than one.
    NotFound,
    /// The archive or a reference is malformed.
    Invalid,
    /// A container uses it.
    InUse,
    /// No space.
    NoSpace,
    /// The store failed.
    Internal,
}

/// An image as the API needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of its configuration, `sha256:…`.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// Digest of its manifest, if the archive had one.
    pub manifest_digest: Option<String>,
    /// `diff_id`s, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes on disk of its layers.
    pub size_bytes: u64,
    /// When it was built, in milliseconds since 1970.
    pub created_wall_ms: u64,
    /// Its configuration: the OCI image-spec JSON, at most 64 KiB of it.
    pub config_json: String,
}

/// What is asked of `byred stats`: the present figures of these cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsCall {
    /// cgroup paths below /sys/fs/cgroup, at most 64 a call.
    pub cgroups: Vec<String>,
}

/// Figures of one cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupStats {
    /// Its path; figures of one that is gone are zero.
    pub cgroup: String,
    /// When they were read.
    pub at: Moment,
    /// CPU time in microseconds.
    pub cpu_usage_us: u64,
    /// of it in user mode.
    pub cpu_user_us: u64,
    /// of it in the kernel.
    pub cpu_system_us: u64,
    /// memory.current.
    pub memory_bytes: u64,
    /// memory.peak.
    pub memory_peak_bytes: u64,
    /// memory.max; `u64::MAX` is unlimited.
    pub memory_max_bytes: u64,
    /// anon of memory.stat.
    pub memory_anonymous_bytes: u64,
    /// file of memory.stat.
    pub memory_file_bytes: u64,
    /// pids.current.
    pub processes: u64,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_written_bytes: u64,
    /// oom_kill of memory.events.
    pub oom_kills: u64,
}

/// Bytes of output in one [`LogChunk`].
pub const LOG_CHUNK_BYTES: usize = 32 * 1024;
/// cgroups in one [`StatsCall`].
pub const STATS_CGROUPS: usize = 64;
