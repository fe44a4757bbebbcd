//! Pulls: the password from stdin, a bar for each layer, or plain lines where no person looks.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Read as _};

use byre_api::proto::{PullLayer, PullRequest, PullStep, PulledImage, RegistryCredential, pull_response};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::args_image::PullArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::json;
use crate::output::Output;
use crate::text::{printable, short_id, size};

/// Bytes read for a password; nodes take no longer one.
const PASSWORD_BYTES: u64 = 8 << 10;

/// Ctrl-C ends this program, with it the call, and with the call the pull.
pub(super) async fn pull(
    connect: impl AsyncFn() -> Result<Node, Failure>,
    output: &Output,
    args: &PullArgs,
) -> Result<(), Failure> {
    // Before anything is asked, so that a mistake costs no connection.
    let credential = match &args.username {
        Some(username) => Some(RegistryCredential { username: username.clone(), password: password()? }),
        None => None,
    };
    let ca_pem = match &args.ca_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::io(&format!("cannot read {}", path.display()), &error))?,
        None => String::new(),
    };
    let node = connect().await?;
    let request = PullRequest { image: args.image.clone(), credential, ca_pem };
    let mut answers = node.image_transfers().pull(request).await?.into_inner();
    let mut display = Display::new(args.quiet || output.json());
    let mut pulled = None;
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(pull_response::Message::Progress(progress)) => display.show(&progress.layers),
            Some(pull_response::Message::Image(image)) => pulled = Some(image),
            None => {}
        }
    }
    display.end();
    let Some(pulled) = pulled else {
        return Err(Failure::failed(
            "the node ended the pull without an image",
            "see its log with `byrectl services logs image`",
        ));
    };
    report(output, args, &pulled)
}

fn report(output: &Output, args: &PullArgs, pulled: &PulledImage) -> Result<(), Failure> {
    if output.json() {
        let image = pulled.image.as_ref().map(json::image);
        return output
            .document(&json!({"reference": pulled.reference, "new_layers": pulled.new_layers, "image": image}));
    }
    if args.quiet {
        return output.line(&printable(&pulled.reference));
    }
    let what = if pulled.new_layers == 0 { "Already here" } else { "Pulled" };
    output.line(&format!("{what}: {}", printable(&pulled.reference)))
}

/// The password on stdin.
fn password() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(PASSWORD_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::io("cannot read the password from stdin", &error))?;
    if text.len() as u64 > PASSWORD_BYTES {
        return Err(Failure::usage("the password on stdin is longer than 8 KiB", "pipe in the password only"));
    }
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::usage(
            "there is no password on stdin",
            "pipe it in, as in `cat password | byrectl pull …`",
        ));
    }
    Ok(password.to_owned())
}

/// What a person, or a log, sees of a pull. On stderr.
enum Display {
    Hidden,
    Lines(HashMap<String, PullStep>),
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar> },
}

impl Display {
    fn new(hidden: bool) -> Self {
        if hidden {
            Self::Hidden
        } else if std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines(HashMap::new())
        }
    }

    fn show(&mut self, layers: &[PullLayer]) {
        match self {
            Self::Hidden => {}
            Self::Lines(shown) => {
                for layer in layers {
                    if shown.insert(layer.digest.clone(), layer.step()) != Some(layer.step()) {
                        eprintln!("{}: {}", short_id(&layer.digest), words(layer));
                    }
                }
            }
            Self::Bars { all, bars } => {
                for layer in layers {
                    let bar = bars.entry(layer.digest.clone()).or_insert_with(|| all.add(new_bar(layer)));
                    update(bar, layer);
                }
            }
        }
    }

    fn end(&self) {
        if let Self::Bars { all, bars } = self {
            bars.values().for_each(ProgressBar::abandon);
            // The lines stay; a terminal that is gone shows nothing anyway.
            let _ = all.println("");
        }
    }
}

fn words(layer: &PullLayer) -> String {
    match layer.step() {
        PullStep::Unspecified | PullStep::Waiting => "waits".to_owned(),
        PullStep::Fetching => format!("comes ({})", size(layer.total)),
        PullStep::Joined => "comes for another pull".to_owned(),
        PullStep::Kept => "is here already".to_owned(),
        PullStep::Done => format!("is here ({})", size(layer.total)),
    }
}

fn new_bar(layer: &PullLayer) -> ProgressBar {
    let bar = ProgressBar::new(layer.total).with_prefix(short_id(&layer.digest));
    let style = "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4} {msg}";
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn update(bar: &ProgressBar, layer: &PullLayer) {
    bar.set_length(layer.total);
    match layer.step() {
        PullStep::Unspecified | PullStep::Waiting => {
            // Its rate is to be that of its bytes, not of its wait.
            bar.reset_eta();
            bar.set_message("waits");
        }
        PullStep::Fetching | PullStep::Joined => {
            bar.set_message("");
            bar.set_position(layer.done);
        }
        PullStep::Kept | PullStep::Done => {
            if !bar.is_finished() {
                bar.set_position(layer.total);
                bar.abandon_with_message(if layer.step() == PullStep::Kept { "was here" } else { "done" });
            }
        }
    }
}
