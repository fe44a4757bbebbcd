//! Images that are here: their names, how they were built, and whether they are still what they were.

use byre_api::proto::{InspectImageRequest, TagRequest, UntagRequest, VerifyRequest};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{done, each, now};
use crate::args::ImageNames;
use crate::args_image::{HistoryArgs, TagArgs, UntagArgs};
use crate::connect::Node;
use crate::error::Failure;
use crate::output::Output;
use crate::text::{self, printable, short_id, size};

/// Characters of a command that are shown.
const COMMAND_CHARACTERS: usize = 60;

pub(super) async fn tag(node: &Node, output: &Output, args: &TagArgs) -> Result<(), Failure> {
    let request = TagRequest { image: args.image.clone(), name: args.name.clone() };
    node.image_transfers().tag(request).await?;
    done(output, &args.name)
}

pub(super) async fn untag(node: &Node, output: &Output, args: &UntagArgs) -> Result<(), Failure> {
    each(&args.names, async |name| {
        node.image_transfers().untag(UntagRequest { name: name.into() }).await?;
        done(output, name)
    })
    .await
}

/// Fails if a layer of any image is damaged.
pub(super) async fn verify(node: &Node, output: &Output, args: &ImageNames) -> Result<(), Failure> {
    each(&args.images, async |name| {
        let layers = node.image_transfers().verify(VerifyRequest { image: name.into() }).await?.into_inner().layers;
        let rows: Vec<Vec<String>> = layers
            .iter()
            .map(|layer| vec![short_id(&layer.layer), size(layer.bytes), printable(&layer.text)])
            .collect();
        let shown = |layer: &byre_api::proto::VerifiedLayer| {
            json!({"layer": layer.layer, "bytes": layer.bytes, "good": layer.good, "text": layer.text})
        };
        output.rows(&["LAYER", "SIZE", "FOUND"], &rows, layers.iter().map(shown).collect())?;
        if layers.iter().all(|layer| layer.good) {
            return Ok(());
        }
        Err(Failure::failed(
            format!("image {} is damaged", printable(name)),
            "remove it with `byrectl image rm` and bring it again",
        ))
    })
    .await
}

/// What the image's configuration says of its making; it is the builder's word, and checked by nobody.
pub(super) async fn history(node: &Node, output: &Output, args: &HistoryArgs) -> Result<(), Failure> {
    let request = InspectImageRequest { image: args.image.clone() };
    let image = node.images().inspect_image(request).await?.into_inner().image.unwrap_or_default();
    let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let steps: Vec<&Value> = config["history"].as_array().into_iter().flatten().rev().collect();
    let rows = steps.iter().map(|step| row(step, args.no_trunc)).collect::<Vec<_>>();
    output.rows(&["CREATED", "CREATED BY", "LAYER", "COMMENT"], &rows, steps.into_iter().cloned().collect())
}

fn row(step: &Value, whole: bool) -> Vec<String> {
    let text = |key: &str| printable(step[key].as_str().unwrap_or_default());
    let at = step["created"].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let at = at.map(timestamp);
    let command = text("created_by");
    let cut = !whole && command.chars().count() > COMMAND_CHARACTERS;
    let command = if cut { command.chars().take(COMMAND_CHARACTERS - 1).chain(['…']).collect() } else { command };
    let layer = if step["empty_layer"].as_bool() == Some(true) { "no" } else { "yes" };
    vec![text::ago(at.as_ref(), now()), command, layer.to_owned(), text("comment")]
}

fn timestamp(at: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.unix_timestamp(), nanos: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builders_words_are_cut_and_made_printable() {
        let step = json!({"created": "2020-01-01T00:00:00Z", "created_by": "RUN ".to_owned() + &"x".repeat(200), "comment": "a\u{1b}[0m"});
        let shown = row(&step, false);
        assert_eq!(shown[1].chars().count(), COMMAND_CHARACTERS);
        assert!(!shown[3].contains('\u{1b}') && shown[2] == "yes");
        assert_eq!(row(&step, true)[1].len(), 204);
        assert_eq!(row(&json!({"empty_layer": true}), false)[2], "no");
    }
}
