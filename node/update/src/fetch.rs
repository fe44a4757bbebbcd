//! The parts of a release, from the repository or a bundle into the slot.
//!
//! Every wait ends: by its limit, by a cancel, or because the patience with a server that brings nothing is over. However it ends, what is in the
//! slot is checked, and the next try takes only what is missing.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use byre_protocol::control::Allow;
use byre_protocol::update::UpdateState;
use byre_verity::{BLOCK_BYTES, CheckedTree};
use url::Url;

use crate::bundle::{self, BundleError};
use crate::engine::{Admitted, Engine, runtime, total_bytes};
use crate::error::UpdateError;
use crate::http::Body;
use crate::journal::{Source, Stage};
use crate::metadata::{self, Expirations, Metadata};
use crate::settings;
use crate::slot::{Part, SlotError, read_part};

/// How often a wait looks whether somebody cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of the kernel image between two flushes: what is fetched again at most after a cut.
const KEEP_BYTES: u64 = 4 << 20;
/// Bytes read from a bundle at once.
const READ_BYTES: usize = 128 * 1024;

impl Engine {
    /// Takes the channel's newest release, up to an armed slot.
    ///
    /// # Errors
    /// [`UpdateError`]; what was written stays.
    pub fn apply(&self, allow: Allow, reboot: bool) -> Result<String, UpdateError> {
        let settings = self.settings()?;
        let base = settings::base(&settings)?;
        self.may_write()?;
        if !self.time_is_known() {
            return Err(UpdateError::NoTime);
        }
        self.show(UpdateState::Checking);
        let admitted = runtime()?.block_on(async {
            let source = metadata::Source::Http(self.client.clone(), base);
            let metadata = self.cancellable(async { Ok(self.load(source, Expirations::All).await?) }).await?;
            let newest = metadata.newest(settings.channel.as_str(), &self.running.keys);
            let (unverified, statement) = self.cancellable(async { Ok(newest.await?) }).await?;
            self.found(&statement)?;
            let admitted = self.admit(&unverified, statement, allow, reboot, Source::Repository)?;
            if let Some(admitted) = &admitted {
                self.fetch(&metadata, admitted).await?;
            }
            Ok::<_, UpdateError>(admitted)
        })?;
        match admitted {
            Some(admitted) => self.finish(&admitted),
            None => Ok(self.up_to_date()),
        }
    }

    fn up_to_date(&self) -> String {
        format!("{} is the newest release, and runs", self.running_name())
    }

    /// Takes the release of a bundle, up to an armed slot.
    ///
    /// # Errors
    /// As [`Self::apply`], and [`BundleError`].
    pub fn apply_bundle(
        &self,
        bundle: impl Read,
        allow: Allow,
        reboot: bool,
        offline: bool,
    ) -> Result<String, UpdateError> {
        self.may_write()?;
        if !offline && !self.time_is_known() {
            return Err(UpdateError::NoTime);
        }
        self.show(UpdateState::Checking);
        let mut archive = tar::Archive::new(bundle);
        let mut entries = archive.entries().map_err(BundleError::Read)?;
        let bundle::Head { files, channel } = bundle::read_head(&mut entries)?;
        let expirations = if offline { Expirations::RootAndTargets } else { Expirations::All };
        let (metadata, unverified, statement) = runtime()?.block_on(async {
            let metadata = self.load(metadata::Source::Files(Arc::new(files)), expirations).await?;
            let (unverified, statement) = metadata.newest(&channel, &self.running.keys).await?;
            Ok::<_, UpdateError>((metadata, unverified, statement))
        })?;
        let Some(admitted) = self.admit(&unverified, statement, allow, reboot, Source::Bundle)? else {
            return Ok(self.up_to_date());
        };
        let (statement, slot) = (&admitted.statement, self.may_write()?);
        let (install, mut done) = (statement.install, 0);
        let parts = [
            (Part::Verity, "verity", statement.verity_bytes),
            (Part::Root, "root", statement.root_bytes()),
            (Part::Uki, "uki", statement.uki_bytes),
        ];
        // The metadata must list these very parts, as it must online.
        for (_, suffix, bytes) in parts {
            metadata.check_part(install, suffix, bytes)?;
        }
        let mut entry = bundle::part(&mut entries, &format!("byre-{install}.verity"))?;
        let tree = slot.write_tree(read_part(&mut entry, Part::Verity, statement.verity_bytes)?, statement)?;
        done += statement.verity_bytes;
        let mut entry = bundle::part(&mut entries, &format!("byre-{install}.root"))?;
        let mut present = slot.present_blocks(&tree)?;
        let mut writer = slot.root_writer(&tree, &mut present, 0);
        let taken = self.pump(&mut entry, &admitted, done, &mut |bytes| writer.take(bytes));
        writer.finish()?;
        taken?;
        if present.first_missing().is_some() {
            let found = present.count() * BLOCK_BYTES as u64;
            return Err(SlotError::Short { part: Part::Root, found, expected: statement.root_bytes() }.into());
        }
        done += statement.root_bytes();
        let mut entry = bundle::part(&mut entries, &format!("byre-{install}.uki"))?;
        let mut writer = slot.uki_writer(0)?;
        self.pump(&mut entry, &admitted, done, &mut |bytes| writer.take(bytes, statement.uki_bytes))?;
        writer.finish(statement)?;
        self.finish(&admitted)
    }

