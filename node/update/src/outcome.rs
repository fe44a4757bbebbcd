//! What became of a release that was armed. What runs now says whether it was left; why it was left says the judge of its trial, whose record
//! PID 1's side publishes before it calls the running slot blessed.

use std::fs::File;
use std::io::Read as _;

use byre_boots::trial::{FILE_BYTES, Outcome, Trials};
use byre_protocol::update::UpdateEventKind;
use byre_release::Unverified;

use crate::engine::{Engine, event};
use crate::journal::{Content, Intent, JournalError, Stage};

/// How a trial ended that the running release is not the end of.
enum Left {
    /// It failed, and the release before it did not: refused from now on.
    Failed(String),
    /// It says nothing of the release, which may be tried again.
    Untold(String),
    /// It has not been tried.
    Untried,
}

impl Engine {
    /// What became of an armed release: it runs and is blessed, or another one runs after a reboot.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn reconcile(&self) -> Result<(), JournalError> {
        let running = self.running_name();
        // The judge of this boot has said all that he has to say once the slot is blessed.
        if !self.is_blessed() {
            return Ok(());
        }
        let minimum = self.running.facts.minimum_install;
        if self.shared().journal.content().floor < minimum {
            self.record(|content| content.floor = minimum)?;
        }
        let Some(intent) = self.shared().journal.content().intent.clone() else { return Ok(()) };
        match intent.stage {
            Stage::Armed | Stage::Arming if intent.armed_in_boot != self.boot_id() => {}
            Stage::Armed | Stage::Arming | Stage::Writing { .. } | Stage::Written => return Ok(()),
        }
        if running.install == intent.release.install {
            self.record(|content| {
                content.intent = None;
                content.previous = Some(intent.from.clone());
                content.failed.retain(|install| *install != running.install);
                content.events.push(event(&intent.release, UpdateEventKind::Good, ""));
            })?;
        } else {
            let left = self.left(&intent);
            self.record(|content| note(content, &intent, &left, &running.to_string()))?;
        }
        let resting = self.resting_state();
        self.change(|shared| {
            if !shared.busy {
                shared.state = resting;
            }
        });
        Ok(())
    }

    /// Why the release of `intent` does not run.
    fn left(&self, intent: &Intent) -> Left {
        let statement = Unverified::new(&intent.statement).and_then(|unverified| unverified.verify(&self.running.keys));
        let root = statement.ok().map(|statement| hex::encode(statement.root_hash));
        let trials = read(&self.paths.trials);
        let trial = root.zip(trials.as_ref()).and_then(|(root, trials)| trials.of_root(&root));
        match trial.map(|trial| &trial.outcome) {
            Some(Outcome::Failed { why, .. }) => Left::Failed(why.clone()),
            Some(Outcome::Inconclusive { why }) => Left::Untold(why.clone()),
            Some(Outcome::Armed | Outcome::Reverted) => Left::Untried,
            Some(Outcome::Blessed) => Left::Untold("it was good, and was left later".to_owned()),
            None if intent.stage == Stage::Arming => Left::Untried,
            None => Left::Untold("the record of its trial is lost".to_owned()),
        }
    }
}

fn note(content: &mut Content, intent: &Intent, left: &Left, running: &str) {
    match left {
        Left::Failed(why) => {
            content.intent = None;
            content.failed.push(intent.release.install);
            let text = format!("{running} runs instead: {why}");
            content.events.push(event(&intent.release, UpdateEventKind::FellBack, &text));
        }
        Left::Untold(why) => {
            content.intent = None;
            let text = format!("{running} runs instead, and it may be tried again: {why}");
            content.events.push(event(&intent.release, UpdateEventKind::FellBack, &text));
        }
        // It may still boot: that is asked of PID 1 before anything is done with the slot.
        Left::Untried => content.intent = Some(Intent { stage: Stage::Arming, ..intent.clone() }),
    }
}

/// The published record; none if there is none, or one that is not whole.
fn read(path: &std::path::Path) -> Option<Trials> {
    let mut bytes = Vec::new();
    let most = u64::try_from(FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Trials::decode(&bytes).map_err(|error| eprintln!("{}: {error}", path.display())).ok()
}
