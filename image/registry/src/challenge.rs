//! `WWW-Authenticate` (RFC 9110, section 11.6.1): what a registry wants to be shown before it answers.
//!
//! Only Bearer with a token server (distribution's token specification) and Basic are known. Others are skipped; a header with
//! neither is refused.

/// Longest header looked at.
const MAX_HEADER_LEN: usize = 4096;
/// Most parameters of one challenge; a token server needs three.
const MAX_PARAMETERS: usize = 16;

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A user name and a password.
    Basic,
    /// A token from a token server.
    Bearer {
        /// The token server's address, as text.
        realm: String,
        /// What the token is for; may be empty.
        service: String,
        /// What the token must allow, if the registry says so.
        scope: Option<String>,
    },
}

/// The challenges of one header that are known, in its order.
///
/// # Errors
/// If it is too long, malformed, or has none that is known.
pub(crate) fn parse(header: &str) -> Result<Vec<Challenge>, &'static str> {
    if header.len() > MAX_HEADER_LEN {
        return Err("the header is longer than 4096 bytes");
    }
    let mut rest = header;
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let (scheme, after) = token(rest).ok_or("it does not begin with a scheme")?;
        let (parameters, after) = parameters(after)?;
        rest = after;
        let value =
            |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let realm = value("realm").ok_or("it names no token server (realm)")?;
            found.push(Challenge::Bearer {
                realm,
                service: value("service").unwrap_or_default(),
                scope: value("scope"),
            });
        }
    }
    if found.is_empty() { Err("neither Bearer nor Basic") } else { Ok(found) }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let end = text.bytes().position(|byte| !is_token(byte)).unwrap_or(text.len());
    if end == 0 { None } else { Some(text.split_at(end)) }
}

type Parameters<'t> = (Vec<(String, String)>, &'t str);

/// `name=value` pairs up to the end or to the next scheme.
fn parameters(mut rest: &str) -> Result<Parameters<'_>, &'static str> {
    let mut found: Vec<(String, String)> = Vec::new();
    loop {
        let at = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = token(at) else {
            return if at.is_empty() { Ok((found, at)) } else { Err("a parameter has no name") };
        };
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            // A word without a value begins the next challenge.
            return Ok((found, at));
        };
        if found.len() >= MAX_PARAMETERS {
            return Err("it has more than 16 parameters");
        }
        let value = value.trim_start_matches([' ', '\t']);
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            quoted_string(quoted)?
        } else {
            let (value, after) = token68(value);
            (value.to_owned(), after)
        };
        if found.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return Err("a parameter is there twice");
        }
        found.push((name.to_owned(), value));
        rest = after;
    }
}

fn token68(text: &str) -> (&str, &str) {
    text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()))
}

fn quoted_string(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(characters.next().ok_or("a quoted text ends in a backslash")?.1),
            other => value.push(other),
        }
    }
    Err("a quoted text does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_of_real_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull""#;
        assert_eq!(
            parse(hub),
            Ok(vec![Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: "registry.docker.io".into(),
                scope: Some("repository:library/x:pull".into()),
            }])
        );
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), Ok(vec![Challenge::Basic]));
        let both = parse(r#"basic realm="a, \"b\"", Negotiate, Bearer realm=https://t.example/t , service=s"#).unwrap();
        assert_eq!(both.len(), 2);
        assert!(
            matches!(&both[1], Challenge::Bearer { realm, service, scope: None } if realm == "https://t.example/t" && service == "s")
        );
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        for header in [
            "",
            "Negotiate",
            "Bearer service=x",
            "Bearer realm=\"never ends",
            "Bearer realm=\"x\\",
            "=x",
            "Bearer realm=a, realm=b",
        ] {
            assert!(parse(header).is_err(), "{header}");
        }
        assert!(parse(&format!("Bearer realm=\"{}\"", "x".repeat(5000))).is_err());
        let many: String = (0..100).map(|n| format!("p{n}=1,")).collect();
        assert!(parse(&format!("Bearer {many}")).is_err());
    }
}
