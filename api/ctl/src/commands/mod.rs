//! One module per family of commands; each function is one command. Here is only which is which.

mod boots;
mod chart;
mod config;
mod containers;
mod context;
mod copy;
mod debugging;
mod image;
mod labels;
mod live;
mod metrics;
mod names;
mod node;
mod output;
mod pull;
mod run;
mod supervision;
mod support;
mod top;
mod update;

use serde_json::json;
use time::OffsetDateTime;

use crate::args::{BootsCommand, Cli, Command, ImageCommand, ServicesCommand, SystemCommand};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, complain};
use crate::text::printable;

/// Runs the command.
pub(crate) async fn execute(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.global.output);
    let global = &cli.global;
    let node = async || Node::connect(global).await;
    match cli.command {
        Command::Run(args) => run::run(node, &output, &args).await,
        Command::Create(args) => run::create(&node().await?, &output, &args).await,
        Command::Start(args) => run::start(&node().await?, &output, &args).await,
        Command::Stop(args) => containers::stop(&node().await?, &output, &args).await,
        Command::Restart(args) => containers::restart(&node().await?, &output, &args).await,
        Command::Enable(args) => supervision::enable(&node().await?, &output, &args).await,
        Command::Disable(args) => supervision::disable(&node().await?, &output, &args).await,
        Command::Reset(args) => supervision::reset(&node().await?, &output, &args).await,
        Command::Kill(args) => containers::kill(&node().await?, &output, &args).await,
        Command::Rm(args) => containers::remove(&node().await?, &output, &args).await,
        Command::Wait(args) => containers::wait(&node().await?, &output, &args).await,
        Command::Ps(args) => containers::list(&node().await?, &output, &args).await,
        Command::Inspect(args) => containers::inspect(&node().await?, &output, &args).await,
        Command::Why(args) => containers::why(&node().await?, &output, &args).await,
        Command::Logs(args) => output::logs(&node().await?, &output, &args).await,
        Command::Exec(args) => run::exec(&node().await?, &args).await,
        Command::Attach(args) => run::attach(&node().await?, &args).await,
        Command::Cp(args) => copy::copy(node, &args).await,
        Command::Trace(args) => supervision::trace(&node().await?, &output, &args).await,
        Command::Stats(args) => live::stats(&node().await?, &output, &args).await,
        Command::Top(args) => top::top(&node().await?, &output, &args).await,
        Command::Processes(args) => debugging::processes(&node().await?, &output, &args).await,
        Command::Sockets(args) => debugging::sockets(&node().await?, &output, &args).await,
        Command::Events(args) => live::events(&node().await?, &output, &args).await,
        Command::Pull(args) => pull::pull(node, &output, &args).await,
        Command::Image(ImageCommand::Pull(args)) => pull::pull(node, &output, &args).await,
        Command::Image(command) => image(&node().await?, &output, &command).await,
        Command::Node(args) => node::show(&node().await?, &output, &args).await,
        Command::SupportBundle(args) => support::bundle(&node().await?, &args).await,
        Command::Services(ServicesCommand::Ls(args)) => containers::services(&node().await?, &output, &args).await,
        Command::Services(ServicesCommand::Restart(names)) => {
            containers::restart_services(&node().await?, &output, &names).await
        }
        Command::Services(ServicesCommand::Logs(args)) => output::logs(&node().await?, &output, &args).await,
        Command::Config(command) => config::config(node, &output, command).await,
        Command::Dmesg(args) => output::kernel_log(&node().await?, &output, &args).await,
        Command::Boots { command: None | Some(BootsCommand::Ls) } => boots::list(&node().await?, &output).await,
        Command::Boots { command: Some(BootsCommand::Show(args)) } => boots::show(&node().await?, &output, &args).await,
        Command::Boots { command: Some(BootsCommand::Chart(args)) } => {
            chart::draw(&node().await?, &output, &args).await
        }
        Command::Reboot(args) => node::shutdown(&node().await?, &args, true).await,
        Command::Shutdown(args) => node::shutdown(&node().await?, &args, false).await,
        Command::Update(command) => update::update(&node().await?, &output, &command).await,
        Command::System(SystemCommand::Reexec) => node::reexec(&node().await?, &output).await,
        Command::Version => node::version(node, &output).await,
        Command::Context(command) => context::context(&output, command),
        Command::Completion(args) => context::completion(&output, &args),
    }
}

async fn image(node: &Node, output: &Output, command: &ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Pull(args) => pull::pull(async || Ok(node.clone()), output, args).await,
        ImageCommand::Load(args) => image::load(node, output, args).await,
        ImageCommand::Ls(args) => image::list(node, output, args).await,
        ImageCommand::Inspect(args) => image::inspect(node, output, args).await,
        ImageCommand::Tag(args) => names::tag(node, output, args).await,
        ImageCommand::Untag(args) => names::untag(node, output, args).await,
        ImageCommand::History(args) => names::history(node, output, args).await,
        ImageCommand::Verify(args) => names::verify(node, output, args).await,
        ImageCommand::Rm(args) => image::remove(node, output, args).await,
        ImageCommand::Prune(args) => image::prune(node, output, args).await,
    }
}

/// Does something with each name. One that fails is said and does not keep the others from theirs.
async fn each(names: &[String], mut act: impl AsyncFnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut failed = 0;
    for name in names {
        match act(name).await {
            Ok(()) => {}
            Err(Failure::Closed) => return Err(Failure::Closed),
            Err(failure) if names.len() == 1 => return Err(failure),
            Err(failure) => {
                complain(&failure.to_string());
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Several(failed)) }
}

/// Echoes the name, as docker does, once the thing is done.
fn done(output: &Output, name: &str) -> Result<(), Failure> {
    if output.json() { output.json_line(&json!({"name": name})) } else { output.line(&printable(name)) }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
