//! Ways in for a fuzzer: what a registry and its token server say, and what an operator's files say.

use crate::{challenge, client, credentials, token, url};

/// Reads `WWW-Authenticate`; what is accepted names a way in and is not longer than its header.
///
/// # Panics
/// If it is: that is what the fuzzer looks for.
pub fn fuzz_challenge(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(found) = challenge::parse(text) else { return false };
    assert!(!found.is_empty());
    for challenge in &found {
        if let challenge::Challenge::Bearer { realm, service, scope } = challenge {
            assert!(realm.len() + service.len() + scope.as_ref().map_or(0, String::len) <= text.len());
        }
    }
    true
}

/// Reads the answer of a token server; what is accepted fits a header.
///
/// # Panics
/// If it does not.
pub fn fuzz_token(data: &[u8]) -> bool {
    let Ok((token, life)) = token::read(data) else { return false };
    assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(life.as_secs() <= 3600);
    true
}

/// Follows a `Location`, after a line break the header; what is accepted reads back the same.
///
/// # Panics
/// If it does not.
pub fn fuzz_location(data: &[u8]) -> bool {
    let Some(location) = std::str::from_utf8(data).ok() else { return false };
    let base = url::Url::parse("https://registry.example/v2/x/blobs/y").expect("a good address");
    let Ok(to) = base.join(location) else { return false };
    assert_eq!(url::Url::parse(&to.to_string()).as_ref(), Ok(&to));
    assert!(!to.origin.authority().contains('@'));
    true
}

/// Reads docker's `config.json`; nothing that is accepted shows a secret when it is printed.
///
/// # Panics
/// If it does.
pub fn fuzz_docker_config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(found) = credentials::docker_config(text) else { return false };
    for credential in found.values() {
        let printed = format!("{credential:?}");
        assert!(printed == "Password(hidden)" || printed == "Identity(hidden)");
    }
    true
}

/// Reads an error's body; its words are printable and short.
///
/// # Panics
/// If they are not.
pub fn fuzz_words(data: &[u8]) -> bool {
    let words = client::words_of(data);
    assert!(words.chars().count() <= 302 && !words.chars().any(char::is_control));
    !words.is_empty()
}
