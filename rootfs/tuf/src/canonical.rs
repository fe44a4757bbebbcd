//! Canonical JSON: the one form of a value that signatures and key names are over. Keys in order of their bytes, no blanks, whole numbers
//! only, and in strings nothing escaped but quotes and backslashes.

use serde_json::Value;

/// The canonical form; `None` for a number that is not whole, which it cannot express.
#[must_use]
pub fn canonical(value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Some(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_f64() => return None,
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::String(text) => write_text(text, out),
        Value::Array(values) => {
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(value, out)?;
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            // Whatever order the map has by itself.
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            out.push(b'{');
            for (index, name) in names.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(name, out);
                out.push(b':');
                write(fields.get(name)?, out)?;
            }
            out.push(b'}');
        }
    }
    Some(())
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_form() {
        let value: Value =
            serde_json::from_str(r#"{ "b": [1, -2, true, null], "a": {"z": "q\"\\\n", "Z": ""} }"#).unwrap();
        let expected = "{\"a\":{\"Z\":\"\",\"z\":\"q\\\"\\\\\n\"},\"b\":[1,-2,true,null]}";
        assert_eq!(canonical(&value).unwrap(), expected.as_bytes());
        assert_eq!(canonical(&serde_json::json!(1.5)), None);
    }
}
