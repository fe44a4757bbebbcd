//! Holds docs/runtime.md to the program: the tables of fields are made from the table that reading a bundle uses, and every command and option
//! is named.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use byre_spec::oci::fields::{FIELDS, Verdict};

const BEGIN: &str = "<!-- fields: made by `BYRE_WRITE_DOCS=1 cargo test -p byre-oci --test docs` -->\n";
const END: &str = "<!-- end of fields -->\n";

fn path() -> String {
    format!("{}/../../docs/runtime.md", env!("CARGO_MANIFEST_DIR"))
}

/// Two tables: what is honoured, by object; what is refused, with the remedy.
fn tables() -> String {
    let mut honoured: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut refused: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut always = Vec::new();
    let (mut taken, mut not_taken) = (0, 0);
    for (field, verdict) in FIELDS.iter().filter(|(field, _)| !field.ends_with("[]")) {
        match verdict {
            Verdict::Honoured => {
                taken += 1;
                let (parent, name) = field.rsplit_once('.').unwrap_or(("config.json", field));
                match honoured.iter_mut().find(|(known, _)| *known == parent) {
                    Some((_, names)) => names.push(name),
                    None => honoured.push((parent, vec![name])),
                }
            }
            Verdict::Always(how) => always.push((field, how)),
            Verdict::Refused(remedy) => {
                not_taken += 1;
                refused.entry(remedy).or_default().push(field);
            }
        }
    }
    let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut text = format!("{taken} fields are honoured:\n\n| in | fields |\n|---|---|\n");
    for (parent, names) in &honoured {
        writeln!(text, "| `{parent}` | {} |", code(names)).unwrap();
    }
    text.push_str("\nWhat these ask for is always so:\n\n| field | how |\n|---|---|\n");
    for (field, how) in always {
        writeln!(text, "| `{field}` | {how} |").unwrap();
    }
    writeln!(
        text,
        "\n{not_taken} fields are refused by name when they ask for anything:\n\n| field | what to do |\n|---|---|"
    )
    .unwrap();
    for (remedy, fields) in refused {
        writeln!(text, "| {} | {remedy} |", code(&fields)).unwrap();
    }
    text
}

#[test]
fn the_page_has_the_fields_as_they_are() {
    let page = std::fs::read_to_string(path()).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = format!("\n{}\n", tables());
    if std::env::var_os("BYRE_WRITE_DOCS").is_some() {
        std::fs::write(path(), format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        return;
    }
    assert!(found == expected, "docs/runtime.md is stale: run this test with BYRE_WRITE_DOCS=1 and commit the page");
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_byre-oci")).args(arguments).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_page_names_every_command_and_option() {
    let page = std::fs::read_to_string(path()).unwrap();
    let whole = help(&[]);
    let commands: Vec<&str> = whole
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() >= 17, "{commands:?}");
    for command in commands {
        assert!(page.contains(&format!("`{command}`")), "docs/runtime.md lacks {command}");
        if matches!(command, "checkpoint" | "restore") {
            continue;
        }
        let help = help(&[command]);
        let options = help.split_whitespace().filter(|word| word.starts_with("--"));
        for option in options {
            let name: String =
                option.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
            assert!(page.contains(&name), "docs/runtime.md lacks {name} of {command}");
        }
    }
}
