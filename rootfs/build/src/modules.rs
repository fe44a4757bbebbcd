//! Kernel modules: which are shipped, what they depend on, in which order they load.
//!
//! Debian ships no `modules.dep` (it is made at installation), so dependencies and aliases are read from the modules'
//! own `.modinfo` sections. A module of the list that does not exist and is not built in fails the build.

use crate::tools::{Tools, run};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// When a module is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before the root: in the initramfs, loaded there in order.
    Early,
    /// From the root, when a device or a feature asks for it.
    Root,
}

/// A line of `rootfs/files/modules.list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stage: Stage,
    pub(crate) name: String,
}

/// Reads the list: `<stage> <name> # <reason>`. A line without a reason is an error.
pub(crate) fn parse_list(text: &str) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (entry, reason) = line.split_once('#').with_context(|| format!("modules.list: no reason in: {line}"))?;
        ensure!(!reason.trim().is_empty(), "modules.list: no reason in: {line}");
        let mut words = entry.split_whitespace();
        let stage = match words.next() {
            Some("early") => Stage::Early,
            Some("root") => Stage::Root,
            Some(_) | None => bail!("modules.list: a line starts with early or root: {line}"),
        };
        let name = normal(words.next().with_context(|| format!("modules.list: no name in: {line}"))?);
        wanted.push(Wanted { stage, name });
    }
    Ok(wanted)
}

/// A module's own description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// A shipped module: name, path below `/usr/lib/modules/<version>`, uncompressed bytes.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    info: Info,
}

/// The modules of an unpacked kernel package.
pub(crate) struct Tree<'a> {
    tools: &'a Tools,
    directory: PathBuf,
    files: BTreeMap<String, String>,
    built_in: BTreeSet<String>,
}

impl<'a> Tree<'a> {
    /// Looks at `directory` (`usr/lib/modules/<version>`).
    pub(crate) fn open(tools: &'a Tools, directory: &Path) -> Result<Self> {
        let order = std::fs::read_to_string(directory.join("modules.order"))?;
        let built_in = std::fs::read_to_string(directory.join("modules.builtin"))?;
        let name = |line: &str| line.rsplit('/').next().map(|file| normal(file.trim_end_matches(".ko")));
        Ok(Self {
            tools,
            directory: directory.to_owned(),
            files: order.lines().filter_map(|line| Some((name(line)?, line.to_owned()))).collect(),
            built_in: built_in.lines().filter_map(name).collect(),
        })
    }

    /// The wanted modules of `stage` and what they depend on, each after its dependencies.
    pub(crate) fn closure(&self, wanted: &[Wanted], stage: Stage) -> Result<Vec<Module>> {
        let mut loaded: BTreeMap<String, Module> = BTreeMap::new();
        let mut order = Vec::new();
        for entry in wanted.iter().filter(|entry| entry.stage == stage) {
            self.visit(&entry.name, &mut loaded, &mut order, 0)?;
        }
        order.into_iter().map(|name| loaded.remove(&name).context("module listed twice")).collect()
    }

    fn visit(
        &self,
        name: &str,
        loaded: &mut BTreeMap<String, Module>,
        order: &mut Vec<String>,
        depth: u32,
    ) -> Result<()> {
        if loaded.contains_key(name) || self.built_in.contains(name) {
            return Ok(());
        }
        ensure!(depth < 16, "module {name} depends on itself");
        let path = self
            .files
            .get(name)
            .with_context(|| format!("the kernel has no module {name}; change rootfs/files/modules.list"))?;
        let packed = self.directory.join(format!("{path}.xz"));
        let content = run(self.tools.command("bin/xz").args(["--decompress", "--stdout"]).arg(&packed))?;
        let info = parse_info(&content).with_context(|| format!("{path} is not a kernel module"))?;
        for dependency in info.depends.clone() {
            self.visit(&dependency, loaded, order, depth + 1)?;
        }
        loaded.insert(name.to_owned(), Module { name: name.to_owned(), path: path.clone(), content, info });
        order.push(name.to_owned());
        Ok(())
    }
}

