//! The three encodings a layer may have, told apart by their first bytes.
//!
//! The media type is a claim; the bytes decide, as in every other unpacker (docker archives have no media type at all).

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest zstd window, as a power of two: 8 MiB, the format's own recommendation (RFC 8878, section 3.1.1.1.2) and
/// what bounds this process's memory.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// From the first bytes of a file.
    pub fn detect(start: &[u8]) -> Self {
        if start.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if start.starts_with(ZSTD_MAGIC) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// The plain bytes of `source`, whatever its encoding.
///
/// # Errors
/// From reading `source`, here or later; a zstd window above 8 MiB is refused by name.
pub fn decoder<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::detect(source.fill_buf()?) {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => {
            let mut inner = zstd::stream::read::Decoder::with_buffer(source)?;
            inner.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Box::new(NamedWindow { inner })
        }
    })
}

/// Says in plain words what zstd means when a window is too large.
struct NamedWindow<R> {
    inner: R,
}

impl<R: Read> Read for NamedWindow<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|e| {
            if e.to_string().contains("too much memory") {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the zstd window is larger than 8 MiB; compress the layer without --long or --ultra",
                )
            } else {
                e
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_encoding_gives_the_same_bytes() {
        let text = b"hello hello hello".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(plain(&text).unwrap(), text);
        assert_eq!(plain(&gzip).unwrap(), text);
        assert_eq!(plain(&[&gzip[..], &gzip].concat()).unwrap(), text.repeat(2));
        assert_eq!(plain(&zstd::encode_all(&text[..], 3).unwrap()).unwrap(), text);
        assert!(plain(&gzip[..gzip.len() - 1]).is_err());
    }

    #[test]
    fn a_zstd_window_above_8_mib_is_refused_by_name() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 20 << 20]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(plain(&bytes).unwrap_err().to_string().contains("8 MiB"));
    }
}
