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
/// Socket of `byred pull`; only `byred image` may connect to it.
pub const PULL_SOCKET: &str = "/run/byre/pull.sock";
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
    /// Bring an image from a registry. Answered with [`ImageAnswer::Layers`] and then `Pulled`. It ends with the connection.
    Pull {
        /// Its name, or a name with a digest.
        reference: String,
        /// What its registry is shown; without one, what the node's configuration has for it.
        credential: Option<RegistryCredential>,
        /// Authorities of the registry, PEM, instead of those of the node's configuration.
        ca_pem: Option<String>,
    },
    /// Give an image another name.
    Tag {
        /// Which.
        reference: String,
        /// The name, taken from the image that has it.
        name: String,
    },
    /// Take a name away and keep the image.
    Untag {
        /// The name.
        name: String,
    },
    /// Read all of an image and compare it with what it was. Answered with `Progress` and then `Verified`.
    Verify {
        /// Which.
        reference: String,
    },
}

/// A user name and a password. It has no text form.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredential {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RegistryCredential(hidden)")
    }
}

/// How far one layer of a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Digest of its blob.
    pub blob: Digest,
    /// What happens with it.
    pub step: LayerStep,
    /// Bytes of the blob that have come.
    pub done: u64,
    /// Bytes of the blob.
    pub total: u64,
}

/// What happens with a layer of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerStep {
    /// It waits for its turn.
    Waiting,
    /// It comes.
    Fetching,
    /// Another pull is bringing it.
    Joined,
    /// It was here.
    Kept,
    /// It is here now.
    Done,
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
    /// How far a pull is; before its manifest is known, there are no layers.
    Layers(Vec<LayerStatus>),
    /// The image of a pull.
    Pulled {
        /// The image.
        image: Box<ImageRecord>,
        /// The name it was asked for by, with the digest that the registry answered with.
        reference: String,
        /// Layers that came; the others were here.
        new_layers: u32,
    },
    /// What a verification found of each layer.
    Verified(Vec<LayerVerified>),
}

/// What a verification found of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerVerified {
    /// Its `diff_id`.
    pub layer: Digest,
    /// Bytes of its file.
    pub bytes: u64,
    /// Whether it may be used.
    pub good: bool,
    /// What was found, for people.
    pub text: String,
}

/// Classes of refusals of `byred image`, and of `byred pull` to it.
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
    /// The registry, or the node's own policy, refuses it.
    Denied,
    /// The registry cannot be reached now.
    Unavailable,
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
    /// Where it was pulled from, oldest first: names with tag and digest.
    pub origins: Vec<String>,
    /// Whether the node's policy takes it, under the name that it was asked for by.
    pub accepted: bool,
    /// Why, for people.
    pub verdict: String,
}

/// What `byred image` asks of `byred pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchCall {
    /// A manifest. Answered with [`FetchAnswer::Manifest`] and its bytes.
    Manifest {
        /// A name of the repository, without tag and digest.
        repository: String,
        /// A tag or a digest.
        which: String,
        /// Ask no mirror.
        origin_only: bool,
        /// What the registry is shown.
        credential: Option<RegistryCredential>,
        /// Authorities of the registry, PEM, instead of those of the node's configuration.
        ca_pem: Option<String>,
    },
    /// A blob. Answered with [`FetchAnswer::Blob`], pieces (a 32-bit little-endian length and so many bytes, at most
    /// [`FETCH_PIECE_BYTES`]), a piece of length 0, and [`FetchAnswer::Done`] or `Refused`.
    Blob {
        /// A name of the repository, without tag and digest.
        repository: String,
        /// Its digest.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Bytes that are not needed again.
        offset: u64,
        /// Ask no mirror.
        origin_only: bool,
        /// What the registry is shown.
        credential: Option<RegistryCredential>,
        /// Authorities of the registry, PEM, instead of those of the node's configuration.
        ca_pem: Option<String>,
    },
}

/// Answers of `byred pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchAnswer {
    /// A manifest follows.
    Manifest {
        /// Its length in bytes.
        bytes: u32,
        /// The media type that the registry gives it.
        media_type: String,
        /// The digest that the registry states.
        stated_digest: Option<String>,
    },
    /// A blob follows.
    Blob,
    /// All of it has come.
    Done,
    /// It was not done, or ended early.
    Refused {
        /// For programs.
        code: ImageRefusal,
        /// For people.
        text: String,
    },
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

/// Bytes of one piece of a blob: what a registry's client reads at once, with room.
pub const FETCH_PIECE_BYTES: usize = 1 << 20;
/// Bytes of output in one [`LogChunk`].
pub const LOG_CHUNK_BYTES: usize = 32 * 1024;
/// cgroups in one [`StatsCall`].
pub const STATS_CGROUPS: usize = 64;
