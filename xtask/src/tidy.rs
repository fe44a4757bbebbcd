//! House rules that a compiler does not check, as tests over the files of the repository.
//!
//! Each check is a function from (path, text) to complaints, so that it can be tried on made-up files too. Nothing here changes a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of production code in one file; what follows `#[cfg(test)]` on a module does not count.
const FILE_LINES: usize = 600;

/// Files that may be longer, each with its reason.
const LONGER_FILES: &[(&str, usize, &str)] = &[];

/// Crates that are linked into PID 1: no panic path on anything that came from outside.
const PID1_CRATES: &[&str] = &[
    "init",
    "init/core",
    "init/protocol",
    "runtime/plan",
    "runtime/launch",
    "rootfs/boots",
    "rootfs/loader",
    "rootfs/slots",
    "rootfs/verity",
];

/// The lints that forbid one.
const PANIC_LINTS: &[&str] = &[
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::panic",
    "clippy::indexing_slicing",
    "clippy::arithmetic_side_effects",
];

/// Text that may stand in no file. Split, so that this file does not contain it.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "say what is missing in an issue, not in the code"),
    (concat!("FIX", "ME"), "say what is missing in an issue, not in the code"),
    (concat!("XX", "X "), "say what is missing in an issue, not in the code"),
    (concat!("place", "holder"), "what is there is the real thing"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/fa", "rm/"), "a path of one machine"),
    (concat!("/home", "/"), "a path of one machine"),
];