/// `modules.dep` (kmod's text form): each module's path and those of its direct and indirect dependencies, nearest first.
pub(crate) fn dep_file(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|module| (module.name.as_str(), module)).collect();
    let mut out = String::new();
    for module in modules {
        let mut queue: Vec<&str> = module.info.depends.iter().map(String::as_str).collect();
        let mut seen: Vec<&str> = Vec::new();
        while let Some(next) = queue.pop() {
            if let Some(dependency) = by_name.get(next)
                && !seen.contains(&next)
            {
                seen.push(next);
                queue.extend(dependency.info.depends.iter().map(String::as_str));
            }
        }
        // Load order is kept by sorting on the place in `modules`, last first as kmod writes it.
        let mut paths: Vec<&str> = Vec::new();
        for candidate in modules.iter().rev() {
            if seen.contains(&candidate.name.as_str()) {
                paths.push(&candidate.path);
            }
        }
        out.push_str(&format!("{}: {}\n", module.path, paths.join(" ")).replace(": \n", ":\n"));
    }
    out
}

/// `modules.alias`: which device or name asks for which module.
pub(crate) fn alias_file(modules: &[Module]) -> String {
    let mut lines: Vec<String> = modules
        .iter()
        .flat_map(|module| module.info.aliases.iter().map(|alias| format!("alias {alias} {}\n", module.name)))
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// Module names are compared with underscores.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Reads `depends=` and `alias=` of the `.modinfo` section of a 64-bit ELF file.
fn parse_info(elf: &[u8]) -> Result<Info> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF file");
    let table = number(elf, 40, 8)?;
    let entry_bytes = number(elf, 58, 2)?;
    let count = number(elf, 60, 2)?;
    let names = number(elf, table + number(elf, 62, 2)? * entry_bytes + 24, 8)?;
    let mut info = Info::default();
    for index in 0..count {
        let header = table + index * entry_bytes;
        let name = names + number(elf, header, 4)?;
        if !elf.get(name..).is_some_and(|rest| rest.starts_with(b".modinfo\0")) {
            continue;
        }
        let start = number(elf, header + 24, 8)?;
        let section = elf.get(start..start + number(elf, header + 32, 8)?).context("section out of bounds")?;
        for item in section.split(|byte| *byte == 0) {
            let item = String::from_utf8_lossy(item);
            match item.split_once('=') {
                Some(("depends", list)) => {
                    info.depends = list.split(',').filter(|name| !name.is_empty()).map(normal).collect();
                }
                Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
                Some(_) | None => {}
            }
        }
    }
    Ok(info)
}

fn number(bytes: &[u8], offset: usize, size: usize) -> Result<usize> {
    let field = bytes.get(offset..offset + size).context("file cut short")?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str]) -> Module {
        Module {
            name: name.to_owned(),
            path: format!("kernel/{name}.ko"),
            content: Vec::new(),
            info: Info {
                depends: depends.iter().map(|name| (*name).to_owned()).collect(),
                aliases: vec![format!("fs-{name}")],
            },
        }
    }

    #[test]
    fn every_line_of_the_list_needs_a_reason() {
        let wanted = parse_list("# comment\nearly dm-verity # the root\n").unwrap();
        assert_eq!(wanted, [Wanted { stage: Stage::Early, name: "dm_verity".to_owned() }]);
        assert!(parse_list("early dm-verity\n").is_err());
        assert!(parse_list("late x # y\n").is_err());
    }

    #[test]
    fn dependencies_are_listed_last_loaded_first() {
        let modules = [module("a", &[]), module("b", &["a"]), module("c", &["b"])];
        assert_eq!(
            dep_file(&modules),
            "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\nkernel/c.ko: kernel/b.ko kernel/a.ko\n"
        );
        assert_eq!(alias_file(&modules), "alias fs-a a\nalias fs-b b\nalias fs-c c\n");
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        assert!(parse_info(b"\x7fELF\x02\x01").is_err());
        assert!(parse_info(b"text").is_err());
    }
}
