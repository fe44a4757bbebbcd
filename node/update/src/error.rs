//! Why an update was not done, in one place, with the class that programs go by.

use byre_protocol::update::{ReleaseName, UpdateRefusal};

use crate::bundle::BundleError;
use crate::http::HttpError;
use crate::journal::JournalError;
use crate::metadata::MetadataError;
use crate::slot::SlotError;

/// Why an update was not done.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// One at a time.
    #[error("an update is under way: wait for it, or end it with byrectl update cancel")]
    Busy,
    /// The running slot must have shown that it works before the other one is given up.
    #[error(
        "the running release is not blessed yet: it has to do its job for a while before the other slot may be written"
    )]
    NotBlessed,
    /// Without the time, nobody can say whether metadata has expired.
    #[error(
        "the time is not known yet: updates wait for a time server (byrectl node facts shows the clock), or take a bundle with --offline"
    )]
    NoTime,
    /// Nothing to ask.
    #[error(
        "no repository is configured: set `repository` in the table `update` of the configuration, or apply a bundle"
    )]
    NoRepository,
    /// This machine has no slots.
    #[error("this machine was booted without slots: it cannot be updated in place")]
    NoSlots,
    /// An update is armed already.
    #[error("{0} is armed and boots next: reboot into it, or go back with byrectl update rollback")]
    Armed(ReleaseName),
    /// Older than what runs.
    #[error("{offered} is older than the running {running}: an operator may allow it with --allow-downgrade")]
    Downgrade {
        /// Offered.
        offered: ReleaseName,
        /// Running.
        running: ReleaseName,
    },
    /// Older than any that may ever run here again.
    #[error(
        "{offered} is below {floor}, the lowest install number that a release in use here allows; nobody may allow it"
    )]
    BelowFloor {
        /// Offered.
        offered: ReleaseName,
        /// The floor.
        floor: u64,
    },
    /// It failed here before.
    #[error("{0} did not do its job on this machine before: try it again with --retry")]
    Failed(ReleaseName),
    /// There is no release to go back to.
    #[error("the other slot does not hold a release that ran here: there is nothing to go back to")]
    NothingToRollBack,
    /// Cancelled.
    #[error("cancelled; what was written stays, and the next apply goes on with it")]
    Cancelled,
    /// Nothing can be cancelled.
    #[error("nothing is under way that could be cancelled")]
    NothingToCancel,
    /// The repository's file has another size.
    #[error("{url} has {found} bytes, the signed statement says {expected}")]
    Length {
        /// What was fetched.
        url: String,
        /// It has.
        found: u64,
        /// It should have.
        expected: u64,
    },
    /// PID 1 refused.
    #[error("{0}")]
    Init(String),
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The network.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The state partition.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The configuration's file.
    #[error("the updater's configuration {0}: byred config and byred update must be from one release")]
    Settings(String),
    /// A thread or the runtime.
    #[error("the update cannot be started: {0}")]
    Start(std::io::Error),
}

impl UpdateError {
    /// Whether trying again may help without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Http(error) | Self::Metadata(MetadataError::Http(error)) => error.is_passing(),
            Self::Slot(SlotError::Short { .. }) => true,
            Self::Busy
            | Self::NotBlessed
            | Self::NoTime
            | Self::NoRepository
            | Self::NoSlots
            | Self::Armed(_)
            | Self::Downgrade { .. }
            | Self::BelowFloor { .. }
            | Self::Failed(_)
            | Self::NothingToRollBack
            | Self::Cancelled
            | Self::NothingToCancel
            | Self::Length { .. }
            | Self::Init(_)
            | Self::Metadata(_)
            | Self::Slot(_)
            | Self::Bundle(_)
            | Self::Journal(_)
            | Self::Settings(_)
            | Self::Start(_) => false,
        }
    }

    /// The class.
    #[must_use]
    pub fn code(&self) -> UpdateRefusal {
        match self {
            Self::Busy | Self::NotBlessed | Self::NoTime | Self::Armed(_) | Self::NothingToCancel | Self::Init(_) => {
                UpdateRefusal::NotNow
            }
            Self::NoRepository | Self::NoSlots | Self::NothingToRollBack => UpdateRefusal::NotFound,
            Self::Downgrade { .. } | Self::BelowFloor { .. } | Self::Failed(_) => UpdateRefusal::NotAllowed,
            Self::Cancelled => UpdateRefusal::Cancelled,
            Self::Length { .. } | Self::Bundle(_) => UpdateRefusal::NotTrusted,
            Self::Metadata(error) => of_metadata(error),
            Self::Http(error) => of_http(error),
            Self::Slot(error) => of_slot(error),
            Self::Journal(_) | Self::Settings(_) | Self::Start(_) => UpdateRefusal::Internal,
        }
    }
}

fn of_metadata(error: &MetadataError) -> UpdateRefusal {
    match error {
        MetadataError::Http(error) => of_http(error),
        MetadataError::Channel(_) => UpdateRefusal::NotFound,
        MetadataError::Remembering(_) | MetadataError::Store { .. } | MetadataError::TrustedRoot(_) => {
            UpdateRefusal::Internal
        }
        MetadataError::Missing(_) => UpdateRefusal::Unreachable,
        MetadataError::Expired(_)
        | MetadataError::RolledBack(_)
        | MetadataError::Mixed(_)
        | MetadataError::Signature(_)
        | MetadataError::Rotations
        | MetadataError::Size { .. }
        | MetadataError::Malformed(_)
        | MetadataError::Statement(_) => UpdateRefusal::NotTrusted,
    }
}

fn of_http(error: &HttpError) -> UpdateRefusal {
    match error {
        HttpError::TooLong { .. } => UpdateRefusal::NotTrusted,
        HttpError::Authorities(_) => UpdateRefusal::Internal,
        HttpError::Url(_)
        | HttpError::Connect { .. }
        | HttpError::Broken { .. }
        | HttpError::Stalled { .. }
        | HttpError::NotFound(_)
        | HttpError::Status { .. }
        | HttpError::Redirect(_)
        | HttpError::Range { .. } => UpdateRefusal::Unreachable,
    }
}

fn of_slot(error: &SlotError) -> UpdateRefusal {
    match error {
        SlotError::Disk { .. } | SlotError::ReadBack { .. } => UpdateRefusal::Internal,
        SlotError::Room { .. } => UpdateRefusal::NotAllowed,
        SlotError::Tree(_) | SlotError::Block { .. } | SlotError::Uki => UpdateRefusal::NotTrusted,
        SlotError::Short { .. } => UpdateRefusal::Unreachable,
    }
}
