//! Named nodes, and completion scripts: what needs no node.

use std::path::Path;

use byre_api::contexts::{Context, ContextError, Contexts, Pem};
use clap::CommandFactory as _;
use serde_json::{Value, json};

use crate::args::{Cli, CompletionArgs, ContextAddArgs, ContextCommand, Shell};
use crate::connect::{check_server, contexts};
use crate::error::Failure;
use crate::output::{Output, complain};

pub(super) fn context(output: &Output, command: ContextCommand) -> Result<(), Failure> {
    let (path, mut known) = contexts()?;
    match command {
        ContextCommand::Ls => return list(output, &known),
        ContextCommand::Show { name } => return show(output, &known, name.as_deref()),
        ContextCommand::Use(args) => {
            known.select(Some(&args.name))?;
            known.current = Some(args.name);
        }
        ContextCommand::Add(args) => add(&mut known, args)?,
        ContextCommand::Rm(args) => {
            known.contexts.remove(&args.name).ok_or_else(|| ContextError::Unknown(args.name.clone()))?;
            if known.current.as_deref() == Some(args.name.as_str()) {
                known.current = None;
                complain("that was the current context; choose another with `byrectl context use`");
            }
        }
    }
    Ok(known.save(&path)?)
}

fn list(output: &Output, known: &Contexts) -> Result<(), Failure> {
    let current = |name: &str| known.current.as_deref() == Some(name);
    let rows: Vec<Vec<String>> = known
        .contexts
        .iter()
        .map(|(name, context)| vec![if current(name) { "*" } else { "" }.into(), name.clone(), context.server.clone()])
        .collect();
    let values = known
        .contexts
        .iter()
        .map(|(name, context)| json!({"name": name, "server": context.server, "current": current(name)}))
        .collect();
    output.rows(&["CURRENT", "NAME", "SERVER"], &rows, values)
}

fn show(output: &Output, known: &Contexts, name: Option<&str>) -> Result<(), Failure> {
    let Some((name, context)) = known.select(name)? else {
        return Err(Failure::failed("no context is current", "choose one with `byrectl context use`"));
    };
    let pem = |pem: &Option<Pem>| pem.as_ref().map(ToString::to_string);
    let fields = [
        ("name", Some(name.to_owned())),
        ("server", Some(context.server.clone())),
        ("server_name", context.server_name.clone()),
        ("ca", pem(&context.ca)),
        ("certificate", pem(&context.certificate)),
        ("key", pem(&context.key)),
    ];
    if output.json() {
        let document = fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        return output.document(&Value::Object(document));
    }
    let shown = fields.into_iter().filter_map(|(name, value)| value.map(|value| (name, value)));
    shown
        .into_iter()
        .try_for_each(|(name, value)| output.line(&format!("{name:<12} {}", crate::text::printable(&value))))
}

fn add(known: &mut Contexts, args: ContextAddArgs) -> Result<(), Failure> {
    check_server(&args.server)?;
    if args.local != args.server.starts_with("unix://") {
        return Err(Failure::usage(
            format!("{} and --local do not fit", args.server),
            "--local is for unix:///path; host:port needs --ca, --cert and --key",
        ));
    }
    let pem = |path: Option<&Path>| path.map(|path| take(path, args.inline)).transpose();
    let context = Context {
        server: args.server.clone(),
        server_name: args.server_name.clone(),
        ca: pem(args.ca.as_deref())?,
        certificate: pem(args.cert.as_deref())?,
        key: pem(args.key.as_deref())?,
    };
    known.insert(&args.name, context)?;
    if args.make_current || known.contexts.len() == 1 {
        known.current = Some(args.name);
    }
    Ok(())
}

/// The file as the context keeps it: its text, or its absolute path, because a relative one would mean another directory.
fn take(path: &Path, inline: bool) -> Result<Pem, Failure> {
    let absolute =
        path.canonicalize().map_err(|error| Failure::io(&format!("cannot read {}", path.display()), &error))?;
    let file = Pem::File(absolute);
    let text = file.load(Path::new("/"))?;
    if !text.contains("-----BEGIN ") {
        return Err(Failure::failed(format!("{} is not PEM", path.display()), "give a file with -----BEGIN ... in it"));
    }
    if !inline {
        return Ok(file);
    }
    let begin = text.find("-----BEGIN ").unwrap_or(0);
    Ok(Pem::Inline(text[begin..].to_owned()))
}

pub(super) fn completion(output: &Output, args: &CompletionArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "byrectl", &mut script);
    output.text(&String::from_utf8_lossy(&script))
}
