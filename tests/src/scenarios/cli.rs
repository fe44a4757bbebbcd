//! `byrectl` without a node: the README's commands exist, and what cannot work says so.

use anyhow::{Context as _, Result, ensure};

use super::{On, Scenario, contains};
use crate::ctl::Ctl;
use crate::node::Lab;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "cli::readme_commands_exist", on: On::Nothing(readme) },
    Scenario { name: "cli::a_node_that_is_not_there", on: On::Nothing(no_node) },
    Scenario { name: "cli::completions_are_printed", on: On::Nothing(completions) },
];

fn ctl(lab: &Lab) -> Ctl {
    Ctl::new(&lab.byrectl, std::path::Path::new("/nonexistent/contexts.toml"))
}

/// Each `byrectl` line of the README, with every flag, is one that the program knows.
fn readme(lab: &Lab) -> Result<()> {
    let text = std::fs::read_to_string(lab.repository.join("README.md")).context("README.md")?;
    let ctl = ctl(lab);
    let mut count = 0;
    for line in text.lines().map(str::trim).filter(|line| line.starts_with("byrectl ")) {
        let line = line.split(" #").next().unwrap_or(line);
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let commands: Vec<&str> = match words[..] {
            ["image" | "services" | "context", second, ..] if second.starts_with(|c: char| c.is_ascii_lowercase()) => {
                words[..2].to_vec()
            }
            [first, ..] => vec![first],
            [] => continue,
        };
        let help = ctl.run(&[&commands[..], &["--help"]].concat())?.ok().with_context(|| line.to_owned())?;
        let own = words.iter().skip(commands.len()).take_while(|word| word.starts_with('-'));
        for flag in own.filter(|flag| flag.starts_with("--")) {
            ensure!(help.contains(flag.split('=').next().unwrap_or(flag)), "{line}: no flag {flag}");
        }
        count += 1;
    }
    ensure!(count >= 10, "the README has only {count} byrectl lines");
    Ok(())
}

fn no_node(lab: &Lab) -> Result<()> {
    let ctl = ctl(lab);
    ctl.run(&["ps"])?.refused(&["context"])?;
    ctl.run(&["--host", "unix:///nonexistent/api.sock", "ps"])?.refused(&["/nonexistent/api.sock"])?;
    let usage = ctl.run(&["no-such-command"])?;
    ensure!(usage.code == 2, "wrong usage exits with 2: {usage}");
    Ok(())
}

fn completions(lab: &Lab) -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        contains(shell, &ctl(lab).ok(&["completion", shell])?, &["byrectl"])?;
    }
    Ok(())
}
