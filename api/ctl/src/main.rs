//! `byrectl`, the command line of a Byre node. It talks to the node's API and to nothing else.
//!
//! One thread runs everything; stdin and stdout have a thread each where a stream goes through them. It never prints what a node sent
//! without making control characters visible, except the output of containers, which is theirs to show.
#![forbid(unsafe_code)]

mod args;
mod args_config;
mod args_container;
mod args_image;
mod args_network;
mod args_see;
mod args_update;
mod commands;
mod connect;
mod detach;
mod error;
mod filter;
mod json;
mod output;
mod parse;
mod parse_probe;
mod session;
mod stdio;
mod tar_in;
mod tar_out;
mod terminal;
mod text;

use clap::Parser as _;

use crate::args::Cli;
use crate::error::{FAILED, Failure};
use crate::output::complain;

fn main() {
    let cli = Cli::parse();
    let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(commands::execute(cli));
            // A thread may sit in a read of stdin that nobody will ever answer.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::io("cannot start", &error)),
    };
    terminal::restore();
    std::process::exit(i32::from(report(result)));
}

/// Says what went wrong; returns the exit code.
fn report(result: Result<(), Failure>) -> u8 {
    let Err(failure) = result else { return 0 };
    if !failure.silent() {
        complain(&failure.to_string());
    }
    match failure.code() {
        0 => FAILED,
        code => code,
    }
}
