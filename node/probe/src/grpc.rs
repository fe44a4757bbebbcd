//! One call of the gRPC health service, version 1 (`grpc.health.v1.Health/Check`), as bytes: what is sent, and what an answer is judged.
//!
//! It is one fixed request on a connection of its own, and of the answer only frame headers (RFC 9113 section 4.1) and one small message are
//! looked at. A whole HTTP/2 client would bring its runtime and its header tables into a process that joins other namespaces. The server's
//! settings are not acknowledged: the connection is over before a server waits for that.

/// What a client begins a connection with (RFC 9113 section 3.4), and settings of nothing but defaults.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length, type, flags and stream of a frame.
const FRAME_HEADER_BYTES: usize = 9;
/// Compressed or not, and the length of a gRPC message.
const MESSAGE_HEADER_BYTES: usize = 5;
/// An answer that takes more is none: settings, headers and a message of two bytes are some hundred bytes.
pub(crate) const ANSWER_BYTES: usize = 16 * 1024;
/// The one stream.
const STREAM: u32 = 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GO_AWAY: u8 = 7;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The whole request. `service` is what is asked about, ASCII of at most [`byre_protocol::probe::TARGET_BYTES`].
pub(crate) fn request(port: u16, service: &str) -> Vec<u8> {
    let mut headers = vec![0x83, 0x86]; // :method POST, :scheme http
    literal(&mut headers, 4, b"/grpc.health.v1.Health/Check"); // :path
    literal(&mut headers, 1, format!("localhost:{port}").as_bytes()); // :authority
    literal(&mut headers, 31, b"application/grpc"); // content-type
    headers.extend_from_slice(b"\0\x02te\x08trailers");
    let mut name = Vec::new();
    if !service.is_empty() {
        name.push(0x0a); // field 1, bytes
        varint(&mut name, service.len());
        name.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(&name);
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, HEADERS, END_HEADERS, &headers);
    frame(&mut bytes, DATA, END_STREAM, &message);
    bytes
}

/// A header that is not put into any table (RFC 7541 section 6.2.2), its name from the static one. `value` has less than 127 bytes.
fn literal(headers: &mut Vec<u8>, name: u8, value: &[u8]) {
    match name.checked_sub(15) {
        None => headers.push(name),
        Some(rest) => headers.extend_from_slice(&[15, rest]),
    }
    headers.push(u8::try_from(value.len()).unwrap_or(126));
    headers.extend_from_slice(value);
}

fn varint(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap_or(0));
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    bytes.extend_from_slice(length.get(1..).unwrap_or_default());
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&STREAM.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Whether the answer so far says that the service serves; `None` while it is not whole.
pub(crate) fn verdict(gathered: &[u8]) -> Option<bool> {
    let mut rest = gathered;
    let mut message = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let [high, middle, low, kind, flags, stream @ ..] = *header;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let is_ours = u32::from_be_bytes(stream) & 0x7fff_ffff == STREAM;
        let Some((payload, behind)) = behind.split_at_checked(length) else { break };
        rest = behind;
        match kind {
            DATA if is_ours => match unpadded(payload, flags) {
                Some(data) => message.extend_from_slice(data),
                None => return Some(false),
            },
            RESET if is_ours => return Some(false),
            GO_AWAY => return Some(false),
            _ => {}
        }
        if let Some(serves) = serves(&message) {
            return Some(serves);
        }
        if is_ours && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Some(false);
        }
    }
    (gathered.len() >= ANSWER_BYTES).then_some(false)
}

fn unpadded(payload: &[u8], flags: u8) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (padding, data) = payload.split_first()?;
    data.get(..data.len().checked_sub(usize::from(*padding))?)
}

/// Whether a `HealthCheckResponse` says SERVING; `None` while it is not whole.
fn serves(message: &[u8]) -> Option<bool> {
    let (header, body) = message.split_first_chunk::<MESSAGE_HEADER_BYTES>()?;
    let [compressed, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    if compressed != 0 || length > ANSWER_BYTES {
        return Some(false);
    }
    // Field 1, a number: 1 is SERVING. A response of nothing is UNKNOWN.
    Some(body.get(..length)?.starts_with(&[0x08, 0x01]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(frames: &[(u8, u8, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, flags, stream, payload) in frames {
            bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
            bytes.extend_from_slice(&[*kind, *flags]);
            bytes.extend_from_slice(&stream.to_be_bytes());
            bytes.extend_from_slice(payload);
        }
        bytes
    }

    #[test]
    fn serving_passes_however_it_is_framed() {
        let settings = (4, 0, 0, &[][..]);
        let headers = (HEADERS, END_HEADERS, 1, &[0x88][..]);
        let whole = answer(&[settings, headers, (DATA, 0, 1, &[0, 0, 0, 0, 2, 8, 1])]);
        assert_eq!(verdict(&whole), Some(true));
        let padded = answer(&[settings, headers, (DATA, PADDED, 1, &[2, 0, 0, 0, 0, 2, 8, 1, 0, 0])]);
        assert_eq!(verdict(&padded), Some(true));
        let split = answer(&[headers, (DATA, 0, 1, &[0, 0, 0]), (DATA, 0, 1, &[0, 2, 8, 1])]);
        assert_eq!(verdict(&split), Some(true));
        for length in 0..whole.len() {
            assert_eq!(verdict(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn everything_else_fails() {
        let not_serving = answer(&[(DATA, 0, 1, &[0, 0, 0, 0, 2, 8, 2])]);
        let unknown_service = answer(&[(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88])]);
        let reset = answer(&[(RESET, 0, 1, &[0; 4])]);
        let go_away = answer(&[(GO_AWAY, 0, 0, &[0; 8])]);
        let compressed = answer(&[(DATA, 0, 1, &[1, 0, 0, 0, 2, 8, 1])]);
        for bad in [not_serving, unknown_service, reset, go_away, compressed, vec![0xff; ANSWER_BYTES]] {
            assert_eq!(verdict(&bad), Some(false), "{bad:?}");
        }
    }

    #[test]
    fn the_request_names_the_service() {
        let bytes = request(50051, "store.v1");
        assert!(bytes.starts_with(PREFACE));
        assert!(bytes.ends_with(b"\0\0\0\0\x0a\x0a\x08store.v1"));
        let long = request(1, &"x".repeat(300));
        assert!(long.windows(3).any(|window| window == [0x0a, 0xac, 0x02]));
    }
}
