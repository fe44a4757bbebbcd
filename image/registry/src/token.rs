//! Tokens: what a token server gives for a credential, or for none (distribution's token and OAuth2 specifications).
//!
//! The server is the one that the registry names, so it sees the credential that is meant for that registry; without TLS only where the
//! registry itself has none by the node's own settings. It is not followed to anywhere else.

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Deserialize;

use crate::client::{AGENT, words_of};
use crate::credentials::Credential;
use crate::error::RegistryError;
use crate::transport::Transport;
use crate::url::{Origin, Scheme, Url};

/// Largest answer: tokens list what they allow, and have some kilobytes.
const MAX_ANSWER_LEN: u64 = 64 << 10;
/// Largest token; it must fit a header.
const MAX_TOKEN_LEN: usize = 32 << 10;
/// How long a token is good for if its server does not say (the token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest time that a token is kept.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);

/// What is asked of a token server.
pub(crate) struct Asked<'a> {
    /// The registry that named it.
    pub(crate) registry: &'a Origin,
    /// Its address, from the registry's header.
    pub(crate) realm: &'a str,
    /// From the same header.
    pub(crate) service: &'a str,
    /// What the token is to allow.
    pub(crate) scope: &'a str,
    /// Who asks.
    pub(crate) credential: Option<&'a Credential>,
}

#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Reads a token server's answer; also a fuzzer's way in.
pub(crate) fn read(bytes: &[u8]) -> Result<(String, Duration), &'static str> {
    let given: Given = serde_json::from_slice(bytes).map_err(|_| "its answer is not the JSON of a token")?;
    let token = given.token.filter(|token| !token.is_empty()).or(given.access_token).unwrap_or_default();
    if token.is_empty() {
        return Err("its answer has no token");
    }
    if token.len() > MAX_TOKEN_LEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("its token is too long or not text");
    }
    let life = given.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    Ok((token, life.min(LONGEST_LIFE)))
}

/// Gets a token and how long it is good for.
///
/// # Errors
/// `Token`, `Challenge`, and those of the connection.
pub(crate) async fn fetch(transport: &Transport, asked: &Asked<'_>) -> Result<(String, Duration), RegistryError> {
    let bad = |why: String| RegistryError::Challenge { host: asked.registry.authority(), why };
    let realm = Url::parse(asked.realm).map_err(|error| bad(error.to_string()))?;
    if realm.origin.scheme == Scheme::Http && asked.registry.scheme == Scheme::Https {
        return Err(bad("its token server has no TLS".to_owned()));
    }
    if realm.origin.scheme == Scheme::Http
        && realm.origin != *asked.registry
        && !transport.settings.is_plain(&realm.origin.authority())
        && !transport.settings.is_direct(realm.origin.name())
    {
        return Err(bad("its token server is another host without TLS".to_owned()));
    }
    let (url, request) = request(&realm, asked).map_err(|why| bad(why.to_owned()))?;
    let failed = |why: String| RegistryError::Token { host: realm.origin.authority(), why };
    let answer = transport.send(&url, &request).await?;
    let status = answer.response.status();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(RegistryError::Busy {
            host: realm.origin.authority(),
            status: status.as_u16(),
            tries: 1,
            said: String::new(),
        });
    }
    if status.is_redirection() {
        return Err(failed("it redirects, and credentials are not sent elsewhere".to_owned()));
    }
    let bytes = answer.whole(transport, "a token", MAX_ANSWER_LEN).await?;
    if !status.is_success() {
        let why = if asked.credential.is_some() { "; check the user name and the password" } else { "" };
        return Err(failed(format!("it answered {}{}{why}", status.as_u16(), words_of(&bytes))));
    }
    read(&bytes).map_err(|why| failed(why.to_owned()))
}

fn request(realm: &Url, asked: &Asked<'_>) -> Result<(Url, Request<Full<Bytes>>), &'static str> {
    let pair = |name: &str, value: &str| format!("{name}={}", encoded(value));
    let mut request = Request::new(Full::default());
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let mut pairs = vec![pair("scope", asked.scope)];
    if !asked.service.is_empty() {
        pairs.push(pair("service", asked.service));
    }
    match asked.credential {
        Some(Credential::Identity { token }) => {
            pairs.extend([
                pair("grant_type", "refresh_token"),
                pair("client_id", "byre"),
                pair("refresh_token", token),
            ]);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            *request.method_mut() = Method::POST;
            *request.body_mut() = Full::new(pairs.join("&").into());
            return Ok((realm.clone(), request));
        }
        Some(credential @ Credential::Password { username, .. }) => {
            pairs.push(pair("account", username));
            let value = credential.basic().unwrap_or_default();
            let mut value = HeaderValue::from_str(&value).map_err(|_| "the credential fits no header")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        None => {}
    }
    let separator = if realm.target.contains('?') { '&' } else { '?' };
    let url = Url { target: format!("{}{separator}{}", realm.target, pairs.join("&")), ..realm.clone() };
    Ok((url, request))
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, section 2.3).
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_bounded() {
        assert_eq!(read(br#"{"token":"t","expires_in":300}"#), Ok(("t".into(), Duration::from_secs(300))));
        assert_eq!(read(br#"{"access_token":"a","token":""}"#), Ok(("a".into(), DEFAULT_LIFE)));
        assert_eq!(read(br#"{"token":"t","expires_in":99999999}"#), Ok(("t".into(), LONGEST_LIFE)));
        assert!(read(b"{}").is_err() && read(b"<html>").is_err());
        assert!(read(br#"{"token":"a\r\nX: y"}"#).is_err(), "a line break would be a header of its own");
        assert!(read(format!(r#"{{"token":"{}"}}"#, "x".repeat(MAX_TOKEN_LEN + 1)).as_bytes()).is_err());
    }

    #[test]
    fn what_is_asked_is_encoded() {
        let realm = Url::parse("https://t.example/token?x=1").unwrap();
        let credential = Credential::password("me&you", "word").unwrap();
        let asked = Asked {
            registry: &realm.origin,
            realm: "",
            service: "a b",
            scope: "repository:x/y:pull",
            credential: Some(&credential),
        };
        let (url, request) = request(&realm, &asked).unwrap();
        assert_eq!(url.target, "/token?x=1&scope=repository%3Ax%2Fy%3Apull&service=a%20b&account=me%26you");
        assert!(!url.target.contains("word") && request.headers().contains_key(AUTHORIZATION));
    }
}
