//! Where the bytes of workloads go: PID 1 makes the pipes, keeps both ends, and shows the log service the reading ends. It never
//! reads them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use byre_core::{Attachment, ChannelId};
use byre_plan::WorkloadId;
use byre_protocol::control::{FromInit, Notice, Stream};
use byre_protocol::definition::{Kind, Role};

use super::Supervisor;
use super::kept::{Input, Pipe, STDERR, STDIN, STDOUT};

impl Supervisor {
    /// Makes the pipes that a workload needs and has not got, and shows them to the log service.
    pub(super) fn make_pipes(&mut self, id: WorkloadId) -> Result<(), rustix::io::Errno> {
        let Some(workload) = self.core.workload(id) else { return Ok(()) };
        if workload.definition().kind == Kind::Pod {
            return Ok(());
        }
        let terminal = workload.plan().request().process.terminal.is_some();
        let open_stdin = workload.definition().open_stdin;
        let kept = self.kept.entry(id).or_default();
        if open_stdin && !terminal {
            // A run gets fresh input: what the last one left unread is nobody's.
            let Pipe { reader, writer } = Pipe::new(id, STDIN)?;
            kept.stdin = Some(Input { reader, writer: Some(writer) });
        }
        if terminal {
            // Its terminal is offered once the launch child has opened it.
            return Ok(());
        }
        if kept.stdout.is_none() {
            kept.stdout = Some(Pipe::new(id, STDOUT)?);
            kept.stderr = Some(Pipe::new(id, STDERR)?);
        }
        // The same pipe in a new run is news: what followed the last run ended with it.
        self.offer_outputs(id);
        Ok(())
    }

    /// Shows a workload's outputs to every log channel.
    pub(super) fn offer_outputs(&mut self, id: WorkloadId) {
        let channels: Vec<ChannelId> = self.core.channels_of(Role::Log).collect();
        for channel in channels {
            self.offer_to(channel, id);
        }
    }

    pub(super) fn offer_all_outputs(&mut self, channel: ChannelId) {
        let ids: Vec<WorkloadId> = self.kept.keys().copied().collect();
        for id in ids {
            self.offer_to(channel, id);
            if self.kept.get(&id).is_some_and(|kept| kept.run.is_none()) {
                let notice = FromInit::Notice(Box::new(Notice::LogRunEnded { id }));
                self.send_with(channel, &notice, None);
            }
        }
    }

    fn offer_to(&mut self, channel: ChannelId, id: WorkloadId) {
        let (Some(workload), Some(kept)) = (self.core.workload(id), self.kept.get(&id)) else { return };
        let name = workload.definition().name.clone();
        let policy = workload.definition().log;
        let outputs: [(Stream, Option<BorrowedFd<'_>>); 3] = [
            (Stream::Stdout, kept.stdout.as_ref().map(|pipe| pipe.reader.as_fd())),
            (Stream::Stderr, kept.stderr.as_ref().map(|pipe| pipe.reader.as_fd())),
            (Stream::Terminal, kept.terminal.as_ref().map(AsFd::as_fd)),
        ];
        let mut offers = Vec::new();
        for (stream, fd) in outputs {
            let Some(Ok(duplicate)) = fd.map(|fd| fd.try_clone_to_owned()) else { continue };
            let notice = Notice::LogStream { id, name: name.clone(), stream, policy };
            offers.push((FromInit::Notice(Box::new(notice)), duplicate));
        }
        for (message, descriptor) in offers {
            self.send_with(channel, &message, Some(descriptor));
        }
    }

    /// The parts of the trace, each behind its length, in a memory that nobody can change any more.
    fn trace_memory(&self) -> Option<OwnedFd> {
        let mut bytes = Vec::new();
        for part in self.trace.parts() {
            bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        super::reexec::sealed("byre-trace", &bytes).ok()
    }

    /// Sends a message with what the core wants attached.
    pub(super) fn send(&mut self, channel: ChannelId, message: &FromInit, attachment: Attachment) {
        let descriptor = match attachment {
            Attachment::None => None,
            Attachment::Input(id) => self.kept.get(&id).and_then(|kept| {
                let fd = kept.terminal.as_ref().or(kept.stdin.as_ref().and_then(|input| input.writer.as_ref()))?;
                fd.duplicate().ok()
            }),
            Attachment::ExecTerminal(exec) => self.execs.get_mut(&exec).and_then(|kept| kept.terminal.take()),
            Attachment::KernelLog => super::listeners::open_kernel_log(),
            Attachment::Network(id) => self
                .core
                .workload(id)
                .and_then(super::launches::namespaces_of)
                .and_then(|directory| byre_launch::open_network(&directory).ok()),
            Attachment::Trace => self.trace_memory(),
            Attachment::Process(id) => {
                self.kept.get(&id).and_then(|kept| kept.run.as_ref()?.process.as_ref()?.fd.duplicate().ok())
            }
        };
        self.send_with(channel, message, descriptor);
    }
}