    /// Passes a part of a bundle on, in pieces.
    fn pump(
        &self,
        from: &mut impl Read,
        admitted: &Admitted,
        done_bytes: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), SlotError>,
    ) -> Result<(), UpdateError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut done = done_bytes;
        loop {
            if self.is_cancelled() {
                return Err(UpdateError::Cancelled);
            }
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    take(&buffer[..count])?;
                    done += count as u64;
                    self.show_written(admitted, done);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BundleError::Read(error).into()),
            }
        }
    }

    fn show_written(&self, admitted: &Admitted, done_bytes: u64) {
        let total_bytes = total_bytes(&admitted.statement);
        self.show(UpdateState::Writing { release: admitted.name(), done_bytes, total_bytes });
    }

    /// Hash tree, root, kernel image: whatever of them is not in the slot.
    async fn fetch(&self, metadata: &Metadata, admitted: &Admitted) -> Result<(), UpdateError> {
        let (statement, slot) = (&admitted.statement, self.may_write()?);
        self.show_written(admitted, 0);
        let url = |suffix, bytes| metadata.part_url(statement.install, suffix, bytes);
        let tree = match slot.present_tree(statement) {
            Some(tree) => tree,
            None => {
                let bytes = self.fetch_tree(&url("verity", statement.verity_bytes)?, statement.verity_bytes).await?;
                slot.write_tree(bytes, statement)?
            }
        };
        self.show_written(admitted, statement.verity_bytes);
        self.fetch_root(&url("root", statement.root_bytes())?, admitted, &tree).await?;
        if !slot.has_uki(statement)? {
            self.fetch_uki(&url("uki", statement.uki_bytes)?, admitted).await?;
        }
        self.show_written(admitted, total_bytes(statement));
        Ok(())
    }

    async fn fetch_tree(&self, url: &Url, bytes: u64) -> Result<Vec<u8>, UpdateError> {
        let mut tries = Tries::default();
        loop {
            let got = self.cancellable(async { Ok(self.client.get_all(url, bytes).await?) }).await;
            match got {
                Ok(got) => return Ok(got),
                Err(error) => self.again(&mut tries, error, false).await?,
            }
        }
    }

    async fn fetch_root(&self, url: &Url, admitted: &Admitted, tree: &CheckedTree) -> Result<(), UpdateError> {
        let slot = self.may_write()?;
        let expected = admitted.statement.root_bytes();
        let before_root = admitted.statement.verity_bytes;
        let mut present = slot.present_blocks(tree)?;
        let mut tries = Tries::default();
        while let Some(first) = present.first_missing() {
            let had = present.count();
            let streamed = async {
                let from = first * BLOCK_BYTES as u64;
                let mut body = self.body(url, from, expected).await?;
                // A server that knows no ranges sends all of it; what is there is checked again and not written.
                let start = body.start();
                let mut writer = slot.root_writer(tree, &mut present, start / BLOCK_BYTES as u64);
                let mut offset = start;
                let ended = loop {
                    match self.next(&mut body).await {
                        Ok(Some(piece)) => {
                            if let Err(error) = writer.take(&piece) {
                                break Err(error.into());
                            }
                            offset += piece.len() as u64;
                            self.show_written(admitted, before_root + offset.min(expected));
                            if offset >= expected {
                                break Ok(());
                            }
                        }
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                };
                let finished = writer.finish();
                ended?;
                finished?;
                Ok(())
            };
            let result: Result<(), UpdateError> = streamed.await;
            let progressed = present.count() > had;
            let error = match result {
                Ok(()) if present.first_missing().is_none() => break,
                Ok(()) => {
                    let found = present.count() * BLOCK_BYTES as u64;
                    SlotError::Short { part: Part::Root, found, expected }.into()
                }
                Err(error) => error,
            };
            self.again(&mut tries, error, progressed).await?;
        }
        slot.flush(Part::Root)?;
        Ok(())
    }

    async fn fetch_uki(&self, url: &Url, admitted: &Admitted) -> Result<(), UpdateError> {
        let (slot, statement) = (self.may_write()?, &admitted.statement);
        let before_uki = statement.verity_bytes + statement.root_bytes();
        let expected = statement.uki_bytes;
        let mut tries = Tries::default();
        // What an earlier try left may be of another time; the digest over all of it tells, and then it is fetched whole once.
        let mut kept = admitted.uki_kept.min(expected);
        loop {
            let had = kept;
            let streamed = async {
                let mut writer = slot.uki_writer(kept)?;
                let mut body = self.body(url, kept, expected).await?;
                let mut to_skip = kept - body.start();
                let ended = loop {
                    match self.next(&mut body).await {
                        Ok(Some(piece)) => {
                            let skipped = to_skip.min(piece.len() as u64);
                            to_skip -= skipped;
                            writer.take(&piece[usize::try_from(skipped).unwrap_or(0)..], expected)?;
                            self.show_written(admitted, before_uki + writer.offset());
                            if writer.offset() >= kept + KEEP_BYTES {
                                kept = writer.keep()?;
                                self.keep_stage(admitted, Stage::Writing { uki_kept: kept })?;
                            }
                            if writer.offset() >= expected {
                                break Ok(());
                            }
                        }
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                };
                kept = writer.keep()?;
                self.keep_stage(admitted, Stage::Writing { uki_kept: kept })?;
                ended?;
                writer.finish(statement)?;
                Ok(())
            };
            let result: Result<(), UpdateError> = streamed.await;
            match result {
                Ok(()) => return Ok(()),
                Err(UpdateError::Slot(SlotError::Uki)) if had > 0 => {
                    kept = 0;
                    self.keep_stage(admitted, Stage::Writing { uki_kept: 0 })?;
                }
                Err(error) => self.again(&mut tries, error, kept > had).await?,
            }
        }
    }

    /// Begins to fetch a part that must have so many bytes.
    async fn body(&self, url: &Url, from: u64, expected: u64) -> Result<Body, UpdateError> {
        let body = self.cancellable(async { Ok(self.client.get(url, from).await?) }).await?;
        match body.total() {
            Some(found) if found != expected => Err(UpdateError::Length { url: url.to_string(), found, expected }),
            Some(_) | None => Ok(body),
        }
    }

    async fn next(&self, body: &mut Body) -> Result<Option<bytes::Bytes>, UpdateError> {
        self.cancellable(async { Ok(body.next().await?) }).await
    }

    /// Waits for something, or for a cancel.
    async fn cancellable<T>(&self, what: impl Future<Output = Result<T, UpdateError>>) -> Result<T, UpdateError> {
        tokio::pin!(what);
        loop {
            if self.is_cancelled() {
                return Err(UpdateError::Cancelled);
            }
            tokio::select! {
                result = &mut what => return result,
                () = tokio::time::sleep(CANCEL_INTERVAL) => {}
            }
        }
    }

    /// Waits before another try, or gives up with the error.
    async fn again(&self, tries: &mut Tries, error: UpdateError, progressed: bool) -> Result<(), UpdateError> {
        if !error.is_passing() {
            return Err(error);
        }
        let pause = tries.after(progressed, self.patience.tries, self.patience.pause).ok_or(error)?;
        self.cancellable(async {
            tokio::time::sleep(pause).await;
            Ok(())
        })
        .await
    }
}

/// Tries in a row that brought nothing.
#[derive(Debug, Default)]
struct Tries(u32);

impl Tries {
    /// How long to wait before the next one; `None` when the patience is over.
    fn after(&mut self, progressed: bool, limit: u32, pause: Duration) -> Option<Duration> {
        self.0 = if progressed { 1 } else { self.0 + 1 };
        (self.0 < limit).then(|| pause * (1 << (self.0 - 1).min(6)))
    }
}