/// A file of the repository: path relative to its root, and text.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_under(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The part that is shipped: everything before the first test module.
    fn production(&self) -> &str {
        self.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or("")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file below the root but for build results and git's own. Not git's list of files, which leaves out those not added yet.
fn files() -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = entry.file_name();
            let kind = entry.file_type().unwrap();
            if name == ".git" {
                continue;
            }
            if kind.is_dir() && name != "target" {
                open.push(path);
            } else if kind.is_file()
                && name != "Cargo.lock"
                && let Ok(text) = fs::read_to_string(root.join(&path))
            {
                found.push(File { path: path.to_str().unwrap().to_owned(), text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

fn text_of(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn headers(files: &[File]) -> Vec<String> {
    let bare = files.iter().filter(|file| file.is_rust() && !file.text.starts_with("//!"));
    bare.map(|file| format!("{}: opens without a `//!` that says what it is for", file.path)).collect()
}

fn lengths(files: &[File], exceptions: &[(&str, usize, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines = file.production().lines().count();
        let bound =
            exceptions.iter().find(|(path, _, _)| *path == file.path).map_or(FILE_LINES, |(_, bound, _)| *bound);
        if lines > bound {
            found.push(format!(
                "{}: {lines} lines, more than {bound}: one subject each, or a reason in the list",
                file.path
            ));
        }
    }
    for (path, _, _) in exceptions.iter().filter(|(path, _, _)| !files.iter().any(|file| file.path == *path)) {
        found.push(format!("{path}: in the list of longer files, but not there"));
    }
    found
}

fn panics(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for folder in PID1_CRATES {
        let entry = ["src/lib.rs", "src/main.rs"].map(|name| format!("{folder}/{name}"));
        for file in files.iter().filter(|file| entry.contains(&file.path)) {
            for lint in PANIC_LINTS {
                let denied = file
                    .text
                    .split("#![deny(")
                    .skip(1)
                    .any(|rest| rest.split(")]").next().is_some_and(|list| list.contains(lint)));
                if !denied {
                    found.push(format!("{}: does not deny {lint}", file.path));
                }
            }
        }
        let sources = files.iter().filter(|file| file.is_rust() && file.is_under(&format!("{folder}/src")));
        for file in sources.filter(|file| !is_test_file(&file.path)) {
            for (number, line) in file.production().lines().enumerate() {
                let allows = line.contains("allow(") || line.contains("expect(clippy");
                let for_tests = line.contains("cfg_attr(test");
                if allows && !for_tests && PANIC_LINTS.iter().any(|lint| line.contains(lint)) {
                    found.push(format!("{}:{}: allows a panic path in PID 1", file.path, number + 1));
                }
            }
        }
    }
    found
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

fn forbidden(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            for (text, reason) in FORBIDDEN.iter().filter(|(text, _)| line.contains(text)) {
                found.push(format!("{}:{}: `{}`: {reason}", file.path, number + 1, text.trim()));
            }
        }
    }
    found
}

/// Checks that only one kind of build has: `debug_assert` is for our own mistakes and stays allowed.
fn build_kinds(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for (number, line) in
            file.text.lines().enumerate().filter(|(_, line)| line.contains(concat!("debug_asser", "tions")))
        {
            found.push(format!("{}:{}: depends on the kind of build: {}", file.path, number + 1, line.trim()));
        }
    }
    found
}

fn manifests(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        for line in ["license.workspace = true", "publish.workspace = true", "[lints]\nworkspace = true"] {
            if !file.text.contains(line) {
                found.push(format!("{}: lacks `{}`", file.path, line.replace('\n', " ")));
            }
        }
    }
    found
}

/// What stands in backquotes after each `Test:`, `Tests:` or `Benchmark:` up to the end of its paragraph or table cell.
fn named_tests(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for paragraph in text.split("\n\n").flat_map(|paragraph| paragraph.split('|')) {
        let Some((_, rest)) = ["Tests:", "Test:"].iter().find_map(|mark| paragraph.split_once(mark)) else { continue };
        names.extend(rest.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    names
}

/// Every name that a test can be called by: functions after `#[test]`, property tests, scenarios (`group::name`).
fn existing_tests(files: &[File]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let test = line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let function =
                lines.iter().skip(number + 1).take(6).find_map(|line| {
                    line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?.split('(').next()
                });
            if test && let Some(function) = function {
                names.insert(function.to_owned());
            }
        }
        if file.is_under("tests/src") {
            names.extend(file.text.split('"').filter(|text| text.contains("::")).map(str::to_owned));
        }
    }
    names
}

fn missing_tests(path: &str, text: &str, existing: &BTreeSet<String>) -> Vec<String> {
    let missing = named_tests(text).into_iter().filter(|name| !existing.contains(name));
    missing.map(|name| format!("{path}: names the test `{name}`, which does not exist")).collect()
}

/// The subcommands that a document tells its reader to type after `program`.
fn commands_in<'a>(text: &'a str, program: &str) -> BTreeSet<&'a str> {
    let rests = text.split(program).skip(1);
    let words =
        rests.filter_map(|rest| rest.strip_prefix(' ')?.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next());
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

fn clean(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    clean(&headers(&files()));
}

#[test]
fn files_stay_within_their_bound() {
    clean(&lengths(&files(), LONGER_FILES));
}

#[test]
fn crates_of_pid1_deny_panics() {
    clean(&panics(&files()));
}

#[test]
fn nothing_unfinished_and_no_path_of_one_machine() {
    clean(&forbidden(&files()));
}

#[test]
fn debug_and_release_builds_have_the_same_checks() {
    clean(&build_kinds(&files()));
}

#[test]
fn every_crate_inherits_licence_and_lints() {
    clean(&manifests(&files()));
}

#[test]
fn documents_name_tests_that_exist() {
    let existing = existing_tests(&files());
    for path in ["ARCHITECTURE.md", "SPECIFICATION.md"] {
        clean(&missing_tests(path, &text_of(path), &existing));
    }
}

#[test]
fn each_invariant_names_its_test() {
    let text = text_of("ARCHITECTURE.md");
    let (_, section) = text.split_once("## Invariants\n").expect("ARCHITECTURE.md has the section Invariants");
    let section = section.split("\n## ").next().unwrap_or("");
    let items = section.split("\n\n").filter(|item| item.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    let without: Vec<String> = items.clone().filter(|item| named_tests(item).is_empty()).map(str::to_owned).collect();
    clean(&without);
    assert_eq!(items.count(), 9, "design: nine invariants");
}

#[test]
fn documented_xtask_commands_exist() {
    use clap::CommandFactory as _;
    let command = crate::Cli::command();
    let known: BTreeSet<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let mut unknown = Vec::new();
    for file in files().iter().filter(|file| file.path.ends_with(".md") && file.path != "CHANGELOG.md") {
        let named = commands_in(&file.text, "cargo xtask");
        unknown
            .extend(named.difference(&known).map(|name| format!("{}: `cargo xtask {name}` does not exist", file.path)));
    }
    clean(&unknown);
}

#[test]
fn a_broken_rule_is_noticed() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
    let long = format!("//! x\n{}", "\n".repeat(FILE_LINES));
    assert_eq!(headers(&[file("a.rs", "fn main() {}")]).len(), 1);
    assert_eq!(lengths(&[file("a.rs", &long)], &[]).len(), 1);
    assert_eq!(lengths(&[file("a.rs", &long)], &[("a.rs", 700, "why")]).len(), 0);
    assert_eq!(lengths(&[file("a.rs", &format!("//! x\n#[cfg(test)]\nmod tests {{\n{long}}}"))], &[]).len(), 0);
    assert_eq!(panics(&[file("init/core/src/lib.rs", "//! x")]).len(), PANIC_LINTS.len());
    assert_eq!(panics(&[file("init/core/src/a.rs", "#[allow(clippy::unwrap_used)]")]).len(), 1);
    assert_eq!(forbidden(&[file("a.md", concat!("// TO", "DO later"))]).len(), 1);
    assert_eq!(build_kinds(&[file("a.rs", concat!("if cfg!(debug_asser", "tions) {}"))]).len(), 1);
    assert_eq!(manifests(&[file("a/Cargo.toml", "license.workspace = true")]).len(), 2);
}

#[test]
fn a_named_test_that_does_not_exist_is_noticed() {
    let sources = [File {
        path: "a.rs".into(),
        text: "#[test]\nfn it_holds() {}\n#[test]\n#[ignore = \"root\"]\nfn b() {}".into(),
    }];
    let existing = existing_tests(&sources);
    assert_eq!(existing.len(), 2);
    let text = "1. Always. Test: `it_holds`, `b`.\n\n2. Never.\n   Test: `nobody`.\n\n`other`";
    assert_eq!(named_tests(text), ["it_holds", "b", "nobody"]);
    assert_eq!(missing_tests("A.md", text, &existing).len(), 1);
}

#[test]
fn commands_are_read_from_a_document() {
    let text = "`cargo xtask up` then cargo xtask container-image busybox x.tar; `cargo xtask` alone";
    assert_eq!(commands_in(text, "cargo xtask").into_iter().collect::<Vec<_>>(), ["container-image", "up"]);
}
