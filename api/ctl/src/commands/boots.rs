//! The machine's boots: how each ended and why.

use byre_api::proto::{Boot, ListBootsRequest, ShowBootRequest};
use serde_json::{Value, json};

use crate::args::BootsShowArgs;
use crate::connect::Node;
use crate::error::Failure;
use crate::output::{Output, Tone};
use crate::text::{printable, rfc3339, span};

pub(super) async fn list(node: &Node, output: &Output) -> Result<(), Failure> {
    let boots = node.boots().list_boots(ListBootsRequest {}).await?.into_inner().boots;
    let row = |boot: &Boot| {
        vec![
            boot.number.to_string(),
            printable(&boot.slot),
            printable(&boot.version),
            rfc3339(boot.began.as_ref()),
            span(boot.heard_seconds.into()),
            if boot.trial { "trial".to_owned() } else { String::new() },
            printable(&boot.end_text),
            printable(&boot.cause),
        ]
    };
    let rows: Vec<Vec<String>> = boots.iter().map(row).collect();
    output.rows(
        &["BOOT", "SLOT", "RELEASE", "BEGAN", "RAN", "", "ENDED", "CAUSE"],
        &rows,
        boots.iter().map(document).collect(),
    )
}

pub(super) async fn show(node: &Node, output: &Output, args: &BootsShowArgs) -> Result<(), Failure> {
    let answer = node.boots().show_boot(ShowBootRequest { which: args.which }).await?.into_inner();
    let boot = answer.boot.unwrap_or_default();
    if output.json() {
        let mut document = document(&boot);
        document["kernel_log"] = answer.kernel_log.into();
        return output.document(&document);
    }
    let tone = if matches!(boot.end.as_str(), "running" | "in_order") { Tone::Good } else { Tone::Bad };
    let lines = [
        ("Boot", boot.number.to_string()),
        ("Slot", printable(&boot.slot)),
        ("Release", printable(&boot.version)),
        ("Began", rfc3339(boot.began.as_ref())),
        ("Ran", span(boot.heard_seconds.into())),
        ("Trial", if boot.trial { "yes" } else { "no" }.to_owned()),
        ("Ended", output.tone(tone, &printable(&boot.end_text))),
        ("Cause", printable(&boot.cause)),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("{name:<10} {value}"))?;
    }
    output.line("")?;
    answer.kernel_log.lines().try_for_each(|line| output.line(&printable(line)))
}

fn document(boot: &Boot) -> Value {
    json!({
        "number": boot.number,
        "slot": boot.slot,
        "version": boot.version,
        "began": rfc3339(boot.began.as_ref()),
        "heard_seconds": boot.heard_seconds,
        "trial": boot.trial,
        "end": boot.end,
        "end_text": boot.end_text,
        "cause": boot.cause,
    })
}
